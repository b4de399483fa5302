"""Describe features as on or off, with the reason."""

from __future__ import annotations

from penstock.config.schema import Switch
from penstock.errors import ConfigError
from penstock.types import Feature


def switch(name: str, wanted: Switch, on: str = "") -> Feature:
    """Return a feature that works here: on unless it was switched off."""
    reason = {"auto": "default", "on": "asked for", "required": "required", "off": "switched off"}[wanted]
    return Feature(name, wanted != "off", on if wanted != "off" else "", reason)


def impossible(name: str, wanted: Switch, reason: str, value: str = "") -> Feature:
    """Return a feature that does not work here: off with its reason. Raise `ConfigError` where it is required."""
    if wanted == "required":
        raise ConfigError(f"engine.{name} is required, but {reason}")
    return Feature(name, False, value, reason)
