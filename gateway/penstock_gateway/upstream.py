"""The connection to the service: spread over its replicas, and encrypted as asked."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from penstock_client import AsyncClient
from penstock_client.channel import Tls, credentials_from_files, is_loopback
from penstock_client.reach import Shown, why_no_target, why_unreachable

# Calls go to all addresses of the target in turn. gRPC's default uses one of them as long as it answers.
_BALANCED = ("grpc.lb_policy_name", "round_robin")


@dataclass(frozen=True, slots=True)
class Encryption:
    """How the connection is encrypted.

    Attributes:
        tls: True: TLS. False: plaintext, also where keys of callers go over a network. None: TLS where a file is given.
        ca: CA certificate of the service. Default: the system's CA certificates.
        certificate: Certificate chain that the gateway shows, for mutual TLS.
        key: Private key of that certificate.
        server_name: Name that the service's certificate must have. Default: the target's host.
    """

    tls: bool | None = None
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    server_name: str = ""

    def credentials(self) -> Tls:
        """Return the client's `tls=`.

        Raises:
            ValueError: A part is missing, contradicts plaintext, or a file cannot be read.
        """
        if (self.certificate is None) != (self.key is None):
            raise ValueError("--certificate and --key belong together: give both or neither")
        if self.tls is False:
            if self.certificate is not None:
                raise ValueError("--certificate needs TLS, got --plaintext")
            return False
        self._read_files()
        if self.certificate is not None and self.key is not None:
            return credentials_from_files(self.ca, self.certificate, self.key)
        return self.tls if self.ca is None else self.ca

    def _read_files(self) -> None:
        """Raise ValueError where a file has no such PEM. gRPC would tell it at each call, in words of its own."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if self.ca is not None:
            _check_readable("--ca", self.ca)
            try:
                context.load_verify_locations(self.ca)
            except ssl.SSLError:
                raise ValueError(f"--ca {self.ca} has no certificate in PEM") from None
        if self.certificate is None or self.key is None:
            return
        _check_readable("--certificate", self.certificate)
        _check_readable("--key", self.key)
        try:
            context.load_cert_chain(self.certificate, self.key, password=_no_password)
        except ssl.SSLError:
            text = f"--certificate {self.certificate} and --key {self.key} must be a certificate and its private key"
            raise ValueError(f"{text}, both in PEM, the key without a password") from None

    def why_unreachable(self, target: str) -> str:
        """Return why the service cannot be reached, as one line; empty where its address answers as expected."""
        shown = Shown(self.certificate, self.key, self.server_name)
        try:
            return why_unreachable(target, self.tls, self.ca if self.tls is not False else None, shown)
        except OSError as error:  # a file that is gone by now
            return f"{target}: {error.strerror or error}"


def _check_readable(option: str, file: Path) -> None:
    try:
        with file.open("rb"):
            pass
    except OSError as error:
        raise ValueError(f"{option} {file}: {error.strerror or error}") from None


def _no_password() -> str:
    """Return what no key is encrypted with; without it, OpenSSL asks at the terminal."""
    return "\0"


def connect(target: str, encryption: Encryption) -> AsyncClient:
    """Return a client of the service without a key of its own.

    Raises:
        ValueError: The target is none, the settings contradict each other, a file has no PEM, or keys of callers would
            go over a network in plaintext.
    """
    if why := why_no_target(target):
        raise ValueError(f"--target: {why}")
    tls = encryption.credentials()
    if tls is None and not is_loopback(target):
        text = f"keys of callers would be sent to {target} in plaintext"
        raise ValueError(f"{text}: pass --tls or --ca FILE, or --plaintext to send them anyway")
    options: list[tuple[str, str]] = [_BALANCED]
    if encryption.server_name:
        options.append(("grpc.ssl_target_name_override", encryption.server_name))
    return AsyncClient(target, api_key="", tls=tls, channel_options=options)
