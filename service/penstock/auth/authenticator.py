"""Authenticate calls and authorize them against the permissions that their method needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

from penstock.auth import api_keys as keys
from penstock.auth import caller_policy as listed
from penstock.auth.api_keys import ApiKeyStore, looks_like_key
from penstock.auth.caller_policy import CallerPolicyFile
from penstock.auth.identity import ALL_PERMISSIONS, AuthMethod, Principal, by_address, derived_id
from penstock.auth.jwt import JwtVerifier
from penstock.auth.limits import resolve_limits
from penstock.config.reload import ReloadableFiles, read_text
from penstock.config.security import ApiKey, AuthSettings, JwtSettings, Permission, QuotaSettings
from penstock.errors import CallerNotAllowed, CallerUnknown, ConfigError

Metadata = Iterable[tuple[str, str | bytes]]
NO_JWT = JwtSettings()
NO_QUOTAS = QuotaSettings()
_ANY = ALL_PERMISSIONS
# Any one of these permissions is enough. A service that is not listed needs `admin`: new methods are closed by default.
REQUIRED_PERMISSIONS: Mapping[str, frozenset[Permission]] = {
    "penstock.v1.GenerationService": frozenset({"generate"}),
    "penstock.v1.ModelService": _ANY,
    "penstock.v1.RoutingService": frozenset({"diagnostics"}),
    "grpc.reflection.v1alpha.ServerReflection": _ANY,
    "grpc.reflection.v1.ServerReflection": _ANY,
}
# Names of a TLS peer, the most specific first.
_CERTIFICATE_NAMES = ("peer_spiffe_id", "peer_uri", "peer_dns", "peer_email", "x509_common_name")
# The same message for all invalid credentials: which part was wrong would help only an attacker.
_INVALID = "invalid credentials (unknown, expired or revoked)"
_MISSING = "no credentials were sent: send the metadata `authorization: Bearer <API key or token>`"


class Authenticator:
    """Authenticate callers by API key, JWT or client certificate.

    Without any of these configured, every caller is accepted and identified by its address.

    Attributes:
        files: Files that are reloaded while serving.
    """

    def __init__(self, settings: AuthSettings, jwt: JwtSettings = NO_JWT, quotas: QuotaSettings = NO_QUOTAS) -> None:
        self._settings = settings
        self._quotas = quotas
        self._jwt = JwtVerifier(jwt) if jwt.issuer else None
        self._keys = ApiKeyStore()
        self._policies = CallerPolicyFile()
        self.files: list[ReloadableFiles] = []

        if settings.keys_file is not None or settings.keys:
            self.files.append(ReloadableFiles((settings.keys_file,), self._load_keys))
        if settings.callers_file is not None:
            self.files.append(ReloadableFiles((settings.callers_file,), self._load_policies))
        if self._jwt is not None:
            self.files += self._jwt.files

    @property
    def is_open(self) -> bool:
        """Return whether no authentication is configured."""
        return not self._settings.is_on and self._jwt is None

    def _load_keys(self) -> None:
        found: list[ApiKey] = list(self._settings.keys)
        path = self._settings.keys_file
        if path is not None:
            found += keys.parse(str(path), read_text("auth.keys_file", path))
        if len({key.id for key in found}) != len(found):
            raise ConfigError("auth.keys: an id is used twice, or also in auth.keys_file; ids must be unique")
        self._keys = ApiKeyStore(found)

    def _load_policies(self) -> None:
        assert self._settings.callers_file is not None
        policies = listed.read(self._settings.callers_file)
        if policies.has_daily_limits and not self._quotas.keeps_days:
            raise ConfigError(
                f"{self._settings.callers_file}: usd_per_day needs quotas.daily_file or quotas.redis_url to count in"
            )
        self._policies = policies

    async def authenticate(self, method: str, metadata: Metadata) -> Principal | None:
        """Identify the caller by its bearer token, before the request is read.

        Args:
            method: `/package.Service/Method`.
            metadata: Metadata of the call.

        Returns:
            The principal; None where no token was sent, which `authorize` decides about.

        Raises:
            CallerUnknown: The token is invalid.
            CallerNotAllowed: The principal lacks the permission for the method.
        """
        if self.is_open:
            return None
        token = _bearer(metadata)
        if token is None:
            return None
        caller = self._by_key(token) if self._jwt is None or looks_like_key(token) else await self._by_token(token)
        _check(caller, method)
        return caller

    def authorize(
        self, method: str, caller: Principal | None, peer: str, tls: Mapping[str, Iterable[bytes]]
    ) -> Principal:
        """Return the principal of a call, by token, client certificate or address, in this order.

        Args:
            method: `/package.Service/Method`.
            caller: Result of `authenticate`.
            peer: Address of the peer, as gRPC names it.
            tls: gRPC's authentication context of the connection.

        Raises:
            CallerUnknown: The server requires credentials and none were sent.
            CallerNotAllowed: The principal lacks the permission for the method.
        """
        if caller is not None:
            return caller
        if self.is_open:
            return by_address(peer)
        caller = self._by_certificate(tls) if self._settings.certificates else None
        if caller is None:
            raise CallerUnknown(_MISSING)
        _check(caller, method)
        return caller

    def _by_key(self, token: str) -> Principal:
        key = self._keys.find(token, datetime.now(UTC))
        if key is None:
            raise CallerUnknown(_INVALID)
        return self._caller(key.caller, AuthMethod.KEY, key_id=key.id, is_listed=True)

    async def _by_token(self, token: str) -> Principal:
        assert self._jwt is not None
        try:
            name = await self._jwt.verify(token)
        except CallerUnknown:
            raise CallerUnknown(_INVALID) from None
        return self._caller(self._policies.by_subject(name) or derived_id(AuthMethod.JWT, name), AuthMethod.JWT)

    def _by_certificate(self, tls: Mapping[str, Iterable[bytes]]) -> Principal | None:
        names = tuple(name.decode(errors="replace") for kind in _CERTIFICATE_NAMES for name in tls.get(kind, ()))
        if not names:
            return None
        known = self._policies.by_certificate(names)
        return self._caller(known or derived_id(AuthMethod.CERTIFICATE, names[0]), AuthMethod.CERTIFICATE)

    def _caller(
        self, caller_id: str, auth_method: AuthMethod, *, key_id: str = "", is_listed: bool = False
    ) -> Principal:
        policy = self._policies.get(caller_id)
        allowed = (
            policy.permissions if policy and policy.permissions is not None else self._settings.default_permissions
        )
        limits = resolve_limits(policy, self._quotas)
        return Principal(caller_id, auth_method, frozenset(allowed), is_listed or policy is not None, key_id, limits)


def _bearer(metadata: Metadata) -> str | None:
    shown = [value for name, value in metadata if name == "authorization"]
    if not shown:
        return None
    scheme, _, token = (shown[0] if isinstance(shown[0], str) else "").partition(" ")
    if len(shown) > 1 or scheme.lower() != "bearer":
        raise CallerUnknown("the metadata `authorization` must be sent once, as `Bearer <API key or token>`")
    return token.strip()


def required_permissions(method: str) -> frozenset[Permission]:
    """Return the permissions of which a caller needs one.

    Args:
        method: `/package.Service/Method`.
    """
    return REQUIRED_PERMISSIONS.get(method.strip("/").partition("/")[0], frozenset({"admin"}))


def _check(caller: Principal, method: str) -> None:
    wanted = required_permissions(method)
    if not wanted & caller.permissions:
        needed = " or ".join(sorted(wanted))
        raise CallerNotAllowed(f"permission denied: this call needs the permission {needed}", needs=needed)
