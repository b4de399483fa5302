"""Start the compared servers, send them requests and read their replies.

Each has one engine with the same arguments.
"""

from __future__ import annotations

import ctypes
import http.client
import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from penstock.engine.tokenizer import HfTokenizer
from penstock.engine.vllm.args import EnginePlan
from penstock.types import Message, Role
from penstock_bench.load.serving import wait_until_ready
from penstock_proto.v1 import generation_pb2 as pb

from bench import grpc_frames, openai_http
from bench.drain import Connection, Protocol, Reply, Work, drained
from bench.machine import free_port
from bench.served import Answered, Served, answered
from bench.work import Job

_ROOT = Path(__file__).parents[1]
_PENSTOCK = "/penstock.v1.GenerationService/StreamGenerate"
_SMG = "/vllm.grpc.engine.VllmEngine/Generate"


@dataclass(frozen=True, slots=True)
class Setting:
    """Settings for all contenders: the folder for files, the engine's plan, and the tokenizer for prompts as ids."""

    folder: Path
    model: str
    plan: EnginePlan
    tokenizer: HfTokenizer
    collector: str
    """OTLP endpoint for Penstock's traces; empty: none."""
    max_tokens: int
    """Tokens of each answer, including its thought."""
    extra_args: Mapping[str, str] = field(default_factory=dict)
    """vLLM's arguments in addition to the service's own; `plan` has them, too."""
    settings: Mapping[str, object] = field(default_factory=dict)
    """The service's settings that `plan` was made with, by name."""

    def prompt(self, question: str) -> list[int]:
        return self.tokenizer.render([Message(Role.USER, question)], thinking=True)


class Contender:
    """A front end in a process of its own. Its engine core is another process and does not count as front end."""

    name = ""
    label = ""
    missing = ""
    """Reason why it cannot run here; empty if it can."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.port = free_port()
        self.process: subprocess.Popen[str] | None = None

    def command(self) -> list[str]:
        raise NotImplementedError

    def is_ready(self) -> bool:
        raise NotImplementedError

    def serve(self, job: Job) -> Served:
        raise NotImplementedError

    def start(self) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PENSTOCK_")}
        with (self.setting.folder / f"{self.name}.log").open("wb") as log:
            self.process = subprocess.Popen(
                self.command(),
                cwd=_ROOT,
                env=environment | dict(self.setting.plan.environment),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE if isinstance(self, InProcess) else log,
                stderr=log,
                text=True,
            )

    def wait(self) -> None:
        """Return once it takes work. Raises `NotServing` with the last lines of its log where it does not."""
        log = self.setting.folder / f"{self.name}.log"
        wait_until_ready(self._started, self.is_ready, log=log, name=self.name)

    def stop(self) -> None:
        if self.process is None:
            return
        try:
            front = psutil.Process(self.process.pid)
            family = [front, *front.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        self.process.terminate()
        _, alive = psutil.wait_procs(family, timeout=20)
        for process in alive:
            process.kill()
        with self.process:  # closes its pipes
            pass

    @property
    def _started(self) -> subprocess.Popen[str]:
        assert self.process is not None
        return self.process

    def cpu_seconds(self) -> float:
        """Return the CPU seconds of the front end's process and its threads so far, with the kernel's precision."""
        return time.clock_gettime(_cpu_clock(self._started.pid))


class InProcess(Contender):
    name, label = "in_process", "AsyncLLM in process"

    def command(self) -> list[str]:
        setting = self.setting
        plan = {
            "arguments": dict(setting.plan.arguments),
            "max_tokens": setting.max_tokens,
        }
        plan["arguments"].pop("disable_log_stats")
        file = self.setting.folder / "in_process.json"
        file.write_text(json.dumps(plan), encoding="utf-8")
        return [sys.executable, "-m", "bench.in_process", str(file)]

    def is_ready(self) -> bool:
        return self._line() == "ready"

    def _line(self) -> Any:
        assert self._started.stdout is not None
        line = self._started.stdout.readline()
        return json.loads(line) if line else None

    def serve(self, job: Job) -> Served:
        assert self._started.stdin is not None
        prompts = [[self.setting.prompt(question) for question in own] for own in job.questions]
        before = self.cpu_seconds()
        self._started.stdin.write(json.dumps(prompts) + "\n")
        self._started.stdin.flush()
        result = self._line()
        spent = self.cpu_seconds() - before
        answers = [answered(reply["sent"], reply["times"], reply["tokens"]) for reply in result["replies"]]
        return Served(answers, result["seconds"], spent, 0.0)


class OverSockets(Contender):
    """A server that gets its requests from `bench.drain`."""

    protocol: Protocol = "grpc"
    more_tokens = 0
    """Most tokens that an answer has in addition to the setting's, by its question: so calls do not end together."""

    def max_tokens(self, question: str) -> int:
        """Return the tokens of the answer to a question."""
        return self.setting.max_tokens + zlib.crc32(question.encode()) % (self.more_tokens + 1)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def connection(self, questions: tuple[str, ...]) -> Connection:
        raise NotImplementedError

    def read(self, reply: Reply) -> Answered:
        raise NotImplementedError

    def serve(self, job: Job) -> Served:
        work = Work(("127.0.0.1", self.port), self.protocol, tuple(map(self.connection, job.questions)))
        before = self.cpu_seconds()
        done = drained(work)
        spent = self.cpu_seconds() - before
        answers = [self.read(reply) for own in done.replies for reply in own]
        return Served(answers, done.ended - done.began, spent, done.cpu_seconds)


