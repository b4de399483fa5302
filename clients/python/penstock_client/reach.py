"""Find out why a service cannot be reached: its name, the connection, TLS, the certificate, or another protocol.

gRPC reports UNAVAILABLE for all of them, so the address is tried again without gRPC. Each wait is at most a second.
The words are those of the commands: they name their options.
"""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

from penstock_client.channel import port_of, why_no_port

_SECONDS = 1.0
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""What an HTTP/2 client says first, with an empty SETTINGS frame. A server says SETTINGS, too."""
_FRAME_HEADER_BYTES, _SETTINGS = 9, 4
_OTHER_PORT = "is it the port of another service?"
_SCHEMES = ("dns", "ipv4", "ipv6", "unix", "unix-abstract", "vsock", "xds")
"""gRPC's names for ways to find an address, which a target may begin with."""


@dataclass(frozen=True, slots=True)
class Shown:
    """Describe what a client shows of itself, and expects, beside the CA certificate.

    Attributes:
        certificate: Certificate chain for mutual TLS (PEM file).
        key: Its private key (PEM file).
        server_name: Name that the service's certificate must have. Default: the target's host.
    """

    certificate: Path | None = None
    key: Path | None = None
    server_name: str = ""


def why_no_target(target: str) -> str:
    """Return why no service can have this target; empty where one can. Nothing is sent."""
    scheme, colon, _ = target.partition(":")
    if colon and scheme in _SCHEMES:
        return why_no_port(target)
    if "://" in target:
        return f"the target must be host:port, without {scheme}://, got {target}"
    if _address_of(target):
        return ""
    return why_no_port(target) or f"the target must be host:port, got {target or 'an empty one'}"


def _address_of(target: str) -> tuple[str, int] | None:
    """Return host and port of a target; None where it has none."""
    scheme, colon, rest = target.partition(":")
    if colon and scheme in ("dns", "ipv4", "ipv6"):
        target = rest.rpartition("/")[2].partition(",")[0]
    host, colon, port = target.rpartition(":")
    if not host or any(one.isspace() or one == "/" for one in host):
        return None
    number = port_of(port)
    return (host.strip("[]"), number) if number else None


def why_unreachable(target: str, tls: bool | None, ca: Path | None, shown: Shown | None = None) -> str:
    """Return the cause and what to do, as one line; empty where the address answers as expected."""
    if why := why_no_target(target):
        return why
    address = _address_of(target)
    if address is None:
        if target.startswith(("dns:", "ipv4:", "ipv6:")):
            return f"the target must be host:port, got {target}"
        return ""  # a socket of this machine, or one that gRPC alone can find
    shown = shown or Shown()
    encrypted = bool(tls) or (tls is None and (ca is not None or shown.certificate is not None))
    try:
        return _why_not_tls(address, target, ca, shown) if encrypted else _why_not_plaintext(address, target)
    except socket.gaierror:
        return f"{target}: unknown host {address[0]}"
    except TimeoutError:
        return f"{target} does not answer: check the address and firewalls"
    except ConnectionRefusedError:
        return f"nothing listens at {target}: start a service with `penstock serve`"
    except OSError as error:
        return f"{target} cannot be reached: {error.strerror or error}"


def _why_not_tls(address: tuple[str, int], target: str, ca: Path | None, shown: Shown) -> str:
    context = ssl.create_default_context(cafile=str(ca) if ca else None)
    context.set_alpn_protocols(["h2"])
    if shown.certificate is not None:
        context.load_cert_chain(shown.certificate, shown.key)
    with socket.create_connection(address, _SECONDS) as connection:
        try:
            with context.wrap_socket(connection, server_hostname=shown.server_name or address[0]) as encrypted:
                return _why_not_http2(encrypted, target, shown)
        except ssl.SSLCertVerificationError as error:
            return f"the certificate of {target} is not trusted: {error.verify_message}; pass --ca FILE for your own"
        except TimeoutError:
            return _silent(target)
        except (ssl.SSLError, OSError):
            return _why_no_handshake(address, target)


def _why_no_handshake(address: tuple[str, int], target: str) -> str:
    """Return why TLS was refused: the server speaks plaintext, something else, or closes connections."""
    with socket.create_connection(address, _SECONDS) as connection:
        return _why_not_http2(connection, target) or f"{target} does not speak TLS: pass --plaintext"


def _why_not_plaintext(address: tuple[str, int], target: str) -> str:
    with socket.create_connection(address, _SECONDS) as connection:
        why = _why_not_http2(connection, target)
    return (
        f"{target} speaks TLS: pass --tls, or --ca FILE for a certificate of your own"
        if why and _is_tls(address)
        else why
    )


def _is_tls(address: tuple[str, int]) -> bool:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with socket.create_connection(address, _SECONDS) as connection, context.wrap_socket(connection):
            return True
    except OSError:
        return False


def _why_not_http2(connection: socket.socket, target: str, shown: Shown | None = None) -> str:
    """Send the start of HTTP/2 and return what is wrong with the reply; empty where nothing is."""
    try:
        connection.sendall(_PREFACE)
        said = _first(connection)
    except TimeoutError:
        return _silent(target)
    except OSError:
        said = b""
    if not said and isinstance(connection, ssl.SSLSocket):  # A TLS 1.3 server checks certificates after the handshake.
        if shown is not None and shown.certificate is not None:
            return f"{target} closes the encrypted connection: it may not trust the certificate {shown.certificate}"
        hint = "`penstock gateway` shows one (--certificate), other commands have none"
        return f"{target} closes the encrypted connection: it may require a client certificate; {hint}"
    if not said:
        return f"{target} closes connections: {_OTHER_PORT}"
    if said.startswith(b"HTTP/"):
        return f"{target} speaks HTTP/1, but gRPC needs HTTP/2: {_OTHER_PORT}"
    if len(said) < _FRAME_HEADER_BYTES or said[3] != _SETTINGS:
        return f"{target} does not speak gRPC: {_OTHER_PORT}"
    return ""


def _first(connection: socket.socket) -> bytes:
    """Return the first bytes that arrive, enough for the header of a frame; fewer where the connection ends."""
    said = b""
    while len(said) < _FRAME_HEADER_BYTES and (more := connection.recv(64)):
        said += more
    return said


def _silent(target: str) -> str:
    return f"{target} accepts connections and sends nothing: {_OTHER_PORT}, or the service hangs"
