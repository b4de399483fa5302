"""The comparisons under bench/ on rows and results made by hand; no engine runs here."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
from penstock.config.schema import DEMO_MODEL_DIR, DEMO_MODEL_FP8_DIR
from penstock.engine.vllm.checkpoint import read_checkpoint
from penstock_bench.evaluation.questions import Question
from penstock_bench.evaluation.results import Row
from penstock_bench.evaluation.settings import FAST, THINKING
from penstock_bench.load.serving import NotServing, served, wait_until_ready

from bench import context_cost, fp8_accuracy

FIRST = dataclasses.replace(
    Row.lost(Question("a", "sum", "?", None, "7", True), FAST, "natural", 0.0, 1.0),
    right=True,
    answer="7",
    answer_tokens=2,
    prompt_tokens=9,
    first_token_seconds=0.5,
)


def rows(*verdicts: bool, setting: str = FAST.name) -> list[Row]:
    return [
        dataclasses.replace(FIRST, setting=setting, id=str(number), right=right, answer=str(right))
        for number, right in enumerate(verdicts)
    ]


def test_accuracy_is_compared_question_by_question() -> None:
    bf16 = rows(True, True, False, False) + rows(True, True, True, True, setting=THINKING.name)
    fp8 = rows(True, False, True, False) + rows(True, True, True, False, setting=THINKING.name)
    fast, thinking, over_all = fp8_accuracy.compare(bf16, fp8)
    assert (fast.bf16, fast.fp8, fast.difference, fast.same) == (0.5, 0.5, 0, 2)
    assert (thinking.difference, thinking.same, thinking.asked) == (-0.25, 3, 4)
    assert over_all.difference == -0.125
    assert over_all.standard_error > 0


@pytest.mark.parametrize(("wrong", "holds"), [(2, True), (3, False)])
def test_the_limit_is_on_all_settings_together(wrong: int, holds: bool) -> None:
    bf16, fp8 = rows(*[True] * 100), rows(*[True] * (100 - wrong), *[False] * wrong)
    found = fp8_accuracy.conclude(bf16, fp8, limit=0.02)
    assert found["within_limit"] is holds


def test_a_longer_thought_is_another_reply() -> None:
    one = rows(True)
    other = [dataclasses.replace(one[0], thought_tokens=5)]
    assert fp8_accuracy.compare(one, other)[-1].same == 0


def test_weights_shrink_to_two_thirds() -> None:
    """The embeddings, the head and the vision tower stay in bfloat16, a fourth of this small model."""
    ratio = fp8_accuracy.weights(DEMO_MODEL_FP8_DIR) / fp8_accuracy.weights(DEMO_MODEL_DIR)
    assert 0.5 < ratio < 0.66


def test_the_tables_hold_every_figure() -> None:
    found = fp8_accuracy.conclude(rows(True, False), rows(True, True), 0.02)
    found |= {"date": "2026-11-23", "machine": {"cpu": "X"}, "questions": 2, "weight_bytes": {"bf16": 100, "fp8": 53}}
    said = fp8_accuracy.table(json.loads(json.dumps(found)))
    assert "+0.500" in said
    assert "1 of 2 (50%)" in said
    assert "0.53" in said
    assert said.endswith("NO")


def test_a_service_that_does_not_come_up_is_told_with_its_log(tmp_path: Path) -> None:
    with pytest.raises(NotServing, match="there is no directory"), served(tmp_path / "nothing"):
        pass


def test_a_service_that_is_not_ready_in_time_is_told_with_the_time() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        with pytest.raises(NotServing, match=r"^a service was not ready within 0 s$"):
            wait_until_ready(process, lambda: False, seconds=0, name="a service")
        process.communicate()
    with pytest.raises(NotServing, match=r"^penstock serve ended with exit status 1 before it was ready$"):
        wait_until_ready(process, lambda: False)


def test_hybrid_and_twin_have_the_same_size_and_another_cache(tmp_path: Path) -> None:
    hybrid, twin = (
        context_cost.write_model(tmp_path / name, kinds, 16_384) for name, kinds in context_cost.MODELS.items()
    )
    assert context_cost.parameters(twin) == pytest.approx(context_cost.parameters(hybrid), rel=0.01)
    assert (hybrid.full_layers, twin.full_layers, twin.linear_layers) == (1, 4, 0)
    assert context_cost.paper(twin).kv_bytes_per_token == 4 * context_cost.paper(hybrid).kv_bytes_per_token
    # What vLLM 0.32 logged for these two, with 0.5 GiB and this window.
    sizes = [context_cost.paper(shape).tokens(2**29, 16_384) for shape in (hybrid, twin)]
    assert sizes == [912_822, 262_144]
    assert read_checkpoint(str(tmp_path / "twin")).native_context_tokens == 16_384


def result(hybrid: list[float], twin: list[float]) -> dict[str, object]:
    def model(times: list[float]) -> dict[str, object]:
        points = [
            {"context_tokens": 1024 * 4**number, "read_seconds": 1, "least_ms": ms, "median_ms": ms}
            for number, ms in enumerate(times)
        ]
        vllm = {"kv_bytes_per_token": 512, "state_bytes": 407_040}
        sizes = {"kv_bytes_per_token": 512, "state_bytes": 407_040, "vllm": vllm, "vllm_tokens": 9, "paper_tokens": 9}
        return {"sizes": sizes | {"agree": True}, "points": points}

    about = {"date": "2026-11-23T00:00:00", "machine": {"cpu": "X", "cores": 2}}
    return about | {"models": {"hybrid": model(hybrid), "twin": model(twin)}}


def test_the_context_table_and_picture(tmp_path: Path) -> None:
    found = result([4.0, 4.5], [4.0, 9.0])
    said = context_cost.table(found)
    assert "2.00" in said
    assert "hybrid  +0.50" in said
    assert "twin    +5.00" in said
    context_cost.draw(found, tmp_path / "context.png")
    assert (tmp_path / "context.png").read_bytes().startswith(b"\x89PNG")


def test_sizes_that_differ_do_not_agree() -> None:
    vllm = {"kv_bytes_per_token": 512, "state_bytes": 1}
    assert context_cost.Sizes(1, 512, 1, vllm, 9, 9).agree
    assert not context_cost.Sizes(1, 512, 1, vllm, 9, 10).agree
