"""Who a call is from, by what it carries, and whether it may do what it asks. The border asks, for every call."""

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
# Any one of these is enough. What is not here needs `admin`: a new method is closed until somebody decides.
REQUIRED_PERMISSIONS: Mapping[str, frozenset[Permission]] = {
    "penstock.v1.GenerationService": frozenset({"generate"}),
    "penstock.v1.ModelService": _ANY,
    "penstock.v1.RoutingService": frozenset({"diagnostics"}),
    "grpc.reflection.v1alpha.ServerReflection": _ANY,
    "grpc.reflection.v1.ServerReflection": _ANY,
}
# What a TLS peer may be called by, the most specific first.
_CERTIFICATE_NAMES = ("peer_spiffe_id", "peer_uri", "peer_dns", "peer_email", "x509_common_name")
# One answer for every credential that is not good: which part was wrong helps only who guesses.
_NOT_GOOD = "the credential is not good here; it may be mistyped, expired or revoked"
_NOTHING_SHOWN = "this server must know who calls: send the metadata `authorization: Bearer <API key or token>`"


class Authenticator:
    """Open where the configuration names no way to know callers; then each is its address."""

    def __init__(self, settings: AuthSettings, jwt: JwtSettings = NO_JWT, quotas: QuotaSettings = NO_QUOTAS) -> None:
        self._settings = settings
        self._quotas = quotas
        self._jwt = JwtVerifier(jwt) if jwt.issuer else None
        self._keys = ApiKeyStore()
        self._policies = CallerPolicyFile()
        self.files: list[ReloadableFiles] = []
        """What can change while serving."""
        if settings.keys_file is not None or settings.keys:
            self.files.append(ReloadableFiles((settings.keys_file,), self._load_keys))
        if settings.callers_file is not None:
            self.files.append(ReloadableFiles((settings.callers_file,), self._load_policies))
        if self._jwt is not None:
            self.files += self._jwt.files

    @property
    def is_open(self) -> bool:
        return not self._settings.is_on and self._jwt is None

    def _load_keys(self) -> None:
        found: list[ApiKey] = list(self._settings.keys)
        path = self._settings.keys_file
        if path is not None:
            found += keys.parse(str(path), read_text("auth.keys_file", path))
        if len({key.id for key in found}) != len(found):
            raise ConfigError("auth.keys: an id is there twice, or in auth.keys_file too")
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
        """The caller by its bearer token; None where it shows none, which `authorize` judges.

        Raises CallerUnknown for a bad one, and CallerNotAllowed.
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
        """Whoever `authenticate` found, else by the certificate, else (where nobody must say) by the address.

        `tls` is what gRPC knows of the connection. Raises CallerUnknown and CallerNotAllowed.
        """
        if caller is not None:
            return caller
        if self.is_open:
            return by_address(peer)
        caller = self._by_certificate(tls) if self._settings.certificates else None
        if caller is None:
            raise CallerUnknown(_NOTHING_SHOWN)
        _check(caller, method)
        return caller

    def _by_key(self, token: str) -> Principal:
        key = self._keys.find(token, datetime.now(UTC))
        if key is None:
            raise CallerUnknown(_NOT_GOOD)
        return self._caller(key.caller, AuthMethod.KEY, key_id=key.id, is_listed=True)

    async def _by_token(self, token: str) -> Principal:
        assert self._jwt is not None
        try:
            name = await self._jwt.verify(token)
        except CallerUnknown:
            raise CallerUnknown(_NOT_GOOD) from None
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
        raise CallerUnknown("`authorization` must be there once, as `Bearer <API key or token>`")
    return token.strip()


def required_permissions(method: str) -> frozenset[Permission]:
    """`method` is `/package.Service/Method`."""
    return REQUIRED_PERMISSIONS.get(method.strip("/").partition("/")[0], frozenset({"admin"}))


def _check(caller: Principal, method: str) -> None:
    wanted = required_permissions(method)
    if not wanted & caller.permissions:
        needed = " or ".join(sorted(wanted))
        raise CallerNotAllowed(f"permission denied: this call needs the permission {needed}", needs=needed)
