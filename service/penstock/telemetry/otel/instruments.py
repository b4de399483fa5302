"""Define metrics. Labels are bounded: methods, modes, outcomes, causes and reasons of this API, and one model name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import get_args

from opentelemetry.metrics import CallbackOptions, Histogram, Meter, Observation

from penstock.engine.base import EngineLoad
from penstock.engine.expert_load.statistics import ExpertLoad, LayerLoad, busiest_rank_share
from penstock.errors import ConfigError, FieldReason, PenstockError
from penstock.telemetry.hooks import ServiceState
from penstock.telemetry.otel import names
from penstock.telemetry.otel.span import Span
from penstock.types import Cost, Usage

# A long thought may run for an hour; the buckets of the conventions end at 82 s (GenAI) and 10 s (RPC).
_CALL_SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 40, 80, 160, 320, 640, 1280, 2560)
_FIRST_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_TOKEN_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)
_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576)
_THOUGHT_TOKENS = (0, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)

State = Callable[[], ServiceState]
Labels = Mapping[str, str]
Labelled = tuple[float, Labels]


class Instruments:
    """Create the instruments once. Durations and sizes are recorded with their span, for exemplars."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._histograms(meter)
        self._counters(meter)

    def _histograms(self, meter: Meter) -> None:
        def histogram(name: str, unit: str, description: str, bounds: Sequence[float]) -> Histogram:
            return meter.create_histogram(name, unit, description, explicit_bucket_boundaries_advisory=bounds)

        self.rpc_duration = histogram(names.RPC_DURATION, "s", "Duration of RPCs, by method and status", _CALL_SECONDS)
        self.request_duration = histogram(
            names.REQUEST_DURATION, "s", "Duration of generations, with their time in the queue", _CALL_SECONDS
        )
        self.time_to_first_token = histogram(
            names.TIME_TO_FIRST_TOKEN, "s", "Time from arrival to the first token", _FIRST_SECONDS
        )
        self.time_to_first_answer_token = histogram(
            names.TIME_TO_FIRST_ANSWER_TOKEN, "s", "Time from arrival to the first token of the answer", _CALL_SECONDS
        )
        self.time_per_output_token = histogram(
            names.TIME_PER_OUTPUT_TOKEN, "s", "Mean time between two tokens of one candidate", _TOKEN_SECONDS
        )
        self.queue_wait = histogram(names.QUEUE_WAIT, "s", "Time that calls waited for admission", _FIRST_SECONDS)
        self.token_usage = histogram(
            names.TOKEN_USAGE, "{token}", "Tokens of one generation, by type (input, output)", _TOKENS
        )
        self.budget_planned = histogram(
            names.BUDGET_PLANNED, "{token}", "Thinking budgets of generations that may think", _THOUGHT_TOKENS
        )
        self.budget_spent = histogram(
            names.BUDGET_SPENT, "{token}", "Thought tokens of candidates that thought", _THOUGHT_TOKENS
        )

    def _counters(self, meter: Meter) -> None:
        counter = meter.create_counter
        self.tokens = counter(names.TOKENS, "{token}", "Tokens, by type; cached is a part of input")
        self.speculated = counter(
            names.SPECULATED, "{token}", "Draft tokens of completed engine runs, by result (drafted, accepted)"
        )
        self.thoughts = counter(names.THOUGHTS, "{thought}", "Candidates, by mode and by how their thought ended")
        self.refusals = counter(names.REFUSALS, "{call}", "Calls that ended with an error, by reason")
        # Present from the start: a counter that first appears with a value hides its first event from `increase()`.
        # Errors without a reason of their own end a command and are never sent.
        never_sent = {PenstockError.reason, ConfigError.reason}
        reasons = {kind.reason for kind in PenstockError.__subclasses__()} - never_sent
        for reason in sorted(reasons.union(get_args(FieldReason))):
            self.refusals.add(0, {names.REASON: reason})
        self.continuations = counter(
            names.CONTINUATIONS, "{run}", "Engine runs after a candidate's first one, by cause"
        )
        self.cost = counter(names.COST_TOTAL, "{tick}", "Cost of generations by the price list, in ticks of 1e-10 USD")

    def count(self, usage: Usage, cost: Cost | None, span: Span, of_model: Labels) -> None:
        """Count the tokens and the cost of one generation."""
        for kind, tokens in (("input", usage.prompt_tokens), ("output", usage.output_tokens)):
            self.token_usage.record(tokens, {**of_model, names.TOKEN_TYPE: kind}, span.in_context)
        counts = {
            "input": usage.prompt_tokens,
            "cached": usage.cached_tokens,
            "thought": usage.thought_tokens,
            "answer": usage.answer_tokens,
            "tool": usage.tool_tokens,
            "marker": usage.marker_tokens,
            "recomputed": usage.recomputed_tokens,
            "probe": usage.probe_tokens,
        }
        for kind, tokens in counts.items():
            self.tokens.add(tokens, {names.KIND: kind})
        if usage.drafted_tokens is not None and usage.accepted_tokens is not None:
            self.speculated.add(usage.drafted_tokens, {names.RESULT: "drafted"})
            self.speculated.add(usage.accepted_tokens, {names.RESULT: "accepted"})
        if cost is not None:
            self.cost.add(cost.total_usd_ticks)

    def watch(self, state: State) -> None:
        """Create the gauges, which are read when metrics are collected."""
        for name, unit, description, read in _GAUGES:
            self._meter.create_observable_gauge(name, [_callback(state, read)], unit, description)
        for name, unit, description, read in _COUNTERS:
            self._meter.create_observable_counter(name, [_callback(state, read)], unit, description)


