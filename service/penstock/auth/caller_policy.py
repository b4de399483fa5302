"""The callers file: what each caller may do and use, and by which certificates and subjects of tokens it is known.

    [callers.team-a]
    permissions = ["generate", "diagnostics"]
    tokens_per_minute = 100_000
    certificates = ["spiffe://prod/team-a"]       # URI, DNS name or common name
    subjects = ["auth0|5f7c8ec7c33c6c004bbafe82"]

A name that no entry claims still is a caller, under an id of its own and with the defaults.
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
    """One entry. Unset takes the configuration's default."""

    permissions: tuple[Permission, ...] | None = Field(None, description="What it may do.")
    certificates: tuple[str, ...] = Field((), description="Subject alternative names, or common names.")
    subjects: tuple[str, ...] = Field((), description="What tokens have in `jwt.claim`.")


class CallerPolicyTable(Section):
    callers: Mapping[str, CallerPolicy] = Field(default_factory=dict)


class CallerPolicyFile:
    """All entries, found by the caller's id or by what it shows."""

    def __init__(self, callers: Mapping[str, CallerPolicy] | None = None) -> None:
        self._callers = callers or {}
        self._certificates = {name: caller for caller, one in self._callers.items() for name in one.certificates}
        self._subjects = {name: caller for caller, one in self._callers.items() for name in one.subjects}

    @property
    def has_daily_limits(self) -> bool:
        return any(one.usd_per_day is not None for one in self._callers.values())

    def get(self, caller_id: str) -> CallerPolicy | None:
        return self._callers.get(caller_id)

    def by_subject(self, name: str) -> str | None:
        return self._subjects.get(name)

    def by_certificate(self, names: tuple[str, ...]) -> str | None:
        """Whose certificate it is; names go from the most to the least specific."""
        return next((self._certificates[name] for name in names if name in self._certificates), None)


def read(path: Path) -> CallerPolicyFile:
    """Raises ConfigError with every mistake and its line."""
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
        # `certificate:...` and the like give limits to one that is known by what it shows alone.
        if not is_caller_id(caller):
            mistakes.append(f"{values.where(('callers', caller))}: {caller!r} is no name for a caller")
        shown = [("certificate", name) for name in one.certificates] + [("subject", name) for name in one.subjects]
        for kind, name in shown:
            if owners.setdefault((kind, name), caller) != caller:
                also = owners[kind, name]
                mistakes.append(f"{values.where(('callers', caller))}: {also} has the {kind} {name} too")
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    return CallerPolicyFile(table.callers)
