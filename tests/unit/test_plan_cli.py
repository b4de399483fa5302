"""`penstock plan`: golden layouts, the public facts it has to come out at, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from penstock.cli import app
from typer.testing import CliRunner, Result

BIG = "Qwen3.5-397B-A17B-FP8"
PILOT = Path(__file__).parents[2] / "docs" / "pilot" / "pilot.json"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["plan", *arguments])


def plan_json(*arguments: str, exit_code: int = 0) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == exit_code, result.output
    return json.loads(result.stdout)  # type: ignore[no-any-return]


def figures_of(told: dict[str, Any]) -> dict[tuple[str, str], float]:
    return {(one["section"], one["name"]): one["value"] for one in told["figures"]}


def test_the_largest_model_in_fp8_fits_eight_devices_of_80_gb() -> None:
    """Public: Qwen names eight GPUs for it (docs/capacity.md). Four do not hold it, nor do eight in bfloat16."""
    assert plan_json("--model", BIG, "--count", "8")["fits"]
    assert not plan_json("--model", BIG, "--count", "4", exit_code=1)["fits"]
    bfloat16 = ("--model", "Qwen3.5-397B-A17B", "--set", "engine.fp8_weights=off", "--count", "8")
    assert not plan_json(*bfloat16, exit_code=1)["fits"]
    assert plan_json(*bfloat16, "--device", "h200")["fits"]


GOLDEN = {
    # model, device, count, tensor, data -> (tensor, data, experts), GB of weights a device, contexts of 262,144
    (BIG, "h100", 8, 8, 1): ((8, 1, True), 50.91, 8),
    (BIG, "h100", 8, 4, 2): ((4, 2, True), 52.39, 14),
    (BIG, "h100", 8, 2, 4): ((2, 4, True), 55.35, 21),
    (BIG, "h100", 8, 1, 8): ((1, 8, True), 61.31, 11),
    (BIG, "h200", 8, None, None): ((8, 1, True), 50.91, 31),
    ("Qwen3.5-122B-A10B-FP8", "h100", 4, None, None): ((4, 1, True), 31.64, 19),
    ("Qwen3.5-35B-A3B-FP8", "h100", 1, None, None): ((1, 1, False), 36.57, 10),
    ("Qwen3.5-35B-A3B-FP8", "h100", 4, None, None): ((1, 4, True), 11.80, 70),
    ("Qwen3.5-27B-FP8", "h100", 2, None, None): ((1, 2, False), 29.95, 7),
    ("Qwen3.5-27B-FP8", "l40s", 2, 2, 1): ((2, 1, False), 14.98, 5),
}


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: f"{case[0]}-{case[2]}x{case[1]}-{case[3]}-{case[4]}")
def test_golden_layouts(case: tuple[str, str, int, int | None, int | None]) -> None:
    model, device, count, tensor, data = case
    (layout, weights, contexts) = GOLDEN[case]
    flags = [*(["--tensor", str(tensor)] if tensor else []), *(["--data", str(data)] if data else [])]
    told = plan_json("--model", model, "--device", device, "--count", str(count), *flags)
    figures = figures_of(told)
    assert tuple(told["layout"].values()) == layout
    assert figures["per device", "weights"] / 1e9 == pytest.approx(weights, abs=0.01)
    assert int(figures["at once", "contexts of 262,144 tokens"]) == contexts
    assert [point["concurrency"] for point in told["points"] if point["fits"]]


def test_every_figure_says_where_it_comes_from() -> None:
    told = plan_json("--model", BIG, "--count", "8")
    assert all(one["from"] for one in told["figures"])
    assert told["device"]["source"].startswith("https://")
    assert "paper" in told["speed_from"]
    step = told["points"][0]["paper_step"]
    assert step["operations"] > 0 < step["weight_bytes"]
    assert 0 < step["expert_share"] < 1
    assert {one["name"] for one in told["profile"]} >= {"fp8_weights", "mtp", "tensor_parallel", "eplb"}


def test_the_tables_name_what_is_asked_of_them() -> None:
    shown = run("--model", BIG, "--count", "8", "--context", "262144").stdout
    for word in (
        "405.26 GB",
        "fits",
        "contexts of 262,144",
        "break-even",
        "$/M out, thought",
        "assumed",
        "on paper",
    ):
        assert word in shown


def test_what_does_not_fit_is_shown_with_its_sizes() -> None:
    result = run("--model", BIG, "--count", "4")
    assert result.exit_code == 1
    assert "DOES NOT FIT" in result.stdout
    assert "a device needs 104.5 GB and has 72.0" in result.stdout


def test_mixes_and_prices_are_the_callers() -> None:
    plain = plan_json("--model", BIG, "--count", "8", "--concurrency", "32")
    thoughtful = plan_json("--model", BIG, "--count", "8", "--concurrency", "32", "--thought", "4000")
    assert thoughtful["points"][0]["usd_per_1000_requests"] > 2 * plain["points"][0]["usd_per_1000_requests"]
    cheap = plan_json("--model", BIG, "--count", "8", "--concurrency", "32", "--usd-per-device-hour", "1.5")
    assert cheap["points"][0]["usd_per_1000_requests"] == pytest.approx(plain["points"][0]["usd_per_1000_requests"] / 2)
    dear = plan_json("--model", BIG, "--count", "8", "--hosted-input", "4", "--hosted-output", "24")
    assert dear["break_even"]["requests_per_hour"] < plain["break_even"]["requests_per_hour"] / 9


def test_a_measured_machine_bends_the_speed(tmp_path: Path) -> None:
    paper = plan_json("--model", BIG, "--count", "8", "--concurrency", "1,16,64")
    points = [
        {
            "concurrency": p["concurrency"],
            "context_tokens": 2750,
            "output_tokens_per_second": p["decode_tokens_per_second"] / 2,
        }
        for p in paper["points"]
    ]
    file = tmp_path / "pilot.json"
    file.write_text(json.dumps({"model": "another", "points": points}))
    bent = plan_json("--model", BIG, "--count", "8", "--concurrency", "16", "--calibrate", str(file))
    assert bent["points"][0]["decode_tokens_per_second"] == pytest.approx(points[1]["output_tokens_per_second"])
    assert bent["speed_from"] == "calibrated: pilot.json, 3 points of another"
    assert any("taken with another" in note for note in bent["notes"])


def test_the_pilots_own_result_calibrates() -> None:
    told = plan_json("--device", "cpu", "--calibrate", str(PILOT))
    assert told["speed_from"].startswith("calibrated: pilot.json")
    assert not any("was taken with" in note for note in told["notes"])
    figures = figures_of(told)
    assert figures["speed", "prompt seconds, measured / paper"] != figures["speed", "step seconds, measured / paper"]


def test_a_cpu_without_avx512_keeps_its_cache_in_bfloat16() -> None:
    per_token = ("per device", "keys and values per token")
    fp8, wide = (figures_of(plan_json("--device", device))[per_token] for device in ("cpu", "cpu-avx2"))
    assert wide == 2 * fp8


def test_a_picture_is_drawn(tmp_path: Path) -> None:
    file = tmp_path / "plan.png"
    assert run("--model", BIG, "--count", "8", "--png", str(file)).exit_code == 0
    assert file.read_bytes().startswith(b"\x89PNG")


def test_config_json_alone_will_do(tmp_path: Path) -> None:
    from penstock.config import DEMO_MODEL_DIR

    (tmp_path / "config.json").write_bytes((DEMO_MODEL_DIR / "config.json").read_bytes())
    for path in (tmp_path, tmp_path / "config.json"):
        assert plan_json("--model", str(path))["fits"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--device", "h1000"), "no device 'h1000'; there are h100"),
        (("--model", "/nowhere"), "known without a checkpoint: Qwen/Qwen3.5-397B-A17B-FP8"),
        (("--model", BIG, "--count", "8", "--tensor", "3"), "does not divide"),
        (("--model", BIG, "--count", "8", "--tensor", "16"), "more than 8 GPUs"),
        (("--concurrency", "a"), "no list of whole numbers"),
        (("--concurrency", "0"), "from 1 to"),
        (("--png", "x.gif"), "ends in none of"),
        (("--set", "engine.mpt=off"), "mpt"),
    ],
)
def test_mistakes_are_told(arguments: tuple[str, ...], said: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert said in result.output.replace("\n", " ")
