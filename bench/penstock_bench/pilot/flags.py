"""Red flags: what an architect should know before buying, each with its evidence and what to do. Pure.

Every check ends raised, clear, or not observed (with the reason): what was not looked at must not pass for good.
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
    """All of them, the raised ones first, those not observed last."""
    limits = limits or FlagThresholds()
    found = [Flag(rule.id, rule.title, *rule.check(result, limits), rule.advice) for rule in _RULES]
    return sorted(found, key=lambda flag: list(State).index(flag.state))


_RULES = (
    _Rule(
        "budget_overshoot",
        "Thoughts overshoot their budget",
        checks_model.overshoot,
        "A budget must hold exactly: report it as a bug, with the profile and the setting it happened in.",
    ),
    _Rule(
        "calls_lost",
        "Calls are lost",
        checks_load.lost,
        "Read the service's log for the named errors; refusals mean that the queue is full: raise admission"
        " limits only if latency allows, else add replicas.",
    ),
    _Rule(
        "no_answer",
        "All thought, no answer",
        checks_model.no_answer,
        "Raise max_output_tokens or the answer reserve, so that thought and answer both fit.",
    ),
    _Rule(
        "deadline_misses",
        "Deadlines are missed",
        checks_model.deadlines,
        "Give AUTO more time or a larger thinking.deadline_margin_seconds; serve fewer sequences side by"
        " side; check that callers send their deadline.",
    ),
    _Rule(
        "deadline_starves_thought",
        "Deadlines starve the thought",
        checks_model.deadline_thought,
        "AUTO plans by the pace it measures and keeps the answer reserve free: lower answer_reserve where answers"
        " are short, give more time, or ask for THINKING with a budget.",
    ),
    _Rule(
        "burst_p99",
        "Bursts hurt everybody",
        checks_load.burst,
        "Keep spare replicas or scale on the queue, shed LOW priority first, or lower engine.max_batch_tokens"
        " so that long prompts do not block streams.",
    ),
    _Rule(
        "kv_pressure",
        "The KV cache is full",
        checks_load.kv,
        "Fewer sequences (engine.max_concurrent_requests), shorter contexts (engine.max_context_tokens), FP8"
        " KV cache, or more memory; preempted requests are computed twice.",
    ),
    _Rule(
        "expert_imbalance",
        "Busy experts stall the others",
        checks_model.imbalance,
        "Spread by expert parallel with EPLB and redundant experts (engine.eplb), or use tensor parallel,"
        " which cuts every expert up.",
    ),
    _Rule(
        "drafts_rejected",
        "Drafts are rejected",
        checks_model.drafts,
        "Fewer engine.mtp_draft_tokens, or engine.mtp = off: rejected drafts cost compute that full batches need.",
    ),
    _Rule(
        "drafts_lose_at_load",
        "Drafts lose with many callers",
        checks_published.drafts_at_load,
        "Measure again with engine.mtp = off at this load, and use `penstock bench compare`: a published run lost"
        " a third with drafts at 64 streams. Fewer engine.mtp_draft_tokens lose less.",
    ),
    _Rule(
        "drafts_lose_at_length",
        "Drafts fail after long prompts",
        checks_published.drafts_long_context,
        "Measure drafts at the lengths you will serve; published acceptance falls by half towards 86,000 tokens."
        " Serve long prompts from replicas with engine.mtp = off.",
    ),
    _Rule(
        "thoughts_cut",
        "Thoughts eat the budget",
        checks_model.thoughts_cut,
        "Raise the default budget, or send what needs no thought as FAST or AUTO; a cut thought was paid for"
        " and not finished.",
    ),
    _Rule(
        "thoughts_unpaid",
        "Thought that does not pay",
        checks_model.thoughts_unpaid,
        "Set thinking.default_budget_tokens near the cheaper setting, or default to AUTO; `penstock eval`"
        " measures it on your own questions.",
    ),
    _Rule(
        "prefix_cache_idle",
        "Shared prefixes are computed again",
        checks_load.prefixes,
        "Check prefix_caching in the profile; make the shared part longer than a cache block and put it"
        " first; send callers with the same prefix to the same replica.",
    ),
    _Rule(
        "prefix_never_hits",
        "Prefixes hardly ever hit",
        checks_published.prefixes_never_hit,
        "On hybrid models a prefix is found only up to the end of a whole block with its states: check prefix_caching"
        " in the profile, and plan as if every prompt were read in full.",
    ),
    _Rule(
        "knee_reached",
        "The knee is reached",
        checks_published.knee,
        "More callers only wait: plan with rates below the knee, cap engine.max_concurrent_requests where the output"
        " rate stops growing, and add replicas for more.",
    ),
    _Rule(
        "machine_busy",
        "The machine did other work",
        checks_published.machine,
        "Measure again on a machine that does nothing else: other work takes time from the service, and runs differ.",
    ),
    _Rule(
        "latency_drift",
        "It gets slower with time",
        checks_load.drift,
        "The load is above what it sustains: queue and batch grow. Scale out, or admit fewer sequences.",
    ),
    _Rule(
        "memory_growth",
        "Memory grows",
        checks_load.growth,
        "Watch it over hours; if it goes on, report it, with resumable streams and telemetry on and off.",
    ),
    _Rule(
        "front_end_bound",
        "The front end is the bottleneck",
        checks_load.front_end,
        "Ask for flush_interval in clients, log less, or put more replicas with fewer sequences each.",
    ),
    _Rule(
        "generator_late",
        "The load generator was late",
        checks_load.generator,
        "The figures are the generator's as much as the service's: run it on another machine.",
    ),
)
