"""Compare the goodput of `penstock serve` at ten times its capacity with that at its capacity.

    python -m bench.overload [--turns 12] [--seconds 8] [--canned] [--json FILE]

The service is one process, and all callers are another. Two loads take turns, because the capacity of a shared machine
changes. One is 64 callers, each of which calls again after its answer. The other is a flood: calls at a fixed rate, ten
times the rate at which the 64 callers were served. A flood's goodput is its answered calls divided by those of the
quiet turns before and after it.

Goals: a goodput of at least 0.85, and p99 over all refusals of at most 100 ms. Exits with 1 if a goal is missed, or if
a call ended in another way than with an answer or a refusal with a retry delay.

The cost of a refusal is the CPU of the front end's process under the flood, minus that for the answered calls.
With `--canned` the scripted engine answers: use it to measure that cost on a machine whose engine is slow.
"""

from __future__ import annotations

import argparse
import base64
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from penstock.config.schema import DEMO_MODEL_FP8_DIR
from penstock.engine.vllm.concurrency import MIN_REQUESTS
from penstock.generation.percentiles import percentile
from penstock_bench.load.serving import served
from penstock_proto.v1 import generation_pb2 as pb

from bench.machine import about
from bench.work import job

GOODPUT, P99_SECONDS = 0.85, 0.1
CALLERS = MIN_REQUESTS  # at once: the default on a CPU
_ROOT = Path(__file__).parents[1]
_LEAD_IN_SECONDS = 4.0
_LEAD_IN_CALLS, _TURN_CALLS = 2.5, 5.0
"""Shortest lead-in and turn, in lengths of a call, as on a machine where a call takes 1.6 s.

Calls that start together end together, so a turn must be much longer than a call.
"""
_LONGEST_CALL_SECONDS = 10.0


class TooSlow(Exception):
    """Report calls that take so long that a turn would take minutes, and that ten times as many would be no flood."""


@dataclass(frozen=True, slots=True)
class Overload:
    """Results of the callers (tests/chaos/crowd.py): a quiet turn before and after each flood."""

    full: Sequence[dict[str, Any]]
    flood: Sequence[dict[str, Any]]

    @property
    def capacities(self) -> list[float]:
        """Return the answered calls per second in the quiet turns around each flood."""
        return [statistics.mean(map(_per_second, pair)) for pair in itertools.pairwise(self.full)]

    @property
    def shares(self) -> list[float]:
        """Return the goodput of each flood."""
        return [_per_second(one) / capacity for one, capacity in zip(self.flood, self.capacities, strict=True)]

    @property
    def goodput(self) -> float:
        """Return the goodput over all turns, in which each turn counts by its calls."""
        return sum(map(_per_second, self.flood)) / sum(self.capacities)

    @property
    def refusal_seconds(self) -> list[float]:
        """Return the seconds of each refusal."""
        return [seconds for one in self.flood for _, seconds in one["refused"]]

    @property
    def p99_seconds(self) -> float:
        """Return p99 of the seconds of all refusals."""
        return percentile(self.refusal_seconds, 99)

    @property
    def cpu_seconds_per_refusal(self) -> float:
        """Return the CPU seconds of the front end's process per refusal."""
        quiet = sum(one["cpu"] for one in self.full) / sum(one["done"] for one in self.full)
        answers = quiet * sum(one["done"] for one in self.flood)
        return float((sum(one["cpu"] for one in self.flood) - answers) / max(1, self.refused))

    @property
    def sent(self) -> int:
        return sum(one["sent"] for one in self.flood)

    @property
    def refused(self) -> int:
        return sum(len(one["refused"]) for one in self.flood)

    @property
    def wrong(self) -> list[str]:
        """Return the ends of calls that are neither an answer nor RESOURCE_EXHAUSTED with RetryInfo."""
        return [end for one in (*self.full, *self.flood) for end in one["wrong"]]

    @property
    def holds(self) -> bool:
        return self.goodput >= GOODPUT and self.p99_seconds <= P99_SECONDS

    def to_dict(self) -> dict[str, Any]:
        return {
            "goodput": round(self.goodput, 3),
            "goodput_by_turn": [round(share, 3) for share in self.shares],
            "refused_p99_ms": round(self.p99_seconds * 1e3, 1),
            "refused_p50_ms": round(percentile(self.refusal_seconds, 50) * 1e3, 1),
            "capacity_calls_per_second": round(statistics.mean(map(_per_second, self.full)), 1),
            "asked_calls_per_second": round(self.sent / sum(one["seconds"] for one in self.flood), 1),
            "sent": self.sent,
            "refused": self.refused,
            "cpu_us_per_refusal": round(self.cpu_seconds_per_refusal * 1e6),
            "front_end_cores": {
                "full": round(statistics.mean(one["cpu"] / one["seconds"] for one in self.full), 2),
                "flood": round(statistics.mean(one["cpu"] / one["seconds"] for one in self.flood), 2),
            },
            "wrong": self.wrong,
            "wanted": {"goodput": GOODPUT, "refused_p99_ms": P99_SECONDS * 1e3},
        }


