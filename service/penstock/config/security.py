"""The sections about who may call, encrypted how. A part of `config`."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AwareDatetime, Field, field_validator, model_validator

from penstock.config.base import Section

CALLER_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
"""Names that an operator gives to callers: they go into logs, traces and metrics as they are."""
Permission = Literal["generate", "diagnostics", "admin"]
"""What a caller may do: have text generated, look at how the service does, or change how it does."""


Algorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
"""Those with a public key: who can check a token must not be able to make one."""


def is_safe_url(url: str) -> bool:
    """Nobody on the way can change what is fetched: https, or plain http to this machine."""
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and (
            parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in ("127.0.0.1", "::1", "localhost"))
        )
    except ValueError:
        return False


TICKS_PER_USD = 10**10


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
    created: AwareDatetime | None = Field(None, description="When it was made; for people.")
    expires: AwareDatetime | None = Field(None, description="Refused from then on; unset is never.")


class JwtSettings(Section):
    """Tokens of an OpenID Connect issuer as credentials. On where `issuer` is set."""

    issuer: str = Field("", description="The `iss` of its tokens, e.g. https://login.example.com/.")
    audience: str = Field("", description="The `aud` that is meant for this service.")
    jwks_file: Path | None = Field(None, description="The issuer's keys as a JWK set; followed while serving.")
    jwks_url: str = Field("", description="Where they are fetched; empty, without a file, asks the issuer's discovery.")
    claim: str = Field("sub", min_length=1, description="The claim that names the caller.")
    algorithms: tuple[Algorithm, ...] = Field(
        ("RS256", "ES256"), min_length=1, description="Signatures that are taken; each has a public key."
    )
    cache_seconds: float = Field(600.0, gt=0, description="How long fetched keys are not asked for again.")
    leeway_seconds: float = Field(30.0, ge=0, le=300, description="How far clocks may differ.")

    @model_validator(mode="after")
    def _whole(self) -> JwtSettings:
        if bool(self.issuer) != bool(self.audience):
            raise ValueError("issuer and audience go together: a token for another service must not be good here")
        fetched = self.jwks_url or (self.issuer if self.jwks_file is None else "")
        if fetched and not is_safe_url(fetched):
            raise ValueError("keys are only fetched by https, or from loopback")
        return self


class Quota(Section):
    """What a caller may use. Unset is no limit, or, in the callers file, the default that `quotas` has."""

    concurrent_streams: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Candidates that run or wait at once, on each replica."
    )
    requests_per_minute: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Calls of GenerationService, Resume and Cancel excepted; a minute's worth may come at once."
    )
    tokens_per_minute: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Prompt and output, thought included; what runs is let end, and owed for."
    )
    usd_per_day: Decimal | None = Field(
        None, ge=0, description="Cost by the price list, per UTC day; each call's worst case must fit."
    )
    max_priority: Literal["low", "normal", "high"] | None = Field(None, description="The highest class it may ask for.")

    @field_validator("usd_per_day")
    @classmethod
    def _whole_ticks(cls, usd: Decimal | None) -> Decimal | None:
        if usd is not None and (usd * TICKS_PER_USD) % 1 != 0:
            raise ValueError("amounts are exact to 1e-10 USD")
        return usd


class QuotaSettings(Quota):
    """What each known caller may use, unless the callers file says otherwise for it; and where that is counted."""

    daily_file: Path | None = Field(
        None, description="SQLite: what was spent per day, over restarts and crashes. One service alone may hold it."
    )
    redis_url: str = Field(
        "", description="redis:// or rediss://: counts that replicas share, in place of memory and daily_file."
    )
    redis_password_file: Path | None = Field(None, description="The password; the URL may not hold it.")

    @model_validator(mode="after")
    def _one_place(self) -> QuotaSettings:
        if self.redis_url and self.daily_file is not None:
            raise ValueError("redis_url and daily_file exclude each other: costs are counted in one place")
        parts = urlsplit(self.redis_url)
        if self.redis_url and (parts.scheme not in ("redis", "rediss") or not parts.hostname):
            raise ValueError("redis_url must be redis://host:port/number or rediss://...")
        if parts.password is not None:
            raise ValueError("redis_url may not hold a password: put it into redis_password_file")
        return self

    @property
    def keeps_days(self) -> bool:
        return self.daily_file is not None or bool(self.redis_url)


class AuthSettings(Section):
    """Who calls. Where nothing is set (here or in `jwt`), callers are told apart by address, and may do everything."""

    keys_file: Path | None = Field(None, description="API keys, hashed, as `penstock keys` writes them.")
    keys: tuple[ApiKey, ...] = Field((), description="More of them; hashes, so no secret stands here.")
    certificates: bool = Field(False, description="A client's certificate says who calls; needs tls.client_ca_file.")
    callers_file: Path | None = Field(
        None,
        description="TOML or YAML: what each caller may do and use, and its certificates and subjects.",
    )
    shared_prefix_cache: bool = Field(
        False, description="Known callers share cached prefixes; then timing tells one what another has asked."
    )
    default_permissions: tuple[Permission, ...] = Field(
        ("generate",), description="Of callers for whom callers_file says nothing else."
    )

    @property
    def is_on(self) -> bool:
        """Callers must say who they are."""
        return self.keys_file is not None or bool(self.keys) or self.certificates


class AuditSettings(Section):
    """Who did what, how much, with what outcome: JSON lines, never what was said. Off where there is no file."""

    file: Path | None = Field(None, description="Where the lines go; `-` is stderr.")
    max_file_bytes: Annotated[int, Field(ge=4096)] = Field(
        64 * 1024 * 1024, description="A new file begins here, and with each UTC day."
    )
    keep_files: Annotated[int, Field(ge=1, le=10_000)] = Field(100, description="Older files than so many are deleted.")
    keep_days: float = Field(90.0, gt=0, description="Files whose last line is older are deleted.")
