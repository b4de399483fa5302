"""All cases through the TypeScript client, by its driver."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from tests.conformance.drivers import run_driver
from tests.conformance.harness import load_cases
from tests.conformance.judge import judge
from tests.conformance.tools import CLIENTS, NODE, build_typescript, check, needs_node

CASES = load_cases()
pytestmark = [needs_node, pytest.mark.slow]


@pytest.fixture(scope="module")
def seen(targets: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    command = [str(NODE), "--expose-gc", "test/conformance.mjs"]
    return run_driver(command, build_typescript(), targets, CASES, tmp_path_factory.mktemp("typescript"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
@pytest.mark.timeout(400)
def test_case(case: dict[str, Any], seen: dict[str, Any]) -> None:
    assert not judge(case, seen[case["name"]])


MISUSE = {
    "thinkin": 'unknown option "thinkin"; did you mean "thinking"?',
    "deep": 'unknown value of thinking "deep"; known: fast, thinking, auto',
    "fas": 'did you mean "fast"?',
    "maxTokens": 'did you mean "maxOutputTokens"?',
    "max_output_tokens": 'did you mean "maxOutputTokens"?',
    "budget": 'budget must be an integer, got "5"',
    "fraction": "budget must be an integer, got 1.5",
    "nothing": "seed must be an integer, got null",
    "stream": 'did you mean "resumable"?',
    "interact": 'unknown option "resumable"',
    "role": 'messages[0].role: unknown role "asistant"; did you mean "assistant"?',
    "key": 'messages[0]: unknown key "name"',
    "parts": 'messages[0].content[0].type: unknown type of a part "txt"; did you mean "text"?',
    "image": "messages[0].content[0]: the service fetches no addresses",
    "developer": 'did you mean "system"?',
    "toolChoice": 'did you mean "toolMode"?',
    "tools": "tools[0].name must be a string; hosted tools are not part of this service",
    "format": "for a JSON schema use jsonSchema",
    "halfSchema": "a schema with parse needs jsonSchema beside it",
    "noExecute": 'the tool "x" has no execute',
    "steps": 'did you mean "maxTurns"?',
    "prompt": "got a number",
    "object": "got txt",
    "spec": "a spec is the whole request, so budget beside it would be ignored",
    "client": 'unknown option "api_key"; did you mean "apiKey"?',
    "logger": "logger must have a method info",
    "reconnect": 'unknown option "mostAttempts"; did you mean "maxAttempts"?',
    "generate": 'did you mean "temperature"?',
    "count": 'did you mean "temperature"?',
    "model": 'did you mean "timeout"?',
    "inherited": 'unknown option "constructor"',
    "optionsNull": "options must be an object, got null",
    "optionsArray": "options must be an object, got an array",
    "target": "target must be a string, got an object",
    "signal": "signal must be an AbortSignal, got a AbortController",
    "metadata": "metadata must be an object of strings, got a Headers",
    "metadataValue": "metadata.x-a must be a string, got 5",
    "reconnectFalse": "reconnect must be an object, got a boolean",
    "reconnectValue": 'reconnect.maxAttempts must be an integer, got "3"',
    "tls": "tls must be true, false, the path of a CA certificate or gRPC's credentials",
    "text": "prompt.text must be a string, got 5",
    "textAndMore": 'unknown key beside text "tokenIds"',
    "tokenIds": 'prompt.tokenIds[1] must be an integer of 32 bits, got "a"',
    "stopElement": "stop[1] must be a string, got 1",
    "choice": "choices[0] must be a string, got 1",
    "stopTokenId": "stopTokenIds[0] must be an integer of 32 bits, got 1.5",
    "biasKey": 'logitBias must have token ids as keys, got "foo"',
    "biasValue": 'logitBias.5 must be a number, got "x"',
    "biasMap": "logitBias must be an object of numbers by token id, got a Map",
    "large": "budget must be an integer from -2147483648 to 2147483647, got 1099511627776",
    "jsonObject": "for a JSON schema use jsonSchema",
    "toolKey": 'unknown key of tools[0]: "descripton"; did you mean "description"?',
    "toolStrict": 'tools[0].strict must be true or false, got "yes"',
    "toolParameters": 'tools[0].parameters must be an object or a function, got "{}"',
    "toolFunctionKey": 'unknown key of tools[0]: "paramters"; did you mean "parameters"?',
    "toolName": "tool.name must be a string",
    "toolExecute": "tool.execute must be a function, got 5",
    "partKey": 'unknown key of messages[0].content[0]: "foo"',
    "mime": 'did you mean "mimeType"?',
    "calls": 'messages[0].tool_calls must be an array, got "x"',
    "argument": 'unknown key of messages[0].tool_calls[0].function: "argument"; did you mean "arguments"?',
    "status": 'unknown value of messages[0].content[0].status "done"',
    "input": "messages[0].content[0].input must be an object, got undefined",
    "isError": 'messages[0].content[0].isError must be true or false, got "no"',
    "contents": 'did you mean "content"?',
    "flush": "flushIntervalSeconds must be at most 315576000000 seconds, got Infinity",
    "window": "windowSeconds must be at most 315576000000 seconds, got 1000000000000",
    "steer": "action must be an object, got undefined",
    "resume": "lastSequence must be an integer from 0",
    "modelName": "name must be a string, got an object",
    "system": "system must be a string, got an object",
    "asked": "text must be a string, got 5",
    "added": "reply must be a string or an object, got null",
}


def test_plain_javascript_is_told_what_means_nothing() -> None:
    command = [str(NODE), "test/misuse.mjs"]
    done = subprocess.run(command, cwd=build_typescript(), capture_output=True, text=True, timeout=60, check=True)
    said = dict(json.loads(line) for line in done.stdout.splitlines())
    assert set(said) == set(MISUSE)
    for name, words in MISUSE.items():
        assert said[name].startswith("TypeError: "), name
        assert words in said[name]


@pytest.mark.timeout(300)
def test_the_compiler_refuses_each_misuse_and_nothing_else() -> None:
    """An @ts-expect-error above a line that compiles is an error, too."""
    assert (CLIENTS / "typescript/test/misuse.ts").read_text().count("// @ts-expect-error\n") > 20
    command = [str(NODE), "node_modules/typescript/bin/tsc", "-p", "tsconfig.misuse.json"]
    done = subprocess.run(command, cwd=CLIENTS / "typescript", capture_output=True, text=True, timeout=280, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_messages_are_what_the_protos_say() -> None:
    check("protos-typescript")