Read = Callable[[ServiceState], Iterable[Labelled]]


def _callback(state: State, read: Read) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def observe(options: CallbackOptions) -> Iterable[Observation]:
        return [Observation(value, labels) for value, labels in read(state())]

    return observe


def _one(read: Callable[[ServiceState], float]) -> Read:
    return lambda state: [(read(state), {})]


def _load(read: Callable[[EngineLoad], float]) -> Read:
    return lambda state: [(read(state.load), {})] if state.load is not None else []


def _up(state: ServiceState) -> Iterable[Labelled]:
    return [(int(state.engine_is_up), {names.MODEL: state.model})]


def _prefix(state: ServiceState) -> Iterable[Labelled]:
    load = state.load
    if load is None:
        return []
    return [
        (load.prefix_queried_tokens, {names.RESULT: "queried"}),
        (load.prefix_hit_tokens, {names.RESULT: "hit"}),
    ]


def _accepted(state: ServiceState) -> Iterable[Labelled]:
    return [
        (count, {names.POSITION: str(place)})
        for place, count in enumerate(state.load.accepted_by_position if state.load else (), start=1)
    ]


def _layers(read: Callable[[ExpertLoad, LayerLoad], float]) -> Read:
    """Return one series per MoE layer, however many experts it has."""

    def values(state: ServiceState) -> Iterable[Labelled]:
        load = state.experts
        return [(read(load, layer), {names.LAYER: str(layer.layer_index)}) for layer in load.layers] if load else []

    return values


def _routed(state: ServiceState) -> Iterable[Labelled]:
    return [(state.experts.token_count, {})] if state.experts else []


def _rank_imbalance(load: ExpertLoad, layer: LayerLoad) -> float:
    return busiest_rank_share(layer.counts, load.ranks) * load.ranks


_GAUGES: tuple[tuple[str, str, str, Read], ...] = (
    (names.UP, "", "Whether the engine takes work (1) or not (0)", _up),
    (names.DRAINING, "", "Whether the server is draining (1) or not (0)", _one(lambda s: int(s.draining))),
    (names.QUEUE_CALLS, "{call}", "Calls that wait for admission", _one(lambda s: s.queued_calls)),
    (names.QUEUE_TOKENS, "{token}", "Tokens that wait for admission", _one(lambda s: s.queued_tokens)),
    (names.CALLS, "{call}", "Calls that were admitted and run", _one(lambda s: s.running_calls)),
    (names.SEQUENCES, "{sequence}", "Candidates that were admitted and run", _one(lambda s: s.running_sequences)),
    (names.CAPACITY, "{sequence}", "Candidates that may run at once", _one(lambda s: s.capacity_sequences)),
    (names.RESUMABLE, "{stream}", "Resumable streams that are kept", _one(lambda s: s.resumable_streams)),
    (names.LOOP_LAG, "s", "How late the event loop runs due callbacks, smoothed", _one(lambda s: s.loop_lag_seconds)),
    (names.LOOP_BUSY, "1", "Share of a core that the event loop takes, smoothed", _one(lambda s: s.loop_busy_share)),
    (names.RUNNING, "{request}", "Requests that run in the engine", _load(lambda e: e.running_requests)),
    (names.WAITING, "{request}", "Requests that wait in the engine", _load(lambda e: e.waiting_requests)),
    (names.KV_USAGE, "1", "Share of the KV cache in use on the fullest rank", _load(lambda e: e.kv_cache_usage)),
    (names.EXPERT_TOKENS, "{token}", "Tokens in the window of the expert metrics", _routed),
    (
        names.EXPERT_IMBALANCE,
        "",
        "Load of the busiest expert divided by the mean, by layer",
        _layers(lambda _, layer: layer.imbalance),
    ),
    (
        names.EXPERT_ENTROPY,
        "",
        "Normalized entropy of the experts' load, by layer; 1 is even",
        _layers(lambda _, layer: layer.normalized_entropy),
    ),
    (
        names.EXPERTS_HOT,
        "",
        "Experts with more than twice the mean load, by layer",
        _layers(lambda _, layer: len(layer.hot_experts)),
    ),
    (names.RANK_IMBALANCE, "", "Load of the busiest rank divided by the mean, by layer", _layers(_rank_imbalance)),
)
_COUNTERS: tuple[tuple[str, str, str, Read], ...] = (
    (names.RESTARTS, "{restart}", "Restarts of the engine", _one(lambda s: s.engine_restarts)),
    (
        names.STEPS,
        "{step}",
        "Engine steps; no steps while requests wait means that the engine hangs",
        _load(lambda e: e.steps),
    ),
    (
        names.PREEMPTIONS,
        "{request}",
        "Requests that were preempted because the KV cache was full",
        _load(lambda e: e.preemptions),
    ),
    (names.PREFIX_TOKENS, "{token}", "Prompt tokens by prefix cache lookup (queried, hit)", _prefix),
    (names.DRAFTS_ACCEPTED, "{token}", "Accepted draft tokens, by position in the draft", _accepted),
)
