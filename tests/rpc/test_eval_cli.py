"""`penstock eval` against a real service with the scripted engine: what it measures, writes, and makes of trouble."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2 as details
from grpc_status import rpc_status
from penstock.cli import app
from penstock_bench.evaluation.questions import SHIPPED, load
from penstock_proto.v1 import generation_pb2 as pb
from PIL import Image
from typer.testing import CliRunner, Result

from tests.rpc.fake_service import FakeService, running, status

LIMA, OSLO = (
    f"<tool_call>\n<function=weather>\n<parameter=city>\n{city}\n</parameter>\n</function>\n</tool_call>"
    for city in ("Lima", "Oslo")
)
TOOL = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
EASY, HARD = "Say the word river.", "What is 1 + 2 + 3 + 4?"
REPLIES = [
    {"match": "And twice that", "answer": "20"},
    {"match": HARD, "thought": "t" * 12, "answer": "It is 10.", "chunk_tokens": 4, "step_seconds": 0.01},
    {"match": EASY, "thought": "t" * 6, "answer": "river", "chunk_tokens": 4, "step_seconds": 0.01},
    {"match": "slow", "step_seconds": 0.2},
    {"match": "27 degrees", "answer": "It is 27 in Lima."},
    {"match": "weather in Lima", "answer": f"{LIMA}\n{OSLO}"},
    {"match": "weather in Rome", "answer": OSLO},
    {"match": "In the picture", "answer": "7"},
]
CALLS = 4


def entry(name: str, question: str, answer: str, **change: object) -> dict[str, object]:
    made = {"id": name, "kind": name.rstrip("0123456789"), "question": question, "system": None, "answer": answer}
    return {**made, "needs_thought": question != EASY, **change}


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service as users start it."""
    folder = tmp_path_factory.mktemp("serve")
    (folder / "replies.json").write_text(json.dumps(REPLIES))
    settings = {
        "engine.kind": "scripted",
        "engine.model": str(folder / "replies.json"),
        "pricing.tiers": '[{"input_usd_per_million": "1", "output_usd_per_million": "2"}]',
    }
    flags = [flag for key, value in settings.items() for flag in ("--set", f"{key}={value}")]
    ready = folder / "address"
    command = [sys.executable, "-m", "penstock", "serve", "--listen", "127.0.0.1:0", "--ready-file", str(ready)]
    process = subprocess.Popen([*command, *flags], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    end = time.monotonic() + 60
    while not ready.exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    if not ready.exists():
        process.kill()
        pytest.fail(process.communicate()[0])
    yield ready.read_text().strip()
    process.terminate()
    process.communicate(timeout=120)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    entries = [entry(f"sum{n}", HARD, "10") for n in range(4)]
    entries += [entry(f"echo{n}", EASY, "river", system="Be brief.") for n in range(4)]
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(map(json.dumps, entries)))
    return path


def run(target: str, file: Path, *arguments: str) -> Result:
    given = ["--questions-file", str(file), "--concurrency", str(CALLS), *arguments]
    return CliRunner().invoke(app, ["eval", *given], env={"PENSTOCK_TARGET": target})


