"""A clock that stands still until a test moves it."""

from __future__ import annotations

import time
from types import ModuleType, SimpleNamespace

import pytest


def stopped(monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> SimpleNamespace:
    """Give `module` a time.monotonic() that returns `now` of what is returned; nobody else's clock is touched."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now, time=time.time))
    return clock
