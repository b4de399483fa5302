"""The connection to the service: spread over its replicas, and encrypted as asked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from penstock_client import AsyncClient
from penstock_client.channel import Tls, credentials_from_files

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
            OSError: A file cannot be read.
            ValueError: A part is missing, or contradicts plaintext.
        """
        if (self.certificate is None) != (self.key is None):
            raise ValueError("--certificate and --key belong together: give both or neither")
        if self.tls is False:
            if self.certificate is not None:
                raise ValueError("--certificate needs TLS, got --plaintext")
            return False
        if self.certificate is not None and self.key is not None:
            return credentials_from_files(self.ca, self.certificate, self.key)
        return self.tls if self.ca is None else self.ca


def connect(target: str, encryption: Encryption) -> AsyncClient:
    """Return a client of the service without a key of its own.

    Raises:
        OSError: A file cannot be read.
        ValueError: The settings contradict each other, or keys of callers would go over a network in plaintext.
    """
    options: list[tuple[str, str]] = [_BALANCED]
    if encryption.server_name:
        options.append(("grpc.ssl_target_name_override", encryption.server_name))
    client = AsyncClient(target, api_key="", tls=encryption.credentials(), channel_options=options)
    client.with_options(api_key="of-a-caller")  # raises where the keys of callers must not go in plaintext
    return client
