"""Tools through the TypeScript and the Go client: what their users see, and what they send."""

from __future__ import annotations

import functools
import json
import os
import subprocess
from typing import Any

import grpc
import pytest
from penstock_proto.v1 import generation_pb2 as pb

from tests.conformance.tools import NODE, build_go, build_typescript, needs_go, needs_node
from tests.rpc.fake_service import ANSWER, FakeService, calling, events, numbered, status, tool_call
from tests.rpc.test_client_tools import results_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(700)]
COMMANDS = {
    "Go": functools.cache(lambda: [str(build_go() / "conformance"), "--tools"]),
    "TypeScript": functools.cache(lambda: [str(NODE), str(build_typescript() / "test/tools.mjs")]),
}
BOTH = [pytest.param("Go", marks=needs_go), pytest.param("TypeScript", marks=needs_node)]
WARMTH = tool_call("warmth", '{"city": "Oslo"}')
INCOMPLETE = pb.TOOL_CALL_STATUS_INCOMPLETE


@pytest.fixture(params=BOTH)
def see(request: pytest.FixtureRequest, served: tuple[FakeService, str], fake: FakeService) -> Any:
    """Runs the language's program one way; gives what it prints."""

    def run(how: str) -> Any:
        command = [*COMMANDS[request.param](), how]
        environment = os.environ | {"PENSTOCK_TARGET": served[1]}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        return json.loads(done.stdout)

    run.language = request.param  # type: ignore[attr-defined]
    return run


def test_events_of_calls(see: Any, fake: FakeService) -> None:
    fake.script = list(calling(WARMTH, tool_call("now", '{"z', 1, INCOMPLETE)))
    begun, more, ended = "tool_call_started", "tool_call_arguments", "tool_call_finished"
    assert see("events") == {
        "kinds": ["started", *[begun, more, more, ended] * 2, "finished"],
        "pieces": ['{"city":', ' "Oslo"}', "{", '"z'],
        "calls": [["call-0", "warmth", '{"city": "Oslo"}', "complete"], ["call-1", "now", '{"z', "incomplete"]],
        "finish": "max_output_tokens",
        "tokens": 16,
        "executed": [],
    }


def test_run_executes_what_may_be_executed(see: Any, fake: FakeService) -> None:
    names = ("nothing", "fails", "tells", "hangs")
    others = [tool_call(name, "{}", at) for at, name in enumerate(names, 1)]
    wrong = [
        tool_call("warmth", '{"town": 1}', 5),
        tool_call("warmth", "[1]", 6),
        tool_call("warmth", '{"c', 7, INCOMPLETE),
    ]
    fake.scripts = [list(calling(WARMTH, *others, *wrong, thought="hm"))]
    seen = see("run")
    results = [(call_id, text, is_error) for call_id, text, is_error in seen.pop("results")]
    assert seen == {
        "finished": 2,
        "turns": 2,
        "tool_tokens": 64,
        "prompt_tokens": 40 + 31,
        "ticks": 2 * 231_000,
        "answer": "".join(ANSWER),
        "roles": ["user", "assistant", "tool", "assistant"],
        "executed": ["Oslo 1"],
    }
    asked, answered = [request.spec for request in fake.requests]
    assert json.loads(asked.tools[0].parameters_json_schema)["required"] == ["city"]
    assert (asked.tool_config.mode, answered.tool_config.mode) == (pb.TOOL_MODE_REQUIRED, pb.TOOL_MODE_VALIDATED)
    _, assistant, told = answered.messages.messages
    assert [part.WhichOneof("part") for part in assistant.parts] == ["thought", *["tool_call"] * 8]
    assert assistant.parts[-1].tool_call.arguments_json == "{}"
    assert sorted(results_of(told)) == results
    texts = {call_id: text for call_id, text, is_error in results if is_error}
    assert json.loads({call_id: text for call_id, text, _ in results}["call-0"]) == {
        "city": "Oslo",
        "celsius": 21,
    }
    no_tool = "no such tool, not executed; the tools are: fails, tells, warmth"
    assert (texts.pop("call-1"), texts.pop("call-4")) == (no_tool, no_tool)
    failed = {"Go": "the tool failed: *errors.errorString", "TypeScript": "the tool failed: RangeError"}
    assert texts.pop("call-2") == failed[see.language]
    assert texts.pop("call-3") == "no city \ufffd"
    assert texts.pop("call-5").startswith("invalid arguments, not executed: ")
    assert texts.pop("call-6") == "invalid arguments, not executed: they are no JSON object"
    assert texts.pop("call-7") == "the call was cut before its end, and was not executed"
    assert not texts


def test_no_call_is_executed_twice_over_a_lost_connection(see: Any, fake: FakeService) -> None:
    script: list[Any] = list(calling(WARMTH))
    script.insert(5, status(grpc.StatusCode.UNAVAILABLE, "connection reset"))
    fake.scripts = [script]
    assert see("run")["executed"] == ["Oslo 1"]
    assert sum(isinstance(request, pb.ResumeRequest) for request in fake.requests) == 1


def test_a_hook_tells_of_errors(see: Any, fake: FakeService) -> None:
    fake.scripts = [list(calling(tool_call("fails", "{}")))]
    see("told")
    assert results_of(fake.requests[-1].spec.messages.messages[-1]) == [("call-0", "fails: secret", True)]


@needs_go
def test_a_panic_in_go_ends_no_process(served: tuple[FakeService, str], fake: FakeService) -> None:
    fake.scripts = [list(calling(tool_call("panics", "{}")))]
    environment = os.environ | {"PENSTOCK_TARGET": served[1]}
    subprocess.run([*COMMANDS["Go"](), "limit"], env=environment, check=True, timeout=60, stdout=subprocess.DEVNULL)
    [(_, text, is_error)] = results_of(fake.requests[-1].spec.messages.messages[-1])
    assert is_error
    assert "secret" not in text


