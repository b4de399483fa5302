"""A cluster for the tests of this folder, where one was named: `make test-cluster KUBECONFIG=FILE CONTEXT=NAME`."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.cluster.cluster import CONTEXT, HOW, KUBECONFIG, Cluster, chosen, namespace


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    if not {KUBECONFIG, CONTEXT} & set(os.environ):
        pytest.skip(f"no cluster was named: {HOW}")
    kubeconfig, context = chosen(os.environ)
    with namespace(kubeconfig, context) as made:
        yield made
