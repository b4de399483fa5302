"""Probe at start whether a thinking budget holds on this engine, with everything that is on."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from penstock.errors import EngineDown
from penstock.types import EngineRequest, Markers, Sampling

if TYPE_CHECKING:
    from penstock.engine.vllm.engine import VllmEngine

_BUDGETS = (0, 1, 7)
_BEYOND = 12  # tokens after the largest budget, so that an overshoot shows
_SECONDS = 120.0


async def budget_fault(engine: VllmEngine) -> str | None:
    """Return what is wrong with the thinking budget, as text; None where it holds or the engine need not hold it.

    The budgets run side by side, greedy and sampled, and the end of the turn is not allowed: the thought of an
    untrained model must be closed at the budget too. Raise `EngineDown` where the engine dies or hangs.
    """
    markers = engine.card.markers
    if markers is None or not engine.card.forces_budget:
        return None
    prompt = (*engine.tokenizer.encode("1 + 1 = ?"), markers.open_id)
    cases = [(budget, temperature) for budget in _BUDGETS for temperature in (0.0, 1.0)]
    try:
        async with asyncio.timeout(_SECONDS):
            runs = await asyncio.gather(*(_run(engine, prompt, budget, warmth) for budget, warmth in cases))
    except TimeoutError as error:
        raise EngineDown(f"no answer to the start-up probe within {_SECONDS:.0f} seconds") from error
    for (budget, _), tokens in zip(cases, runs, strict=True):
        thought = _thought(tokens, markers)
        if thought > budget:
            return f"the engine let a thought of {thought} tokens pass a budget of {budget}"
    return None


async def _run(engine: VllmEngine, prompt: tuple[int, ...], budget: int, temperature: float) -> list[int]:
    request = EngineRequest(
        f"probe-{budget}-{temperature}",
        prompt,
        max_tokens=max(_BUDGETS) + _BEYOND,
        min_tokens=0,
        sampling=Sampling(temperature=temperature, seed=1),
        thought_budget_tokens=budget,
        banned_token_ids=tuple(engine.card.eos_ids),
    )
    return [token for tokens in [chunk.token_ids async for chunk in engine.stream(request)] for token in tokens]


def _thought(tokens: list[int], markers: Markers) -> int:
    return tokens.index(markers.close_id) if markers.close_id in tokens else len(tokens)
