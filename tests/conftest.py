"""The quick tests first: what runs on the real engine comes after, and what hurts it comes last."""

import signal

import pytest

# A shell that starts the tests in the background has interrupts ignored, and what the tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    slow = {"engine": 1, "chaos": 2}
    items.sort(key=lambda item: max((slow.get(part, 0) for part in item.path.parent.parts), default=0))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--hostile-requests", type=int, default=10_000, help="how many tests/hostile/ sends in all")
