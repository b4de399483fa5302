"""All cases through both Python clients."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import penstock_client as pc
import pytest
from penstock_client import aio, leaving, sync

from tests.conformance import driver
from tests.conformance.harness import load_cases
from tests.conformance.judge import judge

CASES = load_cases()
OPTIONAL = {"read", "last_sequence", "resume_token", "generation_id", "leave", "flush_interval_seconds"}
OPTIONAL |= {"how", "experts", "api_key", "resume_api_key", "late_seconds"}


def test_the_cases_are_well_formed() -> None:
    names = [case["name"] for case in CASES]
    assert len(names) == len(set(names)) >= 40
    for case in CASES:
        known = {"name", "server", "call", "reply", "spec", "model", "resumable", "timeout_seconds", "steps", "expect"}
        assert set(case) <= known | OPTIONAL, case["name"]
        assert "reply" not in case or f"[{case['name']}]" in str(case["spec"]), f"{case['name']}: never played"


def test_each_class_of_errors_is_met_by_some_case() -> None:
    """A class that no server raises has no place in the clients."""
    known = {
        name
        for name in pc.__all__
        if isinstance(kind := getattr(pc, name), type) and issubclass(kind, pc.PenstockError)
    }
    made_by_clients = {"PenstockError", "TurnLimitReached", "UnparsableAnswer"}  # no server raises them
    met = {case["expect"]["error"]["type"] for case in CASES if "error" in case["expect"]}
    assert met == known - made_by_clients


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a generation that is left ends is asked, not how fast: beside load an answer takes over a second."""
    for module in (aio, leaving, sync):
        monkeypatch.setattr(module, "CLOSE_SECONDS", 20.0)


WAITING = re.compile("stuck|steered|budget|cut_connections|over_tls|the_examples|resumed_inside")
"""Cases that take seconds by what they are about: time-outs, reconnections, a thought that is read to its end."""


def marked(case: dict[str, Any]) -> Any:
    return pytest.param(case, id=case["name"], marks=[pytest.mark.slow] if WAITING.search(case["name"]) else [])


@pytest.mark.parametrize("face", ["sync", "async"])
@pytest.mark.parametrize("case", [marked(case) for case in CASES])
def test_case(case: dict[str, Any], face: str, targets: dict[str, str]) -> None:
    seen = driver.run_sync(case, targets) if face == "sync" else asyncio.run(driver.run_async(case, targets))
    assert not judge(case, seen)
