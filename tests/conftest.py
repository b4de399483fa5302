"""Tiers of tests, and the tools that some of them need.

`make test-fast` runs what starts no engine and is quick. `make test` adds the tests marked `engine` and `slow`.
`make test-full` adds those marked `full`, and fails where a tool is missing that a test needs.
"""

import signal
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests import engine_build, tooling

# On a machine that does other work an example may take any time: that is no fault of what is tested.
settings.register_profile("penstock", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.load_profile("penstock")

# A shell that starts the tests in the background has interrupts ignored, and what the tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

_FOLDERS = {"engine": ["engine"], "chaos": ["engine"], "hostile": ["slow"], "browser": ["slow"], "chart": ["slow"]}
"""Markers that all tests of a folder have."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--generated-requests", type=int, default=5000, help="how many tests/engine/ sends, marked full")
    parser.addoption("--hostile-requests", type=int, default=2_000, help="how many tests/hostile/ sends in all")
    parser.addoption("--require-tools", action="store_true", help="fail where a tool is missing that a test needs")


def pytest_configure() -> None:
    """On vLLM's CUDA build (`make test ENGINE=gpu`), give each engine its share of the GPU, or end without one."""
    try:
        engine_build.share_the_gpu()
    except engine_build.NoGpu as error:
        pytest.exit(f"vLLM's CUDA build is installed (ENGINE=gpu): {error}", returncode=2)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of a folder; run those on the real engine after the others, and those that harm it last."""
    here = Path(__file__).parent
    order = {"engine": 1, "chaos": 2}
    for item in items:
        for marker in _FOLDERS.get(_folder(item, here), []):
            item.add_marker(marker)
        if item.get_closest_marker("cpu_build") and engine_build.installed() == "gpu":
            item.add_marker(pytest.mark.skip(reason=tooling.OTHER_BUILD))
    items.sort(key=lambda item: order.get(_folder(item, here), 1 if item.get_closest_marker("engine") else 0))


def _folder(item: pytest.Item, here: Path) -> str:
    return item.path.relative_to(here).parts[0]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test whose tools are missing, by their names; with --require-tools, fail it."""
    wanted = [name for marker in item.iter_markers("needs") for name in marker.args]
    reasons = [reason for name in wanted if (reason := tooling.missing(name))]
    if reasons and item.config.getoption("--require-tools"):
        pytest.fail(f"{item.nodeid} needs a tool: {'; '.join(reasons)}", pytrace=False)
    if reasons:
        pytest.skip("; ".join(reasons))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With --require-tools, fail a test that is skipped for any other reason than the machine's CPU or no cluster."""
    report = yield
    told = report.longrepr[2] if report.skipped and isinstance(report.longrepr, tuple) else ""
    reason = told.removeprefix("Skipped: ")
    if reason and item.config.getoption("--require-tools") and not tooling.may_be_skipped(item, reason):
        report.outcome, report.longrepr = "failed", f"{item.nodeid} may not be skipped here: {reason}"
    return report
