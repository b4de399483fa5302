"""`POST /v1/completions`, by the official `openai` package and by bare HTTP."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from openai import BadRequestError
from openai.types import Completion
from penstock.engine.scripted import Reply
from penstock_gateway.settings import Settings

from tests.gateway.conftest import Gateway, events_of, openai_of, until

SAYS = Reply(answer="The answer is é 42.")
ASKED: dict[str, Any] = {"model": "scripted", "prompt": "What is 17+25?", "max_tokens": 100}
TWO = (Reply("first", answer="one"), Reply("second", answer="two!"))


async def ask(http: httpx.AsyncClient, **body: Any) -> httpx.Response:
    return await http.post("/v1/completions", json=ASKED | body)


async def chunks_of(http: httpx.AsyncClient, **body: Any) -> list[dict[str, Any]]:
    async with http.stream("POST", "/v1/completions", json=ASKED | {"stream": True} | body) as reply:
        assert reply.status_code == 200, await reply.aread()
        return [data async for _, data in events_of(reply)]


async def error_of(reply: httpx.Response) -> dict[str, Any]:
    """The error of a reply: its status, or its last event where the chunk of another prompt came first."""
    if reply.headers["content-type"].startswith("text/event-stream"):
        return [data async for _, data in events_of(reply)][-1]["error"]
    assert reply.status_code == 400
    return reply.json()["error"]


def texts_of(chunks: list[dict[str, Any]]) -> dict[int, str]:
    found: dict[int, str] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            found[choice["index"]] = found.get(choice["index"], "") + choice["text"]
    return found


def is_official(made: dict[str, Any]) -> bool:
    """Whether the official package's type takes the object as it is; raises where it does not."""
    Completion.model_validate(
        made | {"choices": [one | {"finish_reason": "stop"} for one in made["choices"]]}, strict=True
    )
    return True


async def test_a_reply_has_openais_shape(gateway: Gateway) -> None:
    made = (await ask(await gateway(SAYS))).json()
    assert Completion.model_validate(made, strict=True)
    assert made["id"] == f"cmpl-{made['penstock']['generation_id']}"
    assert (made["object"], made["model"]) == ("text_completion", "scripted")
    assert made["choices"] == [
        {"index": 0, "text": "The answer is é 42.", "logprobs": None, "finish_reason": "stop", "stop_reason": None}
    ]
    assert made["usage"]["prompt_tokens"] == len(ASKED["prompt"])
    assert made["usage"]["total_tokens"] == made["usage"]["prompt_tokens"] + made["usage"]["completion_tokens"]


@pytest.mark.parametrize("include_usage", [True, False])
async def test_a_stream_sums_to_the_reply(gateway: Gateway, include_usage: bool) -> None:
    http = await gateway(SAYS)
    whole = (await ask(http, n=2)).json()
    chunks = await chunks_of(http, n=2, stream_options={"include_usage": include_usage})
    assert all(is_official(chunk) for chunk in chunks)
    assert texts_of(chunks) == {choice["index"]: choice["text"] for choice in whole["choices"]}
    assert [one["finish_reason"] for chunk in chunks for one in chunk["choices"] if one["finish_reason"]] == [
        "stop"
    ] * 2
    assert len({chunk["id"] for chunk in chunks}) == 1
    if include_usage:
        assert (chunks[-1]["choices"], chunks[-1]["usage"]) == ([], whole["usage"])
        assert all(chunk["usage"] is None for chunk in chunks[:-1])
    else:
        assert not any("usage" in chunk for chunk in chunks)


