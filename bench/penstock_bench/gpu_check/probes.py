"""Ask a service that runs on this machine, and keep what is found. Each probe raises PenstockError where it fails."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass

import psutil
from penstock_bench.evaluation.measure import EvaluationOptions, measure
from penstock_bench.evaluation.questions import SHIPPED, Question, load, pick
from penstock_bench.evaluation.results import Row
from penstock_bench.evaluation.settings import THINKING
from penstock_bench.gpu_check.plan import CheckPlan
from penstock_bench.gpu_check.results import BudgetCase, Killed
from penstock_bench.load import measure as loads
from penstock_bench.load.prompts import Prompts
from penstock_bench.load.run import LoadOptions
from penstock_bench.load.statistics import Objectives
from penstock_bench.load.workload import Lengths, Thinking, Work, Workload
from penstock_bench.pilot.results import Stage
from penstock_bench.pilot.stage import stage_of
from penstock_client import AsyncClient, Finished, Response, ThinkingOutcome
from penstock_client.events import AnswerDelta, ThoughtDelta

_ANSWER_TOKENS = 512
_WARM_UP_SECONDS, _DRAIN_SECONDS = 2.0, 120.0
_KILL_AFTER_TOKENS = 3
"""Tokens that every stream has had when the engine is killed."""


def questions_of(count: int) -> list[Question]:
    """Return the first questions of `penstock eval` that need thought."""
    return [one for one in pick(load(SHIPPED), 4 * count, seed=0) if one.needs_thought][:count]


async def budgets(client: AsyncClient, plan: CheckPlan) -> tuple[BudgetCase, ...]:
    """Ask with each budget in each way to draw tokens, all at the same time: batches are where budgets go wrong."""
    asked = questions_of(len(plan.budgets))
    cases = [
        (way, budget, question) for way in plan.sampling for budget, question in zip(plan.budgets, asked, strict=False)
    ]

    async def one(way: tuple[str, float, int | None], budget: int, question: Question) -> BudgetCase:
        """Ask one question. A seed of None draws another one each time."""
        name, temperature, seed = way
        reply = await client.generate(
            question.messages,
            thinking="thinking",
            budget=budget,
            temperature=temperature,
            seed=seed,
            max_output_tokens=_ANSWER_TOKENS,
        )
        return budget_case(name, budget, reply)

    return tuple(await asyncio.gather(*(one(*case) for case in cases)))


def budget_case(sampling: str, budget: int, reply: Response) -> BudgetCase:
    """Judge one reply: a cut thought has exactly the budget's tokens, any other has no more."""
    assert reply.usage is not None  # generate() gives complete replies
    spent, outcome = reply.usage.reasoning_tokens, reply.thinking_outcome
    cut = outcome is ThinkingOutcome.BUDGET_REACHED
    return BudgetCase(
        sampling=sampling,
        budget_tokens=budget,
        thought_tokens=spent,
        outcome=outcome.value if outcome is not None else "unknown",
        held=spent == budget if cut else spent <= budget,
    )


async def answers(client: AsyncClient, plan: CheckPlan) -> list[Row]:
    """Ask questions of `penstock eval` without a limit on thinking."""
    rows: list[Row] = []
    asked = pick(load(SHIPPED), plan.questions, seed=0)
    await measure(client, asked, [THINKING], EvaluationOptions(plan.calls, _ANSWER_TOKENS), rows.append)
    return rows


async def repeated_prompt(client: AsyncClient, prompts: Prompts, plan: CheckPlan) -> tuple[int, int]:
    """Send a long prompt twice. Return its tokens, and those that the second call found in the prefix cache."""
    messages = prompts.messages(Work(plan.repeated_tokens), random.Random(1))
    for _ in range(2):
        reply = await client.generate(messages, thinking="fast", max_output_tokens=1, temperature=0.0)
    assert reply.usage is not None
    return reply.usage.prompt_tokens, reply.usage.cached_tokens


@dataclass(frozen=True, slots=True)
class _Told:
    """The text of a stream, and whether it is complete."""

    text: str
    complete: bool
    continued: bool
    over_budget: bool


async def killed(client: AsyncClient, front_end: psutil.Process, plan: CheckPlan) -> Killed:
    """Kill the engine (SIGKILL) once every stream has had tokens, and read the streams to their ends."""
    asked = questions_of(plan.killed_streams)
    before = await asyncio.gather(*(_stream(client, question, asyncio.Event()) for question in asked))
    started = [asyncio.Event() for _ in asked]
    streams = [asyncio.create_task(_stream(client, *pair)) for pair in zip(asked, started, strict=True)]
    try:
        # A stream that ends before it had the tokens sets its event, too.
        await asyncio.gather(*(event.wait() for event in started))
        kill_engine(front_end)
        after = await asyncio.gather(*streams)
    finally:
        for stream in streams:
            stream.cancel()
    return Killed(
        streams=len(after),
        complete=sum(one.complete for one in after),
        continued=sum(one.continued for one in after),
        same=sum(one.continued and one.text == other.text for one, other in zip(after, before, strict=True)),
        over_budget=sum(one.over_budget for one in after),
    )


async def _stream(client: AsyncClient, question: Question, started: asyncio.Event) -> _Told:
    tokens, complete = 0, False
    stream = client.stream(question.messages, thinking="thinking", temperature=0.0, max_output_tokens=_ANSWER_TOKENS)
    try:
        async with stream:
            async for event in stream:
                if isinstance(event, ThoughtDelta | AnswerDelta):
                    tokens += event.token_count
                    if tokens >= _KILL_AFTER_TOKENS:
                        started.set()
                complete = isinstance(event, Finished)
    finally:
        started.set()
    reply = stream.response
    usage, effective = reply.usage, reply.effective_settings
    over = usage is not None and effective is not None and usage.reasoning_tokens > effective.thinking_budget
    continued = usage is not None and usage.recomputed_tokens > 0
    return _Told(f"{reply.thought}\n{reply.answer}", complete, continued, over)


def kill_engine(front_end: psutil.Process) -> None:
    """Kill the engine's core, as vLLM titles it. Raises RuntimeError where there is none."""
    for process in front_end.children(recursive=True):
        if "EngineCore" in " ".join(process.cmdline()):
            process.kill()
            return
    raise RuntimeError("the service has no process with the title of vLLM's engine core")


async def speed(
    clients: Sequence[AsyncClient], prompts: Prompts, front_end: psutil.Process, plan: CheckPlan, streams: int
) -> Stage:
    """Measure a closed loop of `streams` callers, with outputs of a fixed length."""
    prompt, output = max(plan.prompt_tokens, prompts.min_tokens), plan.output_tokens
    workload = Workload(
        Lengths(((prompt, prompt, 1.0),)), Lengths(((output, output, 1.0),)), Thinking((("fast", None, 1.0),))
    )
    options = LoadOptions(plan.seconds, _WARM_UP_SECONDS, _DRAIN_SECONDS, seed=streams, min_calls=2 * streams)
    load = loads.prepare(clients, prompts, loads.Closed(streams), workload, options)
    await loads.carry_out(load, front_end)
    return stage_of("concurrency", f"{streams} stream{'s'[: streams > 1]}", load, Objectives(), None)
