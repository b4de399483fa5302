"""Check a pilot for problems of published runs of these models: the knee, slow drafts, and prefixes that are not found.

Check also whether the machine did other work meanwhile. Each check maps (result, limits) to a result.
"""

from __future__ import annotations

from penstock_bench.pilot.checks_load import prefix_hits
from penstock_bench.pilot.flag import CheckResult, FlagThresholds, State, unseen, verdict
from penstock_bench.pilot.formatting import seconds
from penstock_bench.pilot.results import Result, Stage

_HYBRIDS = ("Qwen3_5", "Qwen3Next")


def knee(result: Result, limits: FlagThresholds) -> CheckResult:
    """Check for a knee, as in published runs."""
    closed = sorted(result.of("concurrency"), key=lambda stage: stage.concurrency or 0)
    if len(closed) < 2:
        return unseen("fewer than two numbers of callers were measured")
    before, last = closed[-2:]
    gain = last.output_tokens_per_second / max(before.output_tokens_per_second, 1e-9) - 1
    evidence = [
        f"from {before.name} to {last.name} the output rate changes by {gain:+.0%}, first token at p50 goes from"
        f" {seconds(before.first_token.p50)} to {seconds(last.first_token.p50)}"
    ]
    found, beyond = result.knee, list[Stage]()
    if found is not None and found.calls_per_second is not None:
        evidence.append(f"waiting calls accumulate above {found.calls_per_second:.3g} calls/s")
        beyond = [
            stage for stage in (*result.of("rate"), *result.of("soak")) if (stage.rate or 0.0) > found.calls_per_second
        ]
        evidence += [f"{stage.name} is above it ({stage.rate:.3g} calls/s)" for stage in beyond]
    return verdict(gain < limits.knee_gain or beyond, "; ".join(evidence))


def drafts_at_load(result: Result, limits: FlagThresholds) -> CheckResult:
    """Check whether drafts slow the service down under load."""
    drafting = [stage for stage in result.of("concurrency") if stage.drafted_tokens and stage.mean_output_tokens]
    if not drafting:
        return unseen("the service drafts nothing, or does not count it per request")
    most = max(drafting, key=lambda stage: stage.concurrency or 0)
    if (most.concurrency or 0) < limits.drafts_callers:
        return unseen(f"at most {most.concurrency} callers were measured, fewer than {limits.drafts_callers}")
    drafted, accepted = most.drafted_tokens or 0, most.accepted_tokens or 0
    output = (most.mean_output_tokens or 0.0) * most.outcomes.get("ok", 0)
    steps = max(1.0, output - accepted)
    useful = (steps + accepted) / (steps + drafted)
    evidence = (
        f"{useful:.0%} of the positions that the model computes at {most.name} become output"
        f" ({1 + accepted / steps:.2f} tokens per step); on full GPUs the others take time from other streams"
    )
    return verdict(useful < limits.drafts_useful, evidence)


def drafts_long_context(result: Result, limits: FlagThresholds) -> CheckResult:
    """Check whether fewer drafts are accepted in long contexts."""
    known = [
        (stage.mean_prompt_tokens, (stage.accepted_tokens or 0) / drafted)
        for stage in result.of("context")
        if stage.mean_prompt_tokens and (drafted := stage.drafted_tokens or 0) >= limits.drafts_counted
    ]
    if len(known) < 2:
        return unseen(f"fewer than two prompt lengths have {limits.drafts_counted} drafted tokens each")
    (short, at_short), (long, at_long) = min(known), max(known)
    evidence = (
        f"{at_short:.0%} of drafts accepted after prompts of {short:,.0f} tokens, {at_long:.0%} after {long:,.0f}"
    )
    return verdict(at_long < limits.drafts_kept * at_short, evidence)


def prefixes_never_hit(result: Result, limits: FlagThresholds) -> CheckResult:
    """Check whether prefixes are never found in the cache."""
    found = prefix_hits(result)
    if found is None:
        return unseen("prompts with and without a shared prefix were not both measured")
    hit, offered = found
    evidence = f"{hit:.0%} of the tokens of a shared prefix of {offered} came from the cache"
    if any(name in str(result.served["architecture"]) for name in _HYBRIDS):
        evidence += "; this hybrid model keeps its recurrent states at the ends of whole blocks only"
        evidence += f" ({result.cache_block_tokens} tokens)" if result.cache_block_tokens else ""
    return verdict(hit < limits.prefix_never, evidence)


def machine(result: Result, limits: FlagThresholds) -> CheckResult:
    """Check whether other work on the machine disturbed the pilot."""
    cores, before = result.client_machine["cores"] or 1, result.client_machine["load_average"][0]
    evidence = f"load average before the pilot {before:.2f} on {cores} cores"
    seen = [(stage.other_cores, stage.name) for stage in result.stages if stage.other_cores is not None]
    if not seen:
        evidence += ", which includes the service's own start if that was just before"
        busy = before > limits.load_before * cores
        why = result.processes_not_seen or "this result does not have it"
        return (State.RAISED if busy else State.UNSEEN), f"{evidence}; its other work meanwhile was not observed: {why}"
    most, where = max(seen)
    evidence += f"; other processes used at most {most:.2f} cores ({where})"
    return verdict(most > limits.other_work * cores, evidence)
