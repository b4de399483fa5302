"""`penstock gateway` as a process: how it reaches the service, what it exports, how it ends."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from grpc._cython import cygrpc
from penstock.config.schema import Config
from penstock.engine.scripted import Reply
from penstock_gateway import server
from penstock_gateway.app import create_app
from penstock_gateway.command import gateway as command
from penstock_gateway.settings import Settings
from penstock_gateway.upstream import Encryption, connect
from typer.testing import CliRunner

from tests.gateway.conftest import CountingEngine, InLoopServer, service
from tests.rpc.secure import Authority

ASKED: dict[str, Any] = {"model": "", "messages": [{"role": "user", "content": "hello"}], "thinking_mode": "fast"}


def engine() -> CountingEngine:
    return CountingEngine([Reply(answer="yes")], context_window_tokens=4096)


@asynccontextmanager
async def running(*options: str, **environment: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """The command with these options, once it listens, and its address."""
    here = {name: value for name, value in os.environ.items() if not name.startswith(("PENSTOCK_", "OTEL_"))}
    started = [sys.executable, "-m", "penstock_gateway", "--listen", "127.0.0.1:0", *options]
    process = await asyncio.create_subprocess_exec(
        *started, env=here | environment, stderr=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL
    )
    try:
        assert process.stderr is not None
        said = (await process.stderr.readline()).decode()
        found = re.search(r"http://\S+", said)
        assert found, said + (await process.stderr.read()).decode()
        yield process, found[0]
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def ask(url: str, **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(timeout=60, trust_env=False) as http:
        return await http.post(f"{url}/v1/chat/completions", json=ASKED, headers=headers)


@pytest.mark.slow
async def test_mutual_tls_with_another_name_in_the_certificate(tmp_path: Path) -> None:
    authority, clients = Authority(), Authority()
    pair = authority.server("the-service").write(tmp_path, "server")
    shown = clients.issue("the-gateway").write(tmp_path, "gateway")
    ca, client_ca = tmp_path / "ca.crt", tmp_path / "client-ca.crt"
    ca.write_bytes(authority.pem)
    client_ca.write_bytes(clients.pem)
    tls = {**pair, "client_ca_file": str(client_ca)}
    options = ["--ca", str(ca), "--certificate", shown["certificate_file"], "--key", shown["key_file"]]
    config = Config.model_validate({"server": {"listen": "127.0.0.1:0"}, "tls": tls})
    async with service(engine(), config) as address:
        # The certificate is for 127.0.0.1 alone, and the target says localhost.
        target = ["--target", address.replace("127.0.0.1", "localhost")]
        async with running(*target, *options, "--tls-server-name", "127.0.0.1") as (_, url):
            assert (await ask(url)).status_code == 200
        async with running(*target, *options) as (_, url):
            assert (await ask(url)).status_code == 503
        async with running(*target, "--ca", str(ca), "--tls-server-name", "127.0.0.1") as (_, url):
            assert (await ask(url)).status_code == 503, "without a certificate of its own"


async def line_of(process: asyncio.subprocess.Process) -> str:
    assert process.stderr is not None
    return (await asyncio.wait_for(process.stderr.readline(), 120)).decode()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "has_tls", "said"),
    [
        (["--tls"], False, "does not speak TLS: pass --plaintext"),
        ([], True, "speaks TLS: pass --tls, or --ca FILE"),
        (["--tls"], True, "is not trusted"),
        (["--tls"], None, "nothing listens at 127.0.0.1:1: start a service with `penstock serve`"),
    ],
    ids=["TLS here alone", "TLS there alone", "another authority", "nothing"],
)
async def test_why_the_service_does_not_answer_is_in_the_log_and_not_in_replies(
    options: list[str], has_tls: bool | None, said: str, tmp_path: Path
) -> None:
    authority = Authority()
    pair = authority.server("localhost").write(tmp_path)
    given = {"server": {"listen": "127.0.0.1:0"}} | ({"tls": pair} if has_tls else {})
    async with AsyncExitStack() as stack:
        address = "127.0.0.1:1"
        if has_tls is not None:
            address = await stack.enter_async_context(service(engine(), Config.model_validate(given)))
        process, url = await stack.enter_async_context(running("--target", address, *options))
        line = await line_of(process)  # before anybody has asked
        assert line.startswith("penstock gateway: the service does not answer: ")
        assert said in line
        reply = await ask(url)
        error = reply.json()["error"]
        assert (reply.status_code, error["code"]) == (503, "service_unavailable")
        assert error["message"] == "the gateway cannot reach the service; the gateway's log has the cause"


async def test_calls_are_spread_over_the_replicas() -> None:
    engines = [engine(), engine()]
    async with service(engines[0]) as one, service(engines[1]) as two:
        client = connect(f"ipv4:{one},{two}", Encryption(tls=False))
        settings = Settings()
        listener = server.bind("127.0.0.1", 0, settings)
        serving = InLoopServer(server.configuration(create_app(client, settings), settings))
        task = asyncio.create_task(serving.serve([listener]))
        try:
            for _ in range(20):
                assert (await ask(f"http://{server.address_of(listener)}")).status_code == 200
        finally:
            serving.should_exit = True
            await task
    assert min(one.started for one in engines) > 0


@contextmanager
def collector() -> Iterator[tuple[str, list[bytes], threading.Event]]:
    """A receiver of OTLP over HTTP: its address, what it got, and an event that is set when something comes."""
    bodies: list[bytes] = []
    came = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["content-length"])))
            came.set()
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *arguments: object) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as receiver:
        threading.Thread(target=receiver.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{receiver.server_port}", bodies, came
        finally:
            receiver.shutdown()


@pytest.mark.slow
async def test_spans_are_exported_before_it_ends_and_sigterm_is_a_clean_end() -> None:
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    with collector() as (endpoint, bodies, came):
        exporting = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
        # Longer than the test: what comes, comes at the end.
        exporting["OTEL_BSP_SCHEDULE_DELAY"] = "600000"
        async with service(engine()) as address, running("--target", address, **exporting) as (process, url):
            assert (await ask(url, traceparent=f"00-{trace_id}-b7ad6b7169203331-01")).status_code == 200
            assert not came.is_set()
            process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(process.wait(), 60) == 0
    sent = b"".join(bodies)
    assert bytes.fromhex(trace_id) in sent
    assert b"penstock-gateway" in sent
    assert b"hello" not in sent


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--target", ""], "--target: the target must be host:port, got an empty one"),
        (["--target", "http://127.0.0.1:50051"], "--target: the target must be host:port, without http://"),
        (["--target", "nowhere"], "--target: the target must be host:port, got nowhere"),
        (
            ["--target", "127.0.0.1:99999"],
            "--target: the port of the target must be in [1, 65535], got 127.0.0.1:99999",
        ),
        (["--target", "127.0.0.1:50051/v1"], "--target: the target must be host:port"),
        (["--listen", "nowhere"], "--listen must be host:port, got 'nowhere'"),
        (["--listen", "127.0.0.1:²"], "--listen must be host:port, got '127.0.0.1:²'"),
        (["--limit", "x=1"], "a limit must be NAME=VALUE"),
        (["--certificate", __file__], "--certificate and --key belong together"),
        (["--certificate", __file__, "--key", __file__, "--plaintext"], "--certificate needs TLS"),
        (["--target", "penstock:50051"], "in plaintext: pass --tls or --ca FILE, or --plaintext to send them anyway"),
        (["--ca", "/no/such/file"], "--ca /no/such/file: No such file"),
        (["--ca", __file__], f"--ca {__file__} has no certificate in PEM"),
        (["--certificate", __file__, "--key", __file__], "must be a certificate and its private key, both in PEM"),
        (["--certificate", "/no/such/file", "--key", __file__], "--certificate /no/such/file: No such file"),
        (["--certificate", __file__, "--key", "/no/such/file"], "--key /no/such/file: No such file"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(given: list[str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "bind", lambda *_: pytest.fail("it must be refused before it listens"))
    done = CliRunner().invoke(_app(), given)
    assert (done.exit_code, len(done.output.splitlines())) == (2, 1)
    assert done.output.startswith(f"penstock gateway: {said}" if said.startswith("--") else "penstock gateway: ")
    assert said in done.output


def test_a_key_of_another_certificate_or_with_a_password_is_refused(tmp_path: Path) -> None:
    authority = Authority()
    one, other = (authority.server(name).write(tmp_path, name) for name in ("one", "other"))
    locked = tmp_path / "locked.key"
    key = load_pem_private_key(Path(one["key_file"]).read_bytes(), None)
    locked.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")))
    for file in (other["key_file"], str(locked)):
        done = CliRunner().invoke(_app(), ["--certificate", one["certificate_file"], "--key", file])
        assert (done.exit_code, len(done.output.splitlines())) == (2, 1)
        assert f"--key {file} must be a certificate and its private key" in done.output


@pytest.mark.parametrize("target", ["dns:///localhost:1", "ipv4:127.0.0.1:1,127.0.0.1:2", "unix:/no/such", "[::1]:1"])
def test_grpcs_names_of_targets_are_taken(target: str) -> None:
    assert connect(target, Encryption(tls=False)) is not None


@pytest.mark.slow
@pytest.mark.parametrize("command", [["penstock_gateway"], ["penstock", "gateway"]], ids=["alone", "penstock"])
@pytest.mark.parametrize(
    "module", ["penstock_gateway.command", "typer._adapters", "penstock_gateway.server", "uvicorn.lifespan.on"]
)
def test_an_interrupt_before_it_is_ready_is_one_line(command: list[str], module: str) -> None:
    hook = f"""
