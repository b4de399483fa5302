"""Check a pilot for red flags: problems to know before buying, each with its evidence and advice. No I/O.

Each check ends as raised, clear, or not observed (with the reason), so that a missing check does not look like a good
one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from penstock_bench.pilot import checks_load, checks_model, checks_published
from penstock_bench.pilot.flag import CheckResult, Flag, FlagThresholds, State
from penstock_bench.pilot.results import Result


@dataclass(frozen=True, slots=True)
class _Rule:
    id: str
    title: str
    check: Callable[[Result, FlagThresholds], CheckResult]
    advice: str


def check_all(result: Result, limits: FlagThresholds | None = None) -> list[Flag]:
    """Return all flags: first the raised ones, last those not observed."""
    limits = limits or FlagThresholds()
    found = [Flag(rule.id, rule.title, *rule.check(result, limits), rule.advice) for rule in _RULES]
    return sorted(found, key=lambda flag: list(State).index(flag.state))


_RULES = (
    _Rule(
        "budget_overshoot",
        "Thoughts exceed their budget",
        checks_model.overshoot,
        "A budget must hold exactly: report it as a bug, with the profile and the setting it happened in.",
    ),
    _Rule(
        "calls_lost",
        "Calls are lost",
        checks_load.lost,
        "Look for the named errors in the service's log. Refusals mean that the queue is full: raise the admission"
        " limits only if latency allows it, else add replicas.",
    ),
    _Rule(
        "no_answer",
        "Thought without an answer",
        checks_model.no_answer,
        "Raise max_output_tokens or the answer reserve, so that thought and answer both fit.",
    ),
    _Rule(
        "deadline_misses",
        "Deadlines are missed",
        checks_model.deadlines,
        "Give AUTO more time or a larger thinking.deadline_margin_seconds, run fewer sequences at once, and check"
        " that callers send their deadline.",
    ),
    _Rule(
        "deadline_starves_thought",
        "Deadlines leave too little thought",
        checks_model.deadline_thought,
        "AUTO plans with the speed that it measures, and reserves tokens for the answer. Lower answer_reserve if"
        " answers are short, give more time, or use THINKING with a budget.",
    ),
    _Rule(
        "burst_p99",
        "Bursts delay all calls",
        checks_load.burst,
        "Keep spare replicas, scale on the queue, send less urgent calls with priority LOW, or lower"
        " engine.max_batch_tokens so that long prompts do not block streams.",
    ),
    _Rule(
        "kv_pressure",
        "The KV cache is full",
        checks_load.kv,
        "Run fewer sequences (engine.max_concurrent_requests), allow shorter contexts (engine.max_context_tokens), use"
        " an FP8 KV cache, or add memory. Preempted requests are computed twice.",
    ),
    _Rule(
        "expert_imbalance",
        "Busy experts delay the others",
        checks_model.imbalance,
        "Use expert parallelism with EPLB and redundant experts (engine.eplb), or tensor parallelism, which divides"
        " each expert.",
    ),
    _Rule(
        "drafts_rejected",
        "Drafts are rejected",
        checks_model.drafts,
        "Lower engine.mtp_draft_tokens, or set engine.mtp = off: rejected drafts use compute that full batches need.",
    ),
    _Rule(
        "drafts_lose_at_load",
        "Drafts cost throughput with many callers",
        checks_published.drafts_at_load,
        "Measure again with engine.mtp = off at this load, and use `penstock bench compare`: a published run lost a"
        " third of its throughput with drafts at 64 streams. A lower engine.mtp_draft_tokens costs less.",
    ),
    _Rule(
        "drafts_lose_at_length",
        "Drafts are rejected after long prompts",
        checks_published.drafts_long_context,
        "Measure drafts at the lengths that you will serve: published acceptance falls by half up to 86,000 tokens."
        " Serve long prompts from replicas with engine.mtp = off.",
    ),
    _Rule(
        "thoughts_cut",
        "Budgets cut many thoughts",
        checks_model.thoughts_cut,
        "Raise the default budget, or use FAST or AUTO for questions that need no thought. A cut thought is paid for"
        " and not finished.",
    ),
    _Rule(
        "thoughts_unpaid",
        "Long thoughts do not improve answers",
        checks_model.thoughts_unpaid,
        "Set thinking.default_budget_tokens near the cheaper setting, or make AUTO the default. `penstock eval`"
        " measures both on your own questions.",
    ),
    _Rule(
        "prefix_cache_idle",
        "Shared prefixes are computed again",
        checks_load.prefixes,
        "Check prefix_caching in the profile. Make the shared part longer than a cache block, put it first, and send"
        " callers with the same prefix to the same replica.",
    ),
    _Rule(
        "prefix_never_hits",
        "Prefixes are almost never found in the cache",
        checks_published.prefixes_never_hit,
        "On hybrid models a prefix is found only up to the end of a whole block with its states. Check prefix_caching"
        " in the profile, and plan as if each prompt were read in full.",
    ),
    _Rule(
        "knee_reached",
        "The knee is reached",
        checks_published.knee,
        "More callers only wait. Plan with rates below the knee, limit engine.max_concurrent_requests to where the"
        " output rate stops growing, and add replicas for more.",
    ),
    _Rule(
        "machine_busy",
        "The machine did other work",
        checks_published.machine,
        "Measure again on a machine that does nothing else: other work slows the service and changes the figures.",
    ),
    _Rule(
        "latency_drift",
        "The service gets slower with time",
        checks_load.drift,
        "The load is above what the service sustains: queue and batch grow. Add replicas, or admit fewer sequences.",
    ),
    _Rule(
        "memory_growth",
        "Memory grows",
        checks_load.growth,
        "Observe it for hours. If it continues, report it, with resumable streams and telemetry on and off.",
    ),
    _Rule(
        "front_end_bound",
        "The front end is the bottleneck",
        checks_load.front_end,
        "Use flush_interval in clients, log less, or run more replicas with fewer sequences each.",
    ),
    _Rule(
        "generator_late",
        "The load generator was late",
        checks_load.generator,
        "The figures include delays of the generator: run it on another machine.",
    ),
)
