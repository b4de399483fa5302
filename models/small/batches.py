"""Put examples of similar length together into batches, in an order that only the seeds determine."""

import itertools
import random
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from models.small.encoding import Example

BatchT = TypeVar("BatchT")
POOL_SIZE = 2048
"""Examples that are sorted by length together."""


def with_next_seed(pools: Iterable[list[BatchT]], first_seed: int) -> Iterator[tuple[int, BatchT]]:
    """Yield (next seed, batch) for pools that follow each other; the first one begins with `first_seed`."""
    for start, batches_of_pool in zip(itertools.count(first_seed, POOL_SIZE), pools, strict=False):
        for number, batch in enumerate(batches_of_pool, 1):
            yield start + POOL_SIZE * (number == len(batches_of_pool)), batch


def pool_batches(make: Callable[[int], Example], start: int, tokens_per_batch: int) -> list[list[Example]]:
    """Return the batches of the pool of examples that begins with seed `start`; `make` returns the example of a seed.

    A batch has examples of similar length and at most `tokens_per_batch` padded tokens.
    """
    pool = sorted((make(seed) for seed in range(start, start + POOL_SIZE)), key=lambda e: len(e.ids))
    groups: list[list[Example]] = [[]]
    for item in pool:
        if groups[-1] and (len(groups[-1]) + 1) * len(item.ids) > tokens_per_batch:
            groups.append([])
        groups[-1].append(item)
    random.Random(f"order:{start}").shuffle(groups)
    return groups
