"""Compare the accuracy of the FP8 checkpoint with that of the bfloat16 one on held-out questions.

    python -m bench.fp8_accuracy                                    # the demo model as it ships, 300 questions
    python -m bench.fp8_accuracy --questions 600 --json docs/results/fp8-accuracy.json
    python -m bench.fp8_accuracy --bf16 DIR --fp8 DIR               # checkpoints of your own

Decoding is greedy, and FP8 cache and MTP are on in both, so that only the weights differ. Exits with 1 if the accuracy
over all settings is not within the limit of bfloat16's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from penstock.config.schema import DEMO_MODEL_DIR, DEMO_MODEL_FP8_DIR
from penstock.engine.sizing.shape import read_shape
from penstock.engine.sizing.vision import vision_weight_bytes
from penstock.engine.sizing.weights import weight_bytes
from penstock.engine.vllm.checkpoint import read_facts
from penstock_bench.evaluation.measure import EvaluationOptions, measure
from penstock_bench.evaluation.questions import SHIPPED, Question, load, pick
from penstock_bench.evaluation.results import Row, Share, paired_difference, share
from penstock_bench.evaluation.settings import AUTO, FAST, THINKING, Setting
from penstock_bench.load.serving import NotServing, served
from penstock_client import AsyncClient

from bench.machine import machine

LIMIT = 0.02
CALLS = 16
MAX_OUTPUT_TOKENS = 512
SETTINGS = (FAST, THINKING, AUTO)


@dataclass(frozen=True, slots=True)
class Compared:
    """Results of one setting, or of all of them.

    `difference` is FP8's accuracy minus bfloat16's. `same` counts replies with exactly the same answer after a thought
    of the same length.
    """

    name: str
    bf16: float
    fp8: float
    difference: float
    standard_error: float
    same: int
    asked: int


async def ask(address: str, questions: Sequence[Question], settings: Sequence[Setting]) -> list[Row]:
    """Ask a running service each question in each setting. Returns the rows."""
    rows: list[Row] = []
    async with AsyncClient(address) as client:
        await measure(client, questions, settings, EvaluationOptions(CALLS, MAX_OUTPUT_TOKENS), rows.append)
    return rows


def compare(bf16: Sequence[Row], fp8: Sequence[Row]) -> list[Compared]:
    """Return the results of each setting, and over all."""
    names = list(dict.fromkeys(row.setting for row in bf16))
    parts = [(name, [r for r in bf16 if r.setting == name], [r for r in fp8 if r.setting == name]) for name in names]
    return [_compared(*part) for part in [*parts, ("all", list(bf16), list(fp8))]]


def _compared(name: str, bf16: list[Row], fp8: list[Row]) -> Compared:
    before, after = ([_named(row) for row in rows] for rows in (bf16, fp8))
    difference, error = paired_difference(before, after)
    answers = {row.id: (row.answer, row.thought_tokens) for row in before}
    same = sum(answers.get(row.id) == (row.answer, row.thought_tokens) for row in after)
    return Compared(name, share(bf16).value, share(fp8).value, difference, error, same, len(after))


def _named(row: Row) -> Row:
    """Return the row with its setting in its id: the same question in another setting is another pair."""
    values = asdict(row)
    return Row(**values | {"id": f"{row.setting}/{row.id}"})


def weights(folder: Path) -> int:
    """Return the bytes of a worker's weights. A test compares them with the engine's own count."""
    found = read_facts(str(folder))
    tower = found.tower("auto")
    text = weight_bytes(read_shape(found.text), found.quantization == "fp8")
    return text + (vision_weight_bytes(tower) if tower else 0)


def table(found: dict[str, Any]) -> str:
    lines = [f"{'setting':<20}{'bfloat16':>9}{'FP8':>9}{'FP8 - bf16':>12}{'+-':>7}   same greedy reply"]
    for one in found["settings"]:
        lines.append(
            f"{one['name']:<20}{one['bf16']:>9.3f}{one['fp8']:>9.3f}{one['difference']:>+12.3f}{one['standard_error']:>7.3f}"
            f"   {one['same']} of {one['asked']} ({one['same'] / one['asked']:.0%})"
        )
    bf16, fp8 = found["weight_bytes"]["bf16"], found["weight_bytes"]["fp8"]
    low, high = found["fp8_interval_95"]
    lines += [
        f"FP8's accuracy over all: 95 % interval {low:.3f} to {high:.3f}",
        f"weights in the worker: {bf16:,} bytes in bfloat16, {fp8:,} in FP8 ({fp8 / bf16:.2f})",
        f"{found['questions']} held-out questions; {found['machine']['cpu']}, {found['date']}",
        f"within {found['limit']} of bfloat16: {'yes' if found['within_limit'] else 'NO'}",
    ]
    return "\n".join(lines)


def run(bf16: Path, fp8: Path, questions: Sequence[Question], limit: float = LIMIT) -> dict[str, Any]:
    """Measure one service after the other. Returns plain values, as in the JSON file.

    Raises `NotServing` or a client's PenstockError.
    """
    rows: dict[str, list[Row]] = {}
    for name, folder in (("bf16", bf16), ("fp8", fp8)):
        print(f"asking {len(questions)} questions of {folder} ...", file=sys.stderr)
        with served(folder) as address:
            rows[name] = asyncio.run(ask(address, questions, SETTINGS))
    return conclude(rows["bf16"], rows["fp8"], limit) | {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "questions": len(questions),
        "weight_bytes": {"bf16": weights(bf16), "fp8": weights(fp8)},
    }


def conclude(bf16: Sequence[Row], fp8: Sequence[Row], limit: float) -> dict[str, Any]:
    settings = compare(bf16, fp8)
    over_all: Share = share(fp8)
    return {
        "settings": [asdict(one) for one in settings],
        "fp8_interval_95": over_all.interval,
        "limit": limit,
        "within_limit": abs(settings[-1].difference) <= limit,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.fp8_accuracy", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--bf16", type=Path, default=DEMO_MODEL_DIR, help="directory of the bfloat16 checkpoint")
    parser.add_argument(
        "--fp8",
        type=Path,
        default=DEMO_MODEL_FP8_DIR,
        help="directory of the same checkpoint after `penstock quantize`",
    )
    parser.add_argument(
        "--questions", type=int, default=300, help="number of held-out questions, each kind in proportion"
    )
    parser.add_argument("--limit", type=float, default=LIMIT, help="largest allowed difference in accuracy")
    parser.add_argument("--json", metavar="FILE", help="file for the result; - is stdout")
    options = parser.parse_args()
    for folder in (options.bf16, options.fp8):
        if not (folder / "config.json").is_file():
            parser.error(f"{folder} must be a checkpoint directory, but has no config.json")
    try:
        questions = pick(load(SHIPPED), options.questions, seed=0)
    except ValueError as error:
        parser.error(str(error))
    try:
        found = run(options.bf16, options.fp8, questions, options.limit)
    except NotServing as error:
        sys.exit(str(error))
    print(table(found), file=sys.stderr if options.json == "-" else sys.stdout)
    if options.json == "-":
        print(json.dumps(found))
    elif options.json:
        Path(options.json).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if not found["within_limit"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
