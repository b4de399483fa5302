"""Connections that nobody should make to an HTTP server, made from a seed: bytes, pauses, when the client leaves."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from penstock_gateway import fields as tables

from tests.hostile.strategies import mutated

SECRET = "xyzzyPROMPT"
"""A word in every prompt. It must be in no log."""
CHAT = "/v1/chat/completions"
_CRLF = b"\r\n"


@dataclass
class Case:
    """One connection.

    Attributes:
        kind: Name of the function that made it.
        pieces: What is sent, and pauses in seconds.
        leaves_after: The client resets the connection after so many bytes of the answer; None: it reads to the end.
        read_bytes: How much is read at once, with a pause after each; 0: all that is there.
        is_wellformed: Whether a request is known to be right, so that its answer must be 200.
    """

    kind: str
    pieces: list[bytes | float] = field(default_factory=list)
    leaves_after: int | None = None
    read_bytes: int = 0
    is_wellformed: bool = False


def case_of(seed: int) -> Case:
    """Return the case for a number, always the same."""
    draw = random.Random(seed)
    maker = draw.choice(_MAKERS)
    case = maker(draw)
    case.kind = maker.__name__
    return case


def request(
    body: bytes,
    *headers: tuple[bytes, bytes],
    path: bytes = CHAT.encode(),
    method: bytes = b"POST",
    close: bool = True,
    length: bool = True,
) -> bytes:
    lines = [b"%s %s HTTP/1.1" % (method, path), b"host: gateway"]
    given = {name.lower() for name, _ in headers}
    if b"content-type" not in given:
        lines.append(b"content-type: application/json")
    if length:
        lines.append(b"content-length: %d" % len(body))
    if close:
        lines.append(b"connection: close")
    lines += [b"%s: %s" % one for one in headers]
    return _CRLF.join([*lines, b"", body])


def asked(draw: random.Random, **more: Any) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": f"{SECRET} {draw.randrange(1000)}"}],
        "max_tokens": draw.randint(1, 20),
        "stream": draw.random() < 0.5,
        **more,
    }


def encoded(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode(errors="surrogatepass")


def right(draw: random.Random) -> Case:
    return Case("", [request(encoded(asked(draw)))], is_wellformed=True)


def changed_bytes(draw: random.Random) -> Case:
    body = mutated(encoded(asked(draw)), draw)
    return Case("", [request(body)])


def changed_request(draw: random.Random) -> Case:
    return Case("", [mutated(request(encoded(asked(draw))), draw)])


def odd_json(draw: random.Random) -> Case:
    deep = draw.choice([20, 5_000, 30_000, 100_000])
    text = SECRET.encode()
    body = draw.choice(
        [
            b"[" * deep,
            b'{"messages":' + b"[" * deep + b"]" * deep + b"}",
            b'{"tools":[{"type":"function","function":{"name":"a","parameters":' + b'{"a":' * deep + b"1" + b"}" * deep,
            b'{"messages":[{"role":"user","content":"%s' % text,
            b'{"messages":[{"role":"user","content":"\\ud800%s"}]}' % text,
            b'{"messages":[{"role":"user","content":"\xff\xfe%s"}]}' % text,
            b'{"messages":[{"role":"user","content":"\x00%s"}]}' % text,
            b'{"messages":[{"role":"user","content":"\\u0000%s"}],"max_tokens":3}' % text,
            b'{"messages":[],"messages":[{"role":"user","content":"%s"}],"max_tokens":2}' % text,
            b'{"%s":1}' % (text * draw.choice([1, 2_000])),
            b"\xef\xbb\xbf{}",
            b"{} {}",
            b"nul",
            b'"%s"' % text,
            b"{" + b'"a":1,' * draw.choice([10, 50_000]) + b'"b":1}',
            b" " * draw.choice([10, 190_000, 300_000]),
        ]
    )
    return Case("", [request(body)])


_ODD: list[Any] = [
    None,
    True,
    0,
    -1,
    1.5,
    2**31,
    2**53 + 1,
    2**63,
    -(2**63) - 1,
    10**400,
    1e308,
    float("nan"),
    float("inf"),
    "",
    SECRET,
    "\ud800",
    "\0",
    "x" * 3_000,
    "é\U0001f600",
    [],
    {},
    [[]],
    {"a": {"b": [None]}},
    {"type": "json_schema", "json_schema": {"name": SECRET, "schema": {"$ref": "#"}}},
    [{"type": "function", "function": {"name": SECRET, "parameters": {"type": "wrong"}}}],
]


def odd_fields(draw: random.Random) -> Case:
    names = draw.sample([name for name in tables.CHAT if name != "timeout"], draw.randint(1, 4))
    body = asked(draw) | {name: draw.choice(_ODD) for name in names}
    if draw.random() < 0.1:
        body[draw.choice([SECRET, "", "\ud800", "é"])] = draw.choice(_ODD)
    return Case("", [request(encoded(body))])


def odd_messages(draw: random.Random) -> Case:
    names = [
        "role",
        "content",
        "tool_calls",
        "tool_call_id",
        "name",
        "reasoning_content",
        "reasoning",
        "refusal",
        "type",
    ]
    parts = [
        {"type": "text", "text": SECRET},
        {
            "type": "image_url",
            "image_url": {"url": draw.choice(["data:image/png;base64,AAAA", "http://127.0.0.1/", "", SECRET])},
        },
        {"type": draw.choice(["text", "file", SECRET])},
    ]
    odd = [
        *_ODD,
        parts,
        [draw.choice(parts)],
        [{"id": "a", "type": "function", "function": {"name": "f", "arguments": SECRET}}],
    ]
    messages = [
        {"role": draw.choice(["system", "user", "assistant", "tool", "developer", "wizard"]), "content": SECRET}
        | {name: draw.choice(odd) for name in draw.sample(names, draw.randint(0, 3))}
        for _ in range(draw.randint(0, 5))
    ]
    return Case("", [request(encoded(asked(draw, messages=messages)))])


_VALUES = [
    b"",
    b"\xff\xfe",
    b"a" * 2_000,
    b"%0d%0ax: y",
    b"a\x0bb",
    b"*/*",
    b"-1",
    b"1e999",
    b"nan",
    b"\x7f",
    "é".encode(),
]


def odd_headers(draw: random.Random) -> Case:
    names = [
        b"authorization",
        b"x-request-timeout",
        b"x-request-id",
        b"traceparent",
        b"tracestate",
        b"baggage",
        b"last-event-id",
        b"expect",
        b"upgrade",
        b"content-encoding",
        b"content-type",
        b"host",
        b"cookie",
        b"x-" + b"n" * draw.choice([1, 500]),
    ]
    values = [
        *_VALUES,
        b"Bearer " + SECRET.encode(),
        b"Bearer \xff",
        b"100-continue",
        b"h2c",
        b"websocket",
        b"gzip",
        b"application/json; charset=utf-16",
        b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        b"0" * 55,
        b"a=b," * 400,
        b"%s,%s=%s" % ((SECRET.encode(),) * 3),
    ]
    made = [(draw.choice(names), draw.choice(values)) for _ in range(draw.choice([1, 2, 5, 60]))]
    return Case("", [request(encoded(asked(draw)), *made)])


def huge_headers(draw: random.Random) -> Case:
    size = draw.choice([7_000, 9_000, 70_000, 300_000])
    return Case(
        "",
        [
            draw.choice(
                [
                    request(b"{}", (b"x-large", b"v" * size)),
                    request(b"{}", *[(b"x-%d" % number, b"v" * 20) for number in range(size // 30)]),
                    request(b"{}", path=b"/" + b"p" * size),
                    request(b"{}", method=b"M" * size),
                    b"GET / HTTP/1.1\r\nx: " + b"y" * size,
                ]
            )
        ],
    )


def framing(draw: random.Random) -> Case:
    """Content-Length and Transfer-Encoding that contradict each other, or the body."""
    body = encoded(asked(draw))
    size = b"%d" % len(body)
    made = draw.choice(
        [
            [(b"content-length", size), (b"content-length", b"3")],
            [(b"content-length", size), (b"content-length", size)],
            [(b"content-length", b"%d" % (len(body) + 50))],
            [(b"content-length", b"%d" % max(0, len(body) - 9))],
            [(b"content-length", b"-5")],
            [(b"content-length", b"9" * 30)],
            [(b"content-length", b"0x10")],
            [(b"content-length", b" 5 ")],
            [(b"content-length", size), (b"transfer-encoding", b"chunked")],
            [(b"transfer-encoding", b"chunked, identity")],
            [(b"transfer-encoding", b"gzip, chunked")],
            [(b"transfer-encoding", b"xchunked")],
        ]
    )
    return Case("", [request(body, *made, length=False)])


def chunked(draw: random.Random) -> Case:
    body, parts = encoded(asked(draw)), []
    while body:
        size = draw.randint(1, 40)
        parts.append(
            b"%x%s\r\n%s\r\n" % (size if size <= len(body) else len(body), draw.choice([b"", b";a=b"]), body[:size])
        )
        body = body[size:]
    wrong = draw.choice(
        [
            b"",
            b"ffffffffffffffffff\r\n",
            b"-1\r\n",
            b"g\r\n",
            b"5\r\nabc\r\n",
            b"1;" + b"e" * 9_000,
            b"\r\n",
            b"\x00" * 5,
        ]
    )
    end = draw.choice(
        [b"0\r\n\r\n", b"0\r\n\r\n", b"0\r\nx-trailer: 1\r\n\r\n", b"0\r\nx: " + b"t" * 9_000 + b"\r\n\r\n", b""]
    )
    at = draw.randint(0, len(parts))
    pieces = [*parts[:at], wrong, *parts[at:], end]
    head = request(b"", (b"transfer-encoding", b"chunked"), length=False)
    return Case("", [head, *pieces] if draw.random() < 0.5 else [head + b"".join(pieces)])


def slow_writer(draw: random.Random) -> Case:
    whole = request(encoded(asked(draw)))
    pieces: list[bytes | float] = []
    for _ in range(draw.randint(2, 6)):
        at = draw.randint(0, len(whole))
        pieces += [whole[:at], draw.choice([0.0, 0.01, 0.1])]
        whole = whole[at:]
    if draw.random() < 0.7:
        pieces.append(whole)
    return Case("", pieces)


def slow_reader(draw: random.Random) -> Case:
    body = asked(
        draw, max_tokens=draw.choice([20, 4_000]), stream=True, messages=[{"role": "user", "content": f"LONG {SECRET}"}]
    )
    return Case(
        "", [request(encoded(body))], read_bytes=draw.choice([1, 100, 3_000]), leaves_after=draw.choice([None, 500])
    )


def leaves(draw: random.Random) -> Case:
    """A client that resets its connection: in the request, at once after it, or in the answer."""
    body = asked(draw, max_tokens=draw.choice([20, 4_000]), resumable=draw.random() < 0.3)
    body["messages"] = [{"role": "user", "content": f"{draw.choice(['', 'LONG'])} {SECRET}"}]
    whole = request(encoded(body))
    if draw.random() < 0.3:
        whole = whole[: draw.randint(0, len(whole))]
    pause = draw.choice([0.0, 0.01, 0.1])
    return Case("", [whole, pause], leaves_after=draw.choice([0, 0, 1, 300, 2_000]))


def pipelined(draw: random.Random) -> Case:
    several = []
    for number in range(draw.randint(2, 6)):
        kind = draw.randrange(4)
        if kind == 0:
            several.append(
                request(b"", path=draw.choice([b"/healthz", b"/metrics", b"/v1/models"]), method=b"GET", close=False)
            )
        elif kind == 1 and number:
            several.append(mutated(request(encoded(asked(draw)), close=False), draw))
        else:
            several.append(request(encoded(asked(draw)), close=False))
    several.append(request(encoded(asked(draw))))
    return Case("", [b"".join(several)], leaves_after=draw.choice([None, None, 200]))


def other_paths(draw: random.Random) -> Case:
    generation = draw.choice([b"x", b"0" * 32, b"%00", b"..%2f..", SECRET.encode(), "é".encode(), b"a" * 3_000])
    path = draw.choice(
        [
            b"/v1/generations/%s/events" % generation,
            b"/v1/generations/%s/steer" % generation,
            b"/v1/models/%s" % generation,
            b"/v1/tokenize",
            b"/v1/completions",
            b"/v1/responses",
            b"/%s" % generation,
            b"//",
            b"*",
            b"http://127.0.0.1/v1/models",
            b"/v1/models?a=%s" % generation,
            b"/healthz#%s" % generation,
        ]
    )
    method = draw.choice(
        [b"GET", b"POST", b"HEAD", b"OPTIONS", b"PUT", b"DELETE", b"TRACE", b"CONNECT", b"BREW", b"get"]
    )
    last = b"v1:chat:u:%s:%d:%s" % (generation, draw.choice([0, 1, 10**18]), SECRET.encode())
    body = draw.choice(
        [b"", b"{}", encoded(asked(draw)), b'{"action":"cancel"}', b'{"action":"change_budget","thinking_budget":-9}']
    )
    return Case("", [request(body, (b"last-event-id", draw.choice([last, *_VALUES])), path=path, method=method)])


def no_http(draw: random.Random) -> Case:
    made = [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + draw.randbytes(200),
        draw.randbytes(draw.choice([1, 50, 5_000])),
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\r\n",
        b"\r\n" * 20_000,
        b"POST %s HTTP/1.0\r\n\r\n" % CHAT.encode(),
        b"GET / HTTP/1.1\nhost: x\n\n",
        b"GET / HTTP/1.1\r\n folded: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\n: empty\r\n\r\n",
        b"GET / HTTP/1.1\r\na b: c\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-key: A\r\n\r\n",
    ]
    return Case("", [draw.choice(made)])


_MAKERS: list[Callable[[random.Random], Case]] = [
    right,
    changed_bytes,
    changed_request,
    odd_json,
    odd_fields,
    odd_fields,
    odd_messages,
    odd_headers,
    huge_headers,
    framing,
    chunked,
    slow_writer,
    slow_reader,
    leaves,
    leaves,
    pipelined,
    other_paths,
    no_http,
]
