"""The report of `make test-full` has what tests recorded: how many requests, by which seed, and the restarts."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from tests.project.script_modules import ROOT, load

REPORT = """<testsuites><testsuite><testcase classname="tests.a" name="test_b" time="1"><properties>
<property name="requests" value="2500" /><property name="engine_restarts" value="0" /></properties></testcase>
<testcase classname="tests.a" name="test_c" time="1" /></testsuite></testsuites>"""


def test_what_a_test_recorded_is_read_from_the_junit_xml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    with_properties, without = ElementTree.fromstring(REPORT).iter("testcase")
    script = load("test-full")
    assert script.recorded(with_properties) == {"requests": "2500", "engine_restarts": "0"}
    assert script.recorded(without) == {}