import os, runpy, signal, sys
class Interrupt:
    def find_spec(self, name, *_):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
sys.argv = [{command[0]!r}, *{command[1:]!r}, "--listen", "127.0.0.1:0", "--target", "127.0.0.1:1"]
runpy.run_module({command[0]!r}, run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", hook], capture_output=True, text=True, timeout=120, check=False)
    said = [line for line in done.stderr.splitlines() if not line.startswith("penstock gateway: http://")]
    assert done.returncode == 130
    assert said[-1:] in (["penstock: interrupted"], ["penstock gateway: interrupted"])
    assert "Traceback" not in done.stderr


async def test_an_interrupt_once_it_listens_ends_it_with_130() -> None:
    async with service(engine()) as address, running("--target", address) as (process, url):
        assert (await ask(url)).status_code == 200
        process.send_signal(signal.SIGINT)
        assert await line_of(process) == "penstock gateway: interrupted\n"
        assert await asyncio.wait_for(process.wait(), 60) == 130


def test_a_protocol_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")
    done = CliRunner().invoke(_app(), [])
    assert done.exit_code == 2
    assert "must be grpc or http/protobuf" in re.sub(r"[│\s]+", " ", done.output)


def _app() -> Any:
    app = typer.Typer()
    app.command()(command)
    return app


def test_all_addresses_are_those_of_ipv4_too() -> None:
    with server.bind("::", 0, Settings()) as listener:
        port = listener.getsockname()[1]
        for host in ("127.0.0.1", "::1")[: 2 if listener.family == socket.AF_INET6 else 1]:
            socket.create_connection((host, port), timeout=10).close()


def test_grpc_knows_the_setting_that_the_gateway_makes() -> None:
    """Where it does not, `GRPC_EXPERIMENTS` in penstock_gateway/command.py has no effect and can go."""
    assert b"event_engine_client\0" in Path(cygrpc.__file__).read_bytes()
