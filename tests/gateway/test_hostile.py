"""Hostile clients of the gateway, over loopback: each bound holds, nothing is kept, and the others are served."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from penstock.engine.scripted import Reply
from penstock_client import AsyncClient
from penstock_gateway import fields as tables
from penstock_gateway.app import create_app
from penstock_gateway.settings import Settings
from starlette.routing import Route

from tests.gateway.conftest import Gateway, until

ASKED: dict[str, Any] = {"model": "", "messages": [{"role": "user", "content": "hi"}], "thinking_mode": "fast"}
SMALL = Settings(
    max_body_bytes=200_000,
    max_header_bytes=8_000,
    max_json_items=1_000,
    max_requests=4,
    max_connections=8,
    max_request_memory_bytes=400_000,
    request_seconds=0.5,
    slow_reader_seconds=0.5,
)
PAGE = Path(__file__).parents[2] / "docs/reference/limits.md"


def head(path: str = "/v1/chat/completions", *lines: str) -> bytes:
    return "\r\n".join((f"POST {path} HTTP/1.1", "host: x", "content-type: application/json", *lines, "", "")).encode()


async def connect(http: httpx.AsyncClient) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(http.base_url.host, http.base_url.port)


async def answer_to(http: httpx.AsyncClient, *pieces: bytes) -> bytes:
    """Send pieces, one after the other, and return what comes until the connection is closed."""
    reader, writer = await connect(http)
    found = b""
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        found = await reader.read()
    except ConnectionError:
        pass
    finally:
        writer.close()
    return found


async def held(http: httpx.AsyncClient) -> tuple[float, float]:
    """Requests in progress beside this one, and bytes that are held."""
    text = (await http.get("/metrics")).text
    found = dict(re.findall(r"^(\w+) ([\d.e+]+)$", text, re.MULTILINE))
    return float(found["penstock_gateway_requests_active"]) - 1, float(found["penstock_gateway_request_memory_bytes"])


async def until_nothing_is_held(http: httpx.AsyncClient) -> None:
    async with asyncio.timeout(60):
        while await held(http) != (0, 0):  # noqa: ASYNC110 - it asks a server
            await asyncio.sleep(0.01)


async def check_rest(http: httpx.AsyncClient) -> None:
    """Nothing is held, and a usual request is answered."""
    await until_nothing_is_held(http)
    assert (await http.post("/v1/chat/completions", json=ASKED)).status_code == 200


@pytest.mark.slow
@pytest.mark.parametrize(
    "pieces",
    [
        [b"GET /" + b"x" * 9_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n"],
        [b"GET /", *[b"x" * 1000] * 60],
        [b"GET / HTTP/1.1\r\na: ", *[b"x" * 1000] * 60],
        [b"GET / HTTP/1.1\r\n", *[b"a: b\r\n" * 100] * 60],
        [b"x" * 5_000, b"\r\n" * 60_000],
        [head("/v1/chat/completions", "transfer-encoding: chunked"), b"1\r\n{\r\n0\r\na: ", *[b"x" * 1000] * 60],
        [head("/v1/chat/completions", "transfer-encoding: chunked"), b"1;", *[b"x" * 1000] * 60],
    ],
)
async def test_headers_and_trailers_are_bounded(gateway: Gateway, pieces: list[bytes]) -> None:
    http = await gateway(settings=SMALL)
    found = await answer_to(http, *pieces)
    assert not found or found.startswith(b"HTTP/1.1 4")
    await check_rest(http)


@pytest.mark.slow
@pytest.mark.parametrize("sent", [b"", b"POST /v1/", head("/v1/chat/completions", "content-length: 10"), head() + b"x"])
async def test_who_says_nothing_is_cut_off(gateway: Gateway, sent: bytes) -> None:
    http = await gateway(settings=SMALL)
    found = await answer_to(http, sent)
    assert not found or found.startswith((b"HTTP/1.1 408", b"HTTP/1.1 400"))
    await check_rest(http)


@pytest.mark.slow
@pytest.mark.parametrize("cut", [10, -10], ids=["in the headers", "in the body"])
async def test_a_standstill_of_the_gateway_is_not_the_clients_fault(gateway: Gateway, cut: int) -> None:
    http = await gateway(settings=SMALL)
    body = json.dumps(ASKED).encode()
    request = head("/v1/chat/completions", f"content-length: {len(body)}", "connection: close") + body
    reader, writer = await connect(http)
    writer.write(request[:cut])
    await asyncio.sleep(0.1)
    time.sleep(2 * SMALL.request_seconds)  # noqa: ASYNC251 - as where the process is stopped
    await asyncio.sleep(0.05)
    writer.write(request[cut:])
    assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
    writer.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{" + b" " * 200_000 + b"}", 413),
        (b'{"messages": [' + b"0," * 1_000 + b"0]}", 413),
        (b'{"messages": ' + b"[" * 900, 400),
        (b'{"tools": [' + b"[" * 100_000, 413),
        (b'{"a": "' + b"\\" * 150_001, 400),
        (b"\xff" * 100, 400),
        (b"", 400),
        (b"null", 400),
        (b'{"messages": [], "messages": 3}', 400),
        (b'{"messages": [], "seed": ' + b"9" * 5_000 + b"}", 400),
        (b'{"messages": [], "temperature": 1e999}', 400),
    ],
)
async def test_bodies_are_bounded(gateway: Gateway, body: bytes, status: int) -> None:
    http = await gateway(settings=SMALL)
    for content in (body, _pieces(body)):
        reply = await http.post("/v1/chat/completions", content=content, headers={"content-type": "application/json"})
        assert reply.status_code == status, reply.text
        assert len(reply.content) < 2_000
    await check_rest(http)


async def _pieces(body: bytes) -> Any:
    for start in range(0, len(body), 50_000):
        yield body[start : start + 50_000]


async def test_other_types_and_encodings_are_refused(gateway: Gateway) -> None:
    http = await gateway(settings=SMALL)
    for headers in ({"content-type": "text/plain"}, {"content-type": "application/json", "content-encoding": "gzip"}):
        reply = await http.post("/v1/chat/completions", content=json.dumps(ASKED), headers=headers)
        assert (reply.status_code, reply.headers["connection"]) == (415, "close")


@pytest.mark.slow
@pytest.mark.parametrize("proxied", [{}, {"x-forwarded-proto": "https"}], ids=["direct", "proxy"])
async def test_a_trailing_slash_is_another_path_and_never_a_redirect(gateway: Gateway, proxied: dict[str, str]) -> None:
    """A redirect names http://, also behind a proxy that ends TLS: a client would send its key there in plaintext."""
    http = await gateway(settings=SMALL)
    routes = [one for one in create_app(AsyncClient("127.0.0.1:1", api_key="")).routes if isinstance(one, Route)]
    asked = {
        (re.sub(r"\{.*?\}", "x", one.path), method) for one in routes for method in one.methods or () if one.path != "/"
    }
    asked |= {("/v1/models", "GET"), ("/v1/responses", "POST")}
    assert len(asked) > 30
    for path, method in sorted(asked):
        reply = await http.request(method, f"{path}/", headers=proxied)
        assert (reply.status_code, "location" in reply.headers) == (404, False), (method, path)
        if method != "HEAD":
            error = reply.json()["error"]
            code = {"/v1/models/x": "model_not_found", "/v1/responses/x": "response_not_found"}.get(path, "unknown_url")
            assert (error["type"], error["code"]) == ("invalid_request_error", code)


