"""The engine ends a thought where the closing marker is likely: as the service would, without a second run."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from penstock.engine.vllm.engine import VllmEngine
from penstock.engine.vllm.marker_exit import EXIT
from penstock_proto.v1 import generation_pb2 as pb

from tests.engine.test_budget_on_the_wire import QUESTIONS, think
from tests.rpc.conftest import serving

OPEN, CLOSE, LINE, OTHER = 1, 2, 3, 4
MORE = (
    *QUESTIONS[:2],
    "What is 48 + 27 + 36?",
    "What is 12 + 30 + 44?",
    "What is 63 - 21 + 8?",
    "Sort 8, 3, 77, 41, 25.",
    "Was ist 17 + 25 + 9?",
    "Combien font 40 - 12 + 7 ?",
)
"""Where a budget of 20 cuts the thought, the answer is a guess. Questions of which two guesses are about as likely are
left out: their answer differs by batch."""


async def test_the_engine_ends_thoughts_where_the_service_would(engine: VllmEngine) -> None:
    """Side by side, so that rows of the batch move, and with drafts."""

    async def told() -> list[tuple[Any, ...]]:
        async with serving(engine) as (_, channel):
            kind = {"early_exit": pb.EARLY_EXIT_MARKER, "early_exit_probability": 0.05}
            calls = (think(channel, question, budget, 0.0, **kind) for question in MORE for budget in (-1, 20))
            return [_told(events) for events in await asyncio.gather(*calls)]

    assert engine.card.forces_exit
    by_engine = await told()
    engine.change_card(forces_exit=False)
    try:
        by_service = await told()
    finally:
        engine.change_card(forces_exit=True)
    assert [one[:-1] for one in by_engine] == [one[:-1] for one in by_service]
    converged = [one for one in by_service if one[0] == pb.THINKING_OUTCOME_CONVERGED]
    assert converged
    assert all(one[-1] > 0 for one in converged)
    assert all(one[-1] == 0 for one in by_engine)


def _told(events: list[pb.GenerationEvent]) -> tuple[Any, ...]:
    """Return outcome, thought, answer, and the tokens that were computed again."""
    finished = events[-1].finished
    thought = [token_id for event in events for token_id in event.thought.token_ids]
    answer = "".join(event.answer.text for event in events)
    return finished.results[0].thinking_outcome, thought, answer, finished.usage.recomputed_tokens


async def test_drawn_at_random_a_thought_ends_behind_a_line(engine: VllmEngine) -> None:
    async with serving(engine) as (_, channel):
        kind = {"early_exit": pb.EARLY_EXIT_MARKER, "early_exit_probability": 0.05}
        streams = await asyncio.gather(*(think(channel, question, -1, 1.0, **kind) for question in MORE * 2))
    ended = [one for one in map(_told, streams) if one[0] == pb.THINKING_OUTCOME_CONVERGED]
    assert ended
    for _, thought, _, recomputed in ended:
        assert b"\n" in engine.tokenizer.token_bytes(thought[-1])
        assert recomputed == 0


@pytest.fixture
def extended() -> Iterator[None]:
    """This process as the engine's start leaves it, with one token that ends a line."""
    from penstock.engine.vllm import compat, marker_exit

    compat.general_plugin()
    runner = SimpleNamespace(input_batch=SimpleNamespace(thinking_budget_state_holder=holder_of(drafts=2)))
    before = marker_exit._line_ends
    assert marker_exit.end_thoughts_behind(runner, [LINE])
    yield
    marker_exit._line_ends = before


def holder_of(*, drafts: int) -> Any:
    from vllm.v1.sample.thinking_budget_state import ThinkingBudgetStateHolder as Holder

    tokens = SimpleNamespace(reasoning_start_token_ids=[OPEN], reasoning_end_token_ids=[CLOSE])
    return Holder(tokens, max_num_seqs=4, num_spec_tokens=drafts, device=None, is_pin_memory=False)


