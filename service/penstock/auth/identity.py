"""Identify callers: the principal of a call and how its id is derived.

Every principal has an id that is bounded, printable and not secret, so that it can stand in logs, traces and audit
lines. It is the name that the operator configured, or `<method>:<name>` from the credential. A name that is too long or
has other characters is replaced by its hash.
"""

from __future__ import annotations

import enum
import hashlib
import re
from dataclasses import dataclass

from penstock.auth.limits import NO_LIMITS, CallerLimits
from penstock.config.security import CALLER_NAME, Permission

ALL_PERMISSIONS: frozenset[Permission] = frozenset(("generate", "diagnostics", "admin"))
_PLAIN = r"[A-Za-z0-9][A-Za-z0-9._@:/+-]{0,95}"


class AuthMethod(enum.Enum):
    """Enumerate the ways in which a caller can be identified."""

    KEY = "key"
    JWT = "jwt"
    CERTIFICATE = "certificate"
    ADDRESS = "address"


@dataclass(frozen=True, slots=True)
class Principal:
    """Represent the identity that a call acts for.

    Attributes:
        id: Bounded and printable; the configured name or the result of `derived_id`.
        auth_method: How the caller was identified.
        permissions: What the caller may do.
        is_listed: Whether an operator configured this id. Listed ids are few, so they may be labels of a metric.
        key_id: Id of the API key that was sent; empty without one.
        limits: Quotas and the highest priority of this caller.
    """

    id: str
    auth_method: AuthMethod
    permissions: frozenset[Permission]
    is_listed: bool = False

    key_id: str = ""
    limits: CallerLimits = NO_LIMITS

    @property
    def is_known(self) -> bool:
        """Return whether the caller sent credentials; otherwise only its address is known."""
        return self.auth_method is not AuthMethod.ADDRESS

    @property
    def owner(self) -> str:
        """Return the id that owns resumable streams; empty for anonymous callers, whose tokens alone protect them."""
        return self.id if self.is_known else ""

    @property
    def limit_key(self) -> str:
        """Return the key that per-caller limits count by: the id, or for an address the host without the port."""
        return self.id if self.is_known else self.id.rpartition(":")[0] or self.id

    @property
    def label(self) -> str:
        """Return the value for metric labels; bounded, however many callers there are."""
        return self.id if self.is_listed else self.auth_method.value


def by_address(peer: str) -> Principal:
    """Return the principal of a server without authentication: identified by its address, with all permissions."""
    return Principal(peer, AuthMethod.ADDRESS, ALL_PERMISSIONS)


ANONYMOUS = by_address("")


def derived_id(auth_method: AuthMethod, name: str) -> str:
    """Return an id for a name that no operator listed; it never equals a listed id."""
    if not re.fullmatch(_PLAIN, name):
        name = f"sha256-{hashlib.sha256(name.encode()).hexdigest()[:24]}"
    return f"{auth_method.value}:{name}"


def is_caller_id(text: str) -> bool:
    """Return whether `text` is a name that an operator may give, or a result of `derived_id`."""
    auth_method, colon, name = text.partition(":")
    if not colon:
        return re.fullmatch(CALLER_NAME, text) is not None
    return (
        auth_method in {one.value for one in AuthMethod if one is not AuthMethod.ADDRESS}
        and re.fullmatch(_PLAIN, name) is not None
    )
