"""One clear line with the cause, as a newcomer meets them: full disks, wrong addresses, TLS on one side, no hub."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import socketserver
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import grpc
import pytest

from tests.rpc.scripted_service import scripted_service
from tests.rpc.secure import Authority

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "service/penstock/demo_model"
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with scripted_service(tmp_path_factory.mktemp("plain"), [{"answer": "hi"}]) as address:
        yield address


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """(address, certificate of the authority) of a service with TLS"""
    folder, authority = tmp_path_factory.mktemp("secure"), Authority()
    authority.server("localhost").write(folder)
    (folder / "ca.crt").write_bytes(authority.pem)
    settings = {"tls.certificate_file": str(folder / "server.crt"), "tls.key_file": str(folder / "server.key")}
    with scripted_service(folder, [{"answer": "hi"}], settings) as address:
        yield address, folder / "ca.crt"


def penstock(*arguments: str, stdout: int = subprocess.PIPE, **environ: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")}
    command = [sys.executable, "-m", "penstock", *arguments]
    return subprocess.run(
        command, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=100, env={**kept, **environ}, check=False
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", "hi"),
        ("generate", "hi", "--json"),
        ("generate", "hi", "--no-stream"),
        ("count", "hi"),
        ("model",),
        ("model", "--json"),
        ("config", "show"),
        ("version",),
    ],
)
def test_an_output_that_cannot_be_written_is_told(arguments: tuple[str, ...], service: str) -> None:
    with open("/dev/full", "w") as full:
        done = penstock(*arguments, stdout=full.fileno(), PENSTOCK_TARGET=service)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "penstock: cannot write the output: No space left on device"
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_tls_on_one_side_only_is_told(service: str, secure: tuple[str, Path]) -> None:
    address, ca = secure
    for arguments in (("generate", "hi"), ("count", "hi"), ("model",)):
        done = penstock(*arguments, "--target", service, "--tls")
        assert (done.returncode, done.stderr) == (1, f"penstock: {service} does not speak TLS: pass --plaintext\n")
        done = penstock(*arguments, "--target", address)
        assert done.returncode == 1
        assert done.stderr.startswith(f"penstock: {address} speaks TLS: pass --tls, or --ca FILE")
    done = penstock("model", "--target", address, "--tls")
    assert done.stderr.startswith(f"penstock: the certificate of {address} is not trusted: ")
    assert penstock("model", "--target", address, "--ca", str(ca)).returncode == 0
    assert penstock("model", PENSTOCK_TARGET=address, PENSTOCK_CA_FILE=str(ca)).returncode == 0
    done = penstock("model", "--target", address, "--ca", "/nowhere.pem")
    assert (done.returncode, done.stderr) == (1, "penstock: /nowhere.pem: No such file or directory\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("127.0.0.1:1", "nothing listens at 127.0.0.1:1: start a service with `penstock serve`"),
        ("nowhere.invalid:50051", "nowhere.invalid:50051: unknown host nowhere.invalid"),
        ("nowhere", "the target must be host:port, got nowhere"),
        ("http://127.0.0.1:1", "the target must be host:port, without http://, got http://127.0.0.1:1"),
        ("https://127.0.0.1:1/v1", "the target must be host:port, without https://, got https://127.0.0.1:1/v1"),
        ("dns:///127.0.0.1", "the target must be host:port, got dns:///127.0.0.1"),
        ("dns:///nowhere.invalid:50051", "dns:///nowhere.invalid:50051: unknown host nowhere.invalid"),
        ("ipv4:127.0.0.1:1", "nothing listens at ipv4:127.0.0.1:1: start a service with `penstock serve`"),
    ],
)
def test_an_address_where_nothing_is(target: str, words: str) -> None:
    done = penstock("model", "--target", target)
    assert (done.returncode, done.stderr) == (1, f"penstock: {words}\n")


@pytest.mark.slow
@pytest.mark.parametrize("command", [("model",), ("generate", "hi"), ("bench", "--seconds", "1"), ("eval",)])
def test_a_key_goes_to_no_address_that_is_wrong_or_in_plaintext(command: tuple[str, ...]) -> None:
    for target, words in (
        ("http://penstock.example:50051", "without http://"),
        ("nowhere", "the target must be host:port, got nowhere"),
        ("127.0.0.1:99999", "the port of the target must be in [1, 65535], got 127.0.0.1:99999"),
        ("penstock.example:50051", "--tls"),
    ):
        done = penstock(*command, "--target", target, PENSTOCK_API_KEY="psk_1234")
        assert done.returncode == 2
        message = " ".join(done.stderr.replace("│", " ").split())  # without the frame that wraps it
        assert words in message
        assert ("--plaintext" in message) == ("--tls" in words)


OTHERS: dict[str, bytes | None] = {
    "silent": None,
    "closes": b"",
    "http1": b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    "ssh": b"SSH-2.0-OpenSSH_9.2\r\n",
}
"""What a server of something else answers to the first bytes; None is nothing."""
PLAIN = {
    "silent": "accepts connections and sends nothing",
    "closes": "closes connections",
    "http1": "speaks HTTP/1, but gRPC needs HTTP/2",
    "ssh": "does not speak gRPC",
}


@contextmanager
def something_else(answer: bytes | None, context: ssl.SSLContext | None = None) -> Iterator[str]:
    """Give the address of a server that speaks no gRPC, within TLS where `context` is given."""

    class Other(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with suppress(OSError), ExitStack() as stack:
                own = stack.enter_context(context.wrap_socket(self.request, server_side=True)) if context else None
                connection = own or self.request
                if answer is None:
                    while connection.recv(65536):
                        pass
                elif answer:
                    connection.recv(65536)
                    connection.sendall(answer)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        request_queue_size = 50

    with Server(("127.0.0.1", 0), Other) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize("kind", OTHERS)
def test_a_server_of_something_else_is_told(kind: str) -> None:
    with something_else(OTHERS[kind]) as address:
        commands = [("generate", "hi"), ("bench", "--seconds", "1"), ("pilot", "--quick"), ("chat",), ("eval",)]
        for arguments in commands if kind == "http1" else commands[:1]:
            done = penstock(*arguments, "--target", address)
            assert done.returncode == 1
            assert done.stderr.startswith(f"penstock: {address} {PLAIN[kind]}")
            assert len(done.stderr.splitlines()) == 1
        done = penstock("model", "--target", address, "--tls")
        assert done.stderr.startswith(f"penstock: {address} {PLAIN[kind]}")
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["silent", "http1", "closes"])
def test_a_server_of_something_else_within_tls_is_told(kind: str, tmp_path: Path) -> None:
    authority, context = Authority(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    pair = authority.server("localhost").write(tmp_path)
    (tmp_path / "ca.crt").write_bytes(authority.pem)
    context.load_cert_chain(pair["certificate_file"], pair["key_file"])
    with something_else(OTHERS[kind], context) as address:
        done = penstock("model", "--target", address, "--ca", str(tmp_path / "ca.crt"))
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
        words = (
            PLAIN[kind] if kind != "closes" else "closes the encrypted connection: it may require a client certificate"
        )
        assert done.stderr.startswith(f"penstock: {address} {words}")


@pytest.mark.slow
def test_mutual_tls_is_told(tmp_path: Path) -> None:
    authority = Authority()
    pair = authority.server("localhost").write(tmp_path)
    (tmp_path / "ca.crt").write_bytes(authority.pem)
    settings = {f"tls.{name}": path for name, path in pair.items()} | {"tls.client_ca_file": str(tmp_path / "ca.crt")}
    with scripted_service(tmp_path, [{"answer": "hi"}], settings) as address:
        done = penstock("model", "--target", address, "--ca", str(tmp_path / "ca.crt"))
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert done.stderr.startswith(f"penstock: {address} closes the encrypted connection: it may require a client cert")


def test_a_grpc_service_of_something_else_is_told() -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        done = penstock("model", "--target", address)
    finally:
        server.stop(None).wait()
    assert done.returncode == 1
    assert done.stderr == f"penstock: {address} speaks gRPC but has no such method; it may not be a Penstock service\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("generate", "hi", "--json", "--budget", "-5"), 1, "--budget"),
        (("generate", "hi", "--json", "--bugdet", "5"), 2, "--bugdet"),
        (("generate", "--json"), 2, "prompt"),
        (("generat", "--json"), 2, "Did you mean 'generate'?"),
        (("model", "--json", "--target", "127.0.0.1:1"), 1, "nothing listens"),
        (("config", "show", "--json", "--config", "/nowhere.toml"), 2, "/nowhere.toml"),
        (("serve", "--check-config", "--json", "--listen", "nowhere"), 2, "must be host:port"),
    ],
)
def test_failures_under_json_are_json(arguments: tuple[str, ...], code: int, words: str, service: str) -> None:
    done = penstock(*arguments, PENSTOCK_TARGET=service)
    [line] = done.stdout.splitlines()
    error = json.loads(line)["error"]
    assert (done.returncode, error["exit_code"], done.stderr) == (code, code, "")
    assert words in error["message"]


def test_a_refused_call_under_json_has_its_details(service: str) -> None:
    error = json.loads(penstock("count", "hi", "--json", "--budget", "-5", "--target", service).stdout)["error"]
    assert (error["type"], error["code"], error["reason"]) == ("InvalidRequest", "INVALID_ARGUMENT", "INVALID_FIELD")
    assert [violation["field"] for violation in error["violations"]] == ["spec.thinking.thinking_budget"]


NO_ADDRESS = "must be host:port with a port in [0, 65535]"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--listen", "127.0.0.1:99999"), f"server.listen: {NO_ADDRESS}, got '127.0.0.1:99999'"),
        (("--listen", "nowhere"), f"server.listen: {NO_ADDRESS}, got 'nowhere'"),
        (("--listen", "127.0.0.1:²"), f"server.listen: {NO_ADDRESS}, got '127.0.0.1:²'"),
        (("--listen", "nowhere.invalid:1"), "server.listen: unknown host nowhere.invalid"),
        (("--listen", "192.0.2.1:50051", "--insecure"), "cannot assign requested address"),
        (("--model", "/nowhere"), "engine.model: there is no directory /nowhere"),
        (("--model", "README.md"), "README.md is a file; it must be the directory"),
        (("--set", "telemetry.prometheus_listen=x"), f"telemetry.prometheus_listen: {NO_ADDRESS}, got 'x'"),
    ],
)
def test_a_configuration_that_cannot_be_served(arguments: tuple[str, ...], words: str) -> None:
    done = penstock("serve", "--check-config", *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert "configuration is valid" not in done.stderr


def test_an_address_that_is_taken(service: str) -> None:
    done = penstock("serve", "--check-config", "--listen", service)
    assert done.returncode == 2
    assert f"cannot bind {service}: address already in use" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["cut short", "noise", "empty", "longer"])
@pytest.mark.parametrize("command", [("serve", "--check-config", "--model"), ("serve", "--model"), ("quantize",)])
def test_corrupt_weights_are_named(command: tuple[str, ...], damage: str, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(DEMO, model)
    weights = next(model.glob("*.safetensors"))
    whole = weights.read_bytes()
    weights.chmod(0o644)
    noise = b"\x10" + b"\0" * 7 + b"no json, noise!!" * 9
    damaged = {"cut short": whole[: len(whole) // 2], "noise": noise, "empty": b"", "longer": whole + b"x"}
    weights.write_bytes(damaged[damage])
    done = penstock(*command, str(model), *([str(tmp_path / "out")] if command == ("quantize",) else []))
    assert done.returncode == 2
    assert f"{weights}: corrupt" in done.stderr
    assert "Traceback" not in done.stderr


@contextmanager
def closing_hub() -> Iterator[tuple[str, list[bytes]]]:
    """Give the URL of a server that closes each connection, and the requests for models that it got."""
    seen: list[bytes] = []

    class Closing(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            line = self.rfile.readline()
            if b"/api/agent-harnesses" not in line:  # of huggingface_hub itself, once a day
                seen.append(line)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Closing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", seen
        server.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", [("download",), ("plan",), ("plan", "--json"), ("serve", "--listen", "127.0.0.1:0")], ids=" ".join
)
def test_a_hub_that_cannot_be_reached_is_tried_once(command: tuple[str, ...], tmp_path: Path) -> None:
    with closing_hub() as (url, seen):
        for environ, cause, requests in (
            ({"HF_ENDPOINT": url}, "disconnected", 1),
            ({"HF_ENDPOINT": "http://127.0.0.1:1"}, "Connection refused", 0),
            ({"HF_ENDPOINT": "http://nowhere.invalid"}, "Name or service not known", 0),
            ({"HF_HUB_OFFLINE": "1"}, "offline mode is enabled", 0),
        ):
            seen.clear()
            done = penstock(*command, "--model", "org/none-such", HF_HOME=str(tmp_path), **environ)
            assert (done.returncode, len(seen)) == (1, requests)
            assert "etry" not in done.stderr
            message = json.loads(done.stdout)["error"]["message"] if "--json" in command else done.stderr
            assert message.count("org/none-such: cannot reach Hugging Face: ") == 1
            assert cause in message
            if command == ("download",):
                assert len(done.stderr.splitlines()) == 1


def test_a_model_in_the_cache_is_planned_without_the_hub(tmp_path: Path) -> None:
    folder = tmp_path / "hub/models--org--cached"
    for name in ("config.json", "generation_config.json"):
        (folder / "snapshots/c0ffee").mkdir(parents=True, exist_ok=True)
        shutil.copy(DEMO / name, folder / "snapshots/c0ffee")
    (folder / "refs").mkdir()
    (folder / "refs/main").write_text("c0ffee")
    with closing_hub() as (url, seen):
        done = penstock("plan", "--model", "org/cached", "--device", "cpu", HF_HOME=str(tmp_path), HF_ENDPOINT=url)
    assert (done.returncode, done.stderr, len(seen)) == (0, "", 1)


def test_a_name_of_the_hub_cannot_be_quantized(tmp_path: Path) -> None:
    done = penstock("quantize", "org/none-such", str(tmp_path / "fp8"), HF_ENDPOINT="http://127.0.0.1:1")
    assert done.returncode == 2
    assert "there is no directory org/none-such; a model of Hugging Face must be downloaded first" in done.stderr
    assert len(done.stderr.splitlines()) == 2


@pytest.mark.slow
def test_a_missing_permission_is_named(tmp_path: Path) -> None:
    keys, callers = tmp_path / "keys.yaml", tmp_path / "callers.yaml"
    key = penstock("keys", "new", "watcher", "--file", str(keys)).stdout.strip()
    callers.write_text(json.dumps({"callers": {"watcher": {"permissions": ["diagnostics"]}}}))
    settings = {"auth.keys_file": str(keys), "auth.callers_file": str(callers)}
    with scripted_service(tmp_path, [{"answer": "hi"}], settings) as address:
        done = penstock("generate", "hi", "--target", address, PENSTOCK_API_KEY=key)
    words = f"penstock: {address} does not let this caller do that: it needs the permission generate\n"
    assert (done.returncode, done.stderr) == (1, words)


def test_an_interrupt_among_the_imports_is_one_line() -> None:
    hook = """
