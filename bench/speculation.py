"""Measure tokens per second of one stream by the number of drafts per step, each on an engine in its own process.

python -m bench.speculation [--questions 24] [--rounds 3] [--json]

All engines run at the same time and take turns on the same held-out questions, so that other work on the machine
affects all of them. Decoding is greedy, on the embedded default. The figures are tokens per second without prefill.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import statistics
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

QUESTIONS = Path(__file__).parents[1] / "bench/penstock_bench/evaluation/questions.jsonl"


@dataclass
class Contender:
    """One number of `drafts` per step (0: MTP is off) and its results."""

    name: str
    drafts: int
    rates: list[float] = field(default_factory=list)
    tokens: list[list[int]] = field(default_factory=list)
    drafted: int = 0
    accepted: int = 0
    accepted_at: list[int] = field(default_factory=list)
    """Accepted drafts by their position in a step."""


def questions(count: int) -> list[str]:
    """Return questions of all kinds in turn, so that drafts are as hard as in the held-out set."""
    rows = [json.loads(line) for line in QUESTIONS.read_text(encoding="utf-8").splitlines()]
    return [row["question"] for row in rows[:: max(1, len(rows) // count)]][:count]


def serve_turns(drafts: int, asked: list[str], turns: Connection) -> None:
    """Start an engine, then answer all questions at each message until None. Runs in a process of its own."""
    asyncio.run(_serve_turns(drafts, asked, turns))


async def _serve_turns(drafts: int, asked: list[str], turns: Connection) -> None:
    from penstock.config.schema import EngineSettings
    from penstock.engine.vllm.start import start
    from penstock.types import EngineRequest, Message, Role, Sampling

    speculation = {"mtp": "required", "mtp_draft_tokens": drafts} if drafts else {"mtp": "off"}
    engine = await start(EngineSettings.model_validate(speculation))
    prompts = [tuple(engine.tokenizer.render([Message(Role.USER, text)], thinking=True)) for text in asked]
    turns.send("ready")
    turn = 0
    while await asyncio.to_thread(turns.recv):
        turn += 1
        seconds, tokens, said, drafted, accepted = 0.0, 0, [], 0, 0
        before = engine.load().accepted_by_position or (0,) * drafts
        for number, prompt in enumerate(prompts):
            request = EngineRequest(f"{turn}-{number}", prompt, 256, 0, Sampling(temperature=0.0))
            ids: list[int] = []
            began = first = 0.0
            async for chunk in engine.stream(request):
                began = began or time.monotonic()
                first = first or len(chunk.token_ids)
                ids += chunk.token_ids
                last = chunk
            seconds += time.monotonic() - began
            tokens += len(ids) - int(first)
            drafted += last.drafted_tokens or 0
            accepted += last.accepted_tokens or 0
            said.append(ids)
        places = [now - then for now, then in zip(engine.load().accepted_by_position, before, strict=True)]
        counts = {"drafted": drafted, "accepted": accepted, "accepted_at": places}
        turns.send({"rate": tokens / seconds, "said": said} | counts)
    await engine.close()


def measure(contenders: list[Contender], asked: list[str], rounds: int, console: Console) -> None:
    """Measure and store the results in the contenders. The first round is a warm-up and is not counted."""
    context = multiprocessing.get_context("spawn")
    started = []
    for contender in contenders:
        console.print(f"starting {contender.name}", style="dim")
        ours, theirs = context.Pipe()
        process = context.Process(target=serve_turns, args=(contender.drafts, asked, theirs), name=contender.name)
        process.start()
        theirs.close()
        ours.recv()
        started.append((contender, ours, process))
    for number in range(rounds + 1):
        for contender, turns, _ in started if number % 2 else reversed(started):
            turns.send(True)
            result: dict[str, Any] = turns.recv()
            contender.tokens = result["tokens"]
            if number:
                contender.rates.append(result["rate"])
                contender.drafted += result["drafted"]
                contender.accepted += result["accepted"]
                known = contender.accepted_at or [0] * contender.drafts
                contender.accepted_at = [sum(pair) for pair in zip(known, result["accepted_at"], strict=True)]
        console.print(f"round {number} of {rounds}{'' if number else ' (warm-up)'}", style="dim")
    for _, turns, process in started:
        turns.send(None)
        process.join()


def report(contenders: list[Contender]) -> list[dict[str, Any]]:
    plain = contenders[0]
    return [
        {
            "name": contender.name,
            "drafts": contender.drafts,
            "tokens_per_second": round(statistics.median(contender.rates), 1),
            # Round by round, so that the two results of each ratio are measured within seconds of each other.
            "ratio_to_plain": round(
                statistics.median(rate / base for rate, base in zip(contender.rates, plain.rates, strict=True)), 3
            ),
            "accepted_share": round(contender.accepted / contender.drafted, 3) if contender.drafted else None,
            "accepted_by_position": [
                round(count / (contender.drafted / contender.drafts), 3) for count in contender.accepted_at
            ],
            "same_tokens": sum(a == b for a, b in zip(contender.tokens, plain.tokens, strict=True)),
            "questions": len(contender.tokens),
        }
        for contender in contenders
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3, help="number of rounds after the warm-up")
    parser.add_argument("--max-drafts", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    console = Console(stderr=arguments.json)
    contenders = [Contender(f"{n} drafts" if n else "plain", n) for n in range(arguments.max_drafts + 1)]
    measure(contenders, questions(arguments.questions), arguments.rounds, console)
    rows = report(contenders)
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    table = Table(title="One stream, greedy, embedded default")
    for heading in ("", "tokens/s", "x plain", "drafts accepted", "by position", "same tokens as plain"):
        table.add_column(heading, justify="right" if heading else "left")
    for row in rows:
        accepted = "" if row["accepted_share"] is None else f"{row['accepted_share']:.3f}"
        same = f"{row['same_tokens']} of {row['questions']}"
        places = ", ".join(f"{share:.3f}" for share in row["accepted_by_position"])
        table.add_row(
            row["name"], str(row["tokens_per_second"]), f"{row['ratio_to_plain']:.2f}", accepted, places, same
        )
    console.print(table)


if __name__ == "__main__":
    main()
