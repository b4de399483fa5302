"""Reload the listener's certificate when its files change: new connections get the new one, none is dropped.

gRPC asks for the certificate before each handshake, on a thread of its own. It accepts TLS 1.2 and 1.3, and only
ciphers with forward secrecy and authentication; a test scans for that.
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
    """Hold the last valid certificate, key and client CA."""

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
        """Return credentials for `add_secure_port`. Call it once: a change of the files reaches one listener only."""
        self._changed = False
        mutual = self._settings.client_ca_file is not None
        # None means no change, which the published types do not allow.
        fetch = cast("Callable[[], grpc.ServerCertificateConfiguration]", self._fetch)
        return grpc.dynamic_ssl_server_credentials(self._configuration, fetch, mutual)

    def _fetch(self) -> grpc.ServerCertificateConfiguration | None:
        if not self._changed:
            return None
        self._changed = False
        return self._configuration


def _read(settings: TlsSettings) -> grpc.ServerCertificateConfiguration:
    """Read certificate and key. Raise ConfigError for mistakes that gRPC would find at a handshake or never."""
    chain = _bytes("certificate_file", settings.certificate_file)
    key = _bytes("key_file", settings.key_file)
    leaf = _certificates("certificate_file", settings.certificate_file, chain)[0]
    try:
        private = load_pem_private_key(key, password=None)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"tls.key_file: {settings.key_file} has no private key, or one with a passphrase") from error
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
        raise ConfigError(f"tls.{key}: {path} has no certificate in PEM format") from error