def _request(body: str, *lines: str, path: str = "/v1/chat/completions") -> bytes:
    data = body.encode("utf-8", "surrogatepass")
    return head(path, f"content-length: {len(data)}", "connection: close", *lines) + data


def _asked(*members: str, messages: str = json.dumps(ASKED["messages"])) -> str:
    return "{" + ", ".join(('"model": ""', f'"messages": {messages}', '"thinking_mode": "fast"', *members)) + "}"


def _message(content: str) -> str:
    return _asked(messages=f'[{{"role": "user", "content": {content}}}]')


ROUTE = b"%s /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n%s\r\n"
NO_HTTP, NO_JSON = (400, None, "invalid_http"), (400, None, "invalid_value")
ODD: dict[str, tuple[bytes, tuple[int, str | None, str | None]]] = {
    "OPTIONS": (ROUTE % (b"OPTIONS", b""), (405, None, "method_not_allowed")),
    "preflight": (ROUTE % (b"OPTIONS", b"origin: http://evil\r\n"), (405, None, "method_not_allowed")),
    "TRACE": (ROUTE % (b"TRACE", b""), (405, None, "method_not_allowed")),
    "unknown method": (ROUTE % (b"FOO", b""), NO_HTTP),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", NO_HTTP),
    "TLS": (b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03" + b"\0" * 160, NO_HTTP),
    "long line": (b"GET /" + b"x" * 9_000 + b" HTTP/1.1\r\n\r\n", NO_HTTP),
    "two lengths": (head("/v1/chat/completions", "content-length: 3", "content-length: 4") + b"{} {", NO_HTTP),
    "negative length": (head("/v1/chat/completions", "content-length: -3") + b"{}", NO_HTTP),
    "chunked and a length": (_request("0\r\n\r\n", "transfer-encoding: chunked"), NO_HTTP),
    "chunk without a size": (head("/", "transfer-encoding: chunked") + b"zz\r\nhello\r\n0\r\n\r\n", NO_HTTP),
    "no content type": (ROUTE % (b"POST", b"content-length: 2\r\n") + b"{}", (415, None, "unsupported_media_type")),
    "gzip": (_request("x", "content-encoding: gzip"), (415, None, "unsupported_media_type")),
    "100-continue": (_request(_asked(), "expect: 100-continue"), (200, None, None)),
    "HTTP/1.0": (_request(_asked()).replace(b"HTTP/1.1", b"HTTP/1.0", 1), (200, None, None)),
    "query": (_request(_asked(), path="/v1/chat/completions?api-version=1&%zz=%ff"), (200, None, None)),
    "upgrade": (_request(_asked(), "upgrade: h2c"), (200, None, None)),
    "byte order mark": (_request("\ufeff" + _asked()), NO_JSON),
    "two values": (_request(_asked() + _asked()), NO_JSON),
    "array": (_request("[]"), NO_JSON),
    "NaN": (_request(_asked('"temperature": NaN')), NO_JSON),
    "Infinity": (_request(_asked('"temperature": -Infinity')), NO_JSON),
    "1e400": (_request(_asked('"temperature": 1e400')), (400, "temperature", "invalid_value")),
    "one key twice": (_request(_asked('"temperature": 1', '"temperature": 9')), (400, "temperature", "invalid_value")),
    "surrogate": (_request(_message('"a\\ud800"')), NO_JSON),
    "raw surrogate": (_request(_message('"a\ud800"')), (400, "messages[0]", "invalid_value")),
    "deep": (_request(_asked(f'"tool_choice": {"[" * 900}{"]" * 900}')), (400, "tool_choice", "invalid_value")),
    "stream": (_request(_asked('"stream": "true"')), (400, "stream", "invalid_value")),
    "boolean": (_request(_asked('"n": true')), (400, "n", "invalid_value")),
    "huge integer": (_request(_asked(f'"seed": {"9" * 5_000}')), (400, "seed", "invalid_value")),
    "message": (_request(_asked(messages="[null]")), (400, "messages[0]", "invalid_value")),
    "content": (_request(_message("5")), (400, "messages[0].content", "invalid_value")),
    "part": (_request(_message("[5]")), (400, "messages[0].content[0]", "invalid_value")),
    "kind": (_request(_message('[{"type": 5}]')), (400, "messages[0].content[0].type", "invalid_value")),
    "image": (
        _request(_message('[{"type": "image_url", "image_url": {"url": 5}}]')),
        (400, "messages[0].content[0].image_url.url", "invalid_value"),
    ),
    "tool": (
        _request(_asked('"tools": [{"type": "function"}]')),
        (400, "tools[0].function", "missing_required_parameter"),
    ),
    "format": (_request(_asked('"response_format": "json"')), (400, "response_format", "invalid_value")),
    "duration": (
        _request(_asked('"flush_interval": 1e30', '"stream": true')),
        (400, "flush_interval", "invalid_value"),
    ),
    "duration below 0": (_request(_asked('"flush_interval": -1')), (400, "flush_interval", "invalid_value")),
    "another field": (
        _request(_asked('"max_tokens": 2', '"min_tokens": 9')),
        (400, "min_tokens", "conflicting_parameters"),
    ),
    "no bearer": (_request(_asked(), "authorization: Basic x"), (401, None, "invalid_api_key")),
}


async def test_odd_requests_are_answered_in_openais_shape(gateway: Gateway) -> None:
    http = await gateway(settings=replace(SMALL, request_seconds=20.0))
    found = {}
    for name, (sent, _) in ODD.items():
        said = await asyncio.wait_for(answer_to(http, sent), 60)
        status, _, body = said.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"").partition(b"\r\n\r\n")
        error = json.loads(body).get("error", {})
        assert bool(error.get("message")) is (b" 200 " not in status)
        assert "max_output_tokens" not in error.get("message", "")
        found[name] = (int(status.split()[1]), error.get("param"), error.get("code"))
    assert found == {name: expected for name, (_, expected) in ODD.items()}
    await check_rest(http)


