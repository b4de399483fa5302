"""Reserve one generation's quota and write its audit line: each generation is counted, however it ends."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from penstock.admission.quotas.quotas import Reservation
from penstock.errors import PenstockError
from penstock.generation.usage import PriceList
from penstock.server.rpc.generation_call import GenerationCall
from penstock.server.service_context import ServiceContext
from penstock.types import GenerationPlan, Usage


@asynccontextmanager
async def reserve_quota(service: ServiceContext, call: GenerationCall, plan: GenerationPlan) -> AsyncIterator[None]:
    """Hold the most that the call may cost while it waits and runs; what it used is charged at its end.

    Raise QuotaExceeded.
    """
    caller, meter, prices = call.context.caller, call.meter, service.prices
    if not caller.limits.holds_use and not service.audit.is_on:
        yield
        return
    reservation = estimate_cost(plan, prices)
    failure: BaseException | None = None
    async with service.quotas.holding(caller, reservation, lambda: (meter.tokens(), meter.usd_ticks(prices))):
        try:
            yield
        except BaseException as error:
            failure = error
            raise
        finally:
            _write_audit_line(service, call, failure)


def estimate_cost(plan: GenerationPlan, prices: PriceList) -> Reservation:
    """Return the reservation of a plan: prompt and maximum output, at the higher of cached and uncached prices."""
    count, prompt_tokens = plan.request.output.candidate_count, len(plan.context.prompt_token_ids)
    worst = Usage(prompt_tokens=prompt_tokens, answer_tokens=plan.budget.max_output_tokens * count)
    cached = Usage(prompt_tokens=prompt_tokens, cached_tokens=prompt_tokens, answer_tokens=worst.answer_tokens)
    # A price list may have a higher price for cached tokens.
    costs = [cost.total_usd_ticks for usage in (worst, cached) if (cost := prices.cost(usage)) is not None]
    return Reservation(uuid.uuid4().hex, count, prompt_tokens, max(costs, default=0))


def _write_audit_line(service: ServiceContext, call: GenerationCall, failure: BaseException | None) -> None:
    meter = call.meter
    usage = meter.usage
    if meter.finished is not None:
        outcome = "+".join(sorted({end.finish_reason.value for end in meter.finished.ends}))
    elif isinstance(failure, PenstockError):
        outcome = failure.reason.lower()
    else:
        outcome = "failed" if isinstance(failure, Exception) else "cut_short"
    service.audit.write(
        "generation",
        caller=call.context.caller.id,
        generation_id=call.generation_id,
        outcome=outcome,
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=usage.cached_tokens,
        thought_tokens=usage.thought_tokens,
        answer_tokens=usage.answer_tokens,
        tool_tokens=usage.tool_tokens,
        cost_usd_ticks=meter.usd_ticks(service.prices) if service.prices.tiers else None,
    )