def by_name(made: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {setting["name"]: setting for setting in made["settings"]}


@pytest.mark.slow
def test_every_setting_is_measured(target: str, file: Path, tmp_path: Path) -> None:
    picture = tmp_path / "plot.svg"
    result = run(
        target, file, "--budgets", "5,-1", "--deadlines", "30", "--json", "-", "--rows", "--plot", str(picture)
    )
    assert result.exit_code == 0, result.output
    made = json.loads(result.stdout)
    found = by_name(made)
    assert list(found) == ["FAST", "THINKING 5", "THINKING unlimited", "AUTO", "AUTO 30 s"]
    thought = {name: setting["mean_thought_tokens"] for name, setting in found.items()}
    # 12 for the sums, 6 for the others, which AUTO answers at once.
    assert thought == {"FAST": 0, "THINKING 5": 5, "THINKING unlimited": 9, "AUTO": 6, "AUTO 30 s": 6}
    assert found["THINKING 5"]["outcomes"] == {"budget_reached": 8}
    assert found["AUTO"]["outcomes"] == {"natural_end": 4, "disabled": 4}
    assert all(setting["accuracy"]["value"] == 1.0 for setting in found.values())
    assert all(setting["over_budget"] == 0 for setting in found.values())
    assert found["FAST"]["usd_per_1000_questions"] > 0
    assert len(made["rows"]) == 5 * 8
    assert made["rows"][0]["answer"] in ("It is 10.", "river")
    assert "penstock" in made["command"]
    assert (made["model"]["name"], made["questions"]["need_no_thought"]) == ("scripted", 4)
    assert made["client_machine"]["cores"] == os.cpu_count()
    assert "budget reached 8" in result.stderr
    assert picture.stat().st_size > 1000


def test_early_exits_are_settings_and_make_a_frontier(target: str, file: Path) -> None:
    arguments = ("--modes", "thinking", "--budgets", "5,-1", "--early-exit", "marker, probe:0.9", "--frontier")
    result = run(target, file, *arguments, "--json", "-")
    assert result.exit_code == 0, result.output
    made = json.loads(result.stdout)
    names = ["THINKING 5", "THINKING unlimited", "THINKING unlimited marker", "THINKING unlimited probe 0.9"]
    assert list(by_name(made)) == names
    assert [one["family"] for one in made["frontier"]["chosen"]] == ["fixed budget", "no limit", "marker", "probe"]
    assert "of THINKING" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--early-exit", "luck"), "must be one of marker, probe"),
        (("--early-exit", "probe:much"), "must have a number"),
        (("--budgets", "5", "--frontier"), "needs THINKING without a limit"),
    ],
)
def test_early_exits_that_make_no_sense_are_usage_errors(
    target: str, file: Path, arguments: tuple[str, ...], why: str
) -> None:
    result = run(target, file, *arguments)
    assert result.exit_code == 2
    assert why in result.output


def test_wrong_answers_count_by_kind(target: str, file: Path) -> None:
    lines = [json.dumps(entry("bad", HARD, "11")), *file.read_text().splitlines()]
    file.write_text("\n".join(lines))
    result = run(target, file, "--modes", "fast", "--json", "-")
    (setting,) = json.loads(result.stdout)["settings"]
    assert setting["accuracy"]["right"] == 8
    assert {kind: share["right"] for kind, share in setting["by_kind"].items()} == {"bad": 0, "sum": 4, "echo": 4}


def test_languages_follow_ups_images_and_tools_are_measured(target: str, tmp_path: Path) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (64, 64)).save(picture, "PNG")
    called = {"tools": [TOOL], "needs_thought": False}
    calls = [{"name": "weather", "arguments": {"city": city}} for city in ("Oslo", "Lima")]
    shown = base64.b64encode(picture.getvalue()).decode()
    entries = [
        entry("follow", "And twice that?", "20", language="en", earlier=[[HARD, "10"]]),
        entry("shown", "In the picture?", "7", language="fr", image=shown),
        entry("called", "The weather in Lima?", "27", calls=calls, results=["3 degrees", "27 degrees"], **called),
        entry("wrong", "The weather in Rome?", "27", calls=calls[:1], results=["3 degrees"], **called)
        | {"calls": [{"name": "weather", "arguments": {"city": "Rome"}}]},
        entry("none", EASY, "river", **called),
    ]
    file = tmp_path / "questions.jsonl"
    file.write_text("\n".join(map(json.dumps, entries)))
    result = run(target, file, "--modes", "thinking", "--budgets", "-1", "--json", "-", "--rows", "--check")
    assert result.exit_code == 1, result.output
    made = json.loads(result.stdout)
    (setting,) = made["settings"]
    right = {form: (share["right"], share["asked"]) for form, share in setting["by_form"].items()}
    assert right == {"follow_up": (1, 1), "image": (1, 1), "tools": (2, 3)}
    assert {name: share["right"] for name, share in setting["by_language"].items()} == {"en": 1, "fr": 1}
    assert (setting["calls"]["right"], setting["calls"]["asked"]) == (1, 2)
    assert (setting["no_calls"]["right"], setting["no_calls"]["asked"]) == (1, 1)
    rows = {row["id"]: row for row in made["rows"]}
    assert (rows["called"]["expected_calls"], rows["called"]["called_right"]) == (2, True)
    assert (rows["wrong"]["called_right"], rows["wrong"]["right"]) == (False, False)
    failed = [line["what"] for line in made["checks"] if not line["ok"]]
    assert failed == ["questions with tools", "right tool calls"]
    assert "right calls" in result.stderr


