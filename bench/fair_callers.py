"""Measure p99 of a caller's time to first token beside a caller that sends fifty times its quota.

    python -m bench.fair_callers [--rounds 6]

The scripted engine answers; it takes 200 ms for a first token. Rounds with and without the flood take turns, so that
other work on the machine affects both. Goal: at most 1.2 times the quiet rounds, on a machine that does nothing else.
Exits with 1 if the goal is missed. tests/rpc/test_fair_callers.py tests which calls are refused and which are served.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path

from penstock.generation.percentiles import percentile
from penstock_proto.v1 import generation_pb2 as pb

from tests.rpc.secure import bearer, channel, stub
from tests.rpc.test_fair_callers import QUOTA_PER_MINUTE, STREAMS, two_callers
from tests.rpc.test_quotas import fast

TIMES_ITS_QUOTA = 50
ROUND_SECONDS = 3.0
MAX_RATIO = 1.2
FLOOD = Path(__file__).parents[1] / "tests" / "rpc" / "flood.py"


async def first_tokens(address: str, key: str, seconds: float) -> list[float]:
    """Return the seconds to first token of calls that follow each other on a few streams."""
    took: list[float] = []
    end = time.monotonic() + seconds

    async with channel(address) as at:

        async def one_after_the_other() -> None:
            while time.monotonic() < end:
                sent = time.monotonic()
                call = stub(at).StreamGenerate(pb.StreamGenerateRequest(spec=fast("well")), metadata=bearer(key))
                async for response in call:
                    if response.event.WhichOneof("event") == "answer":
                        took.append(time.monotonic() - sent)
                        break
                async for _ in call:
                    pass

        await asyncio.gather(*(one_after_the_other() for _ in range(STREAMS)))
    return took


async def besides_a_flood(address: str, key: str, hostile: str) -> tuple[list[float], dict[str, int]]:
    per_second = TIMES_ITS_QUOTA * QUOTA_PER_MINUTE / 60
    command = [sys.executable, str(FLOOD), address, hostile, str(per_second), str(ROUND_SECONDS + 1)]
    flood = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert flood.stdout is not None
    await flood.stdout.readline()
    took = await first_tokens(address, key, ROUND_SECONDS)
    out, _ = await flood.communicate()
    return took, json.loads(out.splitlines()[-1])


async def measured(rounds: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        async with two_callers(Path(folder)) as (address, key, hostile):
            await first_tokens(address, key, 0.5)
            alone: list[float] = []
            beside: list[float] = []
            for _ in range(rounds):
                alone += await first_tokens(address, key, ROUND_SECONDS)
                took, _ = await besides_a_flood(address, key, hostile)
                beside += took
    return {
        "p99_alone_ms": round(percentile(alone, 99) * 1e3, 1),
        "p99_beside_ms": round(percentile(beside, 99) * 1e3, 1),
        "beside_over_alone": round(percentile(beside, 99) / percentile(alone, 99), 3),
        "aim": MAX_RATIO,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=6)
    asked = parser.parse_args()
    found = asyncio.run(measured(asked.rounds))
    print(json.dumps(found, indent=1))
    return int(found["beside_over_alone"] > MAX_RATIO)


if __name__ == "__main__":
    sys.exit(main())
