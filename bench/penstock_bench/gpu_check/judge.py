"""Judge what was found: one check for each promise, raised where it is broken, with its figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from penstock_bench.gpu_check.plan import CheckPlan
from penstock_bench.gpu_check.results import BudgetCase, Check, Comparison, Variant
from penstock_bench.pilot.flag import CheckResult, State, unseen, verdict

_STANDARD_ERRORS = 2.0
"""Loss of right answers, in standard errors of the difference, that may be chance."""
_COMPARED = {"in_process", "openai", "penstock"}
"""Front ends that bench.compare must have measured; `vllm serve --grpc` needs a package that the locks do not have."""


def judge(
    variants: Sequence[Variant], plan: CheckPlan, comparison: Comparison | None, not_compared: str | None
) -> tuple[Check, ...]:
    """Return all checks, also those that could not be made."""
    found: dict[str, tuple[str, CheckResult]] = {
        "starts": ("Every configuration starts and answers", _starts(variants, plan)),
        "greedy": ("Budgets are exact: greedy", _budgets(variants, lambda name: name == "greedy")),
        "sampled": ("Budgets are exact: sampled", _budgets(variants, lambda name: name != "greedy")),
        "drafts": ("Budgets are exact: beside MTP", _budgets([one for one in variants if _is_on(one, "mtp")])),
        "engine-budget": ("The engine keeps budgets by itself", _engine_budget(variants)),
        "fp8": ("FP8 loses no answers", _fp8(variants)),
        "mtp": ("MTP's drafts are accepted", _mtp(variants)),
        "prefix": ("A repeated prompt comes from the cache", _prefix(variants)),
        "experts": ("Expert load counts every layer alike", _experts(variants)),
        "killed": ("Streams outlive kill -9 of the engine", _killed(variants)),
        "speed": ("Every call under load ends well", _speed(variants, plan)),
        "beside": ("vllm serve and AsyncLLM beside it", _beside(comparison, not_compared)),
    }
    return tuple(
        Check(id=name, title=title, state=state, evidence=evidence)
        for name, (title, (state, evidence)) in found.items()
    )


def _is_on(variant: Variant, feature: str) -> bool:
    row = variant.feature(feature)
    return row is not None and bool(row["enabled"])


def _why_off(variants: Sequence[Variant], feature: str) -> str:
    rows = [row for one in variants if (row := one.feature(feature))]
    return f"{feature} is off: {rows[-1]['reason']}" if rows else "no engine started"


def _starts(variants: Sequence[Variant], plan: CheckPlan) -> CheckResult:
    failed = [f"{one.name}: {one.error}" for one in variants if one.error]
    if failed:
        return verdict(True, "; ".join(failed))
    if not variants or len(variants) < len(plan.configurations):
        return unseen(f"{len(variants)} of {len(plan.configurations)} were tried")
    return verdict(False, ", ".join(f"{one.name} after {one.start_seconds or 0:.0f} s" for one in variants))


def _budgets(variants: Sequence[Variant], wanted: Callable[[str], bool] = lambda name: True) -> CheckResult:
    cases = [(one.name, case) for one in variants for case in one.budgets if wanted(case.sampling)]
    cut = sum(case.outcome == "budget_reached" for _, case in cases)
    if not cut:
        return unseen("no thought reached its budget")
    wrong = [_in_words(name, case) for name, case in cases if not case.held]
    kept = f"{cut} of {len(cases)} thoughts were cut, each at its budget; the others ended before it"
    return verdict(wrong, "; ".join(wrong[:5]) if wrong else kept)


def _in_words(name: str, case: BudgetCase) -> str:
    return f"{name}, {case.sampling}: {case.thought_tokens} tokens at a budget of {case.budget_tokens} ({case.outcome})"


def _engine_budget(variants: Sequence[Variant]) -> CheckResult:
    rows = [(one.name, row) for one in variants if (row := one.feature("engine_budget"))]
    if not rows:
        return unseen("no engine started")
    off = [f"{name}: {row['reason']}" for name, row in rows if not row["enabled"]]
    return verdict(off, "; ".join(off) if off else "in every configuration, after the probe at its start")


def _fp8(variants: Sequence[Variant]) -> CheckResult:
    plain = next((one for one in variants if one.asked and not _is_on(one, "fp8_weights")), None)
    eighths = [one for one in variants if one.asked and _is_on(one, "fp8_weights")]
    if plain is None or not eighths:
        return unseen(_why_off(variants, "fp8_weights") if plain else "no engine without FP8 answered")
    shares = {one.name: one.right / one.asked for one in (plain, *eighths)}
    least = shares[plain.name] - _STANDARD_ERRORS * math.sqrt(0.5 / plain.asked)
    worst = min(shares[one.name] for one in eighths)
    return verdict(worst < least, ", ".join(f"{name}: {share:.0%} right" for name, share in shares.items()))


def _mtp(variants: Sequence[Variant]) -> CheckResult:
    drafting = [one for one in variants if one.drafted_tokens]
    if not drafting:
        return unseen(_why_off(variants, "mtp"))
    figures = [f"{one.name}: {one.accepted_tokens or 0:,} of {one.drafted_tokens:,}" for one in drafting]
    none = any(not one.accepted_tokens or one.accepted_tokens > (one.drafted_tokens or 0) for one in drafting)
    return verdict(none, ", ".join(figures))


def _prefix(variants: Sequence[Variant]) -> CheckResult:
    caching = [one for one in variants if _is_on(one, "prefix_caching") and one.cached_tokens is not None]
    if not caching:
        return unseen(_why_off(variants, "prefix_caching"))
    figures = [f"{one.name}: {one.cached_tokens:,} of {one.repeated_prompt_tokens:,} tokens" for one in caching]
    return verdict(any(not one.cached_tokens for one in caching), ", ".join(figures))


def _experts(variants: Sequence[Variant]) -> CheckResult:
    counted = [(one.name, one.experts) for one in variants if one.experts is not None]
    if not counted:
        why = next((one.experts_not_seen for one in reversed(variants) if one.experts_not_seen), "no engine started")
        return unseen(why)
    sums = {name: {sum(layer.expert_tokens) for layer in found.layers} for name, found in counted}
    uneven = [name for name, totals in sums.items() if len(totals) != 1 or 0 in totals]
    figures = ", ".join(f"{name}: {len(found.layers)} layers, {found.tokens:,} tokens" for name, found in counted)
    return verdict(uneven, f"{', '.join(uneven)}: layers differ in their sums" if uneven else figures)


def _killed(variants: Sequence[Variant]) -> CheckResult:
    found = next((one.killed for one in variants if one.killed is not None), None)
    if found is None:
        return unseen("the engine was not killed")
    evidence = (
        f"{found.complete} of {found.streams} streams complete, {found.continued} of them continued, {found.same} with"
        f" the undisturbed text; {found.over_budget} over budget"
    )
    if found.complete < found.streams or found.over_budget:
        return verdict(True, evidence)
    return verdict(False, evidence) if found.continued else unseen(f"{evidence}: all ended before the engine did")


def _speed(variants: Sequence[Variant], plan: CheckPlan) -> CheckResult:
    stages = [stage for one in variants for stage in one.stages]
    if not stages:
        return unseen("no load was run")
    lost = sum(stage.calls - stage.outcomes.get("ok", 0) for stage in stages)
    rates = ", ".join(f"{stage.output_tokens_per_second:,.0f} tokens/s at {stage.name}" for stage in stages)
    if lost or len(stages) == len(plan.streams):
        return verdict(lost, f"{lost} calls did not end well; {rates}" if lost else rates)
    return unseen(f"{len(stages)} of {len(plan.streams)} loads were run")


def _beside(comparison: Comparison | None, why: str | None) -> CheckResult:
    if comparison is None:
        return State.UNSEEN, why or "not asked for"
    rates = comparison.tokens_per_second
    names = ", ".join(comparison.labels[name] for name in rates) or "nothing"
    evidence = "; ".join((f"measured: {names}", *comparison.notes))
    return unseen(evidence) if _COMPARED - set(rates) else verdict(False, evidence)