def test_check_says_no_with_exit_code_1(target: str, file: Path) -> None:
    result = run(target, file, "--budgets", "0,-1", "--check")
    assert result.exit_code == 1
    lines = {line.split("  ")[0]: line for line in result.stdout.splitlines()}
    assert "FAILED  8" in lines["questions in every setting"]
    assert " ok " in lines["unlimited, all questions"]
    assert "FAILED" in lines["FAST, where thought is needed"]
    assert run(target, file, "--modes", "fast", "--check").exit_code == 1


@pytest.mark.slow
def test_a_missed_deadline_is_a_result(target: str, tmp_path: Path) -> None:
    file = tmp_path / "slow.jsonl"
    file.write_text(json.dumps(entry("slow1", "slow, 1 and 2 and 3?", "x")))
    arguments = ("--modes", "auto", "--deadlines", "0.3", "--max-output-tokens", "4", "--json", "-")
    result = run(target, file, *arguments)
    assert result.exit_code == 0, result.output
    late = by_name(json.loads(result.stdout))["AUTO 0.3 s"]
    assert late["outcomes"] == {"deadline_exceeded": 1}
    assert late["mean_thought_tokens"] is None


class Busy(FakeService):
    """Refuses the first calls, with a delay to wait."""

    refusals = 3

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> pb.GenerateResponse:  # noqa: N802
        if self.refusals:
            self.refusals -= 1
            delay = details.RetryInfo(retry_delay=duration_pb2.Duration(nanos=10_000_000))
            refusal = status(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", [delay])
            await context.abort_with_status(rpc_status.to_status(refusal))
        return await super().Generate(request, context)


def test_an_overloaded_service_is_waited_for(file: Path) -> None:
    busy = Busy()
    with running(busy) as target:
        result = run(target, file, "--modes", "fast", "--json", "-")
    assert result.exit_code == 0, result.output
    assert busy.refusals == 0
    assert json.loads(result.stdout)["settings"][0]["accuracy"]["asked"] == 8


@pytest.mark.slow
def test_ctrl_c_shows_what_was_measured(target: str, tmp_path: Path) -> None:
    file = tmp_path / "slow.jsonl"
    slow = [entry(f"slow{n}", "slow?", "x", needs_thought=True) for n in range(4)]
    file.write_text("\n".join(map(json.dumps, [*(entry(f"echo{n}", EASY, "river") for n in range(4)), *slow])))
    arguments = ["--questions-file", str(file), "--concurrency", "2", "--max-output-tokens", "20", "--modes", "fast"]
    process = subprocess.Popen(
        [sys.executable, "-m", "penstock", "eval", "--target", target, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "FAST ...\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "of 8)" in out
    assert "Traceback" not in err


def test_the_shipped_questions_are_the_default(target: str) -> None:
    arguments = [
        "eval",
        "--target",
        target,
        "--questions",
        "13",
        "--modes",
        "fast",
        "--json",
        "-",
        "--concurrency",
        "4",
    ]
    made = json.loads(CliRunner().invoke(app, arguments).stdout)
    assert set(made["questions"]["kinds"]) == {question.kind for question in load(SHIPPED)}


@pytest.mark.parametrize(
    "arguments",
    [
        ("--budgets", "8,x"),
        ("--budgets", "-2"),
        ("--modes", "fast,slow"),
        ("--modes", "thinking", "--budgets", ""),
        ("--deadlines", "0"),
        ("--plot", "plot.gif"),
        ("--plot", "nowhere/plot.png"),
        ("--json", "nowhere/result.json"),
        ("--rows",),
        ("--questions", "0"),
        ("--concurrency", "0"),
        ("--questions-file", "pyproject.toml"),
    ],
)
def test_wrong_usage_is_exit_code_2_before_anything_is_asked(arguments: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, ["eval", "--target", "127.0.0.1:1", *arguments])
    assert result.exit_code == 2, result.output


def test_nobody_there() -> None:
    result = CliRunner().invoke(app, ["eval", "--target", "127.0.0.1:1"])
    assert result.exit_code == 1
    assert result.stderr == "penstock: nothing listens at 127.0.0.1:1: start a service with `penstock serve`\n"


def test_a_request_that_does_not_fit_is_told_in_words(target: str, file: Path) -> None:
    result = run(target, file, "--modes", "thinking", "--budgets", "600")
    assert result.exit_code == 1
    assert "must be at most 511 (max_output_tokens 512" in result.stderr
    assert "Traceback" not in result.output
