"""The listener's certificate, read again when its files change: new connections see the new one, none is dropped.

Each handshake takes the context that is in force then. TLS 1.2 and 1.3, and no cipher without forward secrecy and
authentication; a test scans for that.
"""

from __future__ import annotations

import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from penstock.config_security import TlsSettings
from penstock.errors import ConfigError
from penstock.watched import Watched


class Certificates:
    """Holds what the files said when they were last good."""

    def __init__(self, settings: TlsSettings) -> None:
        self._settings = settings
        self.files = Watched((settings.certificate_file, settings.key_file, settings.client_ca_file), self._take)

    def _take(self) -> None:
        self._context = _read(self._settings)

    def context(self) -> ssl.SSLContext:
        """For the next handshake."""
        return self._context


def _read(settings: TlsSettings) -> ssl.SSLContext:
    """Raises ConfigError for what OpenSSL would only refuse at a client's handshake, or not say clearly."""
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
    context = _context()
    try:
        context.load_cert_chain(str(settings.certificate_file), str(settings.key_file), password="")
    except (OSError, ValueError) as error:  # An SSLError is an OSError.
        raise ConfigError(f"tls.certificate_file: {settings.certificate_file} changed while it was read") from error
    if settings.client_ca_file is not None:
        roots = _bytes("client_ca_file", settings.client_ca_file)
        _certificates("client_ca_file", settings.client_ca_file, roots)
        context.load_verify_locations(cadata=roots.decode("ascii", errors="replace"))
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20")
    context.set_alpn_protocols(["h2"])
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION | ssl.OP_CIPHER_SERVER_PREFERENCE
    return context


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
