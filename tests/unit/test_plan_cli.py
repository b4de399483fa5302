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
    """Public: Qwen names eight GPUs for it (docs/how-to/plan.md). Four do not hold it, nor do eight in bfloat16."""
    assert plan_json("--model", BIG, "--count", "8")["fits"]
    assert not plan_json("--model", BIG, "--count", "4", exit_code=1)["fits"]
    bfloat16 = ("--model", "Qwen3.5-397B-A17B", "--set", "engine.fp8_weights=off", "--count", "8")
    assert not plan_json(*bfloat16, exit_code=1)["fits"]
    assert plan_json(*bfloat16, "--device", "h200")["fits"]


GOLDEN = {
    # model, device, count, tensor, data -> (tensor, data, experts), GB of weights a device, contexts of 262,144
    (BIG, "h100", 8, 8, 1): ((8, 1, True), 50.91, 9),
    (BIG, "h100", 8, 4, 2): ((4, 2, True), 52.39, 17),
    (BIG, "h100", 8, 2, 4): ((2, 4, True), 55.35, 27),
    (BIG, "h100", 8, None, None): ((2, 4, True), 55.35, 27),
    (BIG, "h100", 8, 1, 8): ((1, 8, True), 61.31, 17),
    (BIG, "h200", 8, None, None): ((1, 8, True), 61.31, 107),
    ("Qwen3.5-122B-A10B-FP8", "h100", 4, None, None): ((2, 2, True), 33.57, 37),
    ("Qwen3.5-35B-A3B-FP8", "h100", 1, None, None): ((1, 1, False), 36.57, 11),
    ("Qwen3.5-35B-A3B-FP8", "h100", 4, None, None): ((1, 4, True), 11.80, 74),
    ("Qwen3.5-27B-FP8", "h100", 2, None, None): ((1, 2, False), 29.95, 8),
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
        "knee, requests at once",
        "tok/s per user",
        "J/token",
        "assumed",
        "fitted to published runs",
        "computed from data-sheet peaks",
    ):
        assert word in shown


def test_a_row_is_a_range_and_rows_past_the_knee_say_so() -> None:
    told = plan_json("--model", BIG, "--device", "h200", "--count", "8", "--input", "8192", "--thought", "0")
    for point in told["points"]:
        low, high = point["output_tokens_per_second_range"]
        assert low < point["output_tokens_per_second"] < high <= 2.0001 * low
        assert point["past_knee"] == (point["concurrency"] > told["knee"])
        assert point["joules_per_output_token"] == pytest.approx(8 * 700 / point["output_tokens_per_second"])
    assert any("past the knee" in note for note in told["notes"])


def test_a_model_without_a_hosted_price_has_no_break_even() -> None:
    """One list price does not serve every model."""
    priced = {
        model: plan_json("--model", model, "--count", "8")
        for model in (BIG, "Qwen3.5-35B-A3B-FP8", "Qwen3.5-122B-A10B-FP8")
    }
    costs = {
        model: figures_of(told).get(("cost", "hosted, per million output and thought"))
        for model, told in priced.items()
    }
    assert list(costs.values()) == [3.6, 1.0, None]
    assert priced["Qwen3.5-122B-A10B-FP8"]["break_even"] is None
    assert any("no hosted price" in note for note in priced["Qwen3.5-122B-A10B-FP8"]["notes"])
    assert plan_json("--model", BIG, "--count", "8", "--hosted-input", "1", "--hosted-output", "2")["break_even"]


def test_the_price_at_a_wanted_interactivity_is_the_cheapest_that_gives_it() -> None:
    told = plan_json("--model", BIG, "--device", "h200", "--count", "8", "--interactivity", "60")
    chosen = told["at_interactivity"]
    assert chosen["user_tokens_per_second"] >= 60
    enough = [one["usd_per_million"] for one in told["pareto"] if one["user_tokens_per_second"] >= 60]
    assert chosen["usd_per_million"] == min(enough)
    users = [one["user_tokens_per_second"] for one in told["pareto"]]
    devices = [one["device_tokens_per_second"] for one in told["pareto"]]
    assert users == sorted(users, reverse=True)
    assert devices == sorted(devices)
    assert plan_json("--model", BIG, "--count", "8", "--interactivity", "9000")["at_interactivity"] is None


