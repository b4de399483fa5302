"""Compute percentiles, with one definition for everything that is measured or kept."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest of the values that at least `percent` % of them do not exceed (nearest rank).

    The result is always one of the values, so that infinite ones (calls that were lost) are never averaged into finite
    ones. This is numpy's method `inverted_cdf`.

    Args:
        values: In any order.
        percent: In [0, 100].

    Raises:
        ValueError: There are no values.
    """
    if not values:
        raise ValueError("a percentile needs at least one value, got none")
    return float(np.percentile(values, percent, method="inverted_cdf"))
