"""The gateway beside `vllm serve`: the same text for the same requests, and each difference of their JSON is explained.

Both run the same model with the same arguments, one call at a time. The differences are the table of
docs/reference/vllm-serve.md, row by row.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from penstock.config.schema import EngineSettings
from penstock.engine.base import Engine
from penstock.engine.tokenizer import load
from penstock.engine.vllm.start import plan

from bench.contenders import OpenAi, Setting
from tests.engine.json_shapes import Shape, differences, shape_of
from tests.gateway.conftest import gateway_to, service

PAGE = Path(__file__).parents[2] / "docs/reference/vllm-serve.md"
QUESTIONS = (
    "What is 48 + 27 + 36 + 15?",
    "What is 12 + 30?",
    "What is 91 - 17 + 4?",
    "Sort 41, 7, 93 and 12.",
    "Tom has 3 boxes of 12 pens and gives away 7. How many?",
    "Which is larger, 53 or 52?",
)
SCHEMA = {
    "type": "object",
    "properties": {"fine": {"type": "boolean"}, "sum": {"type": "integer", "minimum": 100, "maximum": 999}},
    "required": ["fine", "sum"],
    "additionalProperties": False,
}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Oslo", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
HISTORY = [
    {"role": "system", "content": "Work it out."},
    {"role": "user", "content": "What is 12 + 30?"},
    {"role": "assistant", "content": "42"},
]
FAST_OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"max_tokens": 3},
    {"stop": ["6", " "]},
    {"logprobs": True, "top_logprobs": 2},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "sum", "strict": True, "schema": SCHEMA}}},
)
THINKING_OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"top_p": 0.9, "seed": 3, "presence_penalty": 0, "frequency_penalty": 0, "n": 1},
    {"return_token_ids": True},
    {"logprobs": True, "top_logprobs": 1},
    {"include_reasoning": False},
)
REPLY, CHUNK, ERROR = "reply", "chunk", "error"
KINDS = (REPLY, CHUNK, ERROR)


def requests() -> list[dict[str, Any]]:
    """Sixty requests whose greedy text is compared."""
    made = []
    for place, question in enumerate(QUESTIONS):
        before = HISTORY if place % 2 else []
        messages = [*before, {"role": "user", "content": question}]
        for thinks, choices in ((False, FAST_OPTIONS), (True, THINKING_OPTIONS)):
            for options in choices:
                arguments = {"enable_thinking": thinks}
                common = {"messages": messages, "temperature": 0, "max_tokens": 300}
                made.append(common | {"chat_template_kwargs": arguments} | options)
    return made


HELLO = [{"role": "user", "content": "What is 12 + 30?"}]
SHAPE_ONLY: tuple[dict[str, Any], ...] = (
    {"messages": HELLO, "temperature": 0, "max_tokens": 100, "thinking_token_budget": 9},
    {"messages": HELLO, "n": 2, "temperature": 1, "max_tokens": 5},
    {"messages": HELLO, "temperature": 0, "max_tokens": 200, "tools": [TOOL], "tool_choice": "required"},
)
"""Requests whose text is not compared: it is sampled, or the page says why it differs."""


@dataclass(frozen=True)
class Wrong:
    """A request that both refuse."""

    name: str
    body: Any = None
    content: bytes | None = None
    path: str = "/v1/chat/completions"
    method: str = "POST"
    headers: dict[str, str] = field(default_factory=lambda: {"content-type": "application/json"})

    @property
    def sent(self) -> bytes:
        return self.content if self.content is not None else json.dumps(self.body).encode()


WRONG = (
    Wrong("unknown model", {"model": "other", "messages": HELLO}),
    Wrong("no messages", {}),
    Wrong("messages of another type", {"messages": "hello"}),
    Wrong("an unknown role", {"messages": [{"role": "wizard", "content": "hello"}]}),
    Wrong("temperature too high", {"messages": HELLO, "temperature": 9}),
    Wrong("top_p too high", {"messages": HELLO, "top_p": 2}),
    Wrong("max_tokens below 1", {"messages": HELLO, "max_tokens": -1}),
    Wrong("n below 1", {"messages": HELLO, "n": -1}),
    Wrong("prompt larger than the window", {"messages": [{"role": "user", "content": "1 " * 60_000}]}),
    Wrong("a schema that is none", {"messages": HELLO, "response_format": {"type": "json_schema", "json_schema": {}}}),
    Wrong("an unknown type of response_format", {"messages": HELLO, "response_format": {"type": "poem"}}),
    Wrong("top_logprobs without logprobs", {"messages": HELLO, "top_logprobs": 2}),
    Wrong("an unknown field", {"messages": HELLO, "max_tokens": 2, "colour": "red"}),
    Wrong("no JSON", content=b"{"),
    Wrong("another content type", {"messages": HELLO}, headers={"content-type": "text/plain"}),
    Wrong("an unknown path", {}, path="/v1/unknown"),
    Wrong("another method", path="/v1/chat/completions", method="GET"),
    Wrong("stream_options without stream", {"messages": HELLO, "stream_options": {"include_usage": True}}),
)


class Text(NamedTuple):
    """Hold what a request was answered with."""

    thought: str
    answer: str
    finish_reason: str | None
    stop_reason: Any


@dataclass
class Seen:
    """Hold what one server answered."""

    texts: list[Text] = field(default_factory=list)
    streamed: list[Text] = field(default_factory=list)
    documents: dict[str, list[Any]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    statuses: dict[str, int] = field(default_factory=dict)

    def shapes(self) -> dict[str, Shape]:
        return {
            kind: shape_of(found, frozenset({"penstock", "error.penstock"})) for kind, found in self.documents.items()
        }


async def see(http: httpx.AsyncClient) -> Seen:
    """Send all requests, one at a time."""
    seen = Seen()
    for place, body in enumerate([*requests(), *SHAPE_ONLY]):
        reply = await http.post("/v1/chat/completions", json=body)
        assert reply.status_code == 200, (place, body, reply.text)
        whole = reply.json()
        usage = {"stream_options": {"include_usage": True}} if place % 3 else {}
        chunks = await streamed(http, body | {"stream": True} | usage)
        seen.documents[REPLY].append(whole)
        seen.documents[CHUNK] += chunks
        if place < len(requests()):
            choice = whole["choices"][0]
            message = choice["message"]
            thought = message.get("reasoning") or ""
            answer = message["content"] or ""
            seen.texts.append(Text(thought, answer, choice["finish_reason"], choice["stop_reason"]))
            seen.streamed.append(joined(chunks))
    for wrong in WRONG:
        reply = await http.request(wrong.method, wrong.path, content=wrong.sent, headers=wrong.headers)
        seen.statuses[wrong.name] = reply.status_code
        if reply.status_code != 200:
            seen.documents[ERROR].append(reply.json())
    return seen


async def streamed(http: httpx.AsyncClient, body: dict[str, Any]) -> list[dict[str, Any]]:
    async with http.stream("POST", "/v1/chat/completions", json=body) as reply:
        assert reply.status_code == 200, await reply.aread()
        lines = [line.removeprefix("data: ") async for line in reply.aiter_lines() if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def joined(chunks: list[dict[str, Any]]) -> Text:
    """The thought and the answer of a stream, and how it ended."""
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    thought = "".join(choice["delta"].get("reasoning") or "" for choice in choices)
    answer = "".join(choice["delta"].get("content") or "" for choice in choices)
    (ended,) = [choice for choice in choices if choice.get("finish_reason")]
    return Text(thought, answer, ended["finish_reason"], ended.get("stop_reason"))


@pytest.fixture(scope="module")
async def vllm_serve(engine_settings: EngineSettings, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """`vllm serve` with the arguments of the engine under test; yields its URL."""
    checkpoint, planned, _ = plan(engine_settings)
    tokenizer = load(checkpoint.model, checkpoint.vocab_size)
    setting = Setting(tmp_path_factory.mktemp("vllm"), checkpoint.model, planned, tokenizer, "", 0)
    server = WithTools(setting)
    server.start()
    try:
        await asyncio.to_thread(server.wait)
        yield f"http://{server.address}"
    finally:
        await asyncio.to_thread(server.stop)


class WithTools(OpenAi):
    def command(self) -> list[str]:
        return [*super().command(), "--enable-auto-tool-choice", "--tool-call-parser", "qwen3_xml"]


@pytest.fixture(scope="module")
async def both(engine: Engine, vllm_serve: str) -> tuple[Seen, Seen]:
    """Return what `vllm serve` and the gateway answered."""
    async with (
        service(engine) as target,
        gateway_to(target) as url,
        httpx.AsyncClient(base_url=url, timeout=300, trust_env=False) as ours,
        httpx.AsyncClient(base_url=vllm_serve, timeout=300, trust_env=False) as theirs,
    ):
        return await see(theirs), await see(ours)


pytestmark = [pytest.mark.full, pytest.mark.timeout(1800)]


def without_line_breaks(found: list[Text]) -> list[Text]:
    """The texts without the line breaks before an answer, which the template puts behind a thought."""
    return [Text(one.thought, one.answer.lstrip("\n"), one.finish_reason, one.stop_reason) for one in found]


def test_sixty_requests_have_the_same_text(both: tuple[Seen, Seen]) -> None:
    theirs, ours = both
    assert len(theirs.texts) == 60
    wrong = [
        (body, left, right)
        for body, left, right in zip(requests(), without_line_breaks(theirs.texts), ours.texts, strict=True)
        if left != right
    ]
    assert not wrong, f"{len(wrong)} of 60 differ: {wrong[:3]}"


def test_sixty_streams_have_the_same_text(both: tuple[Seen, Seen]) -> None:
    theirs, ours = both
    assert ours.streamed == ours.texts
    assert without_line_breaks(theirs.streamed) == ours.streamed


def test_each_difference_is_in_the_table_and_each_row_is_needed(both: tuple[Seen, Seen]) -> None:
    theirs, ours = both
    found = {}
    for kind in KINDS:
        for one in differences(theirs.shapes()[kind], ours.shapes()[kind]):
            found[kind, one.path] = (told(one.theirs), told(one.ours))
    for name, status in theirs.statuses.items():
        if status != ours.statuses[name]:
            found["status", name] = (str(status), str(ours.statuses[name]))
    if theirs.texts != without_line_breaks(theirs.texts):
        found["text", "line breaks before the answer"] = ("yes", "no")
    rows = explained()
    assert found == rows, {"not explained": found.items() - rows.items(), "not needed": rows.items() - found.items()}


def told(types: Set[str]) -> str:
    return ", ".join(sorted(types)) or "-"


def explained() -> dict[tuple[str, str], tuple[str, str]]:
    """The rows of the page's table: what differs, and how; each has a reason."""
    rows = {}
    _, _, table = PAGE.read_text(encoding="utf-8").partition("| in | what | `vllm serve` | the gateway | why |")
    for line in table.split("\n\n")[0].splitlines()[2:]:
        kind, what, left, right, why = (cell.strip() for cell in line.strip("|").split("|"))
        assert len(why) > 10, line
        rows[kind, what.strip("`")] = (left, right)
    return rows