def test_more_requests_than_64_are_planned_where_they_fit() -> None:
    told = plan_json("--model", BIG, "--device", "h200", "--count", "8")
    assert max(point["concurrency"] for point in told["points"]) > 500


@pytest.mark.parametrize("device", ["b300", "mi355x"])
def test_nvfp4_takes_less_than_fp8(device: str) -> None:
    fp8, nvfp4 = (
        figures_of(plan_json("--model", BIG, "--device", device, "--count", "4", *flags))["per device", "weights"]
        for flags in ((), ("--nvfp4",))
    )
    assert 0.5 * fp8 < nvfp4 < 0.75 * fp8  # bfloat16 outside the experts, and in the draft layer


def test_without_async_scheduling_the_plan_is_slower_and_says_why() -> None:
    overlapped, waits = (
        plan_json("--model", BIG, "--count", "8", "--concurrency", "1", *flags)
        for flags in ((), ("--no-async-scheduling",))
    )
    rates = [told["points"][0]["decode_tokens_per_second"] for told in (overlapped, waits)]
    assert rates[1] < rates[0]
    assert ("speed", "the host's time per step") in figures_of(waits)
    assert ("speed", "the host's time per step") not in figures_of(overlapped)
    assert len(figures_of(waits)) == len(waits["figures"]), "two figures have one name"


def test_what_does_not_fit_is_shown_with_its_sizes() -> None:
    result = run("--model", BIG, "--count", "4")
    assert result.exit_code == 1
    assert "DOES NOT FIT" in result.stdout
    assert "a device needs 104.7 GB and has 76.4; 8 x NVIDIA H100 SXM would hold it" in result.stdout
    assert "-" not in [
        word[0] for word in result.stdout.split() if word[1:].replace(",", "").replace(".", "").isdigit()
    ]
    told = plan_json("--model", BIG, "--count", "4", exit_code=1)
    assert told["devices_that_would_fit"] == 8


@pytest.mark.parametrize(
    ("device", "words"),
    [("b200", "differs by 9%"), ("l40s", "no published run on this device"), ("cpu", None)],
)
def test_a_plan_says_how_far_its_speed_is_to_be_trusted(device: str, words: str | None) -> None:
    model = ("--model", "Qwen3.5-35B-A3B-FP8") if device != "cpu" else ()
    told = plan_json(*model, "--device", device, "--count", "1" if device == "cpu" else "8")
    found = [note for note in told["notes"] if "published run" in note and "past the knee" not in note]
    assert (len(found) == 0) if words is None else (words in found[0])


def test_mixes_and_prices_are_the_callers() -> None:
    plain = plan_json("--model", BIG, "--count", "8", "--concurrency", "32")
    thoughtful = plan_json("--model", BIG, "--count", "8", "--concurrency", "32", "--thought", "4000")
    assert thoughtful["points"][0]["usd_per_1000_requests"] > 2 * plain["points"][0]["usd_per_1000_requests"]
    cheap = plan_json("--model", BIG, "--count", "8", "--concurrency", "32", "--usd-per-device-hour", "1.5")
    assert cheap["points"][0]["usd_per_1000_requests"] == pytest.approx(plain["points"][0]["usd_per_1000_requests"] / 2)
    dear = plan_json("--model", BIG, "--count", "8", "--hosted-input", "4", "--hosted-output", "24")
    assert dear["break_even"]["requests_per_hour"] == pytest.approx(
        plain["break_even"]["requests_per_hour"] * 0.0066 / 0.044, rel=1e-6
    )


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
    assert any("calibration is from another" in note for note in bent["notes"])


def test_the_pilots_own_result_calibrates() -> None:
    told = plan_json("--device", "cpu", "--calibrate", str(PILOT))
    assert told["speed_from"].startswith("calibrated: pilot.json")
    assert not any("calibration is from" in note for note in told["notes"])
    figures = figures_of(told)
    assert figures["speed", "prompt seconds, measured / paper"] != figures["speed", "step seconds, measured / paper"]


def test_a_cpu_without_avx512_keeps_its_cache_in_bfloat16() -> None:
    per_token = ("per device", "keys and values per token")
    fp8, wide = (figures_of(plan_json("--device", device))[per_token] for device in ("cpu", "cpu-avx2"))
    assert wide == 2 * fp8


@pytest.mark.slow
def test_a_picture_is_drawn(tmp_path: Path) -> None:
    file = tmp_path / "plan.png"
    assert run("--model", BIG, "--count", "8", "--png", str(file)).exit_code == 0
    assert file.read_bytes().startswith(b"\x89PNG")


