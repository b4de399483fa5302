"""One definition of a percentile: nearest rank, for everything that is measured."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock.generation.percentiles import percentile

VALUES = st.lists(st.floats(min_value=0, allow_nan=False), min_size=1, max_size=300)


@given(VALUES, st.integers(0, 100))
def test_should_be_the_value_at_the_nearest_rank(values: list[float], percent: int) -> None:
    rank = max(1, math.ceil(Fraction(len(values) * percent, 100)))
    assert percentile(values, percent) == sorted(values)[rank - 1]


@pytest.mark.parametrize(("percent", "expected"), [(0, 1.0), (50, 1.0), (96, 1.0), (97, math.inf), (100, math.inf)])
def test_should_not_average_lost_calls_into_others(percent: float, expected: float) -> None:
    assert percentile([math.inf] * 4 + [1.0] * 96, percent) == expected


def test_should_refuse_no_values() -> None:
    with pytest.raises(ValueError, match="at least one value"):
        percentile([], 50)
