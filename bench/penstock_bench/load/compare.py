"""Compare two results of `penstock bench`: which figures differ by more than chance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock_bench.load.intervals import HIGHER_IS_BETTER, Difference, differences
from pydantic import BaseModel, ConfigDict, Field, ValidationError

_MAX_BYTES = 256 * 2**20
_MAX_SAMPLES = 10_000


class _Interval(BaseModel):
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    method: str
    samples: tuple[float, ...] = Field(max_length=_MAX_SAMPLES)


class BenchResult(BaseModel):
    """The parts of a result of `penstock bench --json` or `penstock bench knee --json` that a comparison needs."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    date: str = ""
    command: str = ""
    load: dict[str, Any] = {}
    model: dict[str, Any] = {}
    client_machine: dict[str, Any] = {}
    intervals: dict[str, _Interval]
    warnings: tuple[str, ...] = ()

    @property
    def samples(self) -> dict[str, tuple[float, ...]]:
        """Return the independent samples of each figure that can be compared."""
        return {name: one.samples for name, one in self.intervals.items() if name in HIGHER_IS_BETTER}


@dataclass(frozen=True, slots=True)
class Comparison:
    """The differences by figure, and warnings about the comparison."""

    differences: Mapping[str, Difference]
    notes: tuple[str, ...]

    @property
    def worse(self) -> list[str]:
        """Return the figures in which the second result is worse by more than chance."""
        return [name for name, one in self.differences.items() if verdict(name, one) == "worse"]


def verdict(name: str, one: Difference) -> str:
    """Return `better` or `worse` for the second result, or `no difference shown`."""
    if not one.differs:
        return "no difference shown"
    return "better" if (one.low > 0) == HIGHER_IS_BETTER[name] else "worse"


def read(path: Path) -> BenchResult:
    """Return a result that has intervals. Raises ValueError, with what to do, and OSError."""
    if path.stat().st_size > _MAX_BYTES:
        raise ValueError(f"{path} has more than {_MAX_BYTES // 2**20} MiB; write it without --rows")
    try:
        made = BenchResult.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise ValueError(f"{path} must be a result of `penstock bench --json`: {place}: {first['msg']}") from None
    if not made.samples:
        raise ValueError(
            f"{path} has no intervals: its run had too few calls, or SciPy was missing; "
            "run it again with more --seconds or with --runs 5"
        )
    return made


def compare(first: BenchResult, second: BenchResult) -> Comparison:
    """Compare the figures that both results have, with 95 % confidence for all together. Needs SciPy."""
    notes = []
    for what, one, other in (
        ("the loads", first.load, second.load),
        ("the models", _model(first), _model(second)),
        ("the client's machines", _machine(first), _machine(second)),
    ):
        differing = sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))
        if differing:
            notes.append(f"{what} differ in {', '.join(differing)}, which may cause a difference of the figures")
    methods = [{one.method for one in result.intervals.values()} for result in (first, second)]
    if methods[0] != methods[1]:
        notes.append("one result has several runs, the other one: only one side includes the variation between runs")
    elif any("batch means" in found for found in methods):
        notes.append("each side is one run, without the variation between runs; use --runs 5 for both sides")
    notes += [f"{name}: {warning}" for name, one in (("A", first), ("B", second)) for warning in one.warnings]
    return Comparison(differences(first.samples, second.samples), tuple(notes))


def _model(result: BenchResult) -> dict[str, Any]:
    return {name: value for name, value in result.model.items() if name != "prices_usd_per_million"}


def _machine(result: BenchResult) -> dict[str, Any]:
    return {name: value for name, value in result.client_machine.items() if name != "load_average"}