def added(row: int, output: list[int], *, probability: float | None = 0.3, prompt: tuple[int, ...] = (OPEN,)) -> Any:
    asked = None if probability is None else {EXIT: [math.log(probability), len(prompt)]}
    return row, SimpleNamespace(thinking_token_budget=100, extra_args=asked), list(prompt), output


def forced(holder: Any, rows: int, drafts: list[list[int]], *, bonus: bool = False) -> list[int]:
    """Return the rows in which the marker is forced, where its probability is 0.5 in all of them."""
    import torch

    logits = torch.full((rows, 5), -30.0)
    logits[:, [CLOSE, OTHER]] = 0.0
    forced = holder.apply_to_logits(logits, bonus, drafts)
    return torch.nonzero(forced[:, CLOSE] > 1e6).flatten().tolist()


def updated(holder: Any, requests: list[Any], drafts: list[list[int]], moved: Any = ()) -> Any:
    from vllm.v1.sample.logits_processor.interface import BatchUpdate

    holder.sync_batch(BatchUpdate(batch_size=len(requests), removed=[], added=requests, moved=list(moved)))
    rows: list[list[int]] = [output for _, _, _, output in requests]
    for first, second, _ in moved:
        rows[first], rows[second] = rows[second], rows[first]
    holder.update_state(rows, drafts)
    return holder


@pytest.mark.parametrize(
    ("output", "drafts", "rows", "behind_all"),
    [
        ([OTHER, LINE], [OTHER, OTHER], [0], []),
        ([OTHER], [LINE, OTHER], [1], []),
        ([OTHER], [OTHER, LINE], [], [0]),
        ([LINE], [LINE, LINE], [0, 1], [0]),
        ([OTHER], [OTHER, OTHER], [], []),
        ([LINE, CLOSE, LINE], [LINE, LINE], [], []),  # the thought is over
        ([OTHER], [CLOSE, LINE], [], []),  # it ends in the drafts
        ([], [], [], []),  # nothing but the prompt
    ],
)
def test_the_rows_behind_a_line_of_a_thought(
    extended: None, output: list[int], drafts: list[int], rows: list[int], behind_all: list[int]
) -> None:
    holder = updated(holder_of(drafts=2), [added(0, output)], [drafts])
    assert forced(holder, 1, [drafts], bonus=True) == behind_all
    assert forced(holder, len(drafts), [drafts]) == rows


def test_without_drafts_each_request_has_its_row(extended: None) -> None:
    requests = [added(0, [OTHER]), added(1, [LINE]), added(2, [LINE], probability=None), added(3, [LINE])]
    requests[3][1].extra_args[EXIT][0] = math.log(0.6)  # the marker has 0.5
    assert forced(updated(holder_of(drafts=0), requests, []), 4, []) == [1]


def test_a_line_of_the_prompt_ends_no_thought(extended: None) -> None:
    before = added(0, [], prompt=(OPEN, LINE))
    assert forced(updated(holder_of(drafts=0), [before], []), 1, []) == []
    # Of a thought that is continued, the lines after the first place count.
    continued = added(0, [], prompt=(OPEN, OTHER, LINE))
    continued[1].extra_args[EXIT][1] = 1
    assert forced(updated(holder_of(drafts=0), [continued], []), 1, []) == [0]


def test_a_request_keeps_its_exit_where_it_moves_as_it_comes(extended: None) -> None:
    from vllm.v1.sample.logits_processor.interface import MoveDirectionality

    requests = [added(0, [LINE]), added(1, [LINE], probability=None)]
    holder = updated(holder_of(drafts=0), requests, [], [(0, 1, MoveDirectionality.SWAP)])
    assert forced(holder, 2, []) == [1]


def test_vllm_still_takes_no_logits_processors_beside_drafts() -> None:
    """Where it takes them, early exit belongs into one: `vllm.v1.sample.logits_processor` is public."""
    from vllm.v1.sample import logits_processor

    assert "speculative decoding" in logits_processor.STR_SPEC_DEC_REJECTS_LOGITSPROCS
