"""Check what the model reveals: experts, drafts, thoughts and budgets. Each check maps (result, limits) to a result."""

from __future__ import annotations

from penstock_bench.pilot.flag import CheckResult, FlagThresholds, State, unseen, verdict
from penstock_bench.pilot.results import Answers, Result, Stage


def imbalance(result: Result, limits: FlagThresholds) -> CheckResult:
    """Check whether some experts get far more tokens than others."""
    experts = result.experts
    if experts is None:
        return unseen(result.experts_not_seen or "the expert load was not measured")
    hottest = max(experts.layers, key=lambda layer: layer.imbalance)
    slowest = max(experts.layers, key=lambda layer: layer.busiest_rank_share)
    excess = slowest.busiest_rank_share * experts.ranks
    busiest = max(range(len(hottest.expert_tokens)), key=hottest.expert_tokens.__getitem__)
    where = "as served" if experts.as_served else "if the experts were spread so"
    evidence = (
        f"layer {hottest.layer}: expert {busiest} has {hottest.imbalance:.2f} times the mean load;"
        f" layer {slowest.layer}: the busiest of {experts.ranks} ranks has {excess:.2f} times an even share ({where}),"
        f" so its steps take up to that many times as long; {experts.tokens:,} tokens"
    )
    return verdict(hottest.imbalance > limits.layer_imbalance or excess > limits.rank_excess, evidence)


def drafts(result: Result, limits: FlagThresholds) -> CheckResult:
    """Check whether few drafts are accepted."""
    # Prefer real questions: made-up words are harder to predict than the texts of users.
    sources: list[tuple[str, list[Stage] | list[Answers]]] = [
        ("questions", list(result.answers)),
        ("made-up prompts", list(result.stages)),
    ]
    found = []
    for name, ones in sources:
        counted = [(one.drafted_tokens, one.accepted_tokens or 0) for one in ones if one.drafted_tokens]
        if counted:
            drafted = sum(one for one, _ in counted)
            found.append((name, sum(accepted for _, accepted in counted) / drafted, drafted))
    if not found:
        return unseen("the service drafts nothing, or does not count it per request")
    evidence = ", ".join(
        f"{share:.0%} of {drafted:,} drafted tokens accepted on {name}" for name, share, drafted in found
    )
    return verdict(found[0][1] < limits.drafts_accepted, evidence)


def thoughts_cut(result: Result, limits: FlagThresholds) -> CheckResult:
    """Check whether budgets cut many thoughts."""
    finite = [one for one in result.answers if one.mode == "thinking" and (one.budget_tokens or 0) > 0]
    if not finite:
        return unseen("no questions were asked with a budget")
    largest = max(finite, key=lambda one: one.budget_tokens or 0)
    cut = largest.outcomes.get("budget_reached", 0) / largest.asked
    evidence = f"{cut:.0%} of thoughts reach the largest budget ({largest.name}), accuracy {largest.accuracy:.2f}"
    unlimited = _unlimited(result)
    if unlimited is not None:
        evidence += (
            f"; {unlimited.accuracy:.2f} without a limit, for {unlimited.mean_thought_tokens:.0f} thought tokens"
        )
    return verdict(cut > limits.thoughts_cut, evidence)


def thoughts_unpaid(result: Result, limits: FlagThresholds) -> CheckResult:
    """Check whether long thoughts improve the answers over shorter ones."""
    unlimited = _unlimited(result)
    cheaper = [one for one in result.answers if one.mode != "fast" and one is not unlimited and one.mean_thought_tokens]
    if unlimited is None or not cheaper:
        return unseen("thinking with and without a limit were not both measured")
    as_right = [one for one in cheaper if one.accuracy >= unlimited.accuracy_interval_95[0]]
    if not as_right:
        return State.CLEAR, f"no smaller budget reaches the accuracy of {unlimited.accuracy:.2f} without a limit"
    least = min(as_right, key=lambda one: one.mean_thought_tokens)
    ratio = unlimited.mean_thought_tokens / least.mean_thought_tokens
    evidence = (
        f"without a limit: accuracy {unlimited.accuracy:.2f} for {unlimited.mean_thought_tokens:.0f} thought tokens;"
        f" {least.name}: {least.accuracy:.2f} (within noise) for {least.mean_thought_tokens:.0f}, ratio {ratio:.1f}"
    )
    return verdict(ratio > limits.thoughts_unpaid, evidence)


def _unlimited(result: Result) -> Answers | None:
    return next((one for one in result.answers if one.mode == "thinking" and one.budget_tokens == -1), None)


def overshoot(result: Result, limits: FlagThresholds) -> CheckResult:
    """Check whether a thought exceeded its budget."""
    over = [(one.name, one.over_budget) for one in result.answers if one.over_budget]
    over += [(one.name, one.over_budget) for one in result.stages if one.over_budget]
    asked = sum(one.asked for one in result.answers) + sum(stage.calls for stage in result.stages)
    if not asked:
        return unseen("no call was made")
    told = ", ".join(f"{count} in {name}" for name, count in over) or "none"
    return verdict(over, f"thoughts longer than their budget, of {asked} calls: {told}")


def no_answer(result: Result, limits: FlagThresholds) -> CheckResult:
    """Check whether thinking left no tokens for an answer."""
    if not result.answers:
        return unseen("no questions were asked")
    lost = sum(one.outcomes.get("max_output_tokens", 0) for one in result.answers)
    return verdict(lost, f"{lost} of {sum(one.asked for one in result.answers)} replies have a thought and no answer")


def deadline_thought(result: Result, limits: FlagThresholds) -> CheckResult:
    """Check whether a deadline leaves AUTO time to think."""
    free = next((one for one in result.answers if one.mode == "auto" and one.deadline_seconds is None), None)
    bound = [one for one in result.answers if one.mode == "auto" and one.deadline_seconds is not None]
    if free is None or not bound:
        return unseen("AUTO with and without a deadline were not both measured")
    worst = min(bound, key=lambda one: one.accuracy)
    left = 1 - worst.latency_p95_seconds / (worst.deadline_seconds or 1.0)
    evidence = (
        f"{worst.name}: accuracy {worst.accuracy:.2f} for {worst.mean_thought_tokens:.1f} thought tokens, with"
        f" {left:.0%} of the time left at p95; without a deadline {free.accuracy:.2f} for"
        f" {free.mean_thought_tokens:.1f}"
    )
    return verdict(worst.accuracy < free.accuracy_interval_95[0] and left > limits.deadline_left, evidence)


def deadlines(result: Result, limits: FlagThresholds) -> CheckResult:
    """Check whether calls missed their deadline."""
    asked = [one for one in result.answers if one.deadline_seconds is not None]
    if not asked:
        return unseen("no deadline was set")
    worst = max(asked, key=lambda one: one.deadline_missed / one.asked)
    share = worst.deadline_missed / worst.asked
    evidence = f"{worst.deadline_missed} of {worst.asked} calls missed their deadline in {worst.name} ({share:.1%})"
    return verdict(share > limits.deadline_missed, evidence)