class OpenAi(OverSockets):
    name, label, protocol = "openai", "vllm serve (OpenAI HTTP)", "http"

    def command(self) -> list[str]:
        return _vllm(self.setting, self.port, ["--uvicorn-log-level", "warning"])

    def is_ready(self) -> bool:
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
        try:
            link.request("GET", "/health")
            return link.getresponse().status == 200
        except OSError:
            return False
        finally:
            link.close()

    def connection(self, questions: tuple[str, ...]) -> Connection:
        bodies = [
            {
                "model": self.setting.model,
                "messages": [{"role": "user", "content": question}],
                "temperature": 0.0,
                "max_tokens": self.max_tokens(question),
                "stream": True,
                "stream_options": {"include_usage": True},
                "chat_template_kwargs": {"enable_thinking": True},
            }
            for question in questions
        ]
        return openai_http.connection(self.address, "/v1/chat/completions", bodies)

    def read(self, reply: Reply) -> Answered:
        times, tokens = [], 0
        for when, event in openai_http.events(reply):
            if event.get("usage"):
                tokens = event["usage"]["completion_tokens"]
            delta = event["choices"][0]["delta"] if event.get("choices") else {}
            if any(delta.get(name) for name in ("content", "reasoning", "reasoning_content")):
                times.append(when)
        return answered(reply.sent_at, times, tokens)


