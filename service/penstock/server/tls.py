"""The listener's certificate, read again when its files change: new connections see the new one, none is dropped.

gRPC asks for the certificate before each handshake, on a thread of its own. It speaks TLS 1.2 and 1.3, and no cipher
without forward secrecy and authentication; a test scans for that.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from penstock.config.reload import ReloadableFiles
from penstock.config.security import TlsSettings
from penstock.errors import ConfigError


class Certificates:
    """Holds what the files said when they were last good."""

    def __init__(self, settings: TlsSettings) -> None:
        self._settings = settings
        self._changed = False
        self.files = ReloadableFiles(
            (settings.certificate_file, settings.key_file, settings.client_ca_file), self._load
        )

    def _load(self) -> None:
        self._configuration = _read(self._settings)
        self._changed = True

    def credentials(self) -> grpc.ServerCredentials:
        """For `add_secure_port`, once: what a change does reaches one listener."""
        self._changed = False
        mutual = self._settings.client_ca_file is not None
        # None is "as before", which the published types do not know.
        fetch = cast("Callable[[], grpc.ServerCertificateConfiguration]", self._fetch)
        return grpc.dynamic_ssl_server_credentials(self._configuration, fetch, mutual)

    def _fetch(self) -> grpc.ServerCertificateConfiguration | None:
        if not self._changed:
            return None
        self._changed = False
        return self._configuration


def _read(settings: TlsSettings) -> grpc.ServerCertificateConfiguration:
    """Raises ConfigError for what gRPC would only refuse at a client's handshake, or not at all."""
    chain = _bytes("certificate_file", settings.certificate_file)
    key = _bytes("key_file", settings.key_file)
    leaf = _certificates("certificate_file", settings.certificate_file, chain)[0]
    try:
        private = load_pem_private_key(key, password=None)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"tls.key_file: {settings.key_file} holds no private key without a passphrase") from error
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if private.public_key().public_bytes(*form) != leaf.public_key().public_bytes(*form):
        raise ConfigError(f"tls.key_file: {settings.key_file} is not the key of {settings.certificate_file}")
    roots = None
    if settings.client_ca_file is not None:
        roots = _bytes("client_ca_file", settings.client_ca_file)
        _certificates("client_ca_file", settings.client_ca_file, roots)
    return grpc.ssl_server_certificate_configuration([(key, chain)], roots)


def _bytes(key: str, path: Path | None) -> bytes:
    assert path is not None
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"tls.{key}: {path} cannot be read: {error.strerror}") from error


def _certificates(key: str, path: Path | None, pem: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise ConfigError(f"tls.{key}: {path} holds no certificate in PEM form") from error
