"""Ten times more calls than there is room for, beside as many as there is: `penstock serve` in one process, those who
call in another.

    python -m bench.overload [--turns 12] [--seconds 8] [--canned] [--json FILE]

A crowd that fits (64 callers, each asks again once it was answered) and one that comes on a clock, ten times as fast as
the first was served, take turns: what capacity is wanders on a machine that others use. Goodput is the calls that the
flood got answered over those of the two quiet turns around it. Aims: 0.85 of the goodput, a refusal in 100 ms
at p99 over all of them.
Ends with 1 where one is missed, or where a call ended otherwise than answered or refused with a time to come back.

What a refusal costs is the CPU of the front end's process under the flood beyond what it takes for the answered calls.
`--canned` has the scripted engine answer: that cost alone, on a machine whose engine is slow.
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
from penstock_proto.v1 import generation_pb2 as pb

from bench.machine import about
from bench.serving import served
from bench.work import job

GOODPUT, P99_SECONDS = 0.85, 0.1
CALLERS = MIN_REQUESTS  # at once, by default on a CPU
_ROOT = Path(__file__).parents[1]
_LEAD_IN_SECONDS = 4.0
_LEAD_IN_CALLS, _TURN_CALLS = 2.5, 5.0
"""Those who start together end together: a turn that is no longer than a call counts waves. So where calls take long, a
turn waits and lasts as many times a call as on a machine where one takes 1.6 s."""
_LONGEST_CALL_SECONDS = 10.0


class TooSlow(Exception):
    """Calls take so long that turns of several would take minutes, and that ten times as many would be no flood."""


@dataclass(frozen=True, slots=True)
class Overload:
    """Hold what crowds saw (tests/chaos/crowd.py): one that fits before and after each flood."""

    full: Sequence[dict[str, Any]]
    flood: Sequence[dict[str, Any]]

    @property
    def capacities(self) -> list[float]:
        """Calls per second around each flood."""
        return [statistics.mean(map(_per_second, pair)) for pair in itertools.pairwise(self.full)]

    @property
    def shares(self) -> list[float]:
        """Goodput of each flood."""
        return [_per_second(one) / capacity for one, capacity in zip(self.flood, self.capacities, strict=True)]

    @property
    def goodput(self) -> float:
        """Over all turns: a flood beside a capacity that happened to be measured high weighs what it weighs."""
        return sum(map(_per_second, self.flood)) / sum(self.capacities)

    @property
    def refusal_seconds(self) -> list[float]:
        """How long each refusal took."""
        return [seconds for one in self.flood for _, seconds in one["refused"]]

    @property
    def p99_seconds(self) -> float:
        """To refuse, over all refusals."""
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
        """Ends that are neither an answer nor RESOURCE_EXHAUSTED with RetryInfo."""
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
    """Run crowds one after the other, in turns of `seconds` each. Raise TooSlow."""
    asked = "".join(base64.b64encode(request.SerializeToString()).decode() + "\n" for request in requests)
    full: list[dict[str, Any]] = []
    flood: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        model, settings = _canned(Path(scratch)) if canned else (DEMO_MODEL_FP8_DIR, ())
        # All callers of the crowd are one host, and how many are admitted is what is measured.
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
    """Long enough for calls as long as those of the first crowd, which are not counted. Raises TooSlow."""
    call_seconds = CALLERS / max(_per_second(first), 1e-9)
    if call_seconds > _LONGEST_CALL_SECONDS:
        raise TooSlow(f"{first['done']} calls answered in {first['seconds']:.0f} s, of {CALLERS} at a time")
    return Turn(max(_LEAD_IN_SECONDS, _LEAD_IN_CALLS * call_seconds), max(seconds, _TURN_CALLS * call_seconds))


def _canned(folder: Path) -> tuple[Path, Sequence[str]]:
    """Twenty steps of 50 ms for each call: as many calls a second as there is room for."""
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
    """Return what the crowd saw, and the CPU seconds of the front end in the same time."""
    numbers = (CALLERS, per_second, turn.lead_in_seconds, turn.seconds)
    command = [sys.executable, "-m", "tests.chaos.crowd", address, *map(str, numbers)]
    before = front_end.cpu_times()
    said = subprocess.run(command, input=asked, stdout=subprocess.PIPE, check=True, timeout=240, cwd=_ROOT, text=True)
    after = front_end.cpu_times()
    seen: dict[str, Any] = json.loads(said.stdout)
    # The lead-in's load is the same, but for its first second.
    share = seen["seconds"] / (turn.lead_in_seconds + seen["seconds"])
    seen["cpu"] = (after.user + after.system - before.user - before.system) * share
    return seen


def _per_second(seen: dict[str, Any]) -> float:
    return float(seen["done"] / seen["seconds"])


def questions() -> list[pb.GenerateRequest]:
    """Sums that the embedded model thinks about."""
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
    parser.add_argument("--seconds", type=float, default=8.0, help="of each turn at least")
    parser.add_argument("--canned", action="store_true", help="the scripted engine answers")
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