async def test_a_client_that_waits_for_100_continue_is_told_to_go_on(gateway: Gateway) -> None:
    http = await gateway()
    reader, writer = await connect(http)
    content = _asked().encode()
    writer.write(head("/v1/chat/completions", f"content-length: {len(content)}", "expect: 100-continue"))
    assert await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60) == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(content)
    assert (await asyncio.wait_for(reader.readline(), 60)).startswith(b"HTTP/1.1 200 ")
    writer.close()


async def test_requests_memory_and_connections_are_bounded(gateway: Gateway) -> None:
    http = await gateway(Reply(thought="", answer="x" * 3_000, step_seconds=0.02), settings=SMALL)
    tasks = [asyncio.create_task(http.post("/v1/chat/completions", json=ASKED)) for _ in range(4)]
    await until(lambda: gateway.engines[-1].running == 4)
    full = await http.post("/v1/chat/completions", json=ASKED)
    assert (full.status_code, full.json()["error"]["code"]) == (503, "overloaded")
    assert full.headers["retry-after"] == "1"
    assert (await http.get("/healthz")).status_code == 200
    waiting = [await connect(http) for _ in range(8)]
    ended = [asyncio.create_task(reader.read()) for reader, _ in waiting]
    assert await asyncio.wait_for(ended[-1], 60) == b""
    for _, writer in waiting:
        writer.close()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, *ended, return_exceptions=True)
    await until(lambda: gateway.engines[-1].running == 0)


