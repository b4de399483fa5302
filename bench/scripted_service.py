"""Run a service on the scripted engine in a process of its own, and make the bytes of its calls."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import psutil
from penstock.engine.scripted import Reply
from penstock_bench.load.serving import address_of
from penstock_proto.v1 import generation_pb2 as pb

from bench import grpc_frames
from bench.drain import Connection

METHOD = "/penstock.v1.GenerationService/StreamGenerate"
MAX_STREAMS = 1000
WINDOW_TOKENS = 100_000
SENTENCE = "The quick brown fox jumps over the lazy dog, again and again. "
_START_SECONDS = 60.0


def text_of(tokens: int) -> str:
    """Return a text of `tokens` tokens; the scripted engine's tokens are bytes."""
    return (SENTENCE * (tokens // len(SENTENCE) + 1))[:tokens]


def request(prompt: str = "go", flush_ms: int = 0) -> pb.StreamGenerateRequest:
    """Return a request with a thought and an answer."""
    spec = pb.GenerationSpec(
        messages=pb.Messages(messages=[pb.Message(role=pb.ROLE_USER, content=prompt)]),
        thinking=pb.ThinkingConfig(mode=pb.THINKING_MODE_THINKING),
    )
    made = pb.StreamGenerateRequest(spec=spec)
    made.flush_interval.FromMilliseconds(flush_ms)
    return made


def connection(address: str, made: pb.StreamGenerateRequest) -> Connection:
    """Return a connection that makes one call."""
    return grpc_frames.connection(address, METHOD, [made.SerializeToString()])


@contextmanager
def serving(replies: Sequence[Reply], settings: Sequence[str]) -> Iterator[tuple[psutil.Process, str]]:
    """Start `penstock serve` with these replies and `--set` settings, and end it afterwards.

    Yields its process and its address. Raises `NotServing`.
    """
    with tempfile.TemporaryDirectory() as scratch:
        script, ready = Path(scratch) / "replies.json", Path(scratch) / "ready"
        script.write_text(json.dumps([asdict(reply) for reply in replies]), encoding="utf-8")
        every = [
            f"engine.model={script}",
            f"engine.max_context_tokens={WINDOW_TOKENS}",
            # All streams are of one caller and run at once.
            "admission.max_starts_per_second=1e6",
            f"admission.max_running_sequences={MAX_STREAMS}",
            f"admission.max_queued_calls={MAX_STREAMS}",
            *settings,
        ]
        flags = [part for setting in every for part in ("--set", setting)]
        listening = ["--engine-kind", "scripted", "--listen", "127.0.0.1:0", "--ready-file", str(ready)]
        command = [sys.executable, "-m", "penstock", "serve", *listening, *flags]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            try:
                address = address_of(process, ready, seconds=_START_SECONDS)
                yield psutil.Process(process.pid), address
            finally:
                process.terminate()
