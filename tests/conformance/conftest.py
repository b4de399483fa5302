from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conformance.harness import serving


@pytest.fixture(scope="session")
def targets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Addresses of the servers that play the cases, by name."""
    with serving(tmp_path_factory.mktemp("conformance")) as running:
        yield running