class Smg(OverSockets):
    name, label = "vllm_grpc", "vllm serve --grpc (token ids only)"

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        if importlib.util.find_spec("smg_grpc_servicer") is None:
            self.missing = "needs smg-grpc-servicer: pip install --no-deps smg-grpc-servicer==0.14.1 smg-grpc-proto"

    def command(self) -> list[str]:
        return _vllm(self.setting, self.port, ["--grpc"])

    def is_ready(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def connection(self, questions: tuple[str, ...]) -> Connection:
        from smg_grpc_proto import vllm_engine_pb2 as smg

        requests = [
            smg.GenerateRequest(
                request_id=f"{time.monotonic_ns()}-{place}",
                tokenized=smg.TokenizedInput(input_ids=self.setting.prompt(question), original_text=question),
                sampling_params=smg.SamplingParams(
                    temperature=0.0,
                    top_p=1.0,
                    repetition_penalty=1.0,
                    max_tokens=self.setting.max_tokens,
                    n=1,
                ),
                stream=True,
            ).SerializeToString()
            for place, question in enumerate(questions)
        ]
        return grpc_frames.connection(self.address, _SMG, requests)

    def read(self, reply: Reply) -> Answered:
        from smg_grpc_proto import vllm_engine_pb2 as smg

        times, tokens = [], 0
        for when, data in grpc_frames.messages(reply):
            message = smg.GenerateResponse.FromString(data)
            if message.chunk.token_ids:
                # Its own counts cover the last chunk alone.
                times.append(when)
                tokens += len(message.chunk.token_ids)
        return answered(reply.sent_at, times, tokens)


class Penstock(OverSockets):
    name, label = "penstock", "Penstock"
    flush_ms = 0
    adaptive_seconds: float | None = 0.0
    """Longest time in seconds that deltas are coalesced while the event loop lags.

    0 sends a message per step, as the other servers do; None is the service's default.
    """

    def command(self) -> list[str]:
        # The embedded model is the default, with its price list.
        settings = _memory(self.setting)
        if self.setting.extra_args:
            settings["engine.extra_args"] = json.dumps(dict(self.setting.extra_args))
        settings |= self.setting.settings
        if self.adaptive_seconds is not None:
            settings["server.adaptive_flush_seconds"] = self.adaptive_seconds
        if self.setting.collector:
            settings |= {"telemetry.otlp": "grpc", "telemetry.otlp_endpoint": self.setting.collector}
            settings |= {"telemetry.engine_traces": "false", "telemetry.logs": "false"}
        flags = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
        return [sys.executable, "-m", "penstock", "serve", "--listen", self.address, *flags, *self._ready_flags]

    @property
    def _ready_flags(self) -> list[str]:
        return ["--ready-file", str(self._ready_file)]

    @property
    def _ready_file(self) -> Path:
        return self.setting.folder / "penstock.ready"

    def is_ready(self) -> bool:
        return self._ready_file.exists()

    def coalescing(self, flush_ms: int) -> Penstock:
        """Return the same server with requests that coalesce deltas."""
        other = Coalescing(self.setting)
        other.port, other.process = self.port, self.process
        other.label = f"Penstock, flush_interval {flush_ms} ms"
        other.flush_ms = flush_ms
        return other

    def connection(self, questions: tuple[str, ...]) -> Connection:
        requests = [self._request(question).SerializeToString() for question in questions]
        return grpc_frames.connection(self.address, _PENSTOCK, requests)

    def _request(self, question: str) -> pb.StreamGenerateRequest:
        spec = pb.GenerationSpec(
            messages=pb.Messages(messages=[pb.Message(role=pb.ROLE_USER, content=question)]),
            thinking=pb.ThinkingConfig(mode=pb.THINKING_MODE_THINKING, answer_reserve=1),
            sampling=pb.SamplingConfig(temperature=0.0),
            output=pb.OutputConfig(max_output_tokens=self.max_tokens(question)),
        )
        request = pb.StreamGenerateRequest(spec=spec)
        request.flush_interval.FromMilliseconds(self.flush_ms)
        return request

    def read(self, reply: Reply) -> Answered:
        times, tokens = [], 0
        for when, data in grpc_frames.messages(reply):
            event = pb.StreamGenerateResponse.FromString(data).event
            kind = event.WhichOneof("event")
            if kind in ("thought", "answer"):
                times.append(when)
            elif kind == "finished":
                usage = event.finished.usage
                tokens = usage.output_tokens + usage.marker_tokens
        return answered(reply.sent_at, times, tokens)


class Coalescing(Penstock):
    name = "penstock_coalescing"


def _memory(setting: Setting) -> dict[str, object]:
    """Return the service's settings for the memory that the plan gives each engine."""
    arguments = setting.plan.arguments
    if "kv_cache_memory_bytes" in arguments:
        return {"engine.kv_cache_gib": float(arguments["kv_cache_memory_bytes"] / 2**30)}
    return {"engine.gpu_memory_utilization": arguments["gpu_memory_utilization"]}


def _vllm(setting: Setting, port: int, more: list[str]) -> list[str]:
    arguments: Mapping[str, Any] = {k: v for k, v in setting.plan.arguments.items() if k not in _NOT_FLAGS}
    flags = [part for name, value in arguments.items() for part in _flag(name, value)]
    where = ["--host", "127.0.0.1", "--port", str(port)]
    return [sys.executable, "-m", "bench.vllm_command", "serve", setting.model, *flags, *where, *more]


# The model is a positional argument; statistics stay on, as by default; the last one is for tests alone.
_NOT_FLAGS = ("model", "disable_log_stats", "use_tqdm_on_load")


def _flag(name: str, value: Any) -> Iterator[str]:
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        yield f"--{flag}" if value else f"--no-{flag}"
        return
    yield f"--{flag}"
    yield json.dumps(value) if isinstance(value, dict) else str(value)


def _cpu_clock(pid: int) -> int:
    """Return the clock of a process' CPU time. Raises OSError if there is no such process."""
    clock = ctypes.c_int()
    if error := ctypes.CDLL(None).clock_getcpuclockid(pid, ctypes.byref(clock)):
        raise OSError(error, os.strerror(error))
    return clock.value


MAKERS: tuple[Callable[[Setting], Contender], ...] = (InProcess, OpenAi, Smg, Penstock)
