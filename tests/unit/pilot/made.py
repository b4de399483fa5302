"""Results of pilots that never were: a healthy one, and changes to it."""

from __future__ import annotations

from typing import Any

from penstock_bench.pilot.results import (
    Answers,
    EngineSeen,
    Experts,
    Kind,
    Knee,
    KneePoint,
    Layer,
    Prices,
    Result,
    Seconds,
    Stage,
    points_of,
)


def seconds(p50: float | None, p99: float | None = None, *, lost: int = 0) -> Seconds:
    high = p50 if p99 is None and not lost else p99
    return Seconds(count=200, lost=lost, mean=p50, p50=p50, p90=p50, p95=p50, p99=high, most=high)


def stage(kind: Kind, name: str, **change: Any) -> Stage:
    """128 prompt and 48 output tokens, all well."""
    made: dict[str, Any] = {
        "kind": kind,
        "name": name,
        "concurrency": None,
        "rate": None,
        "prompt_tokens": 128,
        "output_tokens": 48,
        "seconds": 30.0,
        "calls": 200,
        "outcomes": {"ok": 200},
        "errors": {},
        "first_token": seconds(0.05, 0.09),
        "first_answer": seconds(0.05, 0.09),
        "per_token": seconds(0.02, 0.04),
        "end_to_end": seconds(1.0, 1.5),
        "queue": seconds(0.0, 0.01),
        "send_lag": seconds(0.0005, 0.002),
        "calls_per_second": 6.0,
        "output_tokens_per_second": 300.0,
        "prompt_tokens_per_second": 800.0,
        "mean_running": 8.0,
        "mean_prompt_tokens": 128.0,
        "mean_output_tokens": 48.0,
        "cached_share": 0.0,
        "drafted_tokens": 1000,
        "accepted_tokens": 700,
        "over_budget": 0,
        "goodput_share": 1.0,
        "front_end_cores": 0.1,
        "front_end_cpu_seconds_per_token": 200e-6,
        "engine_cores": 1.0,
        "other_cores": 0.05,
        "intervals_95": {"output_tokens_per_second": (290.0, 310.0)},
        "generator_cores": 0.1,
        "memory_gib": {"front end": 0.5, "engine": 2.0},
        "tokens_by_second": (290, 310, 305, 300, 295),
        "engine": EngineSeen(
            kv_usage_most=0.2,
            preemptions=0,
            prefix_queried_tokens=1000,
            prefix_hit_tokens=0,
            drafts=500,
            accepted_by_position=(400, 300),
        ),
    }
    return Stage(**{**made, **change})


def answers(name: str, mode: str, budget: int | None, accuracy: float, thought: float, **change: Any) -> Answers:
    made: dict[str, Any] = {
        "name": name,
        "mode": mode,
        "budget_tokens": budget,
        "deadline_seconds": None,
        "asked": 100,
        "right": round(100 * accuracy),
        "accuracy": accuracy,
        "accuracy_interval_95": (accuracy - 0.05, min(1.0, accuracy + 0.05)),
        "mean_prompt_tokens": 30.0,
        "mean_thought_tokens": thought,
        "mean_answer_tokens": 8.0,
        "outcomes": {"natural_end": 100},
        "deadline_missed": 0,
        "over_budget": 0,
        "latency_p50_seconds": 0.5,
        "latency_p95_seconds": 0.9,
        "drafted_tokens": 1000,
        "accepted_tokens": 900,
    }
    return Answers(**{**made, **change})


def experts(*layers: tuple[tuple[int, ...], float], ranks: int = 4) -> Experts:
    """Layers as (tokens by expert, share of the busiest rank)."""
    made = tuple(
        Layer(
            layer=number,
            expert_tokens=tokens,
            imbalance=max(tokens) * len(tokens) / sum(tokens),
            busiest_rank_share=busiest,
        )
        for number, (tokens, busiest) in enumerate(layers)
    )
    return Experts(window_seconds=60.0, tokens=1000, ranks=ranks, as_served=True, layers=made)


def knee(**change: Any) -> Knee:
    """A service that ends 12 calls a second; 95 % of calls keep the objectives up to 9."""
    points = tuple(
        KneePoint(
            calls_per_second=rate,
            served_calls_per_second=min(rate, 12.0),
            output_tokens_per_second=48 * min(rate, 12.0),
            calls=200,
            growth_share=max(0.0, 1 - 12.0 / rate),
            unserved_share=0.0,
            kept_share=1.0 if rate <= 9.0 else 0.4,
            first_token_p95=0.1 if rate <= 12.0 else 9.0,
            end_to_end_p95=1.0 if rate <= 12.0 else 10.0,
            keeps_up=rate <= 12.0,
            keeps_objectives=rate <= 9.0,
        )
        for rate in (3.0, 6.0, 12.0, 24.0, 17.0, 14.3, 13.1, 9.0, 10.4)
    )
    made: dict[str, Any] = {
        "calls_per_second": 12.0,
        "interval_95": (11.6, 12.4),
        "holds": 12.0,
        "fails": 13.1,
        "objective_holds": 9.0,
        "objective_fails": 10.4,
        "objective_share": 0.95,
        "points": points,
    }
    return Knee(**{**made, **change})


