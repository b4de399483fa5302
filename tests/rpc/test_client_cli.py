"""The client commands against a service of canned replies, and the demo against the scripted engine."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2 as details
from penstock.cli import app
from penstock_proto.v1 import generation_pb2 as pb
from typer.testing import CliRunner, Result

from tests.rpc.fake_service import ANSWER, THOUGHT, FakeService, calling, status, tool_call, until

USAGE = (
    "thought 12/16 tokens (budget reached) · answer 5 · prompt 31 (16 cached) · dropped 1 messages, 3 tokens · "
    "first token 0.21 s · 80 tok/s · $0.0000231\n"
)


@pytest.fixture
def run(served: tuple[FakeService, str], fake: FakeService) -> Callable[..., Result]:
    def invoke(*arguments: str, stdin: str | bytes | None = None) -> Result:
        return CliRunner().invoke(app, arguments, input=stdin, env={"PENSTOCK_TARGET": served[1]})

    return invoke


@pytest.fixture
def start(served: tuple[FakeService, str], tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Runs `penstock` as a process; what is left of it at the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def popen(*arguments: str, **environ: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "penstock", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PENSTOCK_TARGET": served[1], "TMPDIR": str(tmp_path), **environ},
        )
        started.append(process)
        return process

    yield popen
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_generate_streams_the_answer_to_stdout_and_the_rest_to_stderr(run: Any, fake: FakeService) -> None:
    result = run("generate", "hi", "--thinking", "thinking", "--budget", "16", "--system", "s", "--seed", "0")
    assert (result.exit_code, result.stdout) == (0, "".join(ANSWER) + "\n")
    assert result.stderr == "".join(THOUGHT) + "\n" + USAGE
    spec = fake.requests[0].spec
    assert [m.role for m in spec.messages.messages] == [pb.ROLE_SYSTEM, pb.ROLE_USER]
    assert (spec.thinking.thinking_budget, spec.sampling.HasField("seed")) == (16, True)


def test_a_budget_that_the_server_chose_is_explained(run: Any, fake: FakeService) -> None:
    fake.script[-1].finished.effective_settings.requested_thinking_mode = pb.THINKING_MODE_AUTO
    fake.script[-1].finished.effective_settings.thinking_reason = "auto: 2.1 s to the deadline at 8 ms per token"
    result = run("generate", "hi", "--thinking", "auto", "--timeout", "9")
    assert result.stderr.endswith("$0.0000231\nauto: 2.1 s to the deadline at 8 ms per token\n")


def interrupted(script: list[pb.GenerationEvent], at: int, expected_seconds: float | None) -> list[pb.GenerationEvent]:
    """The script with an interruption before its event `at`."""
    told = pb.GenerationInterrupted(reason=pb.INTERRUPTION_REASON_ENGINE_DIED, expected_seconds=expected_seconds)
    continued = pb.GenerationContinued(interrupted_seconds=21.4)
    script[at:at] = [pb.GenerationEvent(interrupted=told), pb.GenerationEvent(continued=continued)]
    for sequence, event in enumerate(script, 1):
        event.sequence = sequence
    return script


@pytest.mark.parametrize(("expected_seconds", "when"), [(12.3, " in about 12 s"), (0.0, ", at any moment"), (None, "")])
def test_an_interruption_is_shown_beside_the_answer(
    run: Any, fake: FakeService, expected_seconds: float | None, when: str
) -> None:
    notices = [
        f"(the engine died and is being restarted; the reply continues{when})",
        "(the reply continues after 21 s)",
    ]
    interrupted(fake.script, 6, expected_seconds)
    result = run("generate", "hi")
    assert result.stdout == "".join(ANSWER) + "\n", "nothing else may stand in what is piped on"
    assert "\n".join(notices) in result.stderr
    in_chat = run("chat", stdin="one\n")
    assert "\n".join(notices) in in_chat.stdout
    lines = [json.loads(line) for line in run("generate", "hi", "--json").stdout.splitlines()]
    assert lines[6]["interrupted"]["reason"] == "INTERRUPTION_REASON_ENGINE_DIED"
    assert lines[7]["continued"]["interrupted_seconds"] == 21.4


def test_generate_for_machines(run: Any, fake: FakeService) -> None:
    lines = [json.loads(line) for line in run("generate", "hi", "--json").stdout.splitlines()]
    assert [line["sequence"] for line in lines] == [str(n) for n in range(1, 10)]
    assert "".join(line["answer"]["text"] for line in lines if "answer" in line) == "".join(ANSWER)
    assert lines[-1]["finished"]["usage"]["reasoning_tokens"] == 12
    reply = json.loads(run("generate", "hi", "--json", "--no-stream").stdout)
    assert reply["candidates"][0]["answer"] == "".join(ANSWER)


def test_generate_reads_stdin_and_hides_thoughts(run: Any, fake: FakeService) -> None:
    result = run("generate", "-", "--no-stream", "--hide-thoughts", stdin="what?\nsecond line é\n")
    assert result.stdout == "".join(ANSWER) + "\n"
    assert result.stderr == USAGE
    assert fake.requests[0].spec.messages.messages[0].content == "what?\nsecond line é\n"
    assert fake.requests[0].spec.thinking.include_thoughts is False


def test_a_models_control_characters_do_not_reach_the_terminal(run: Any, fake: FakeService) -> None:
    fake.script[5].answer.text = "\x1b[2J\x07red\u009b"
    assert run("generate", "hi").stdout == "[2Jred" + "".join(ANSWER[1:]) + "\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "info", "more", "words"),
    [
        (
            grpc.StatusCode.INVALID_ARGUMENT,
            {"reason": "LIMIT_EXCEEDED"},
            details.BadRequest(field_violations=[{"field": "spec.thinking.thinking_budget", "description": "too big"}]),
            "--budget (spec.thinking.thinking_budget): too big",
        ),
        (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            {"reason": "OVERLOADED"},
            details.RetryInfo(retry_delay=duration_pb2.Duration(seconds=2)),
            "retry in 2 s",
        ),
        (
            grpc.StatusCode.INVALID_ARGUMENT,
            {"reason": "CONTEXT_OVERFLOW", "metadata": {"prompt_tokens": "5000"}},
            None,
            "prompt_tokens 5000",
        ),
        (grpc.StatusCode.DEADLINE_EXCEEDED, {"reason": "DEADLINE_PASSED"}, None, "--timeout"),
        (grpc.StatusCode.FAILED_PRECONDITION, {"reason": "FEATURE_OFF"}, None, "penstock model"),
        (grpc.StatusCode.UNAVAILABLE, {"reason": "ENGINE_DOWN"}, None, "as the server put it"),
        (grpc.StatusCode.UNAUTHENTICATED, {"reason": "CALLER_REFUSED"}, None, "PENSTOCK_API_KEY"),
        (grpc.StatusCode.INTERNAL, {"reason": "INTERNAL", "metadata": {"generation_id": "g7"}}, None, "g7"),
    ],
)
def test_a_refusal_is_exit_code_1_in_words(
    run: Any, fake: FakeService, code: Any, info: Any, more: Any, words: str
) -> None:
    given = [details.ErrorInfo(domain="penstock.v1", **info), *([more] if more is not None else [])]
    fake.error = status(code, "as the server put it", given)
    for arguments in (["generate", "hi"], ["generate", "hi", "--no-stream"], ["count", "hi"], ["model"]):
        result = run(*arguments)
        assert result.exit_code == 1
        assert words in result.stderr
        assert "Traceback" not in result.output


def test_count_and_model(run: Any) -> None:
    counted = run("count", "hi").stdout
    assert "prompt 31 tokens" in counted
    assert "cost from $0.0000000001 to $0.000002" in counted
    assert json.loads(run("count", "hi", "--json").stdout)["window_left_tokens"] == 100
    shown = run("model").stdout
    for words in ("Qwen3_5MoeForCausalLM", "no MTP layer [here]", "$0.4", "spec.sampling.min_p"):
        assert words in shown
    assert json.loads(run("model", "--json").stdout)["vocab_size"] == 512


def test_chat_keeps_the_conversation(run: Any, fake: FakeService) -> None:
    result = run("chat", "--system", "s", stdin="one\n\n/budget 3\ntwo\n/reset\n/nonsense\nthree\n")
    assert result.exit_code == 0
    assert result.stdout.count("".join(ANSWER)) == 3
    assert "/nonsense: not a command" in result.stdout
    specs = [request.spec for request in fake.requests[1:]]
    assert [[m.content for m in spec.messages.messages] for spec in specs] == [
        ["s", "one"],
        ["s", "one", "".join(ANSWER), "two"],
        ["s", "three"],
    ]
    assert [spec.thinking.HasField("thinking_budget") for spec in specs] == [False, True, True]


def test_chat_goes_on_after_a_refusal(run: Any, fake: FakeService) -> None:
    fake.script = [status(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")]
    result = run("chat", stdin="one\n/quit\n")
    assert result.exit_code == 0
    assert "overloaded" in result.stdout


def test_chat_goes_on_after_what_cannot_be_sent(run: Any, fake: FakeService) -> None:
    result = run("chat", stdin=b"/budget 9999999999\none\n/budget 4\n\xff two\n")
    assert result.exit_code == 0
    assert "/budget 9999999999: the budget must be a whole number of tokens" in result.stdout
    first, second = (request.spec for request in fake.requests[1:])
    assert not first.thinking.HasField("thinking_budget")
    assert [m.content for m in second.messages.messages][-1] == "\ufffd two"


def test_ctrl_c_stops_a_reply_of_chat_and_no_more(start: Any, fake: FakeService) -> None:
    fake.hang_after = 7
    chat = start("chat")
    chat.stdin.write("one\n")
    chat.stdin.flush()
    assert chat.stdout.readline() == THOUGHT[0] + THOUGHT[1]
    assert chat.stdout.readline() == THOUGHT[2] + "\n"
    assert chat.stdout.read(len("".join(ANSWER[:2]))) == "".join(ANSWER[:2])
    chat.send_signal(signal.SIGINT)
    assert until(lambda: fake.cancelled == 1)
    fake.hang_after = None
    output, errors = chat.communicate("two\n", timeout=60)
    assert (chat.returncode, errors) == (0, "")
    assert "(stopped)" in output
    turns = fake.requests[-1].spec.messages.messages
    assert [turn.content for turn in turns] == ["one", "".join(ANSWER[:2]), "two"]


TOOLS = '''
import os, signal

def warmth(city: str) -> str:
    """Return the temperature."""
    return f"21 in {city}\\x1b[2J" + "!" * 500

def stops() -> str:
    os.kill(os.getpid(), signal.SIGINT)
    signal.pause()

async def later() -> str: ...
'''


def test_chat_with_tools_shows_calls_and_results(
    run: Any, fake: FakeService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "chat_tools.py").write_text(TOOLS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "chat_tools", raising=False)
    fake.scripts = [list(calling(tool_call("warmth", '{"city": "Oslo"}'), tool_call("stop", "{}", 1), thought="hm"))]
    result = run("chat", "--system", "s", "--tools", "chat_tools:warmth", stdin="one\ntwo\n")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[:3] == ["hm", '-> warmth {"city": "Oslo"}', "-> stop {}"]
    assert "tool calls 16" in lines[3]
    assert lines[3].endswith("ended by tool calls")
    assert lines[4].startswith("<- warmth: 21 in Oslo[2J!!!")
    assert lines[4].endswith("!...")
    assert lines[5] == "<- stop failed: no such tool, not executed; the tools are: warmth"
    assert "2 turns together: prompt 71 · output 36 tokens · $0.0000462" in lines
    roles = [message.role for message in fake.requests[-1].spec.messages.messages]
    user, assistant = pb.ROLE_USER, pb.ROLE_ASSISTANT
    assert roles == [pb.ROLE_SYSTEM, user, assistant, pb.ROLE_TOOL, assistant, user]
    fake.scripts = [list(calling(tool_call("warmth", '{"city": "Oslo"}')))]
    printed = [
        json.loads(line)
        for line in run("chat", "--json", "--tools", "chat_tools:warmth", stdin="x\n").stdout.splitlines()
    ]
    assert [part["tool_result"]["call_id"] for line in printed for part in line.get("parts", ())] == ["call-0"]
    assert sum("finished" in line for line in printed) == 2


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ("chat_tools", "must be MODULE:FUNCTION"),
        ("nowhere_tools:f", "No module named 'nowhere_tools'"),
        ("chat_tools:nothing", "has no attribute 'nothing'"),
        ("chat_tools:warmth,later", "later is async"),
        ("json:dumps", "'obj' needs a type hint"),
    ],
)
def test_tools_that_chat_cannot_use(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str, words: str
) -> None:
    (tmp_path / "chat_tools.py").write_text(TOOLS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "chat_tools", raising=False)
    result = run("chat", "--tools", named, "--json")
    assert result.exit_code == 2
    assert words in result.output


def test_ctrl_c_in_a_tool_of_chat_ends_the_turn(
    start: Any, fake: FakeService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stop_tools.py").write_text(TOOLS)
    monkeypatch.chdir(tmp_path)
    fake.scripts = [list(calling(tool_call("stops", "{}")))]
    chat = start("chat", "--tools", "stop_tools:stops")
    output, errors = chat.communicate("one\ntwo\n", timeout=60)
    assert (chat.returncode, errors) == (0, "")
    assert "(stopped; this turn is not kept)" in output
    assert [turn.content for turn in fake.requests[-1].spec.messages.messages] == ["two"]


def test_ctrl_c_ends_generate_with_130(start: Any, fake: FakeService) -> None:
    fake.hang_after = 7
    generate = start("generate", "hi")
    assert generate.stdout.read(3) == ANSWER[0][:3]
    generate.send_signal(signal.SIGINT)
    _, errors = generate.communicate(timeout=60)
    assert generate.returncode == 130
    assert errors.splitlines()[-1] == "penstock: interrupted"
    assert "Traceback" not in errors
    assert until(lambda: fake.cancelled == 1)


def test_the_demo_ends_by_itself_and_cleans_up(start: Any, tmp_path: Path) -> None:
    demo = start("demo", PENSTOCK_ENGINE_KIND="scripted")
    output, errors = demo.communicate(timeout=120)
    assert (demo.returncode, errors) == (0, "")
    assert "thought 4/4 tokens (budget reached)" in output
    assert "no thought" in output
    for hint in ("penstock serve", "penstock chat", "penstock playground"):
        assert re.search(rf"^  {hint} {{2,}}\w", output, re.MULTILINE), hint
    assert list(tmp_path.iterdir()) == []


def test_the_demo_shows_the_log_of_a_service_that_dies(start: Any, tmp_path: Path) -> None:
    demo = start("demo", PENSTOCK_ENGINE_KIND="scripted", PENSTOCK_ENGINE_MODEL="/nowhere.json")
    _, errors = demo.communicate(timeout=120)
    assert demo.returncode == 1
    assert "exit code 2" in errors
    assert "/nowhere.json" in errors
    assert str(next(tmp_path.glob("penstock-demo-*/serve.log"))) in errors


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_demo_leaves_no_orphan(start: Any, tmp_path: Path, number: int, code: int) -> None:
    demo, service = _demo_that_thinks(start, tmp_path)
    demo.send_signal(number)
    demo.communicate(timeout=60)
    assert demo.returncode == code
    assert not Path(f"/proc/{service}").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["replies.json"]


@pytest.mark.slow
def test_a_demo_that_is_killed_takes_its_service_along(start: Any, tmp_path: Path) -> None:
    demo, service = _demo_that_thinks(start, tmp_path)
    demo.kill()
    assert until(lambda: not _runs(service), 60)
    assert until(lambda: [path.name for path in tmp_path.iterdir()] == ["replies.json"], 60)


def _runs(pid: int) -> bool:
    """Whether there is such a process; one that ended and waits for a parent to ask is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _demo_that_thinks(start: Any, tmp_path: Path) -> tuple[Any, int]:
    """The demo in the middle of its first answer, and its service's pid."""
    replies = tmp_path / "replies.json"
    replies.write_text('[{"thought": "slow thought", "step_seconds": 30}]')
    demo = start("demo", PENSTOCK_ENGINE_KIND="scripted", PENSTOCK_ENGINE_MODEL=str(replies))
    while not demo.stdout.readline().startswith(">"):
        pass
    time.sleep(0.5)  # The question is shown before it is asked.
    commands = {int(child): Path(f"/proc/{child}/cmdline").read_bytes() for child in _children(demo.pid)}
    [service] = [pid for pid, command in commands.items() if b"\0serve\0" in command]
    return demo, service


def _children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