@pytest.mark.parametrize("prompt", [["first", "second"], [[*b"first"], [*b"second"]]])
async def test_several_prompts(gateway: Gateway, prompt: Any) -> None:
    http = await gateway(*TWO)
    whole = (await ask(http, prompt=prompt, n=2)).json()
    assert Completion.model_validate(whole, strict=True)
    assert {one["index"]: one["text"] for one in whole["choices"]} == {0: "one", 1: "one", 2: "two!", 3: "two!"}
    assert whole["usage"]["prompt_tokens"] == len("first") + len("second")
    assert len(whole["penstock"]["prompts"]) == 2
    chunks = await chunks_of(http, prompt=prompt, n=2, stream_options={"include_usage": True})
    assert texts_of(chunks) == {0: "one", 1: "one", 2: "two!", 3: "two!"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert chunks[-1]["usage"] == whole["usage"]
    assert all(chunk["usage"] is None for chunk in chunks[:-1])


@pytest.mark.parametrize("stream", [True, False])
async def test_an_error_names_the_prompt(gateway: Gateway, stream: bool) -> None:
    http = await gateway(Reply("wait", answer="x" * 3000, step_seconds=0.01), *TWO)
    reply = await ask(http, prompt=["wait", "", "first"], max_tokens=3000, stream=stream)
    error = await error_of(reply)
    assert (error["param"], error["code"]) == ("prompt[1]", "missing_required_parameter")
    await until(lambda: gateway.engines[-1].running == 0)


async def test_a_client_that_leaves_ends_all_prompts(gateway: Gateway) -> None:
    http = await gateway(Reply(answer="x" * 3000, step_seconds=0.01))
    engine = gateway.engines[-1]
    asked = ASKED | {"prompt": ["a", "b", "c"], "max_tokens": 3000, "stream": True}
    async with http.stream("POST", "/v1/completions", json=asked) as reply:
        async for _ in reply.aiter_bytes():
            if engine.running == 3:
                break
    await until(lambda: engine.running == 0)


async def test_the_default_length_is_openais(gateway: Gateway) -> None:
    http = await gateway(SAYS)
    choice = (await ask(http, max_tokens=None)).json()["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("The answer is é", "length")
    stopped = (await ask(http, stop=" is")).json()["choices"][0]
    assert (stopped["text"], stopped["stop_reason"]) == ("The answer", " is")


async def test_echo(gateway: Gateway) -> None:
    http = await gateway(*TWO)
    whole = (await ask(http, prompt=["first ", "second "], echo=True)).json()
    assert [one["text"] for one in whole["choices"]] == ["first one", "second two!"]
    chunks = await chunks_of(http, prompt=["first ", "second "], echo=True)
    assert texts_of(chunks) == {0: "first one", 1: "second two!"}


async def test_log_probabilities_are_openais_lists(gateway: Gateway) -> None:
    http = await gateway(SAYS)
    asked: dict[str, Any] = {"logprobs": 1, "n": 2, "return_token_ids": True}
    whole = (await ask(http, **asked)).json()
    assert Completion.model_validate(whole, strict=True)
    lists = whole["choices"][1]["logprobs"]
    text = whole["choices"][1]["text"]
    assert lists["tokens"][:3] == ["T", "h", "e"]
    assert lists["tokens"][14:16] == ["bytes:\\xc3", "bytes:\\xa9"]
    assert [text[offset] for offset in lists["text_offset"][:19]][13:] == [" ", "é", "é", " ", "4", "2"]
    assert lists["text_offset"][16:18] == [15, 16]
    assert all(token in top for token, top in zip(lists["tokens"], lists["top_logprobs"], strict=True))
    chunks = await chunks_of(http, **asked)
    for index, choice in enumerate(whole["choices"]):
        mine = [one for chunk in chunks for one in chunk["choices"] if one["index"] == index]
        for name, entries in choice["logprobs"].items():
            assert [entry for one in mine if one["logprobs"] for entry in one["logprobs"][name]] == entries, name
        assert [one for each in mine for one in each.get("token_ids", [])] == choice["token_ids"]


async def test_a_prompt_inside_a_thought_keeps_its_budget(gateway: Gateway) -> None:
    http = await gateway(Reply(thought="17+25=42", answer="It is 42."))
    asked = {"prompt": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n", "thinking_budget": 3}
    choice = (await ask(http, **asked)).json()["choices"][0]
    assert (choice["reasoning_content"], choice["text"]) == ("17+", "It is 42.")
    chunks = await chunks_of(http, **asked)
    assert texts_of(chunks) == {0: "It is 42."}
    thought = "".join(one.get("reasoning_content") or "" for chunk in chunks for one in chunk["choices"])
    assert thought == "17+"


@pytest.mark.slow
@pytest.mark.parametrize("logprobs", [None, 1])
async def test_a_dropped_stream_is_continued(gateway: Gateway, logprobs: int | None) -> None:
    http = await gateway(Reply(answer="The answer is é 42.", step_seconds=0.01))
    asked = ASKED | {"stream": True, "resumable": True, "logprobs": logprobs, "stream_options": {"include_usage": True}}
    async with http.stream("POST", "/v1/completions", json=asked) as reply:
        whole = [one async for one in events_of(reply)]
    assert whole[0][0].startswith("v1:completion:")
    for after in (0, 5, 16, len(whole) - 1):
        last = whole[after][0]
        if not last:
            continue
        path = f"/v1/generations/{last.split(':')[3]}/events"
        async with http.stream("GET", path, headers={"last-event-id": last}) as reply:
            assert reply.status_code == 200, await reply.aread()
            rest = [one async for one in events_of(reply)]
        for _, chunk in rest:
            chunk["created"] = whole[0][1]["created"]  # the time of the connection
        assert rest == whole[after + 1 :]


async def test_a_place_that_no_stream_has_is_refused(gateway: Gateway) -> None:
    http = await gateway(SAYS)
    async with http.stream(
        "POST", "/v1/completions", json=ASKED | {"stream": True, "resumable": True, "logprobs": 0}
    ) as reply:
        first = (await anext(events_of(reply)))[0]
    path = f"/v1/generations/{first.split(':')[3]}/events"
    for place in ("999999", "9" * 19):
        reply = await http.get(path, headers={"last-event-id": first.replace(":1:", f":{place}:")})
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, "last-event-id")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"prompt": None}, "prompt", "invalid_value"),
        ({"prompt": 3}, "prompt", "invalid_value"),
        ({"prompt": ""}, "prompt", "missing_required_parameter"),
        ({"prompt": []}, "prompt", "missing_required_parameter"),
        ({"prompt": ["a", 3]}, "prompt[1]", "invalid_value"),
        ({"prompt": [3, "a"]}, "prompt[1]", "invalid_value"),
        ({"prompt": [3, -1]}, "prompt[1]", "invalid_value"),
        ({"prompt": [[3], [2**31]]}, "prompt[1][0]", "invalid_value"),
        ({"prompt": [3, 5000]}, "prompt", "invalid_value"),
        ({"prompt": [[3], [3, 5000]]}, "prompt[1]", "invalid_value"),
        ({"prompt": ["a"] * 17}, "prompt", "limit_exceeded"),
        ({"prompt": "x" * 5000}, "prompt", "context_length_exceeded"),
        ({"best_of": 2}, "best_of", "unsupported_parameter"),
        ({"suffix": "x"}, "suffix", "unsupported_parameter"),
        ({"messages": []}, "messages", "unknown_parameter"),
        ({"tools": []}, "tools", "unknown_parameter"),
        ({"echo": True, "logprobs": 1}, "echo", "conflicting_parameters"),
        ({"echo": True, "overflow": "truncate_left"}, "echo", "conflicting_parameters"),
        ({"echo": True, "prompt": [3]}, "echo", "unsupported_value"),
        ({"logprobs": True}, "logprobs", "invalid_value"),
        ({"logprobs": 1000}, "logprobs", "limit_exceeded"),
        ({"n": 1000}, "n", "limit_exceeded"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"prompt": ["a", "b"], "resumable": True}, "resumable", "conflicting_parameters"),
        ({"thinking_mode": "thinking", "thinking_budget": 200}, "thinking_budget", "budget_does_not_fit"),
    ],
)
async def test_what_cannot_be_had_is_refused_by_name(
    gateway: Gateway, body: dict[str, Any], param: str, code: str
) -> None:
    http = await gateway(SAYS)
    for stream in (False, True):
        error = await error_of(await ask(http, stream=stream, **body))
        assert (error["param"], error["code"]) == (param, code), error


