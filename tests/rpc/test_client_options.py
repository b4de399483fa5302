"""Test what applications expect of a client: environment, retries, limits, texts, conversations, logging."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import grpc
import penstock_client as pc
import pytest
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2 as details
from penstock_client.channel import resolve
from penstock_client.leaving import READ_SECONDS

from tests.conformance.tools import CLIENTS, NODE, build_go, build_typescript, needs_go, needs_node
from tests.rpc.fake_service import ANSWER, FakeService, status
from tests.rpc.proxy import proxied
from tests.rpc.scripted_service import scripted_service
from tests.rpc.secure import Authority


def full(retry_delay: duration_pb2.Duration) -> Any:
    return status(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "full",
        [
            details.ErrorInfo(domain="penstock.v1", reason="OVERLOADED"),
            details.RetryInfo(retry_delay=retry_delay),
        ],
    )


FULL = full(duration_pb2.Duration(nanos=10_000_000))
FULL_FOR_LONG = full(duration_pb2.Duration(seconds=600))


@pytest.fixture
def target(served: tuple[FakeService, str], fake: FakeService) -> str:
    return served[1]


def test_what_is_not_given_comes_from_the_environment(
    target: str, fake: FakeService, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PENSTOCK_TARGET", target)
    (tmp_path / "key").write_text("k-from-a-file\n")
    monkeypatch.setenv("PENSTOCK_API_KEY_FILE", str(tmp_path / "key"))
    with pc.Client() as client:
        client.model()
    assert fake.metadata["authorization"] == "Bearer k-from-a-file"
    monkeypatch.setenv("PENSTOCK_API_KEY", "k-itself")
    with pc.Client() as client:
        client.model()
    assert fake.metadata["authorization"] == "Bearer k-itself"
    with pc.Client(api_key="") as client:
        client.model()
    assert "authorization" not in fake.metadata
    monkeypatch.setenv("PENSTOCK_CA_FILE", "/nowhere.pem")
    with pytest.raises(OSError, match=r"/nowhere\.pem"):
        pc.Client()
    pc.Client(tls=False).close()
    monkeypatch.setenv("PENSTOCK_TLS", "perhaps")
    with pytest.raises(ValueError, match="PENSTOCK_TLS must be true or false"):
        pc.Client()


def test_a_key_with_a_line_break_is_refused_before_it_is_sent() -> None:
    with pytest.raises(ValueError, match="printable"):
        pc.Client(api_key="k\nx")


@pytest.mark.parametrize("streamed", [True, False])
def test_what_was_refused_for_now_is_tried_again_on_request(streamed: bool, target: str, fake: FakeService) -> None:
    def call(client: pc.Client) -> None:
        if streamed:
            list(client.stream("hi"))
        else:
            client.generate("hi")

    fake.error = FULL
    with pc.Client(target) as client:
        with pytest.raises(pc.Overloaded):
            call(client)
        assert len(fake.requests) == 1
        with pytest.raises(pc.Overloaded):
            call(client.with_options(retries=2))
        assert len(fake.requests) == 1 + 3
        fake.error = FULL_FOR_LONG
        with pytest.raises(pc.Overloaded):
            call(client.with_options(retries=2, timeout=60))
        assert len(fake.requests) == 1 + 3 + 1, "no attempt beyond the deadline"


async def test_the_async_client_tries_again_too(target: str, fake: FakeService, caplog: Any) -> None:
    fake.error = FULL
    caplog.set_level(logging.INFO, "penstock_client")
    async with pc.AsyncClient(target, retries=1) as client:
        with pytest.raises(pc.Overloaded):
            await client.generate("a secret prompt")
        with pytest.raises(pc.Overloaded):
            async for _ in client.stream("a secret prompt"):
                pass
    assert len(fake.requests) == 4
    assert "refused (OVERLOADED); retrying in 0.01 s" in caplog.text
    assert "secret" not in caplog.text


def test_options_of_a_copy_share_the_connection(target: str, fake: FakeService) -> None:
    with pc.Client(target, metadata={"X-Team": "a"}) as client:
        other = client.with_options(timeout=7, metadata=[("x-request-id", "r1")])
        other.model()
        assert (fake.metadata["x-team"], fake.metadata["x-request-id"]) == ("a", "r1")
        client.model()
        assert "x-request-id" not in fake.metadata
        assert (other.timeout, client.timeout) == (7, None)
        with pytest.raises(ValueError, match="authorization"):
            client.with_options(metadata={"Authorization": "x"})
    with pytest.raises(RuntimeError, match="closed"):
        other.model()


async def test_a_copy_calls_in_the_name_of_another_caller(target: str, fake: FakeService) -> None:
    with pc.Client(target, api_key="own") as client:
        client.with_options(api_key="another").model()
        assert fake.metadata["authorization"] == "Bearer another"
        client.with_options(api_key="").model()
        assert "authorization" not in fake.metadata
        client.model()
        assert fake.metadata["authorization"] == "Bearer own"
    async with pc.AsyncClient(target, api_key="own") as aclient:
        await aclient.with_options(api_key="another").model()
        assert fake.metadata["authorization"] == "Bearer another"
    with pc.Client("service.example:50051") as client, pytest.raises(ValueError, match="plaintext"):
        client.with_options(api_key="another")


async def test_answers_as_text(target: str) -> None:
    with pc.Client(target) as client:
        assert "".join(client.stream("hi").text()) == "".join(ANSWER)
    async with pc.AsyncClient(target) as aclient:
        assert "".join([text async for text in aclient.stream("hi").text()]) == "".join(ANSWER)


def test_a_conversation_takes_replies(target: str, fake: FakeService) -> None:
    talk = pc.Conversation(system="s")
    with pc.Client(target) as client:
        talk.add(client.generate(talk.ask("one")))
        stream = client.stream(talk.ask("two"))
        for _ in stream.text():
            pass
        talk.add(stream.response)
    assert [(turn.role, turn.content) for turn in talk] == [
        ("system", "s"),
        ("user", "one"),
        ("assistant", "".join(ANSWER)),
        ("user", "two"),
        ("assistant", "".join(ANSWER)),
    ]
    assert [turn.content for turn in fake.requests[-1].spec.messages.messages] == ["s", "one", "".join(ANSWER), "two"]
    assert talk.undo().role == "assistant"
    assert len(talk) == 4


async def test_rate_limits_are_told_on_replies_and_errors(target: str, fake: FakeService) -> None:
    told = {"limit-requests": "60", "remaining-requests": "59"}
    with pc.Client(target) as client:
        assert client.generate("hi").rate_limits == told
        stream = client.stream("hi")
        list(stream)
        assert stream.response.rate_limits == told
    async with pc.AsyncClient(target) as aclient:
        assert (await aclient.generate("hi")).rate_limits == told
        astream = aclient.stream("hi")
        async for _ in astream:
            pass
        assert astream.response.rate_limits == told
        fake.error = FULL
        with pytest.raises(pc.Overloaded) as full:
            await aclient.generate("hi")
        assert full.value.rate_limits == told


COMMANDS = {
    "Go": lambda: [str(build_go() / "conformance"), "--options"],
    "TypeScript": lambda: [str(NODE), str(build_typescript() / "test/options.mjs")],
}


OTHERS = [pytest.param("Go", marks=needs_go), pytest.param("TypeScript", marks=needs_node)]


@pytest.mark.slow
@pytest.mark.timeout(700)
@pytest.mark.parametrize("language", OTHERS)
async def test_the_other_clients_tell_of_a_lost_connection(language: str, tmp_path: Path) -> None:
    replies = [{"answer": "a long answer " * 20, "step_seconds": 0.002}]
    # Deltas stay apart, however late its loop is: the connection is lost after some bytes.
    with scripted_service(tmp_path, replies, {"server.adaptive_flush_seconds": "0"}) as address:
        async with proxied(address, cut_bytes=1200) as proxy:
            environment = os.environ | {"PENSTOCK_TARGET": proxy.target}
            command = await asyncio.to_thread(COMMANDS[language])
            done = await asyncio.create_subprocess_exec(
                *command, "lost", env=environment, stdout=asyncio.subprocess.PIPE
            )
            said = json.loads((await done.communicate())[0])["said"]
    assert proxy.connections > 1
    assert len(said) >= proxy.connections - 1
    assert all("connection lost" in line and "answer" not in line for line in said)


@pytest.mark.slow
@pytest.mark.timeout(700)
@pytest.mark.parametrize("language", OTHERS)
def test_the_other_clients_do_the_same(language: str, target: str, fake: FakeService) -> None:
    def ask(how: str) -> Any:
        environment = os.environ | {"PENSTOCK_TARGET": target, "PENSTOCK_API_KEY": "k"}
        command = [*COMMANDS[language](), how]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        seen = json.loads(done.stdout)
        assert seen.pop("reserved").startswith("metadata Authorization is set by the client: ")
        return seen

    told = {"limit-requests": "60", "remaining-requests": "59"}
    served = ask("served")
    assert not any(served.pop("said")), "nothing is said where nothing is done"
    assert fake.seconds_left is None, "a generation has no deadline by default"
    assert served == {"text": "".join(ANSWER), "limits": told, "stream_limits": told}
    assert (fake.metadata["authorization"], fake.metadata["x-team"]) == ("Bearer k", "a")
    assert [turn.content for turn in fake.requests[-1].spec.messages.messages] == ["s", "one", "".join(ANSWER), "two"]
    fake.reset()
    fake.error = FULL
    refused = {"reason": "OVERLOADED", "limits": told}
    seen = ask("refused")
    said = seen.pop("said")
    assert seen == {"generate": refused, "stream": refused}
    assert len(said) == 2 * 2
    assert all("OVERLOADED" in line and "retrying" in line and "two" not in line for line in said)
    assert len(fake.requests) == 2 * (1 + 2)
    fake.reset()
    seen = ask("another")
    assert fake.metadata["authorization"] == "Bearer another"
    assert fake.seconds_left is not None, "a call that generates nothing has a deadline"
    assert seen["closed"] == "the client is closed"
    assert seen["certificate"] == "FILE must have a certificate in PEM, found none"
    assert seen["network"].startswith("the API key would be sent to ")
    assert "without encryption" in seen["network"]
    if language == "Go":
        assert seen["connection"].endswith("are options of the connection: give them to Dial")


@pytest.mark.slow
@pytest.mark.timeout(700)
@pytest.mark.parametrize("language", OTHERS)
def test_the_other_clients_take_the_certificate_of_the_environment(language: str, tmp_path: Path) -> None:
    authority = Authority()
    pair = authority.server("localhost").write(tmp_path)
    (tmp_path / "ca.crt").write_bytes(authority.pem)
    (tmp_path / "other.crt").write_bytes(Authority().pem)
    command = [*COMMANDS[language](), "served"]
    settings = {f"tls.{name}": path for name, path in pair.items()}
    with scripted_service(tmp_path, [{"answer": "over TLS"}], settings) as address:

        def run(ca: str) -> subprocess.CompletedProcess[str]:
            environment = os.environ | {"PENSTOCK_TARGET": address, "PENSTOCK_CA_FILE": str(tmp_path / ca)}
            return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)

        assert json.loads(run("ca.crt").stdout)["text"] == "over TLS"
        assert run("other.crt").returncode != 0


async def test_only_calls_that_generate_nothing_have_a_deadline_by_default(target: str, fake: FakeService) -> None:
    with pc.Client(target) as client:
        client.model()
        assert fake.seconds_left is not None
        assert 0 < fake.seconds_left < READ_SECONDS + 1
        client.generate("x")
        assert fake.seconds_left is None
        client.with_options(timeout=10 * READ_SECONDS).model()
        assert fake.seconds_left is not None
        assert fake.seconds_left > READ_SECONDS + 1, "the client's own timeout wins"
    async with pc.AsyncClient(target) as aclient:
        await aclient.model()
        assert fake.seconds_left is not None
        assert 0 < fake.seconds_left < READ_SECONDS + 1
        await aclient.generate("x")
        assert fake.seconds_left is None
        await aclient.model(timeout=10 * READ_SECONDS)
        assert fake.seconds_left is not None
        assert fake.seconds_left > READ_SECONDS + 1, "the call's own timeout wins"


async def test_a_closed_client_makes_no_call(target: str) -> None:
    client, aclient = pc.Client(target), pc.AsyncClient(target)
    client.close()
    await aclient.close()
    with pytest.raises(RuntimeError, match="the client is closed"):
        next(client.watch_expert_load())
    with pytest.raises(RuntimeError, match="the client is closed"):
        await anext(aclient.watch_expert_load())


@pytest.mark.parametrize("kind", [pc.Client, pc.AsyncClient])
@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"tls": __file__}, ValueError, "must have a certificate in PEM, found none"),
        ({"reconnect": False}, TypeError, "reconnect must be a Reconnect or None, got bool"),
        ({"metadata": {"x-team": 5}}, TypeError, "metadata 'x-team' must be a str, got int"),
    ],
)
def test_wrong_options_of_a_client_are_refused(kind: Any, options: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        kind("127.0.0.1:1", **options)


def test_the_version_is_the_packages() -> None:
    """`scripts/version --check` compares the other clients' with it."""
    assert pc.__version__ == tomllib.loads((CLIENTS / "python/pyproject.toml").read_text())["project"]["version"]


