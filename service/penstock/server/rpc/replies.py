"""Build unary replies from the events that a stream would have sent, and the replies of CountTokens and Steer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from penstock_proto.v1 import generation_pb2 as pb

from penstock.errors import ContextOverflow
from penstock.generation.control import GenerationControl
from penstock.generation.usage import PriceList, Progress, UsageMeter
from penstock.server.convert import generation as convert
from penstock.server.convert.messages import tool_call_to_proto
from penstock.server.rpc.generation_call import AdmittedCall
from penstock.types import CandidateEnd, Cost, Delta, Event, Finished, GenerationPlan, ToolCallFinished, Usage


def response_to_proto(admitted: AdmittedCall, events: Sequence[Event]) -> pb.GenerateResponse:
    """Return the reply of Generate. `events` ends with Finished, as those of a complete generation do."""
    finished = events[-1]
    assert isinstance(finished, Finished)
    deltas = [event for event in events if isinstance(event, Delta)]
    calls = [event for event in events if isinstance(event, ToolCallFinished)]
    engine, with_ids = admitted.engine, admitted.plan.request.output.return_token_ids
    token_bytes = engine.tokenizer.token_bytes
    return pb.GenerateResponse(
        generation_id=admitted.call.generation_id,
        model=engine.card.name,
        candidates=[_candidate(end, deltas, calls, token_bytes, with_ids=with_ids) for end in finished.ends],
        usage=convert.usage_to_proto(finished.usage),
        cost=convert.cost_to_proto(finished.cost),
        effective_settings=admitted.effective,
        timing=convert.timing_to_proto(finished.timing),
    )


def _candidate(
    end: CandidateEnd,
    deltas: Sequence[Delta],
    calls: Sequence[ToolCallFinished],
    token_bytes: Callable[[int], bytes],
    *,
    with_ids: bool,
) -> pb.Candidate:
    own = [delta for delta in deltas if delta.candidate_index == end.candidate_index]
    thought = [delta for delta in own if delta.is_thought]
    answer = [delta for delta in own if not delta.is_thought]
    candidate = pb.Candidate(
        result=convert.result_to_proto(end),
        thought="".join(delta.text for delta in thought),
        answer="".join(delta.text for delta in answer),
        thought_logprobs=[
            entry for delta in thought for entry in convert.logprobs_to_proto(delta.logprobs, token_bytes)
        ],
        answer_logprobs=[entry for delta in answer for entry in convert.logprobs_to_proto(delta.logprobs, token_bytes)],
        tool_calls=[tool_call_to_proto(event.call) for event in calls if event.candidate_index == end.candidate_index],
    )
    if with_ids:
        candidate.thought_token_ids.extend(token_id for delta in thought for token_id in delta.token_ids)
        candidate.answer_token_ids.extend(token_id for delta in answer for token_id in delta.token_ids)
    return candidate


def count_to_proto(plan: GenerationPlan, prices: PriceList) -> pb.CountTokensResponse:
    """Return the reply of CountTokens for a request that fits."""
    prompt_tokens = len(plan.context.prompt_token_ids)

    def cost(output_tokens: int) -> Cost | None:
        return prices.cost(Usage(prompt_tokens=prompt_tokens, answer_tokens=output_tokens))

    least, most = cost(1), cost(plan.budget.max_output_tokens * plan.request.output.candidate_count)
    return pb.CountTokensResponse(
        prompt_tokens=prompt_tokens + plan.context.dropped_tokens,
        effective_prompt_tokens=prompt_tokens,
        window_tokens=plan.context.window_tokens,
        window_left_tokens=plan.window_left_tokens,
        dropped=convert.dropped(plan),
        cost_estimate=(
            pb.CostEstimate(min_usd_ticks=least.total_usd_ticks, max_usd_ticks=most.total_usd_ticks)
            if least is not None and most is not None
            else None
        ),
        effective_settings=convert.effective_settings(plan),
        image_tokens=plan.context.image_tokens,
    )


def overflow_to_proto(overflow: ContextOverflow) -> pb.CountTokensResponse:
    """Return the reply of CountTokens for a request that does not fit: the numbers, where Generate would refuse it."""
    numbers = overflow.metadata
    return pb.CountTokensResponse(
        prompt_tokens=int(numbers["prompt_tokens"]),
        effective_prompt_tokens=int(numbers["prompt_tokens"]),
        window_tokens=int(numbers["window_tokens"]),
        overflow_tokens=int(numbers["overflow_tokens"]),
    )


def steered_to_proto(request: pb.SteerRequest, control: GenerationControl, meter: UsageMeter) -> pb.SteerResponse:
    """Return the reply of Steer, once its action is in `control`."""
    progress = meter.progress
    # Without a permit it is not known whether there will be a thought.
    may_think = progress is None or progress.may_think
    return pb.SteerResponse(
        applied=request.HasField("cancel") or (may_think and not control.cancelled),
        phase=_phase(progress),
        thinking_budget=None if progress is None else progress.thought_budget_tokens,
        reasoning_tokens=meter.usage.thought_tokens,
    )


def _phase(progress: Progress | None) -> pb.GenerationPhase.ValueType:
    if progress is None or not progress.has_token:
        return pb.GENERATION_PHASE_WAITING
    return pb.GENERATION_PHASE_THINKING if progress.may_think else pb.GENERATION_PHASE_ANSWERING
