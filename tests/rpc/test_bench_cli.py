"""`penstock bench` against a real service with the scripted engine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from penstock.cli import app
from typer.testing import CliRunner, Result

from tests.rpc.scripted_service import scripted_service

# 20 thought and 20 answer tokens, a token every 5 ms: 0.1 s for an answer, two calls at a time.
# The first call begins at once, and is measured whatever its time.
SHORT = ("--seconds", "0.5", "--warm-up", "0", "--until-end")
REPLIES = [{"thought": "t" * 20, "answer": "a" * 19, "step_seconds": 0.005}]
ROOM = {"admission.max_running_sequences": "2", "admission.max_queued_calls": "1000"}


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with scripted_service(tmp_path_factory.mktemp("serve"), REPLIES, ROOM) as address:
        yield address


def run(target: str, *arguments: str) -> Result:
    given = ["bench", "--warm-up", "0.2", "--until-end", *arguments]
    return CliRunner().invoke(app, given, env={"PENSTOCK_TARGET": target})


def measured(target: str, *arguments: str) -> dict[str, Any]:
    result = run(target, *arguments, "--json", "-")
    assert result.exit_code == 0, result.output
    made: dict[str, Any] = json.loads(result.stdout)
    return made


@pytest.mark.slow
def test_a_closed_loop_is_measured(target: str) -> None:
    made = measured(
        target, "--concurrency", "2", "--seconds", "1", "--prompt-tokens", "200", "--objective", "end-to-end=9"
    )
    assert made["outcomes"] == {"ok": made["calls"]}
    assert made["calls"] >= 2
    assert made["goodput_share"] == 1.0
    assert made["mean_output_tokens"] == 20
    assert made["mean_prompt_tokens"] == pytest.approx(200, rel=0.05)
    assert made["first_token"]["p50"] <= made["first_answer"]["p50"] <= made["end_to_end"]["p50"]
    assert 1.0 < made["mean_running"] <= 2.0
    assert "callers wait" in made["latency_from"]
    assert made["model"]["name"] == "scripted"
    assert made["client_machine"]["cores"] == os.cpu_count()


@pytest.mark.slow
def test_front_end_cpu_and_memory_are_found_through_loopback(target: str) -> None:
    made = measured(target, "--concurrency", "2", "--seconds", "1")
    assert made["processes_not_seen"] is None
    roles = {process["role"]: process for process in made["processes"]}
    assert roles["front end"]["memory_gib"] > 0.01
    assert made["front_end_cpu_seconds_per_token"] > 0


@pytest.mark.slow
def test_an_overloaded_open_loop_tells_the_wait_that_a_closed_one_hides(target: str) -> None:
    """The service ends at most 20 calls a second; 40 are sent."""
    opened = measured(target, "--rate", "40", "--seconds", "1.5", "--seed", "3", "--rows")
    assert "intended" in opened["latency_from"]
    assert opened["calls"] == len(opened["rows"]) > 40
    # Nobody was lost: calls meant for the window are waited for, however late they end.
    assert opened["outcomes"] == {"ok": opened["calls"]}
    for row in opened["rows"]:
        assert row["intended"] <= row["sent"] <= row["first_token"] <= row["last_token"] <= row["ended"]
    waits = sorted(row["ended"] - row["intended"] for row in opened["rows"])
    assert opened["end_to_end"]["most"] == pytest.approx(waits[-1], abs=0.001)


@pytest.mark.slow
def test_bursts_wait_in_the_queue(target: str) -> None:
    made = measured(target, "--burst", "8", "--every", "1", "--seconds", "1.5", "--warm-up", "0")
    assert made["calls"] == 16
    # Four rounds of two: the last calls wait for three of them, and the service tells that time.
    assert made["queue"]["most"] > 0


@pytest.mark.slow
def test_modes_budgets_and_their_tokens(target: str) -> None:
    arguments = ("--concurrency", "2", "--seconds", "1", "--thinking", "thinking:5", "--rows", "--output-tokens", "")
    made = measured(target, *arguments)
    assert made["mean_thought_tokens"] == 5
    assert made["thinking_outcomes"] == {"budget_reached": made["calls"]}
    assert made["over_budget"] == 0
    assert made["first_answer"]["p50"] > made["first_token"]["p50"]
    assert made["rows"][0]["work"]["budget_tokens"] == 5
    assert "prompt" not in made["rows"][0]["work"]
    assert 0 < made["thought_tokens_per_second"] < made["output_tokens_per_second"]


@pytest.mark.slow
def test_what_was_sent_can_be_replayed(target: str, tmp_path: Path) -> None:
    file = tmp_path / "trace.jsonl"
    first = measured(target, "--rate", "10", "--seconds", "1", "--thinking", "fast,auto", "--save-trace", str(file))
    second = measured(target, "--trace", str(file), "--speed", "4", "--rows")
    assert second["calls"] == first["calls"] == len(file.read_text().splitlines())
    assert {row["work"]["mode"] for row in second["rows"]} == {"fast", "auto"}
    assert second["rows"][-1]["intended"] <= 0.25
    assert "4 times its pace" in second["pattern"]


def test_a_deadline_that_is_missed_is_a_result(target: str) -> None:
    made = measured(target, "--concurrency", "1", *SHORT, "--deadline", "0.03")
    assert made["outcomes"]["deadline"] >= 1
    assert made["end_to_end"]["p50"] is None
    assert made["end_to_end"]["lost"] == made["outcomes"]["deadline"]


def test_the_tables_say_what_they_show(target: str) -> None:
    result = run(target, "--concurrency", "2", *SHORT, "--objective", "first-token=60")
    assert result.exit_code == 0, result.output
    for words in ("closed loop, 2 callers", "time to first answer token", "goodput", "kept to first token 60 s", "p99"):
        assert words in result.output


@pytest.mark.slow
def test_ctrl_c_shows_what_was_measured(target: str, tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    command = [sys.executable, "-m", "penstock", "bench", "--target", target, "--seconds", "600", "--warm-up", "0"]
    process = subprocess.Popen(
        [*command, "--json", str(file)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "closed loop, 8 callers ...\n"
    assert "calls ended" in process.stderr.readline()  # after a few seconds
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "time to first token" in out
    made = json.loads(file.read_text())
    assert 0 < made["seconds"] < 600
    assert made["interrupted"]
    assert made["outcomes"]["ok"] > 3
    assert "unfinished" not in made["outcomes"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("--concurrency", "2", "--rate", "3"),
        ("--trace", "pyproject.toml"),
        ("--trace", "nowhere"),
        ("--prompt-tokens", "many"),
        ("--thinking", "slow"),
        ("--images", "-1"),
        ("--images", "1", "--image-size", "1024"),
        ("--images", "1", "--image-size", "0x32"),
        ("--tool-calls", "few"),
        ("--objective", "speed=1"),
        ("--json", "nowhere/x.json"),
        ("--rows",),
        ("--seconds", "0"),
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, ["bench", "--target", "127.0.0.1:1", *arguments])
    assert result.exit_code == 2, result.output


def test_nobody_there() -> None:
    result = CliRunner().invoke(app, ["bench", "--target", "127.0.0.1:1"])
    assert result.exit_code == 1
    assert result.stderr == "penstock: nothing listens at 127.0.0.1:1: start a service with `penstock serve`\n"


@pytest.mark.slow
def test_a_load_without_a_call_in_its_window_fails_and_says_why(tmp_path: Path) -> None:
    """A call lasts longer than warm-up and window together, so that the only one begins before the window."""
    slow = [{"answer": "a" * 30, "step_seconds": 0.1}]
    with scripted_service(tmp_path, slow) as address:
        made = run(address, "--concurrency", "1", "--seconds", "0.1", "--json", "-")
    assert made.exit_code == 1
    told = json.loads(made.stdout)["error"]["message"]
    assert told.startswith("no call began within the measured 0.1 s (1 began during the warm-up); raise --seconds")


def test_ctrl_c_before_anything_was_measured_is_told(target: str) -> None:
    command = [sys.executable, "-m", "penstock", "bench", "--target", target, "--warm-up", "600"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert process.stderr.readline() == "closed loop, 8 callers ...\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert err.endswith("penstock: interrupted before anything was measured\n")


@pytest.mark.slow
def test_processes_elsewhere_are_left_out_and_said_so(target: str) -> None:
    made = measured(target, "--concurrency", "2", "--seconds", "1", "--pid", "999999999")
    assert "no process 999999999" in made["processes_not_seen"]
    assert made["front_end_cpu_seconds_per_token"] is None
    assert {process["role"] for process in made["processes"]} == {"load generator"}


@pytest.mark.slow
def test_conversations_send_what_was_said_with_or_without_the_thought(target: str) -> None:
    prompts = {}
    for choice in ("--keep-thought", "--drop-thought"):
        load = ("--concurrency", "2", "--seconds", "1.5", "--thinking", "thinking", "--output-tokens", "")
        made = measured(target, *load, "--turns", "3", "--turn-tokens", "40", choice, "--rows")
        assert made["outcomes"] == {"ok": made["calls"]}
        turns = made["by_turn"]
        assert {"1", "2"} <= set(turns)
        assert turns["2"]["mean_prompt_tokens"] > turns["1"]["mean_prompt_tokens"]
        assert {row["turn"] for row in made["rows"]} >= {0, 1}
        prompts[choice] = turns["2"]["mean_prompt_tokens"]
    # 20 letters of thought, a token each for the scripted engine.
    assert prompts["--keep-thought"] > prompts["--drop-thought"] + 10


@pytest.mark.slow
def test_a_tool_loop_needs_an_engine_that_can_hold_a_call_to_its_schema(target: str) -> None:
    made = measured(target, "--concurrency", "2", "--seconds", "1", "--tool-calls", "3", "--rows")
    assert made["errors"] == {"FEATURE_OFF": made["calls"]}
    assert {row["turn"] for row in made["rows"]} == {0}
    assert made["load"]["tool_loop"]["calls"]["parts"] == [[3, 3, 1.0]]


@pytest.mark.slow
def test_images_are_sent_and_their_tokens_counted(target: str, tmp_path: Path) -> None:
    """A token for 32 x 32 pixels."""
    trace = tmp_path / "trace.jsonl"
    # Calls at a rate are waited for, however late they begin on a machine that does other work.
    load = ("--rate", "6", "--seed", "3", "--seconds", "1", "--images", "2", "--image-size", "320x160")
    made = measured(target, *load, "--save-trace", str(trace), "--rows")
    assert made["outcomes"] == {"ok": made["calls"]}
    assert {row["image_tokens"] for row in made["rows"]} == {2 * 10 * 5}
    assert made["mean_image_tokens"] == 100
    again = measured(target, "--trace", str(trace), "--speed", "10")
    assert again["mean_image_tokens"] == 100
    assert "100.0 of the prompt stand for images" in run(target, *load).output


@pytest.mark.slow
def test_questions_of_several_kinds_and_the_other_formats(target: str, tmp_path: Path) -> None:
    questions, other = tmp_path / "questions.jsonl", tmp_path / "run"
    questions.write_text('{"kind": "code", "prompt": "Sort."}\n{"kind": "prose", "prompt": "Tell."}\n')
    load = ("--concurrency", "4", "--seconds", "1.5", "--questions", str(questions), "--aiperf", str(other), "--rows")
    made = measured(target, *load)
    assert set(made["by_kind"]) == {"code", "prose"}
    assert "Sort." not in json.dumps(made)
    assert made["load"]["questions"] == 2
    assert made["round_trip"]["count"] == 20
    assert "NVML" in made["energy"]["missing"] or made["energy"]["joules"]
    figures = json.loads((other / "profile_export_aiperf.json").read_text())
    assert figures["request_count"]["avg"] == made["outcomes"]["ok"]
    assert figures["input_config"]["models"]["items"] == [{"name": "scripted"}]
    calls = [json.loads(line) for line in (other / "profile_export.jsonl").read_text().splitlines()]
    assert len(calls) == made["calls"]
    assert all(call["metrics"]["request_latency"]["unit"] == "ms" for call in calls if "error" not in call)


def test_a_public_trace_is_replayed(target: str, tmp_path: Path) -> None:
    file = tmp_path / "mooncake.jsonl"
    rows = [{"timestamp": 100 * n, "input_length": 600, "output_length": 4, "hash_ids": [1, n]} for n in range(6)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = measured(target, "--trace", str(file), "--trace-calls", "4")
    assert made["outcomes"] == {"ok": 4}
    assert made["mean_prompt_tokens"] == pytest.approx(600, rel=0.05)
