"""The sections about who may call, encrypted how. A part of `config`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import AwareDatetime, Field, model_validator

from penstock.config_base import Section

CALLER_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
"""Names that an operator gives to callers: they go into logs, traces and metrics as they are."""
Permission = Literal["generate", "diagnostics", "admin"]
"""What a caller may do: have text generated, look at how the service does, or change how it does."""


class TlsSettings(Section):
    """Encryption of the listener, TLS 1.2 or newer. Changed files are taken up by new connections; none is dropped."""

    certificate_file: Path | None = Field(None, description="PEM: the server's certificate, then the chain's others.")
    key_file: Path | None = Field(None, description="PEM: the certificate's private key, without a passphrase.")
    client_ca_file: Path | None = Field(
        None, description="PEM: only clients with a certificate signed by one of these are let in (mutual TLS)."
    )

    @model_validator(mode="after")
    def _whole(self) -> TlsSettings:
        if (self.certificate_file is None) != (self.key_file is None):
            raise ValueError("certificate_file and key_file go together")
        if self.client_ca_file is not None and self.certificate_file is None:
            raise ValueError("client_ca_file needs certificate_file and key_file")
        return self


class ApiKey(Section):
    """An API key as the service knows it: its hash, never the key."""

    id: str = Field(pattern=r"^[0-9a-f]{8,32}$", description="Stands in the key too; not secret.")
    caller: str = Field(pattern=CALLER_NAME, description="Who calls with it.")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="Of the whole key, in hex.")
    created: AwareDatetime | None = None
    expires: AwareDatetime | None = Field(None, description="Refused from then on; unset is never.")


class AuthSettings(Section):
    """Who calls. Where nothing is set, callers are told apart by their address alone, and may do everything."""

    keys_file: Path | None = Field(None, description="API keys, hashed, as `penstock keys` writes them.")
    keys: tuple[ApiKey, ...] = Field((), description="More of them; hashes, so no secret stands here.")
    certificates: bool = Field(False, description="A client's certificate says who calls; needs tls.client_ca_file.")
    callers_file: Path | None = Field(
        None, description="TOML or YAML: what each caller may do, and which certificates are its own."
    )
    default_permissions: tuple[Permission, ...] = Field(
        ("generate",), description="Of callers for whom callers_file says nothing else."
    )

    @property
    def is_on(self) -> bool:
        """Callers must say who they are."""
        return self.keys_file is not None or bool(self.keys) or self.certificates