def test_config_json_alone_will_do(tmp_path: Path) -> None:
    from penstock.config.schema import DEMO_MODEL_DIR

    (tmp_path / "config.json").write_bytes((DEMO_MODEL_DIR / "config.json").read_bytes())
    for path in (tmp_path, tmp_path / "config.json"):
        assert plan_json("--model", str(path))["fits"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--device", "h1000"), "no device 'h1000'; there are h100"),
        (("--model", "/nowhere"), "known without a checkpoint: Qwen/Qwen3.5-397B-A17B-FP8"),
        (("--model", BIG, "--count", "8", "--tensor", "3"), "does not divide"),
        (("--model", BIG, "--count", "8", "--tensor", "16"), "needs 16 GPUs, and there are 8"),
        (("--concurrency", "a"), "must be whole numbers separated by commas"),
        (("--concurrency", "0"), "from 1 to"),
        (("--png", "x.gif"), "must end in one of"),
        (("--acceptance", "poetry"), "allowed are shares from 0 to 1"),
        (("--hosted-input", "1"), "must be given together"),
        (("--set", "engine.mpt=off"), "mpt"),
        (("--set", "engine.images=off", "--images", "1"), "must be 0, got 1: images are not read (switched off)"),
        (("--images", "257"), "less than or equal to 256"),
    ],
)
def test_mistakes_are_told(arguments: tuple[str, ...], said: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert said in result.output.replace("\n", " ")


PICTURES = ("per device", "vision tower"), ("model", "vision tower, bfloat16")


def test_the_vision_tower_is_counted_unless_images_are_off() -> None:
    on, off = (plan_json("--model", BIG, "--count", "8", *flags) for flags in ((), ("--set", "engine.images=off")))
    counted, without = figures_of(on), figures_of(off)
    assert counted["model", "vision tower, parameters"] == 456_010_480
    assert counted["per device", "vision tower"] == 460_628_336
    assert not {*PICTURES} & {*without}
    # Beside the tower, room for the encoded tokens of one image of the largest size.
    encoded = 4096 * 4096 * 2
    assert without["per device", "cache"] - counted["per device", "cache"] == 460_628_336 + encoded
    assert without["at once", "contexts of 262,144 tokens"] > counted["at once", "contexts of 262,144 tokens"]
    named = {one["name"]: one["value"] for one in on["profile"]}
    assert named["images"] == "a token per 32 x 32 pixels"


def test_images_of_a_request_are_tokens_of_its_prompt() -> None:
    arguments = ("--model", BIG, "--count", "8", "--concurrency", "16")
    plain = plan_json(*arguments)
    shown = plan_json(*arguments, "--images", "3", "--image-pixels", "1048576")
    text = plan_json(*arguments, "--input", str(2000 + 3 * 1024))
    assert shown["mix"]["input_tokens"] == 2000 + 3 * 1024 == text["mix"]["input_tokens"]
    assert (shown["mix"]["images"], shown["mix"]["tokens_per_image"]) == (3, 1024)
    assert figures_of(shown)["speed", "tokens of an image"] == 1024
    assert (
        figures_of(shown)["at once", "contexts of 6,572 tokens"]
        == figures_of(text)["at once", "contexts of 6,572 tokens"]
    )
    assert shown["break_even"]["hosted_usd_per_request"] == text["break_even"]["hosted_usd_per_request"]
    assert shown["break_even"]["hosted_usd_per_request"] > plain["break_even"]["hosted_usd_per_request"]
    # The same tokens take longer where the tower has to encode them.
    (seen,), (read,) = shown["points"], text["points"]
    each = figures_of(shown)["speed", "time to encode an image"] / 1e3
    assert seen["prompt_seconds"] == pytest.approx(read["prompt_seconds"] + 3 * each)
    assert seen["requests_per_second"] < read["requests_per_second"]


def test_an_image_has_the_most_pixels_unless_they_are_given() -> None:
    told = plan_json("--model", BIG, "--count", "8", "--images", "1", "--set", "engine.image_pixels=2097152")
    assert told["mix"]["tokens_per_image"] == 2048
    assert "2,048 of image)" in run("--model", BIG, "--count", "8", "--images", "1", "--image-pixels", "2097152").stdout
