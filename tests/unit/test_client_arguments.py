"""The arguments beside the prompt say what they need, before anything is sent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import penstock_client as pc
import pytest
from penstock_client.seconds import call_seconds, duration_of

TARGET = "127.0.0.1:1"
NUMBER = "must be a number of seconds, got"
REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "timeout as text": (lambda client: client.generate("x", timeout="5"), f"timeout {NUMBER} '5'"),
    "timeout as bool": (lambda client: client.model(timeout=True), f"timeout {NUMBER} True"),
    "timeout NaN": (lambda client: client.generate("x", timeout=float("nan")), f"timeout {NUMBER} NaN"),
    "timeout of a stream": (lambda client: client.stream("x", timeout="5"), f"timeout {NUMBER} '5'"),
    "timeout of tools": (lambda client: client.run("x", tools=[], timeout="5"), f"timeout {NUMBER} '5'"),
    "timeout of all calls": (lambda client: client.with_options(timeout="5"), f"timeout {NUMBER} '5'"),
    "retries as text": (lambda client: client.with_options(retries="5"), "retries must be an int, got '5'"),
    "retries below 0": (lambda client: client.with_options(retries=-1), "retries must be at least 0, got -1"),
    "flush": (lambda client: client.stream("x", flush_interval_seconds="1"), f"flush_interval_seconds {NUMBER} '1'"),
    "flush, infinite": (
        lambda client: client.interact("x", flush_interval_seconds=float("inf")),
        "flush_interval_seconds must be at most 315,576,000,000 seconds, got inf",
    ),
    "window": (lambda client: client.expert_load(window_seconds="1"), f"window_seconds {NUMBER} '1'"),
    "id of a stream": (lambda client: client.resume(5, "t"), "generation_id must be a str, got int"),
    "token of a stream": (lambda client: client.resume("g", None), "resume_token must be a str, got NoneType"),
    "sequence as text": (lambda client: client.resume("g", "t", "3"), "last_sequence must be an int, got str"),
    "sequence below 0": (lambda client: client.resume("g", "t", -1), "last_sequence must be in [0, 2^64), got -1"),
    "id to steer": (lambda client: client.steer(b"g", "t", cancel=True), "generation_id must be a str, got bytes"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_argument_is_told_by_name(case: str) -> None:
    call, words = REFUSED[case]
    with pc.Client(TARGET) as client, pytest.raises((TypeError, ValueError)) as caught:
        call(client)
    assert str(caught.value) == words

    async def same() -> None:
        async with pc.AsyncClient(TARGET) as other:
            made = call(other)
            if asyncio.iscoroutine(made):
                await made

    with pytest.raises((TypeError, ValueError)) as caught:
        asyncio.run(same())
    assert str(caught.value) == words


@pytest.mark.parametrize(("bound", "words"), [("max_attempts", "an int"), ("max_seconds", "a number of seconds")])
def test_a_bound_of_reconnecting_is_told_by_name(bound: str, words: str) -> None:
    policy = pc.Reconnect(**{bound: "3"})
    with pytest.raises(TypeError, match=rf"^reconnect.{bound} must be {words}, got '3'$"):
        pc.Client(TARGET, reconnect=policy)


def test_an_infinite_timeout_is_none() -> None:
    assert call_seconds(float("inf"), 30.0) is None
    assert call_seconds(None, 30.0) == 30.0
    assert call_seconds(2) == 2
    with pc.Client(TARGET, timeout=float("inf")) as client, pytest.raises(pc.Unavailable):
        client.generate("x")  # not DeadlineExceeded


def test_a_duration_holds_what_was_given() -> None:
    made = duration_of("window_seconds", 1.5)
    assert made is not None
    assert (made.seconds, made.nanos) == (1, 500_000_000)
    assert duration_of("window_seconds", None) is None
