"""Compare the front end with vLLM's own servers, each before an engine with prepared tokens (`bench.canned`).

    python -m bench.front_end [--rounds 4] [--streams 1,8,64] [--steps-ms 5,30] [--json FILE]

AsyncLLM in process, `vllm serve` over HTTP, `vllm serve --grpc` (token ids only; where smg-grpc-servicer is installed)
and Penstock get the same tokens at the same pace: prompts of 512 tokens, answers of 1,024, and two or three tokens per
step in turns. They take turns, round by round. Where a step takes at most 25 ms, Penstock is measured once more with
deltas coalesced for 50 ms.

Front-end CPU is the time of the front end's process by the kernel's clock. The engine core is another process, and so
is the client, which costs the same for each (`bench.drain`). Each ratio compares two results of one round. AsyncLLM's
own share is the CPU of the contender `in_process`, which makes its load itself.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from penstock.config.schema import EngineSettings
from penstock.engine.tokenizer import load
from penstock.engine.vllm.start import plan as plan_engine
from penstock.types import Message, Role

from bench.compare import collector, started
from bench.contenders import MAKERS, Penstock, Setting
from bench.machine import about
from bench.served import Served
from bench.work import Job, long_job

PROMPT_TOKENS, OUTPUT_TOKENS = 512, 1024
COALESCED_MS = 50
_KV_CACHE_GIB = 0.75  # For each of four engines; 64 calls of 1,536 tokens fit.
_GPU_SHARE = 0.2  # For each of four engines.
_TOKENS_AT_LEAST = 4096
"""Fewest tokens of a run: below, the cost of a call is within the noise of the idle process."""

Rounds = Annotated[int, typer.Option(help="Number of turns of each contender at each load.", min=1)]
Streams = Annotated[str, typer.Option(help="Numbers of concurrent streams, separated by commas; each at most 64.")]
StepsMs = Annotated[str, typer.Option(help="Milliseconds of an engine step, separated by commas.")]
OutputTokens = Annotated[int, typer.Option(help="Tokens of each answer; half of them are its thought.", min=8)]
JsonFile = Annotated[Path | None, typer.Option("--json", help="File for all figures.", dir_okay=False)]
Trace = Annotated[
    bool, typer.Option("--trace/--no-trace", help="Let the service send traces and metrics to a collector.")
]

_COLUMNS = {
    "front_cpu_us_per_token": "front-end us/token",
    "first_token_ms": "first token ms",
    "tokens_per_second": "tok/s",
    "messages_per_token": "messages/token",
    "tokens_per_call": "tokens/call",
    "client_cpu_us_per_token": "client us/token",
}


@dataclass(frozen=True, slots=True)
class Goal:
    """A goal: `name` uses at most `most` times the front-end CPU per token of `other`."""

    name: str
    other: str
    most: float
    only_step_ms: int | None = None

    def __str__(self) -> str:
        return f"front-end CPU per token, {self.name} to {self.other}"


GOALS = (
    Goal("penstock", "vllm_grpc", 1.15),
    Goal("penstock", "openai", 0.75),
    Goal("penstock_coalescing", "vllm_grpc", 0.85, only_step_ms=5),
)


@dataclass(frozen=True, slots=True)
class Round:
    turn: int
    step_ms: int
    streams: int
    contender: str
    served: Served


def main(
    rounds: Rounds = 4,
    streams: Streams = "1,8,64",
    steps_ms: StepsMs = "5,30",
    only: Annotated[
        str, typer.Option(help="Contenders, separated by commas: in_process, openai, vllm_grpc, penstock.")
    ] = "",
    output_tokens: OutputTokens = OUTPUT_TOKENS,
    json_file: JsonFile = None,
    trace: Trace = True,
) -> None:
    """Compare the cost of front ends on an engine with prepared tokens."""
    made = about("bench.front_end")
    notes: list[str] = []
    with ExitStack() as stack:
        setting, set_pace = stack.enter_context(canned_setting(output_tokens, trace=trace))
        makings = [maker(setting) for maker in MAKERS]
        up = started([one for one in makings if not only or one.name in only.split(",")], stack, notes)
        coalescing = [one.coalescing(COALESCED_MS) for one in up if isinstance(one, Penstock)]
        measured: list[Round] = []
        for turn in range(rounds):
            for step_ms in numbers(steps_ms):
                set_pace(step_ms, output_tokens)
                contenders = [*up, *(coalescing if 2 * step_ms <= COALESCED_MS else [])]
                for count in numbers(streams):
                    work = work_for(setting, count, step_ms, output_tokens, seed=1000 * turn + count)
                    # Each round begins with another contender.
                    for one in [*contenders[turn % len(contenders) :], *contenders[: turn % len(contenders)]]:
                        measured.append(Round(turn, step_ms, count, one.name, one.serve(work)))
            print(f"round {turn + 1} of {rounds} has ended", file=sys.stderr)
        labels = {one.name: one.label for one in [*up, *coalescing]}
    results, ratios = summary(measured), ratios_of(measured)
    print(table(results, labels))
    whole = {"about": made, "notes": notes, "results": results, "ratios": ratios, "goals": judged(ratios)}
    report(whole, json_file)


def numbers(text: str) -> list[int]:
    """Return the numbers of an option."""
    return [int(one) for one in text.split(",")]


def report(whole: Mapping[str, Any], json_file: Path | None) -> None:
    """Print the notes and goals; write everything to the file, where one is given."""
    print("\n".join([*whole["notes"], *whole["goals"]]))
    if json_file is not None:
        json_file.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


SetPace = Callable[[int, int], None]
"""Takes the milliseconds of a step, and the tokens of an answer."""


@contextmanager
def canned_setting(output_tokens: int, *, trace: bool) -> Iterator[tuple[Setting, SetPace]]:
    """Give the setting of an engine with prepared tokens, in a folder of its own, and the function for its pace."""
    from bench.canned import PACE_FILE, Pace

    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as scratch, ExitStack() as stack:
        pace = Path(scratch) / "pace.json"
        os.environ[PACE_FILE] = str(pace)
        at = stack.enter_context(collector()) if trace else ""
        setting = _canned_setting(Path(scratch), at, output_tokens)

        def set_pace(step_ms: int, output_tokens: int) -> None:
            Pace(step_ms / 1000, output_tokens // 2 - 1).write(pace)

        set_pace(0, output_tokens)
        yield setting, set_pace


def _canned_setting(folder: Path, at: str, output_tokens: int) -> Setting:
    from bench.canned import EXECUTOR

    extra = {"distributed_executor_backend": EXECUTOR}
    settings = EngineSettings(
        kv_cache_gib=_KV_CACHE_GIB, gpu_memory_utilization=_GPU_SHARE, extra_args=dict[str, object](extra)
    )
    checkpoint, plan, _ = plan_engine(settings)
    os.environ.update(plan.environment)
    tokenizer = load(checkpoint.model, checkpoint.vocab_size)
    return Setting(folder, checkpoint.model, plan, tokenizer, at, output_tokens, extra)


def work_for(setting: Setting, streams: int, step_ms: int, output_tokens: int, seed: int) -> Job:
    calls = max(1, _TOKENS_AT_LEAST // (output_tokens * streams)) if 2 * step_ms <= COALESCED_MS else 1
    return long_job(streams, calls, seed, PROMPT_TOKENS, question_counter(setting))


def question_counter(setting: Setting) -> Callable[[str], int]:
    """Return a function that counts the tokens of the prompt for a question."""

    def count(question: str) -> int:
        return len(setting.tokenizer.render([Message(Role.USER, question)], thinking=True))

    return count


def _figures(run: Served) -> dict[str, float]:
    return {
        "front_cpu_us_per_token": run.front_cpu_seconds / run.tokens * 1e6,
        "first_token_ms": statistics.median(answer.first_token_seconds for answer in run.answers) * 1e3,
        "tokens_per_second": run.tokens_per_second,
        "messages_per_token": sum(answer.messages for answer in run.answers) / run.tokens,
        "tokens_per_call": run.tokens / len(run.answers),
        "client_cpu_us_per_token": run.client_cpu_seconds / run.tokens * 1e6,
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {
        "min": round(min(values), 4),
        "median": round(statistics.median(values), 4),
        "max": round(max(values), 4),
    }


def _loads(measured: Sequence[Round]) -> list[tuple[int, int]]:
    return list(dict.fromkeys((one.step_ms, one.streams) for one in measured))


def summary(measured: Sequence[Round]) -> list[dict[str, Any]]:
    """Return a row per load and contender: each figure's minimum, median and maximum over rounds."""
    rows = []
    for load_ in _loads(measured):
        here = [one for one in measured if (one.step_ms, one.streams) == load_]
        for name in dict.fromkeys(one.contender for one in here):
            runs = [_figures(one.served) for one in here if one.contender == name]
            spreads = {column: _spread([run[column] for run in runs]) for column in _COLUMNS}
            rows.append({"step_ms": load_[0], "streams": load_[1], "contender": name, **spreads})
    return rows