@pytest.mark.parametrize("client", [pc.Client, pc.AsyncClient])
def test_a_port_that_cannot_be_is_refused_before_anything_is_sent(
    client: type[pc.Client] | type[pc.AsyncClient],
) -> None:
    """gRPC would take it modulo 65536, and send key and prompt to another server of the machine."""
    for target in (
        "127.0.0.1:99999",
        "localhost:65536",
        "127.0.0.1:0",
        "127.0.0.1:-31073",
        "127.0.0.1:+34463",
        "127.0.0.1:34463 ",
        "[::1]:99999",
        "dns:localhost:99999",
        "dns:///localhost:99999",
        "dns://127.0.0.1:53/localhost:99999",
        "DNS:///localhost:99999",
        "dns:///localhost%3A99999",
        "dns:localhost:9999%39",
        "dns:///localhost:99999?a=b",
        "localhost:99999#a",
        "ipv4:127.0.0.1:50051,127.0.0.1:99999",
        "ipv6:[::1]:99999",
        "127.0.0.1:" + "9" * 5000,
    ):
        with pytest.raises(ValueError, match=re.escape(f"the port of the target must be in [1, 65535], got {target}")):
            client(target)


@pytest.mark.parametrize(
    "target",
    [
        "127.0.0.1:1",
        "localhost:65535",
        "localhost:050051",
        "[::1]:50051",
        "::1",
        "fe80::9999",
        "dns:///penstock.example:443",
        "dns:///penstock.example",
        "dns://127.0.0.1:53/penstock.example:443",
        "ipv4:127.0.0.1:50051,127.0.0.1:50052",
        "ipv6:[::1]:50051",
        "dns:///penstock.example:443?a=b:99999",
        "unix:/tmp/none:99999",
        "unix-abstract:none:99999",
        "xds:///none:99999",
    ],
)
def test_targets_that_can_be_are_left_to_grpc(target: str) -> None:
    assert resolve(target, None, False)[0] == target