async def test_what_asks_for_nothing_is_taken(gateway: Gateway) -> None:
    http = await gateway(SAYS)
    reply = await ask(http, best_of=1, suffix=None, user="u", logit_bias={}, stop=None, echo=False)
    assert reply.status_code == 200, reply.text


async def test_the_bound_on_prompts_is_a_setting(gateway: Gateway) -> None:
    http = await gateway(*TWO, settings=Settings(max_prompts=2))
    assert (await ask(http, prompt=["first", "second"])).status_code == 200
    assert "max_prompts" in (await ask(http, prompt=["first", "second", "first"])).json()["error"]["message"]


async def test_the_official_package(gateway: Gateway) -> None:
    async with openai_of(await gateway(SAYS)) as openai:
        reply = await openai.completions.create(model="scripted", prompt=["a", "b"], max_tokens=100, logprobs=0)
        assert [choice.text for choice in reply.choices] == ["The answer is é 42."] * 2
        assert reply.choices[0].logprobs is not None
        stream = await openai.completions.create(model="scripted", prompt="a", max_tokens=100, stream=True)
        assert "".join([chunk.choices[0].text async for chunk in stream]) == "The answer is é 42."
        with pytest.raises(BadRequestError) as refused:
            await openai.completions.create(model="scripted", prompt="a", best_of=2)
        assert (refused.value.param, refused.value.code) == ("best_of", "unsupported_parameter")
