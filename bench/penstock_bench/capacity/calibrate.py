"""Calibrate the computed speed with measured points, from a pilot's result or another file with points."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from penstock.errors import ConfigError
from penstock_bench.capacity.memory import Memory, Setup
from penstock_bench.capacity.roofline import Assumptions, Roofline
from penstock_bench.capacity.speed import Correction, tokens_per_step


@dataclass(frozen=True, slots=True)
class Measured:
    """One measured point: output tokens per second while decoding, prompt tokens per second while reading prompts.

    Either may be None.
    """

    concurrency: int
    context_tokens: int
    output_tokens_per_second: float | None
    prompt_tokens_per_second: float | None


@dataclass(frozen=True, slots=True)
class Fit:
    """The result. `error` is the mean relative difference between measured and calibrated seconds of a step."""

    correction: Correction
    points: int
    error: float
    model: str


def read_points(path: Path) -> tuple[tuple[Measured, ...], str]:
    """Return the points and the measured model's name ("" if the file has none). Raises `ConfigError`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from None
    points = content.get("points") if isinstance(content, dict) else None
    if not isinstance(points, list) or not points:
        raise ConfigError(f'{path} has no "points"; docs/how-to/plan.md says what a calibration file is')
    return tuple(_point(path, number, entry) for number, entry in enumerate(points)), str(content.get("model") or "")


def fit(setup: Setup, memory: Memory, assumed: Assumptions, path: Path) -> Fit:
    """Fit to the points of a file. Raises `ConfigError`."""
    points, model = read_points(path)
    said = f"calibrated: {path.name}, {len(points)} points" + (f" of {model}" if model else "")
    found = fit_points(setup, memory, assumed, points, said)
    if found is None:
        raise ConfigError(f"{path}: no point says output_tokens_per_second, so there is nothing to calibrate with")
    return replace(found, model=model)


def fit_points(
    setup: Setup, memory: Memory, assumed: Assumptions, points: Sequence[Measured], source: str
) -> Fit | None:
    """Fit by least squares over the points' relative errors. The fixed part is at least 0.

    Returns None if no point has output tokens per second.
    """
    roofline = Roofline(setup, memory.cache, assumed)
    each = tokens_per_step(setup.drafted, assumed.acceptance)
    pairs, reading = [], []
    for one in points:
        if one.output_tokens_per_second:
            sequences = -(-one.concurrency // setup.layout.data)
            paper = roofline.decode(sequences, one.context_tokens).seconds
            pairs.append((paper, one.concurrency * each / one.output_tokens_per_second))
        if one.prompt_tokens_per_second:
            step = roofline.prefill(one.context_tokens)
            reading.append(step.tokens * setup.layout.data / step.seconds / one.prompt_tokens_per_second)
    if not pairs:
        return None
    factor, extra = _line(pairs)
    error = sum(abs(factor * paper + extra - seen) / seen for paper, seen in pairs) / len(pairs)
    # Without measured prompts, assume that reading them is off by the same factor as decoding. The fit has no factor
    # where the measured time does not grow with the computed one; the mean ratio stands for it then.
    prefill = (
        sum(reading) / len(reading) if reading else factor or sum(seen / paper for paper, seen in pairs) / len(pairs)
    )
    return Fit(Correction(factor, extra, prefill, source), len(points), error, "")


def _line(pairs: list[tuple[float, float]]) -> tuple[float, float]:
    """Fit measured = factor x computed + extra, both at least 0, each pair weighted by 1 / measured squared."""
    weights = [1 / seen**2 for _, seen in pairs]
    total = sum(weights)
    mean_paper = sum(w * paper for w, (paper, _) in zip(weights, pairs, strict=True)) / total
    mean_seen = sum(w * seen for w, (_, seen) in zip(weights, pairs, strict=True)) / total
    spread = sum(w * (paper - mean_paper) ** 2 for w, (paper, _) in zip(weights, pairs, strict=True))
    if spread > 1e-12 * total * mean_paper**2:
        both = zip(weights, pairs, strict=True)
        slope = sum(w * (paper - mean_paper) * (seen - mean_seen) for w, (paper, seen) in both) / spread
        extra = mean_seen - slope * mean_paper
        if slope >= 0 and extra >= 0:
            return slope, extra
        if slope < 0:
            return 0.0, mean_seen
    squares = sum(w * paper**2 for w, (paper, _) in zip(weights, pairs, strict=True))
    return sum(w * paper * seen for w, (paper, seen) in zip(weights, pairs, strict=True)) / squares, 0.0


def _point(path: Path, number: int, entry: Any) -> Measured:
    if not isinstance(entry, dict):
        raise ConfigError(f"{path}: points[{number}] is no object")
    where = f"{path}: points[{number}]"
    return Measured(
        int(_above_zero(where, entry, "concurrency")),
        int(_above_zero(where, entry, "context_tokens")),
        _above_zero(where, entry, "output_tokens_per_second") if entry.get("output_tokens_per_second") else None,
        _above_zero(where, entry, "prompt_tokens_per_second") if entry.get("prompt_tokens_per_second") else None,
    )


def _above_zero(where: str, entry: dict[str, Any], name: str) -> float:
    found = entry.get(name)
    if isinstance(found, bool) or not isinstance(found, int | float) or not found > 0:
        raise ConfigError(f"{where}.{name} is {found!r}; it must be a number above 0")
    return float(found)