def measure(requests: Sequence[pb.GenerateRequest], turns: int, seconds: float, *, canned: bool = False) -> Overload:
    """Run the loads one after the other, in turns of `seconds` each. Raise TooSlow."""
    asked = "".join(base64.b64encode(request.SerializeToString()).decode() + "\n" for request in requests)
    full: list[dict[str, Any]] = []
    flood: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        model, settings = _canned(Path(scratch)) if canned else (DEMO_MODEL_FP8_DIR, ())
        # All callers have one address, and the limits per caller are not to be measured.
        with served(model, (*settings, "admission.max_starts_per_second=1e6")) as address:
            front_end = _listening(address)
            turn = _turn(_crowd(address, front_end, asked, 0, Turn(_LEAD_IN_SECONDS, seconds)), seconds)
            full.append(_crowd(address, front_end, asked, 0, turn))
            for number in range(turns):
                flood.append(_crowd(address, front_end, asked, 10 * _per_second(full[-1]), turn))
                full.append(_crowd(address, front_end, asked, 0, turn))
                print(f"turn {number + 1}: {Overload(full, flood).shares[-1]:.2f} of the goodput", file=sys.stderr)
    return Overload(full, flood)


@dataclass(frozen=True, slots=True)
class Turn:
    lead_in_seconds: float
    seconds: float


def _turn(first: dict[str, Any], seconds: float) -> Turn:
    """Return the seconds of a turn, from the length of the first calls, which are not counted. Raises TooSlow."""
    call_seconds = CALLERS / max(_per_second(first), 1e-9)
    if call_seconds > _LONGEST_CALL_SECONDS:
        raise TooSlow(f"{first['done']} calls answered in {first['seconds']:.0f} s, of {CALLERS} at a time")
    return Turn(max(_LEAD_IN_SECONDS, _LEAD_IN_CALLS * call_seconds), max(seconds, _TURN_CALLS * call_seconds))


def _canned(folder: Path) -> tuple[Path, Sequence[str]]:
    """Return replies of twenty steps of 50 ms each."""
    script = folder / "replies.json"
    reply = {"thought": "a" * 20, "answer": "b" * 20, "chunk_tokens": 2, "step_seconds": 0.05}
    script.write_text(json.dumps([reply]), encoding="utf-8")
    return script, ("engine.kind=scripted", f"admission.max_running_sequences={CALLERS}")


def _listening(address: str) -> psutil.Process:
    port = int(address.rpartition(":")[2])
    (found,) = (
        one.pid for one in psutil.net_connections("tcp") if one.laddr.port == port and one.status == psutil.CONN_LISTEN
    )
    return psutil.Process(found)


def _crowd(address: str, front_end: psutil.Process, asked: str, per_second: float, turn: Turn) -> dict[str, Any]:
    """Return the callers' results, and the CPU seconds of the front end in the same time."""
    numbers = (CALLERS, per_second, turn.lead_in_seconds, turn.seconds)
    command = [sys.executable, "-m", "tests.chaos.crowd", address, *map(str, numbers)]
    before = front_end.cpu_times()
    said = subprocess.run(command, input=asked, stdout=subprocess.PIPE, check=True, timeout=240, cwd=_ROOT, text=True)
    after = front_end.cpu_times()
    seen: dict[str, Any] = json.loads(said.stdout)
    # The load before counting is the same, except for its first second.
    share = seen["seconds"] / (turn.lead_in_seconds + seen["seconds"])
    seen["cpu"] = (after.user + after.system - before.user - before.system) * share
    return seen


def _per_second(seen: dict[str, Any]) -> float:
    return float(seen["done"] / seen["seconds"])


def questions() -> list[pb.GenerateRequest]:
    """Return sums that the embedded model thinks about."""
    return [
        pb.GenerateRequest(
            spec=pb.GenerationSpec(
                messages=pb.Messages(messages=[pb.Message(role=pb.ROLE_USER, content=question)]),
                thinking=pb.ThinkingConfig(mode=pb.THINKING_MODE_THINKING),
                output=pb.OutputConfig(max_output_tokens=100),
            )
        )
        for (question,) in job(16, 1, seed=0).questions
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=8.0, help="shortest length of a turn")
    parser.add_argument("--canned", action="store_true", help="let the scripted engine answer")
    parser.add_argument("--json", type=Path, metavar="FILE")
    asked = parser.parse_args()
    made = about("bench.overload")
    seen = measure(questions(), asked.turns, asked.seconds, canned=asked.canned)
    told = {"about": made, **seen.to_dict()}
    print(json.dumps(told, indent=1))
    if asked.json is not None:
        asked.json.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return int(bool(seen.wrong) or not seen.holds)


if __name__ == "__main__":
    sys.exit(main())