def healthy_stages() -> dict[str, Stage]:
    soak = tuple((float(n), 2.5) for n in range(100))
    return {
        "1": stage("concurrency", "1 caller", concurrency=1, output_tokens_per_second=60.0, calls_per_second=1.2),
        "16": stage("concurrency", "16 callers", concurrency=16),
        "context": stage(
            "context",
            "prompts of 2,048 tokens",
            concurrency=4,
            mean_prompt_tokens=2048.0,
            mean_output_tokens=8.0,
            output_tokens_per_second=10.0,
            prompt_tokens_per_second=2500.0,
        ),
        "rate": stage("rate", "50% of the peak rate", rate=3.0),
        "alone": stage("prefix", "prompts of their own", concurrency=4, prompt_tokens=1664, mean_prompt_tokens=1660.0),
        "shared": stage(
            "prefix",
            "prompts that share a prefix",
            concurrency=4,
            prompt_tokens=1664,
            shared_prefix_tokens=1536,
            mean_prompt_tokens=1660.0,
            cached_share=0.8,
        ),
        "burst": stage("burst", "bursts of 32 calls", rate=1.5, first_token=seconds(0.2, 0.8)),
        "soak": stage(
            "soak",
            "soak",
            rate=3.0,
            seconds=600.0,
            memory_over_time_gib=soak,
            end_to_end_p50_by_half=(1.0, 1.05),
        ),
    }


def healthy_answers() -> dict[str, Answers]:
    return {
        "fast": answers("FAST", "fast", None, 0.45, 0.0, outcomes={"disabled": 100}),
        "24": answers("THINKING 24", "thinking", 24, 0.6, 20.0, outcomes={"budget_reached": 10, "natural_end": 90}),
        "unlimited": answers("THINKING unlimited", "thinking", -1, 0.95, 29.0),
        "auto": answers("AUTO", "auto", None, 0.94, 22.0),
        "deadline": answers("AUTO 2 s", "auto", None, 0.895, 20.0, deadline_seconds=2.0),
    }


def result(stages: dict[str, Stage] | None = None, asked: dict[str, Answers] | None = None, **change: Any) -> Result:
    """A healthy pilot, but for `change`; single stages and answers are changed by `with_stage` and `with_answers`."""
    chosen = tuple((healthy_stages() if stages is None else stages).values())
    made: dict[str, Any] = {
        "date": "2026-01-02T03:04:05+00:00",
        "command": "penstock pilot",
        "quick": True,
        "complete": True,
        "target": "127.0.0.1:50051",
        "seconds": 240.0,
        "client_machine": {
            "cpu": "a <CPU>",
            "cores": 2,
            "memory_gib": 8.0,
            "system": "Linux",
            "load_average": [0.1, 0.2, 0.3],
        },
        "processes_not_seen": None,
        "metrics_not_seen": None,
        "model": "made & up",
        "served": {
            "name": "made & up",
            "architecture": "Qwen3_5MoeForCausalLM",
            "service_version": "0.1.0",
            "engine_version": "vllm 1",
            "context_window_tokens": 32768,
            "profile": [{"name": "mtp", "enabled": True, "value": "2", "reason": "default"}],
            "prices_usd_per_million": [],
        },
        "objectives_seconds": {"first_token": 1.0, "per_token": 0.1},
        "knee": knee(),
        "kv_cache_tokens": 900_000,
        "cache_block_tokens": 384,
        "stages": chosen,
        "questions": "100 questions",
        "answers": tuple((healthy_answers() if asked is None else asked).values()),
        "experts": experts(((25, 25, 26, 24), 0.26), ((30, 20, 25, 25), 0.3)),
        "experts_not_seen": None,
        "prices": Prices(hour=3.6, gpus=2, hosted_input=0.4, hosted_output=2.4),
        "points": points_of(chosen),
    }
    return Result(**{**made, **change})


def with_stage(key: str, **change: Any) -> Result:
    stages = healthy_stages()
    return result({**stages, key: stages[key].model_copy(update=change)})


def with_answers(key: str, **change: Any) -> Result:
    asked = healthy_answers()
    return result(asked={**asked, key: asked[key].model_copy(update=change)})
