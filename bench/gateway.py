"""Measure what the HTTP gateway adds, beside `vllm serve`, on an engine with prepared tokens.

    python -m bench.gateway [--rounds 4] [--streams 1,8,64] [--steps-ms 5,30] [--json FILE]

`vllm serve`, Penstock by gRPC, and Penstock through the gateway get the same tokens at the same pace (`bench.canned`),
and take turns, round by round. Gateway and gRPC client ask the same service. CPU is that of the front-end processes by
the kernel's clock; for the gateway it is that of both processes, gateway and service. Where a step takes at most 25 ms,
both are measured once more with deltas coalesced for 50 ms.

The first token is measured by itself: calls of 32 to 128 tokens, so that they do not begin together, one after the
other on each connection, by gRPC and through the gateway in turns. What the gateway adds is the difference of the
medians.
"""

from __future__ import annotations

import copy
import http.client
import statistics
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import typer

from bench.compare import started
from bench.contenders import OpenAi, Penstock
from bench.drain import Connection, Reply
from bench.front_end import (
    COALESCED_MS,
    OUTPUT_TOKENS,
    PROMPT_TOKENS,
    Goal,
    JsonFile,
    OutputTokens,
    Round,
    Rounds,
    StepsMs,
    Streams,
    Trace,
    canned_setting,
    judged,
    numbers,
    question_counter,
    ratios_of,
    report,
    summary,
    table,
    work_for,
)
from bench.machine import about
from bench.openai_http import connection as http_connection
from bench.openai_http import events as http_events
from bench.served import Answered, Served, answered
from bench.work import long_job

GOALS = (Goal("gateway", "openai", 2.0), Goal("gateway_coalescing", "openai", 1.0))
MAX_ADDED_MS = 5.0
_MIN_TOKENS, _MORE_TOKENS = 32, 96
_CALLS = {1: 16, 8: 8}
"""Calls of each stream where the first token is measured, by the number of streams; 4 otherwise."""


class Gateway(OpenAi):
    """`penstock gateway` in front of a service that is measured by gRPC, too."""

    name, label = "gateway", "Penstock through the gateway"
    flush_ms = 0

    def __init__(self, behind: Penstock) -> None:
        super().__init__(behind.setting)
        self.behind = behind

    def command(self) -> list[str]:
        where = ["--listen", self.address, "--target", self.behind.address]
        return [sys.executable, "-m", "penstock", "gateway", *where]

    def is_ready(self) -> bool:
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
        try:
            link.request("GET", "/readyz")
            return link.getresponse().status == 200
        except OSError:
            return False
        finally:
            link.close()

    def coalescing(self, flush_ms: int) -> Gateway:
        """Return the same gateway with requests that coalesce deltas."""
        other = CoalescingGateway(self.behind)
        other.port, other.process = self.port, self.process
        other.label = f"through the gateway, flush_interval {flush_ms} ms"
        other.flush_ms = flush_ms
        return other

    def connection(self, questions: tuple[str, ...]) -> Connection:
        bodies: list[dict[str, Any]] = [
            {
                "model": "",
                "messages": [{"role": "user", "content": question}],
                "temperature": 0.0,
                "max_tokens": self.max_tokens(question),
                "stream": True,
                "stream_options": {"include_usage": True},
                "thinking_mode": "thinking",
                "answer_reserve": 1,
                "flush_interval": self.flush_ms / 1000,
            }
            for question in questions
        ]
        return http_connection(self.address, "/v1/chat/completions", bodies)

    def read(self, reply: Reply) -> Answered:
        times, tokens = [], 0
        for when, event in http_events(reply):
            if event.get("usage"):
                tokens += event["usage"]["completion_tokens"]
            tokens += event.get("penstock", {}).get("usage", {}).get("marker_tokens", 0)
            delta = event["choices"][0]["delta"] if event.get("choices") else {}
            if delta.get("content") or delta.get("reasoning_content"):
                times.append(when)
        return answered(reply.sent_at, times, tokens)

    def cpu_seconds(self) -> float:
        """Return the CPU seconds of both processes so far: gateway and service."""
        return super().cpu_seconds() + self.behind.cpu_seconds()


class CoalescingGateway(Gateway):
    name = "gateway_coalescing"


