"""Measure p50 and p99 of a normal client's calls before, during and after each attack, and print a table.

    python -m bench.attacks [--times 3] [--only NAME,NAME] [--preset PRESET] [--json FILE]

The attacks are those of tests/hostile/held.py, on a service of its own with the scripted engine, on loopback. Run it
on a machine that does nothing else: the client, the attacker and the service share its cores. A normal call takes 0.3 s
of the scripted engine. `--preset` uses the window and the limits of a preset of the chart;
qwen3.5-397b-a17b-fp8-1m allows the largest messages. `--times` repeats each attack, so that it lasts long enough for
percentiles.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from penstock.generation.percentiles import percentile

from bench.machine import about
from tests.hostile.conftest import Victim, guarded_service, limits_of_preset
from tests.hostile.held import ATTACKS, Beside

_QUIET_CALLS = 60
_CHECK_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Felt:
    """One attack: milliseconds of a normal client's calls (p50, p99), failed calls, and MiB of memory above rest."""

    attack: str
    count: int
    seconds: float
    before_ms: tuple[float, float]
    during_ms: tuple[float, float]
    after_ms: tuple[float, float]
    failed: int
    memory_mib: float


def _samples(victim: Victim, since: float, until: float) -> list[float]:
    """Return the seconds of each normal call that ended between `since` and `until` (wall clock)."""
    lines = [line.split() for line in victim.samples_file.read_text(encoding="utf-8").splitlines()]
    return [float(seconds) for end, seconds in lines if end != "FAILED" and since <= float(end) <= until]


def _p50_p99(samples: Sequence[float]) -> tuple[float, float]:
    if not samples:
        return (float("nan"), float("nan"))
    return percentile(samples, 50) * 1e3, percentile(samples, 99) * 1e3


def measure(victim: Victim, name: str, times: int) -> Felt:
    """Run one attack `times` times while the normal client makes calls."""
    attack, (count, _) = next((attack, counts) for attack, counts in ATTACKS.items() if attack.__name__ == name)
    quiet_at, rest = time.time(), victim.rss_kib()
    victim.await_normal(_QUIET_CALLS)
    began, most = time.time(), rest
    for _ in range(times):
        beside = Beside(attack, victim.target, count)
        beside.start()
        while beside.is_on:
            most = max(most, victim.rss_kib())
            time.sleep(_CHECK_SECONDS)
        beside.result()
    ended = time.time()
    victim.await_normal(_QUIET_CALLS)
    return Felt(
        name,
        count * times,
        ended - began,
        _p50_p99(_samples(victim, quiet_at, began)),
        _p50_p99(_samples(victim, began, ended)),
        _p50_p99(_samples(victim, ended, time.time())),
        len(victim.normal_requests()[2]),
        (most - rest) / 1024,
    )


def table(felt: Sequence[Felt]) -> str:
    """Return the table of docs/reference/threat-model.md."""
    lines = [
        "| attack | things | p50 / p99 before, ms | during | after | failed calls | memory above rest, MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in felt:
        times = " | ".join(f"{p50:.0f} / {p99:.0f}" for p50, p99 in (one.before_ms, one.during_ms, one.after_ms))
        what = f"{one.attack.replace('_', ' ')} | {one.count:,} in {one.seconds:.0f} s"
        lines.append(f"| {what} | {times} | {one.failed} | {one.memory_mib:.0f} |")
    return "\n".join(lines)


def main() -> int:
    names = [attack.__name__ for attack in ATTACKS]
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--times", type=int, default=3, help="number of runs of each attack")
    parser.add_argument("--only", default=",".join(names), help="names of attacks, separated by commas")
    parser.add_argument("--json", type=Path, help="file for all figures")
    parser.add_argument("--preset", help="preset of the chart whose limits apply; default: the service's defaults")
    options = parser.parse_args()
    limits = limits_of_preset(options.preset) if options.preset else None
    with (
        tempfile.TemporaryDirectory(prefix="penstock-attacks-") as place,
        guarded_service(Path(place), limits) as victim,
    ):
        message_bytes = victim.message_bytes
        victim.await_normal(_QUIET_CALLS)
        felt = [measure(victim, name, options.times) for name in options.only.split(",")]
    print(f"messages of at most {message_bytes:,} bytes")
    print(table(felt))
    if options.json is not None:
        result = {**about("bench.attacks"), "message_bytes": message_bytes, "attacks": [asdict(one) for one in felt]}
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return int(any(one.failed for one in felt))


if __name__ == "__main__":
    raise SystemExit(main())