def ratios_of(measured: Sequence[Round], goals: Sequence[Goal] = GOALS) -> list[dict[str, Any]]:
    """Return the ratio's minimum, median and maximum over rounds, per goal and load where both were measured.

    Where AsyncLLM was measured, the same follows with its own share subtracted from both.
    """
    runs = {(one.turn, one.step_ms, one.streams, one.contender): _cpu(one.served) for one in measured}
    turns = list(dict.fromkeys(one.turn for one in measured))
    rows = []
    for goal in goals:
        for step_ms, streams in _loads(measured):
            keys = [(turn, step_ms, streams) for turn in turns]
            pairs = [(key, runs.get((*key, goal.name)), runs.get((*key, goal.other))) for key in keys]
            there = [(key, own, other) for key, own, other in pairs if own is not None and other is not None]
            if not there or goal.only_step_ms not in (None, step_ms):
                continue
            row = {
                "ratio": str(goal),
                "step_ms": step_ms,
                "streams": streams,
                "most": goal.most,
                **_spread([own / other for _, own, other in there]),
            }
            engine = statistics.median(runs.get((*key, "in_process"), 0.0) for key in keys)
            own, other = (statistics.median(column) for column in zip(*(pair[1:] for pair in there), strict=True))
            if 0 < engine < other:
                row["median_without_async_llm"] = round((own - engine) / (other - engine), 4)
            rows.append(row)
    return rows


def _cpu(run: Served) -> float:
    return run.front_cpu_seconds / run.tokens


def judged(ratios: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return each ratio as a line beside its goal."""
    return [
        f"{row['ratio']}: {row['median']:.2f} ({row['min']:.2f} to {row['max']:.2f}) at {row['streams']} streams and "
        f"{row['step_ms']} ms; goal: at most {row['most']:.2f}, "
        f"{'held' if row['median'] <= row['most'] else 'missed'}"
        for row in ratios
    ]


def table(results: Sequence[Mapping[str, Any]], labels: Mapping[str, str]) -> str:
    """Return the medians as text."""
    rows = [["", *_COLUMNS.values()]]
    before = None
    for row in results:
        load_ = row["step_ms"], row["streams"]
        if load_ != before:
            before = load_
            rows.append([f"steps of {load_[0]} ms, streams: {load_[1]}", *[""] * len(_COLUMNS)])
        rows.append([f"  {labels[row['contender']]}", *(f"{row[column]['median']:.4g}" for column in _COLUMNS)])
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