def test_the_limit_of_turns(see: Any, fake: FakeService) -> None:
    fake.script = list(calling(WARMTH))
    seen = see("limit")
    assert (seen["error"], seen["turns"], seen["tool_tokens"]) == ("TurnLimitReached", 2, 16)
    assert seen["executed"] == ["Oslo 1"]


def test_the_deadline_holds_over_tools(see: Any, fake: FakeService) -> None:
    fake.scripts = [list(calling(tool_call("hangs", "{}")))]
    seen = see("deadline")
    assert (seen["error"], seen["turns"]) == ("DeadlineExceeded", 1)
    assert seen["metadata"] == {"thought_tokens": "3", "answer_tokens": "0", "tool_tokens": "8"}


def test_a_conversation_takes_calls_and_results(see: Any, fake: FakeService) -> None:
    fake.scripts = [list(calling(WARMTH, thought="hm"))]
    assert see("history")["last"] == {"role": "assistant", "content": "".join(ANSWER)}
    sent = fake.requests[-1].spec.messages.messages
    assert [message.role for message in sent] == [pb.ROLE_SYSTEM, pb.ROLE_USER, pb.ROLE_ASSISTANT, pb.ROLE_TOOL]
    assert [part.WhichOneof("part") for part in sent[2].parts] == ["thought", "tool_call"]
    assert results_of(sent[3]) == [("call-0", "21", False)]


def test_an_answer_is_parsed(see: Any, fake: FakeService) -> None:
    fake.candidate = pb.Candidate(answer='{"city": "Oslo"}')
    assert see("parsed") == {"city": "Oslo", "days": 1, "executed": []}
    assert json.loads(fake.requests[-1].spec.output.json_schema)["required"] == ["city"]
    fake.candidate = pb.Candidate(answer='{"city": "secr')
    cut = see("parsed")
    assert cut["error"] == "UnparsableAnswer"
    assert "secr" not in cut["message"]


@needs_node
def test_schemas_of_zod(served: tuple[FakeService, str], fake: FakeService) -> None:
    calls = [tool_call("weather", '{"city": "Oslo"}'), tool_call("weather", '{"city": "Rome", "days": 10}', 1)]
    answer = [pb.GenerationEvent(answer=pb.Delta(text='{"celsius": 21.5}', token_count=1))]
    script = [event for event in events() if event.WhichOneof("event") not in ("answer", "thought")]
    fake.scripts = [list(calling(*calls)), list(numbered([*script[:-1], *answer, script[-1]]))]
    command = [*COMMANDS["TypeScript"](), "zod"]
    environment = os.environ | {"PENSTOCK_TARGET": served[1]}
    done = subprocess.run(command, env=environment, check=True, timeout=60, capture_output=True, text=True)
    seen = json.loads(done.stdout)
    assert (seen["executed"], seen["parsed"]) == (["Oslo"], {"celsius": 21.5})
    first, second = seen["results"]
    assert not first.get("isError")
    assert second["isError"]
    assert "days" in second["content"]
    asked = fake.requests[0].spec
    schema = json.loads(asked.tools[0].parameters_json_schema)
    assert (schema["type"], schema["required"]) == ("object", ["city"])
    assert schema["properties"]["city"] == {"type": "string", "minLength": 1}
    assert schema["properties"]["days"]["maximum"] == 9
    assert json.loads(asked.output.json_schema)["properties"] == {"celsius": {"type": "number"}}


@needs_node
def test_schemas_of_several_libraries(served: tuple[FakeService, str], fake: FakeService) -> None:
    kinds = ("plain", "byHand", "zod", "arktype")
    calls = [tool_call(kind, '{"n": "x"}', at) for at, kind in enumerate(kinds)]
    calls += [tool_call(kind, '{"n": 1}', at) for at, kind in enumerate(kinds, 4)]
    fake.scripts = [list(calling(*calls))]
    command = [*COMMANDS["TypeScript"](), "schemas"]
    environment = os.environ | {"PENSTOCK_TARGET": served[1]}
    done = subprocess.run(command, env=environment, check=True, timeout=60, capture_output=True, text=True)
    seen = json.loads(done.stdout)
    assert sorted(seen["executed"]) == ["arktype 1", "byHand 1", "plain 1", "plain x", "zod 1"]
    assert {tool.parameters_json_schema for tool in fake.requests[0].spec.tools} == {
        '{"type":"object","properties":{"n":{"type":"integer"}}}'
    }
    texts = [result["content"] for result in seen["results"]]
    no = "invalid arguments, not executed: "
    assert texts == ["null", f"{no}n must be an integer", f"{no}n: no integer", f"{no}n: no integer", *["null"] * 4]


@needs_node
def test_messages_of_other_libraries(served: tuple[FakeService, str], fake: FakeService) -> None:
    environment = os.environ | {"PENSTOCK_TARGET": served[1]}
    command = [*COMMANDS["TypeScript"](), "foreign"]
    subprocess.run(command, env=environment, check=True, timeout=60, stdout=subprocess.DEVNULL)
    sent = fake.requests[-1].spec.messages.messages
    user, assistant, tool = pb.ROLE_USER, pb.ROLE_ASSISTANT, pb.ROLE_TOOL
    assert [message.role for message in sent] == [user, assistant, tool, assistant, tool, user]
    assert sent[0].parts[1].image == pb.Image(mime_type="image/png", data=b"\0\1\2")
    assert [part.WhichOneof("part") for part in sent[3].parts] == ["thought", "tool_call"]
    assert json.loads(sent[3].parts[1].tool_call.arguments_json) == {"a": 1}
    assert results_of(sent[4]) == [("c2", "x", True)]
