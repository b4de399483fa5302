"""The quick tests first: what runs on the real engine comes last, whatever its file is called."""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: "engine" in item.path.parent.parts)
