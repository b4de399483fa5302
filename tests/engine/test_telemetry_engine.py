"""`penstock serve` on the real engine, told to a collector: one trace from a client's process to vLLM's own span."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from penstock_proto.v1 import generation_pb2 as pb
from penstock_proto.v1 import generation_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from tests.bad_requests import hello
from tests.rpc.otlp import Collector, attributes, collecting

ROOT = Path(__file__).parents[2]
CLIENT = ROOT / "tests" / "rpc" / "traced_client.py"
LLM_REQUEST = "llm_request"


@asynccontextmanager
async def served(collector: Collector, log: Path) -> AsyncIterator[tuple[str, str, int]]:
    """Address, address of the Prometheus endpoint, and pid of a service of its own. Its progress is JSON on stdout."""
    settings = {
        "telemetry.otlp_endpoint": collector.endpoint,
        "telemetry.prometheus_listen": "127.0.0.1:0",
        "telemetry.log_format": "json",
        "engine.max_batch_tokens": "512",
        "engine.log_level": "INFO",
    }
    flags = [flag for key, value in settings.items() for flag in ("--set", f"{key}={value}")]
    command = (sys.executable, "-m", "penstock", "serve", "--listen", "127.0.0.1:0", "--json", *flags)
    environ = os.environ | {"OTEL_BSP_SCHEDULE_DELAY": "200"}
    with log.open("wb") as stderr:
        service = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=stderr, cwd=ROOT, env=environ
        )
    try:
        assert service.stdout
        metrics = ""
        async for line in service.stdout:
            said = json.loads(line)
            if said["phase"].startswith("metrics on "):
                metrics = said["phase"].removeprefix("metrics on ")
            if "address" in said:
                yield said["address"], metrics, service.pid
                break
    finally:
        if service.returncode is None:
            service.terminate()
        await service.wait()
    assert service.returncode == 0


def parents(collector: Collector) -> list[str]:
    """Return those of vLLM's spans about requests: what they hang on."""
    by_id = {span.span_id: span.name for span in collector.spans}
    return [by_id[span.parent_span_id] for span in collector.named(LLM_REQUEST) if span.parent_span_id]


def names_of_call(collector: Collector) -> set[str]:
    """Names of the spans in the trace of the client's own."""
    traces = {span.trace_id for span in collector.named("ask")}
    return {span.name for span in collector.spans if span.trace_id in traces}


@pytest.mark.timeout(900)
async def test_vllms_spans_and_metrics_join_ours_and_go_on_after_a_killed_engine(tmp_path: Path) -> None:
    log = tmp_path / "stderr"
    with collecting() as collector:
        async with served(collector, log) as (address, metrics, pid):
            client = await asyncio.create_subprocess_exec(sys.executable, str(CLIENT), address, collector.endpoint)
            assert await client.wait() == 0
            # Each process sends its spans in its own time.
            whole = {"ask", "chat penstock-demo", LLM_REQUEST}
            await asyncio.to_thread(
                collector.wait_for, lambda: names_of_call(collector) >= whole and parents(collector)
            )
            assert set(parents(collector)) == {"penstock.engine_run"}
            await _killed_under_a_stream(address, pid, collector)
            found = {
                sample.name
                for family in text_string_to_metric_families(await asyncio.to_thread(_read, metrics))
                for sample in family.samples
            }
    # What a Gateway API endpoint picker reads, beside ours.
    assert found >= {
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "vllm:kv_cache_usage_perc",
        "penstock_engine_preemptions_total",
        "penstock_engine_prefix_cache_tokens_total",
        "penstock_engine_drafts_accepted_total",
    }
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    assert {line["process"] for line in lines if line["logger"].startswith("vllm")} >= {"MainProcess", "EngineCore"}
    bodies = [line.body.string_value for line in collector.logs]
    assert any("engine restarted" in body for body in bodies)
    assert len(bodies) > 5


async def _killed_under_a_stream(address: str, pid: int, collector: Collector) -> None:
    """Both the run that died and the one that went on are in the stream's own trace, and vLLM's span hangs on it."""
    output = pb.OutputConfig(max_output_tokens=600, min_output_tokens=600)
    fast = pb.ThinkingConfig(mode=pb.THINKING_MODE_FAST)
    async with grpc.aio.insecure_channel(address) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        call = stub.StreamGenerate(pb.StreamGenerateRequest(spec=hello("What is 1 + 2?", output=output, thinking=fast)))
        replies = call.__aiter__()
        for _ in range(5):
            await anext(replies)
        for child in psutil.Process(pid).children(recursive=True):
            child.kill()
        assert [reply async for reply in replies][-1].event.HasField("finished")
    # Service and engine send their spans in their own time.
    await asyncio.to_thread(collector.wait_for, lambda: _died_and_went_on(collector))
    died, went_on = _died_and_went_on(collector)
    assert died.trace_id == went_on.trace_id


def _died_and_went_on(collector: Collector) -> tuple[Any, ...]:
    """Return the run that died and the one that went on, once both have come and vLLM's span of the latter."""
    runs = [(span, attributes(span)) for span in collector.named("penstock.engine_run")]
    died = [span for span, said in runs if said.get("penstock.run.end") == "engine_died"]
    parents = {span.parent_span_id for span in collector.named(LLM_REQUEST)}
    went_on = [
        span for span, said in runs if said.get("penstock.run.cause") == "engine_death" and span.span_id in parents
    ]
    return (died[0], went_on[0]) if died and went_on else ()


def _read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as reply:
        return str(reply.read().decode())
