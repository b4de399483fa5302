"""Why a service cannot be reached: name, connection, TLS that one side speaks and the other does not, certificate.

gRPC says UNAVAILABLE to all of them, so the address is tried once more without gRPC, for at most two seconds.
"""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

_SECONDS = 1.0


def why_unreachable(target: str, tls: bool | None, ca: Path | None) -> str:
    """Return the cause and what to do, as one line; empty where the address answers as it should."""
    if target.startswith("unix:") or "://" in target:
        return ""
    host, colon, port = target.rpartition(":")
    if not colon or not port.isdigit() or not 0 < int(port) < 65536:
        return f"{target} is not host:port"
    encrypted = bool(tls) or (tls is None and ca is not None)
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _SECONDS) as connection:
            return _why_not_understood(connection, host.strip("[]"), target, encrypted, ca)
    except socket.gaierror:
        return f"{target}: there is no host {host}"
    except TimeoutError:
        return f"{target} does not answer: is the address right, does a firewall stand between?"
    except ConnectionRefusedError:
        return f"nothing answers at {target}: start it with `penstock serve`"
    except OSError as error:
        return f"{target} cannot be reached: {error.strerror or error}"


def _why_not_understood(connection: socket.socket, host: str, target: str, encrypted: bool, ca: Path | None) -> str:
    context = ssl.create_default_context(cafile=str(ca) if ca else None)
    if not encrypted:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        with context.wrap_socket(connection, server_hostname=host):
            return "" if encrypted else f"{target} speaks TLS: pass --tls, or --ca FILE for a certificate of your own"
    except ssl.SSLCertVerificationError as error:
        return f"the certificate of {target} is not trusted: {error.verify_message}; pass --ca FILE for your own"
    except (ssl.SSLError, OSError):
        return f"{target} does not speak TLS: pass --plaintext" if encrypted else ""