def main(
    rounds: Rounds = 4,
    streams: Streams = "1,8,64",
    steps_ms: StepsMs = "5,30",
    output_tokens: OutputTokens = OUTPUT_TOKENS,
    json_file: JsonFile = None,
    trace: Trace = True,
) -> None:
    """Compare the gateway with `vllm serve` on an engine with prepared tokens."""
    made = about("bench.gateway")
    notes: list[str] = []
    counts, steps = numbers(streams), numbers(steps_ms)
    with ExitStack() as stack:
        setting, set_pace = stack.enter_context(canned_setting(output_tokens, trace=trace))
        behind = Penstock(setting)
        up = started([OpenAi(setting), behind], stack, notes)
        up += started([Gateway(behind)], stack, notes) if behind in up else []
        measured: list[Round] = []
        firsts: list[Round] = []
        for turn in range(rounds):
            for step_ms in steps:
                set_pace(step_ms, output_tokens)
                for count in counts:
                    measured += _turn(up, turn, step_ms, count, output_tokens)
            set_pace(steps[-1], _MIN_TOKENS)
            for count in counts:
                firsts += _first_tokens(up, turn, steps[-1], count)
            print(f"round {turn + 1} of {rounds} has ended", file=sys.stderr)
        labels = {one.name: one.label for one in [*up, *_coalescing(up, 0)]}
    results, ratios, added = summary(measured), ratios_of(measured, GOALS), added_ms(firsts)
    print(table(results, labels))
    whole = {
        "about": made,
        "notes": notes,
        "results": results,
        "ratios": ratios,
        "first_token": added,
        "goals": [*judged(ratios), *judged_added(added)],
    }
    report(whole, json_file)


def _coalescing(up: Sequence[OpenAi | Penstock], step_ms: int) -> list[Gateway | Penstock]:
    if 2 * step_ms > COALESCED_MS:
        return []
    return [one.coalescing(COALESCED_MS) for one in up if isinstance(one, Gateway | Penstock)]


def _turn(up: Sequence[OpenAi | Penstock], turn: int, step_ms: int, streams: int, output_tokens: int) -> list[Round]:
    contenders = [*up, *_coalescing(up, step_ms)]
    work = work_for(up[0].setting, streams, step_ms, output_tokens, seed=1000 * turn + streams)
    first = turn % len(contenders)  # each round begins with another contender
    return [
        Round(turn, step_ms, streams, one.name, one.serve(work)) for one in [*contenders[first:], *contenders[:first]]
    ]


def _first_tokens(up: Sequence[OpenAi | Penstock], turn: int, step_ms: int, streams: int) -> list[Round]:
    """Measure short calls, by gRPC and through the gateway in turns."""
    short = [_short(one) for one in up if isinstance(one, Gateway | Penstock)]
    found = []
    for place, one in enumerate(short if turn % 2 else short[::-1]):
        counter = question_counter(one.setting)
        seed = 100_000 + 1000 * turn + 10 * streams + place
        job = long_job(streams, _CALLS.get(streams, 4), seed, PROMPT_TOKENS, counter)
        found.append(Round(turn, step_ms, streams, one.name, one.serve(job)))
    return found


def _short(contender: Gateway | Penstock) -> Gateway | Penstock:
    """Return the same server with requests for short answers."""
    made = copy.copy(contender)
    made.setting, made.more_tokens = replace(contender.setting, max_tokens=_MIN_TOKENS), _MORE_TOKENS
    return made


def added_ms(firsts: Sequence[Round]) -> list[dict[str, Any]]:
    """Return, by number of streams, the median times to the first token in milliseconds, and what the gateway adds."""
    rows = []
    for streams in dict.fromkeys(one.streams for one in firsts):
        here = [one for one in firsts if one.streams == streams]
        medians = {name: _median_ms([one.served for one in here if one.contender == name]) for name in _names(here)}
        row: dict[str, Any] = {"streams": streams, "step_ms": here[0].step_ms, "median_ms": medians}
        if "gateway" in medians and "penstock" in medians:
            row["added_ms"] = round(medians["gateway"] - medians["penstock"], 3)
            row["most_added_ms"] = MAX_ADDED_MS
        rows.append(row)
    return rows


def _names(rounds: Sequence[Round]) -> list[str]:
    return list(dict.fromkeys(one.contender for one in rounds))


def _median_ms(runs: Sequence[Served]) -> float:
    return round(statistics.median(answer.first_token_seconds for run in runs for answer in run.answers) * 1e3, 3)


def judged_added(added: Sequence[dict[str, Any]]) -> list[str]:
    """Return what the gateway adds as lines beside the goal."""
    return [
        f"the gateway adds {row['added_ms']:.2f} ms to the median first token of {row['median_ms']['penstock']:.1f} ms "
        f"at {row['streams']} streams and {row['step_ms']} ms; goal: at most {row['most_added_ms']:.0f} ms, "
        f"{'held' if row['added_ms'] <= row['most_added_ms'] else 'missed'}"
        for row in added
        if "added_ms" in row
    ]


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
