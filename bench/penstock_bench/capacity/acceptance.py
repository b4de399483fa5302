"""Load the shares of accepted drafts, by position and by kind of text, from acceptance.toml."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

from penstock.errors import ConfigError

SHIPPED = Path(__file__).parent / "acceptance.toml"
DEFAULT = "coding"


@dataclass(frozen=True, slots=True)
class Acceptance:
    """Shares of accepted drafts by position, each given that the position before was accepted, and their source."""

    shares: tuple[float, ...]
    text: str
    source: str


def load_acceptance() -> dict[str, Acceptance]:
    """Return the shipped lists by their names."""
    content = tomllib.loads(SHIPPED.read_text(encoding="utf-8"))
    return {
        name: Acceptance(tuple(map(float, one["shares"])), one["text"], one["source"]) for name, one in content.items()
    }


def read_acceptance(wanted: str) -> Acceptance:
    """Return the list of that name, or the shares themselves ("0.9,0.8"). Raises `ConfigError` with what is allowed."""
    known = load_acceptance()
    if wanted in known:
        return known[wanted]
    try:
        shares = tuple(float(one) for one in wanted.split(","))
    except ValueError:
        shares = ()
    if not shares or not all(0 <= one <= 1 for one in shares):
        names = ", ".join(known)
        raise ConfigError(f"--acceptance is {wanted!r}; allowed are shares from 0 to 1, such as 0.9,0.8, or {names}")
    return Acceptance(shares, "given", "--acceptance")
