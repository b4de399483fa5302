"""Read the callers file: permissions, limits, certificates and token subjects of each caller.

    [callers.team-a]
    permissions = ["generate", "diagnostics"]
    tokens_per_minute = 100_000
    certificates = ["spiffe://prod/team-a"]       # URI, DNS name or common name
    subjects = ["auth0|5f7c8ec7c33c6c004bbafe82"]

A caller without an entry is still accepted, under a derived id and with the default limits.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import Field, ValidationError

from penstock.auth.identity import is_caller_id
from penstock.config import file as config_file
from penstock.config.base import Section
from penstock.config.security import Permission, Quota
from penstock.errors import ConfigError


class CallerPolicy(Quota):
    """Define one entry of the callers file; unset fields take the configuration's defaults."""

    permissions: tuple[Permission, ...] | None = Field(None, description="What the caller may do.")
    certificates: tuple[str, ...] = Field((), description="Subject alternative names, or common names.")
    subjects: tuple[str, ...] = Field((), description="Values of the claim `jwt.claim` in its tokens.")


class CallerPolicyTable(Section):
    """Define the top level of the callers file."""

    callers: Mapping[str, CallerPolicy] = Field(default_factory=dict)


class CallerPolicyFile:
    """Look up caller policies by id, certificate name or token subject."""

    def __init__(self, callers: Mapping[str, CallerPolicy] | None = None) -> None:
        self._callers = callers or {}
        self._certificates = {name: caller for caller, one in self._callers.items() for name in one.certificates}
        self._subjects = {name: caller for caller, one in self._callers.items() for name in one.subjects}

    @property
    def has_daily_limits(self) -> bool:
        """Return whether any caller has a limit on cost per day."""
        return any(one.usd_per_day is not None for one in self._callers.values())

    def get(self, caller_id: str) -> CallerPolicy | None:
        """Return the policy of a caller; None without an entry."""
        return self._callers.get(caller_id)

    def by_subject(self, name: str) -> str | None:
        """Return the id of the caller that has this token subject; None without an entry."""
        return self._subjects.get(name)

    def by_certificate(self, names: tuple[str, ...]) -> str | None:
        """Return the id of the caller that has one of these certificate names; None without an entry.

        Args:
            names: From the most to the least specific; the first one that is known decides.
        """
        return next((self._certificates[name] for name in names if name in self._certificates), None)


def read(path: Path) -> CallerPolicyFile:
    """Return the callers file.

    Raises:
        ConfigError: Names every mistake with its line.
    """
    values = config_file.read(path)
    try:
        table = CallerPolicyTable.model_validate(values.values)
    except ValidationError as error:
        raise ConfigError(
            "\n".join(f"{values.where(p['loc'])}: {'.'.join(map(str, p['loc']))}: {p['msg']}" for p in error.errors())
        ) from None
    mistakes = []
    owners: dict[tuple[str, str], str] = {}
    for caller, one in table.callers.items():
        # Derived ids such as `certificate:...` are allowed: they give limits to callers without a name of their own.
        if not is_caller_id(caller):
            mistakes.append(f"{values.where(('callers', caller))}: {caller!r} is not a valid caller name")
        shown = [("certificate", name) for name in one.certificates] + [("subject", name) for name in one.subjects]
        for kind, name in shown:
            if owners.setdefault((kind, name), caller) != caller:
                also = owners[kind, name]
                mistakes.append(f"{values.where(('callers', caller))}: the {kind} {name} also belongs to {also}")
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    return CallerPolicyFile(table.callers)
