"""Define the sections about authentication, encryption, quotas and audit."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AwareDatetime, Field, field_validator, model_validator

from penstock.config.base import Section

CALLER_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
"""Pattern of caller names, which go into logs, traces and metrics unchanged."""
Permission = Literal["generate", "diagnostics", "admin"]
"""What a caller may do: generate text, read diagnostics, or change the service."""


Algorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
"""Algorithms with a public key: a server that verifies tokens must not be able to make them."""


def is_safe_url(url: str) -> bool:
    """Return whether nobody on the network can change what is fetched: https, or http on loopback."""
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and (
            parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in ("127.0.0.1", "::1", "localhost"))
        )
    except ValueError:
        return False


TICKS_PER_USD = 10**10


class TlsSettings(Section):
    """Configure TLS 1.2 or newer for the listener. Changed files apply to new connections; none is dropped."""

    certificate_file: Path | None = Field(
        None, description="PEM file: the server's certificate, followed by the rest of the chain."
    )
    key_file: Path | None = Field(None, description="PEM file: the certificate's private key, without a passphrase.")
    client_ca_file: Path | None = Field(
        None, description="PEM file: CAs of client certificates. If set, clients must send one (mutual TLS)."
    )

    @model_validator(mode="after")
    def _whole(self) -> TlsSettings:
        if (self.certificate_file is None) != (self.key_file is None):
            raise ValueError("certificate_file and key_file must be set together")
        if self.client_ca_file is not None and self.certificate_file is None:
            raise ValueError("client_ca_file needs certificate_file and key_file")
        return self


class ApiKey(Section):
    """Hold an API key as the service stores it: its hash, never the key."""

    id: str = Field(pattern=r"^[0-9a-f]{8,32}$", description="Id of the key, which is part of it; not secret.")
    caller: str = Field(pattern=CALLER_NAME, description="Name of the caller that uses it.")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the whole key, in hexadecimal.")
    created: AwareDatetime | None = Field(None, description="Time at which it was made; for information only.")
    expires: AwareDatetime | None = Field(None, description="Time from which it is refused; unset is never.")


class JwtSettings(Section):
    """Configure JSON web tokens of an OpenID Connect issuer as credentials. On where `issuer` is set."""

    issuer: str = Field("", description="Required `iss` of tokens, such as https://login.example.com/.")
    audience: str = Field("", description="Required `aud` of tokens: the name of this service at the issuer.")
    jwks_file: Path | None = Field(
        None, description="File with the issuer's keys as a JWK set; reloaded when it changes."
    )
    jwks_url: str = Field(
        "", description="URL of the issuer's keys; empty, without a file, uses the issuer's discovery document."
    )
    claim: str = Field("sub", min_length=1, description="Claim that holds the caller's name.")
    algorithms: tuple[Algorithm, ...] = Field(
        ("RS256", "ES256"), min_length=1, description="Accepted signature algorithms."
    )
    cache_seconds: float = Field(600.0, gt=0, description="Seconds for which fetched keys are cached.")
    leeway_seconds: float = Field(30.0, ge=0, le=300, description="Accepted difference of clocks, in seconds.")

    @model_validator(mode="after")
    def _whole(self) -> JwtSettings:
        if bool(self.issuer) != bool(self.audience):
            raise ValueError("issuer and audience must be set together, so that tokens for other services are refused")
        fetched = self.jwks_url or (self.issuer if self.jwks_file is None else "")
        if fetched and not is_safe_url(fetched):
            raise ValueError(f"keys must be fetched by https, or by http from loopback, got {fetched}")
        return self


class Quota(Section):
    """Define the limits of a caller. Unset is no limit or, in the callers file, the default in `quotas`."""

    concurrent_streams: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Maximum candidates that run or wait at once, on each replica."
    )
    requests_per_minute: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Maximum calls of GenerationService per minute, without Resume and Cancel; may come at once."
    )
    tokens_per_minute: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Maximum prompt and output tokens per minute; running calls end and may leave a debt."
    )
    usd_per_day: Decimal | None = Field(
        None, ge=0, description="Maximum cost per UTC day by the price list; a call's worst-case cost must fit."
    )
    max_priority: Literal["low", "normal", "high"] | None = Field(
        None, description="Highest priority that calls may ask for."
    )

    @field_validator("usd_per_day")
    @classmethod
    def _whole_ticks(cls, usd: Decimal | None) -> Decimal | None:
        if usd is not None and (usd * TICKS_PER_USD) % 1 != 0:
            raise ValueError(f"must be a multiple of 1e-10 USD, got {usd}")
        return usd


class QuotaSettings(Quota):
    """Configure the default limits of authenticated callers, and where use is counted."""

    daily_file: Path | None = Field(
        None, description="SQLite file for cost per day, which survives crashes. Only one service can use it."
    )
    redis_url: str = Field(
        "", description="redis:// or rediss:// URL; replicas then share all counts, in place of daily_file."
    )
    redis_password_file: Path | None = Field(None, description="File with the password, which must not be in the URL.")

    @model_validator(mode="after")
    def _one_place(self) -> QuotaSettings:
        if self.redis_url and self.daily_file is not None:
            raise ValueError("redis_url and daily_file must not both be set")
        parts = urlsplit(self.redis_url)
        if self.redis_url and (parts.scheme not in ("redis", "rediss") or not parts.hostname):
            raise ValueError("redis_url must be redis://host:port/number or rediss://...")
        if parts.password is not None:
            raise ValueError("redis_url must not contain a password: put it into redis_password_file")
        return self

    @property
    def keeps_days(self) -> bool:
        """Return whether cost per day can be counted."""
        return self.daily_file is not None or bool(self.redis_url)


class AuthSettings(Section):
    """Configure authentication. Without any (here or in `jwt`), callers are known by address and may do all."""

    keys_file: Path | None = Field(None, description="File with hashed API keys, as `penstock keys` writes it.")
    keys: tuple[ApiKey, ...] = Field((), description="Further API keys; hashes, so this is no secret.")
    certificates: bool = Field(False, description="Identify callers by client certificate; needs tls.client_ca_file.")
    callers_file: Path | None = Field(
        None,
        description="TOML or YAML file with the permissions, limits, certificates and token subjects of callers.",
    )
    shared_prefix_cache: bool = Field(
        False, description="Share the prefix cache between callers. Response times then reveal others' prompts."
    )
    default_permissions: tuple[Permission, ...] = Field(
        ("generate",), description="Permissions of callers for which callers_file sets none."
    )

    @property
    def is_on(self) -> bool:
        """Return whether callers must send an API key or a certificate."""
        return self.keys_file is not None or bool(self.keys) or self.certificates


class AuditSettings(Section):
    """Configure the audit log: who called what, how much and with what outcome, in JSON lines without content."""

    file: Path | None = Field(None, description="File of the audit log; `-` is stderr, unset is none.")
    max_file_bytes: Annotated[int, Field(ge=4096)] = Field(
        64 * 1024 * 1024, description="Size at which a new file begins; one also begins with each UTC day."
    )
    keep_files: Annotated[int, Field(ge=1, le=10_000)] = Field(
        100, description="Number of files that are kept; older ones are deleted."
    )
    keep_days: float = Field(90.0, gt=0, description="Days after their last line at which files are deleted.")
