"""Metrics as Prometheus and a collector get them, the dashboard and rules held against them, and what telling costs."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import urllib.request
from array import array
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from msgspec import structs
from penstock.config.schema import Config, TelemetrySettings
from penstock.engine.base import EngineLoad
from penstock.engine.expert_load.statistics import ExpertCounts
from penstock.engine.scripted import Reply, ScriptedEngine
from penstock.server.server import Server
from penstock.telemetry.hooks import TelemetryHooks
from penstock.telemetry.otel.plan import plan_telemetry
from penstock.telemetry.otel.start import Telemetry
from penstock.types import EngineChunk, EngineRequest
from penstock_proto.v1 import generation_pb2 as pb
from penstock_proto.v1 import generation_pb2_grpc, routing_pb2, routing_pb2_grpc
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from bench.telemetry_calls import one_real_call, report_to
from tests.rpc.otlp import collecting
from tests.rpc.secure import channel as at
from tests.rpc.secure import listening, until
from tests.rpc.test_stream import spec, stream
from tests.tooling import program

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "prometheus" / "rules.yml"
RULES_TEST = RULES.with_name("rules_test.yml")
DASHBOARD = ROOT / "deploy" / "grafana" / "penstock.json"
METRICS_PAGE = ROOT / "docs/reference/metrics.md"
THINKING = pb.ThinkingConfig(mode=pb.THINKING_MODE_THINKING)
LONG = Reply(thought="a thought that goes on " * 20, answer="and its answer " * 4)
REPLY = Reply(thought="a thought of some length", answer="an answer that goes on")
PRICES = {"tiers": [{"input_usd_per_million": "0.4", "output_usd_per_million": "2.4"}]}


class Drafting(ScriptedEngine):
    """Counts as an engine that speculates, caches and has experts would."""

    asked = 0

    def load(self) -> EngineLoad:
        return replace(super().load(), accepted_by_position=(3, 1), prefix_queried_tokens=64, prefix_hit_tokens=32)

    async def expert_counts(self) -> ExpertCounts:
        self.asked += 1
        row = array("q", [self.asked, 0, self.asked, 2 * self.asked])
        return ExpertCounts(2, 2, {0: row, 1: row})

    async def stream(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:
        async for chunk in super().stream(request):
            yield structs.replace(chunk, drafted_tokens=4, accepted_tokens=2) if chunk.stop else chunk


@asynccontextmanager
async def serving(hooks: TelemetryHooks, *replies: Reply) -> AsyncIterator[grpc.aio.Channel]:
    config = Config.model_validate({"server": {"listen": "127.0.0.1:0"}, "pricing": PRICES})
    server = Server(config, hooks)
    address = await server.listen()
    await server.serve_with(Drafting(replies))
    async with grpc.aio.insecure_channel(address) as channel:
        yield channel
    await server.drain(0)


@asynccontextmanager
async def telling(**settings: Any) -> AsyncIterator[Telemetry]:
    wanted = TelemetrySettings.model_validate(settings)
    telemetry = Telemetry(plan_telemetry(wanted, {}), wanted)
    yield telemetry
    await telemetry.close()


async def scrape(telemetry: Telemetry, kind: str = "text/plain") -> str:
    assert telemetry.endpoint is not None
    request = urllib.request.Request(f"http://{telemetry.endpoint.address}/metrics", headers={"Accept": kind})

    def read() -> str:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return str(reply.read().decode())

    return await asyncio.to_thread(read)


def samples(text: str) -> dict[str, float]:
    """Sums over all labels, by sample name."""
    sums: dict[str, float] = {}
    for family in parse_text(text):
        for sample in family.samples:
            sums[sample.name] = sums.get(sample.name, 0) + sample.value
    return sums


async def some_of_everything(channel: grpc.aio.Channel) -> None:
    await stream(channel, spec(thinking=THINKING))
    await stream(channel, spec(thinking=pb.ThinkingConfig(mode=pb.THINKING_MODE_THINKING, thinking_budget=5)))
    with pytest.raises(grpc.aio.AioRpcError):
        await stream(channel, spec(output=pb.OutputConfig(max_output_tokens=-1)))


def named_metrics() -> set[str]:
    """Every metric that the dashboard and the rules ask for."""
    rules = [rule["expr"] for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    panels = [t["expr"] for p in json.loads(DASHBOARD.read_text())["panels"] for t in p.get("targets", ())]
    names = {name for expr in rules + panels for name in re.findall(r"\b(?:penstock|gen_ai|rpc|vllm)[a-z_0-9:]+", expr)}
    labels = {"rpc_response_status_code"}
    return names - labels


async def test_every_metric_that_dashboard_and_rules_name_is_in_a_live_scrape() -> None:
    async with telling(prometheus_listen=":0") as telemetry, serving(telemetry.hooks, REPLY) as channel:
        await some_of_everything(channel)
        found = samples(await scrape(telemetry))
    named = named_metrics()
    assert len(named) > 25
    assert named - found.keys() == set()


async def test_the_metrics_page_names_every_label_of_a_live_scrape() -> None:
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \|", METRICS_PAGE.read_text(encoding="utf-8"), re.M)
    documented = {name.removesuffix("_total"): set(re.findall(r"`(\w+)`", labels)) for name, labels in rows}
    async with telling(prometheus_listen=":0") as telemetry, serving(telemetry.hooks, REPLY) as channel:
        await some_of_everything(channel)
        families = [
            one for one in parse_text(await scrape(telemetry)) if one.name.startswith(("penstock", "gen_ai", "rpc"))
        ]
    assert len(families) > 20
    for family in families:
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        assert labels <= documented[family.name], family.name


@pytest.mark.slow
@pytest.mark.needs("promtool")
def test_promtool_accepts_the_rules() -> None:
    for asked in (["check", "rules", RULES], ["test", "rules", RULES_TEST]):
        result = subprocess.run([program("promtool"), *asked], capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout + result.stderr


def test_every_alert_has_a_case_in_which_it_fires() -> None:
    alerts = {rule["alert"] for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]}
    cases = [case for test in yaml.safe_load(RULES_TEST.read_text())["tests"] for case in test["alert_rule_test"]]
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == alerts


def test_the_dashboard_is_what_its_script_writes() -> None:
    assert subprocess.run([sys.executable, "scripts/dashboard", "--check"], cwd=ROOT, check=False).returncode == 0


async def test_counts_are_those_of_the_calls() -> None:
    async with telling(prometheus_listen=":0") as telemetry, serving(telemetry.hooks, REPLY) as channel:
        await some_of_everything(channel)
        text = await scrape(telemetry)
        sums = samples(text)
    by_labels = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in parse_text(text)
        for sample in family.samples
    }
    assert by_labels["penstock_tokens_total", ("type", "thought")] == len(REPLY.thought) + 5
    assert by_labels["penstock_continuations_total", ("cause", "budget")] == 1
    assert by_labels["penstock_refusals_total", ("reason", "INVALID_FIELD")] == 1
    assert by_labels["penstock_thoughts_total", ("mode", "thinking"), ("outcome", "natural_end")] == 1
    assert by_labels["penstock_thoughts_total", ("mode", "thinking"), ("outcome", "budget_reached")] == 1
    assert sums["rpc_server_call_duration_seconds_count"] == 3
    assert sums["gen_ai_server_time_to_first_token_seconds_count"] == 2
    assert sums["penstock_cost_usd_ticks_total"] > 0
    # Beside ours: the process' own, and vLLM's wherever it runs in this process.
    assert sums["process_resident_memory_bytes"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("where", ["running", "queued"])
async def test_a_cancelled_thought_is_counted_once(where: str) -> None:
    never = Reply(thought="never", step_seconds=86_400)
    settings = {"admission": {"max_running_sequences": 1}}
    async with (
        telling(prometheus_listen=":0") as telemetry,
        listening(settings, never, hooks=telemetry.hooks) as (server, address),
        at(address) as channel,
    ):
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        if where == "queued":
            first = stub.StreamGenerate(pb.StreamGenerateRequest(spec=spec()))
            await first.read()
        call = stub.Interact()
        await call.write(pb.InteractRequest(start=spec(thinking=THINKING)))

        async def waits() -> bool:
            state = server.state()
            return bool(state.queued_calls if where == "queued" else state.load and state.load.running_requests)

        await until(waits)
        await call.write(pb.InteractRequest(cancel=pb.Cancel()))
        while await call.read() is not grpc.aio.EOF:
            pass
        text = await scrape(telemetry)
    thoughts = [
        (sample.labels["outcome"], sample.value)
        for family in parse_text(text)
        for sample in family.samples
        if sample.name == "penstock_thoughts_total"
    ]
    assert thoughts == [("cancelled", 1)]


async def test_experts_are_told_by_layer_and_never_one_by_one() -> None:
    async with telling(prometheus_listen=":0") as telemetry, serving(telemetry.hooks, REPLY) as channel:
        routing = routing_pb2_grpc.RoutingServiceStub(channel)
        for _ in range(2):
            load = (await routing.GetExpertLoad(routing_pb2.GetExpertLoadRequest())).load
        text = await scrape(telemetry)
    told = [
        (sample.name.removeprefix("penstock_experts_"), sample.labels, sample.value)
        for family in parse_text(text)
        for sample in family.samples
        if sample.name.startswith("penstock_experts_")
    ]
    by_layer = {name: value for name, labels, value in told if labels == {"layer": "1"}}
    assert by_layer == {
        "imbalance": 2.0,
        "entropy": pytest.approx(0.75),
        "hot": 0.0,
        "rank_imbalance": 1.5,
    }
    assert ("tokens", {}, load.token_count) in told
    assert len(told) == 1 + 2 * len(by_layer)


@pytest.mark.slow
async def test_openmetrics_has_exemplars_of_traces() -> None:
    with collecting() as collector:
        async with (
            telling(prometheus_listen=":0", otlp="grpc", otlp_endpoint=collector.endpoint) as telemetry,
            serving(telemetry.hooks, REPLY) as channel,
        ):
            await some_of_everything(channel)
            text = await scrape(telemetry, "application/openmetrics-text; version=1.0.0")
    exemplars = [
        sample.exemplar.labels["trace_id"]
        for family in parse_openmetrics(text)
        for sample in family.samples
        if sample.exemplar
    ]
    assert set(exemplars) <= {span.trace_id.hex() for span in collector.spans}
    assert len(set(exemplars)) >= 2
    # The collector got the same instruments, with buckets that hold a generation of half an hour.
    duration = collector.metrics["gen_ai.server.request.duration"]
    points = duration.histogram.data_points
    assert sum(point.count for point in points) == 3
    assert max(points[0].explicit_bounds) > 1800
    assert any(point.exemplars for point in points)


@pytest.mark.slow
async def test_callers_cannot_make_series() -> None:
    async def series(telemetry: Telemetry) -> int:
        return sum(len(family.samples) for family in parse_text(await scrape(telemetry)))

    async with telling(prometheus_listen=":0") as telemetry, serving(telemetry.hooks, REPLY) as channel:
        await some_of_everything(channel)
        for round_ in range(2):
            for number in range(40):
                odd = f"odd-{round_}-{number}"
                context = pb.ContextConfig(session_id=odd, cache_salt=odd)
                with pytest.raises(grpc.aio.AioRpcError):
                    await stream(channel, spec(odd, model=odd))
                await stream(channel, spec(odd, context=context))
            if round_ == 0:
                before = await series(telemetry)
        assert await series(telemetry) == before


async def test_the_call_that_the_bench_repeats_is_told_whole() -> None:
    """`bench.telemetry_calls` says 7 spans, 10 histogram values and 8 additions."""
    kept = await one_real_call()
    with collecting() as collector:
        async with telling(otlp="grpc", otlp_endpoint=collector.endpoint) as telemetry:
            report_to(telemetry.hooks, kept)
    histograms = [metric.histogram for metric in collector.metrics.values() if metric.HasField("histogram")]
    assert len(collector.spans) == 7
    assert len({span.trace_id for span in collector.spans}) == 1
    assert sum(point.count for histogram in histograms for point in histogram.data_points) == 10
    assert len(collector.metrics["penstock.tokens"].sum.data_points) == 8
    assert {"penstock.thoughts", "penstock.cost.usd_ticks"} <= collector.metrics.keys()
