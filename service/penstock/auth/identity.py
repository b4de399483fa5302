"""A caller, and how names become one.

Every caller has an id that is bounded, printable and not secret, so that it may stand in logs, traces and audit lines:
the name that the operator gave it, else `<how>:<name>` from what it showed, a hash where that name is no plain one.
"""

from __future__ import annotations

import enum
import hashlib
import re
from contextvars import ContextVar
from dataclasses import dataclass

from penstock.auth.limits import NO_LIMITS, CallerLimits
from penstock.config.security import CALLER_NAME, Permission

ALL_PERMISSIONS: frozenset[Permission] = frozenset(("generate", "diagnostics", "admin"))
_PLAIN = r"[A-Za-z0-9][A-Za-z0-9._@:/+-]{0,95}"


class AuthMethod(enum.Enum):
    """How a caller was known."""

    KEY = "key"
    JWT = "jwt"
    CERTIFICATE = "certificate"
    ADDRESS = "address"


@dataclass(frozen=True, slots=True)
class Principal:
    """Whoever a call is made for. `key_id` names the API key that was shown, if one was."""

    id: str
    auth_method: AuthMethod
    permissions: frozenset[Permission]
    is_listed: bool = False
    """An operator wrote this name down, so there are few of them: it may be a label of a metric."""
    key_id: str = ""
    limits: CallerLimits = NO_LIMITS

    @property
    def is_known(self) -> bool:
        """It has shown who it is; otherwise its address is all that is known, and that changes with each connection."""
        return self.auth_method is not AuthMethod.ADDRESS

    @property
    def owner(self) -> str:
        """What is its own stays so over connections; where nobody is known, everything is everybody's who has the
        token."""
        return self.id if self.is_known else ""

    @property
    def limit_key(self) -> str:
        """What limits per caller count by: its id, or the host of an address, which opens connections as it likes."""
        return self.id if self.is_known else self.id.rpartition(":")[0] or self.id

    @property
    def label(self) -> str:
        """For metrics: bounded however many callers there are."""
        return self.id if self.is_listed else self.auth_method.value


def by_address(peer: str) -> Principal:
    """Whoever calls where nobody has to say who they are: may do everything, as the operator chose."""
    return Principal(peer, AuthMethod.ADDRESS, ALL_PERMISSIONS)


ANONYMOUS = by_address("")
CURRENT_PRINCIPAL: ContextVar[Principal] = ContextVar("penstock_caller", default=ANONYMOUS)
"""Whom the running task works for. gRPC hands the servicer nothing of ours; the border sets this before it runs."""


def derived_id(auth_method: AuthMethod, name: str) -> str:
    """An id for a name that no operator has listed; never the id of one that is."""
    if not re.fullmatch(_PLAIN, name):
        name = f"sha256-{hashlib.sha256(name.encode()).hexdigest()[:24]}"
    return f"{auth_method.value}:{name}"


def is_caller_id(text: str) -> bool:
    """A name that an operator may give, or what `derived_id` makes."""
    auth_method, colon, name = text.partition(":")
    if not colon:
        return re.fullmatch(CALLER_NAME, text) is not None
    return (
        auth_method in {one.value for one in AuthMethod if one is not AuthMethod.ADDRESS}
        and re.fullmatch(_PLAIN, name) is not None
    )