import os, signal, sys
class Interrupt:
    def find_spec(self, name, *_):
        if name == "penstock_bench.commands.bench":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
from penstock.__main__ import main
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", hook, "model"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (130, "penstock: interrupted\n")


def test_an_interrupted_download_says_so(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as hub:  # that never answers
        environ = {"HF_ENDPOINT": f"http://127.0.0.1:{hub.getsockname()[1]}", "HF_HOME": str(tmp_path)}
        command = [sys.executable, "-m", "penstock", "download", "--model", "org/m"]
        download = subprocess.Popen(command, env=os.environ | environ, stderr=subprocess.PIPE, text=True)
        connection, _ = hub.accept()
        with connection:
            download.send_signal(signal.SIGINT)
            assert download.communicate(timeout=60)[1] == "penstock: interrupted\n"
    assert download.returncode == 130


def test_chat_says_what_a_command_needs(service: str) -> None:
    command = [sys.executable, "-m", "penstock", "chat", "--target", service]
    done = subprocess.run(
        command,
        input="/budget abc\n/budget -7\n/budgt\n/quit\n",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    said = done.stdout.splitlines()
    assert said[0] == "/budget abc: the budget must be a whole number of tokens, -1 for no limit, or absent, got 'abc'"
    assert said[1].startswith("/budget -7: the budget must be")
    assert said[2] == "/budgt: not a command; did you mean /budget?"
