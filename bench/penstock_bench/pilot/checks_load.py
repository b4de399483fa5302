"""Check what loads reveal: queues, memory, drift, and the bottleneck. Each check maps (result, limits) to a result."""

from __future__ import annotations

from penstock_bench.pilot.flag import CheckResult, FlagThresholds, State, unseen, verdict
from penstock_bench.pilot.results import Result, Stage


def burst(result: Result, limits: FlagThresholds) -> CheckResult:
    """Check whether bursts wait much longer than steady calls."""
    bursts = result.of("burst")
    steady = [stage for stage in result.of("rate") if stage.first_token.p99 is not None]
    if not bursts or not steady:
        return unseen("no burst, or no steady load to compare it with, was measured")
    calmest = min(steady, key=lambda stage: stage.first_token.p99 or 0.0)
    burst, calm = bursts[0].first_token, calmest.first_token
    wanted = result.objectives_seconds.get("first_token", limits.burst_first_token_seconds)
    if burst.p99 is None:
        return State.RAISED, f"{burst.lost} of {burst.count} calls in {bursts[0].name} got no token"
    ratio = burst.p99 / max(calm.p99 or 0.0, 1e-3)
    evidence = (
        f"time to first token at p99: {burst.p99:.2f} s in {bursts[0].name}, {calm.p99:.2f} s in {calmest.name}"
        f" ({ratio:.1f} times; wanted: {wanted:g} s)"
    )
    return verdict(burst.p99 > wanted and ratio > limits.burst_over_steady, evidence)


def kv(result: Result, limits: FlagThresholds) -> CheckResult:
    """Check whether the KV cache is nearly full."""
    seen = [(stage, stage.engine) for stage in result.stages if stage.engine is not None]
    if not seen:
        return unseen(result.metrics_not_seen or "no metrics")
    fullest, most = max(seen, key=lambda pair: pair[1].kv_usage_most or 0.0)
    preempted = sum(engine.preemptions or 0 for _, engine in seen)
    usage = most.kv_usage_most or 0.0
    evidence = f"KV cache at most {usage:.0%} full ({fullest.name}); {preempted} preemptions in all"
    return verdict(usage > limits.kv_usage or preempted, evidence)


def lost(result: Result, limits: FlagThresholds) -> CheckResult:
    """Check whether calls failed or were refused."""
    calls = sum(stage.calls for stage in result.stages)
    if not calls:
        return unseen("no load was measured")
    bad = ("failed", "unfinished", "refused")
    counts = {name: sum(stage.outcomes.get(name, 0) for stage in result.stages) for name in bad}
    errors = sorted({error for stage in result.stages for error in stage.errors})
    places = [stage.name for stage in result.stages if any(stage.outcomes.get(name) for name in bad)]
    evidence = ", ".join(f"{count} {name}" for name, count in counts.items()) + f" of {calls:,} calls"
    evidence += (f" ({', '.join(errors)})" if errors else "") + (f", in {'; '.join(places)}" if places else "")
    return verdict(sum(counts.values()) / calls > limits.calls_lost, evidence)


def drift(result: Result, limits: FlagThresholds) -> CheckResult:
    """Check whether the service slowed down during the soak."""
    soaks = [stage for stage in result.of("soak") if None not in stage.end_to_end_p50_by_half]
    if not soaks:
        return unseen("no soak was measured")
    before, after = soaks[0].end_to_end_p50_by_half
    ratio = (after or 0.0) / max(before or 0.0, 1e-9)
    evidence = f"end to end at p50: {before:.2f} s in the first half of {soaks[0].name}, {after:.2f} s in the second"
    return verdict(ratio > limits.soak_drift, evidence)


def growth(result: Result, limits: FlagThresholds) -> CheckResult:
    """Check whether the service's memory grew during the soak."""
    soaks = result.of("soak")
    over_time = soaks[0].memory_over_time_gib if soaks else ()
    if not over_time:
        return unseen(result.processes_not_seen or "memory was not measured in a soak")
    if soaks[0].seconds < limits.soak_min_seconds:
        return unseen(f"a soak of {soaks[0].seconds:.0f} s is too short to distinguish growth from warm-up")
    quarter = max(1, len(over_time) // 4)
    first = sum(memory for _, memory in over_time[:quarter]) / quarter
    last = sum(memory for _, memory in over_time[-quarter:]) / quarter
    evidence = f"{first:.2f} GiB in the first quarter of {soaks[0].name}, {last:.2f} GiB in the last"
    return verdict(last > first * (1 + limits.soak_growth), evidence)


def prefix_hits(result: Result) -> tuple[float, int] | None:
    """Return the share of a shared prefix that came from the cache, and its tokens; None if not measured."""
    _, shared = _prefix_stages(result)
    if not shared:
        return None
    offered = shared[0].shared_prefix_tokens
    return (shared[0].cached_share or 0.0) * (shared[0].mean_prompt_tokens or 0.0) / offered, offered


def _prefix_stages(result: Result) -> tuple[list[Stage], list[Stage]]:
    """Return the stages without and with a shared prefix; both empty unless both were measured."""
    stages = [stage for stage in result.of("prefix") if stage.cached_share is not None]
    alone = [stage for stage in stages if not stage.shared_prefix_tokens]
    shared = [stage for stage in stages if stage.shared_prefix_tokens]
    return (alone, shared) if alone and shared else ([], [])


def prefixes(result: Result, limits: FlagThresholds) -> CheckResult:
    """Check whether shared prefixes were found in the cache."""
    alone, shared = _prefix_stages(result)
    found = prefix_hits(result)
    if found is None:
        return unseen("prompts with and without a shared prefix were not both measured")
    hit, offered = found
    blocks = (
        f"; the cache keeps whole blocks of {result.cache_block_tokens} tokens" if result.cache_block_tokens else ""
    )
    without, within = alone[0].first_token.p50 or 0.0, shared[0].first_token.p50 or 0.0
    evidence = (
        f"{hit:.0%} of the tokens of a shared prefix of {offered} came from the cache{blocks}; time to first token at"
        f" p50 {without:.3f} s without it, {within:.3f} s with it"
    )
    return verdict(hit < limits.prefix_hits, evidence)


def front_end(result: Result, limits: FlagThresholds) -> CheckResult:
    """Check whether the front end is the bottleneck."""
    seen = [stage for stage in result.stages if stage.front_end_cores is not None]
    if not seen:
        return unseen(result.processes_not_seen or "CPU was not measured")
    most = max(seen, key=lambda stage: stage.front_end_cores or 0.0)
    each = most.front_end_cpu_seconds_per_token
    evidence = f"the front end used {most.front_end_cores:.2f} of one core in {most.name}"
    evidence += f", {each * 1e6:.0f} µs per output token" if each is not None else ""
    return verdict((most.front_end_cores or 0.0) > limits.front_end_cores, evidence)


def generator(result: Result, limits: FlagThresholds) -> CheckResult:
    """Check whether the load generator was late."""
    stages = [stage for stage in result.stages if stage.calls]
    if not stages:
        return unseen("no load was measured")
    worst = max(stages, key=lambda stage: stage.send_lag.p99 or 0.0)
    lag = worst.send_lag.p99 or 0.0
    evidence = f"calls were sent at most {lag:.3f} s late at p99 ({worst.name}); latencies include it"
    return verdict(lag > limits.generator_lag_seconds, evidence)