async def test_bodies_of_all_requests_together_are_bounded(gateway: Gateway) -> None:
    http = await gateway(settings=replace(SMALL, request_seconds=60.0))
    open_ones = [await connect(http) for _ in range(3)]
    for _, writer in open_ones[:2]:
        writer.write(head("/v1/chat/completions", "content-length: 199000") + b" " * 198_000)
    async with asyncio.timeout(60):
        while (await held(http))[1] < 390_000:  # noqa: ASYNC110 - it asks about another part
            await asyncio.sleep(0.01)
    reply = await http.post("/v1/chat/completions", content=b" " * 50_000, headers={"content-type": "application/json"})
    assert reply.status_code == 503
    for _, writer in open_ones:
        writer.close()
    await check_rest(http)


@pytest.mark.slow
async def test_who_does_not_read_is_cut_off(gateway: Gateway) -> None:
    http = await gateway(Reply(thought="", answer="x" * 60_000), settings=SMALL, window=100_000)
    engine = gateway.engines[-1]
    bare = socket.socket()
    bare.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    bare.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(bare, (http.base_url.host, http.base_url.port))
    body = json.dumps(ASKED | {"stream": True}).encode()
    await loop.sock_sendall(bare, head("/v1/chat/completions", f"content-length: {len(body)}") + body)
    await until(lambda: engine.running == 1)
    await until(lambda: engine.running == 0)
    bare.close()
    await until_nothing_is_held(http)


_scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
_values = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
_roles = st.sampled_from(["system", "developer", "user", "assistant", "tool", "function"])
_keys = st.sampled_from(
    ["content", "tool_calls", "tool_call_id", "name", "reasoning_content", "reasoning", "refusal", "type", "text"]
)
_messages = st.lists(
    st.tuples(_roles, st.dictionaries(_keys, _values, max_size=4)).map(lambda one: {"role": one[0], **one[1]}),
    max_size=4,
)
_items = st.lists(
    st.tuples(
        st.sampled_from(["message", "reasoning", "function_call", "function_call_output", "item_reference"]),
        st.dictionaries(
            st.sampled_from(
                ["role", "content", "call_id", "name", "arguments", "output", "summary", "status", "caller"]
            ),
            _roles | _values,
            max_size=4,
        ),
    ).map(lambda one: {"type": one[0], **one[1]}),
    max_size=4,
)
_prompts = st.text(max_size=20) | st.lists(
    st.text(max_size=5) | st.integers() | st.lists(st.integers(), max_size=3), max_size=4
)


def _bodies(table: tables.Fields, inputs: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    fields_of = st.dictionaries(st.sampled_from([name for name in table if name != "timeout"]), _values, max_size=4)
    return st.tuples(fields_of, st.fixed_dictionaries(inputs)).map(lambda made: {**made[1], **made[0]})


_five = st.just(5)
_requests = st.one_of(
    st.tuples(
        st.just("/v1/chat/completions"),
        _bodies(tables.CHAT, {"max_tokens": _five, "messages": _messages | st.just(ASKED["messages"]) | _values}),
    ),
    st.tuples(
        st.just("/v1/completions"),
        _bodies(tables.COMPLETIONS, {"max_tokens": _five, "prompt": _prompts | _values}),
    ),
    st.tuples(
        st.just("/v1/responses"),
        _bodies(tables.RESPONSES, {"max_output_tokens": _five, "input": _items | st.just("hi") | _values}),
    ),
)
FUZZ = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None)


async def _fuzz(http: httpx.AsyncClient, path: str, body: dict[str, Any]) -> None:
    content = json.dumps(body, ensure_ascii=False).encode(errors="surrogatepass")
    reply = await http.post(path, content=content, headers={"content-type": "application/json"})
    assert reply.status_code in (200, 400, 404, 413), reply.text
    if reply.status_code != 200:
        error = reply.json()["error"]
        assert error["message"]
        assert error["code"]


@pytest.fixture
async def fuzzed(gateway: Gateway) -> httpx.AsyncClient:
    return await gateway(Reply(thought="a", answer="b"))


@pytest.mark.slow
@settings(FUZZ, max_examples=200)
@given(asked=_requests)
async def test_any_request_is_answered_or_refused(fuzzed: httpx.AsyncClient, asked: tuple[str, dict[str, Any]]) -> None:
    await _fuzz(fuzzed, *asked)


@pytest.mark.full
@pytest.mark.timeout(3600)
@settings(FUZZ, max_examples=10_000)
@given(asked=_requests)
async def test_ten_thousand_requests(fuzzed: httpx.AsyncClient, asked: tuple[str, dict[str, Any]]) -> None:
    await _fuzz(fuzzed, *asked)


def test_every_bound_is_on_the_page() -> None:
    said = dict(re.findall(r"`(\w+)` \(([\d.]+)\)", PAGE.read_text().partition("## The HTTP gateway")[2]))
    bounds = {one.name: one.default for one in fields(Settings) if one.name != "drain_seconds"}
    assert {name: float(said[name]) for name in bounds} == {name: float(value) for name, value in bounds.items()}


@pytest.mark.parametrize(
    "text", ["max_requests", "max_requests=0", "max_requests=x", "nothing=1", "request_seconds=nan"]
)
def test_wrong_limits_of_the_command_are_named(text: str) -> None:
    with pytest.raises(ValueError, match=text.partition("=")[0]):
        Settings.of([text])
    assert Settings.of(["max_requests=7", "request_seconds=1.5"]) == Settings(max_requests=7, request_seconds=1.5)
