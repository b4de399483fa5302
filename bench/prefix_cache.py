"""Measure the tokens that the prefix cache gives repeated prompts, chats and tool loops, with and without MTP.

python -m bench.prefix_cache [--blocks 1 2 4 10] [--turns 6] [--json]

It counts tokens and measures no time. Each engine runs on the embedded model with the service's defaults. Prompts are
random tokens, so that nothing is shared by chance. `wanted_tokens` follows vLLM's rule: all whole blocks before the
last token, and one block less with MTP.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from penstock.engine.base import Engine
    from penstock.engine.vllm.engine import VllmEngine

_OUTPUT_TOKENS = 8
_TOOL_STEPS = 3
_numbers = itertools.count()


@dataclass(frozen=True)
class MeasuredCall:
    """One call: tokens of its prompt, those from the cache, and those that vLLM's rule gives."""

    kind: str
    mtp: bool
    blocks: float
    prompt_tokens: int
    cached_tokens: int
    wanted_tokens: int

    @property
    def share(self) -> float:
        return self.cached_tokens / self.prompt_tokens


def promised(prompt_tokens: int, block_tokens: int, mtp: bool) -> int:
    """Return the tokens that a second call finds by vLLM's rule: whole blocks, without the last token."""
    known = prompt_tokens if mtp else prompt_tokens - 1
    return max(0, (known // block_tokens - mtp) * block_tokens)


async def ask(engine: Engine, prompt: Sequence[int]) -> tuple[int, list[int]]:
    """Run one call. Returns the tokens from the cache and the tokens generated."""
    from penstock.types import EngineRequest, Sampling

    name, sampling = f"prefix-{next(_numbers)}", Sampling(temperature=0.0)
    request = EngineRequest(name, tuple(prompt), _OUTPUT_TOKENS, min_tokens=_OUTPUT_TOKENS, sampling=sampling)
    chunks = [chunk async for chunk in engine.stream(request)]
    return chunks[-1].cached_tokens, [token for chunk in chunks for token in chunk.token_ids]


async def second_calls(
    engine: Engine, block_tokens: int, mtp: bool, lengths: Sequence[int], seed: int
) -> list[MeasuredCall]:
    """Send the same prompt twice, for each length in tokens."""
    draw, calls = random.Random(seed), []
    for length in lengths:
        prompt = noise(draw, length)
        _, first = await ask(engine, prompt)
        cached, second = await ask(engine, prompt)
        if first != second:
            raise AssertionError(f"{length} tokens: the answer differs when the prompt comes from the cache")
        wanted = promised(length, block_tokens, mtp)
        calls.append(MeasuredCall("second call", mtp, length / block_tokens, length, cached, wanted))
    return calls


async def growing_chat(engine: Engine, block_tokens: int, mtp: bool, turns: int, seed: int) -> list[MeasuredCall]:
    """Run a chat.

    Each turn's prompt is the one before, its answer, and 0.6 of a block. The first turn is not counted.
    """
    draw = random.Random(seed)
    prompt, calls, before = noise(draw, block_tokens * 8 // 5), list[MeasuredCall](), 0
    for turn in range(turns):
        cached, answer = await ask(engine, prompt)
        if turn:
            wanted = promised(before, block_tokens, mtp)
            calls.append(MeasuredCall("chat", mtp, len(prompt) / block_tokens, len(prompt), cached, wanted))
        before = len(prompt)
        prompt = [*prompt, *answer, *noise(draw, block_tokens * 3 // 5)]
    return calls


async def tool_loops(
    engine: Engine, block_tokens: int, mtp: bool, lengths: Sequence[int], seed: int
) -> list[MeasuredCall]:
    """Run a loop of tool calls for each length of the history in tokens.

    Each step's prompt has the thoughts, calls and results of the steps before, as the chat template writes them. The
    first step is not counted.
    """
    from penstock.types import Message, Role, Tool, ToolCall, ToolResult

    draw, calls = random.Random(seed), []
    tool = Tool("weather", "Return the weather.", '{"type": "object", "properties": {"city": {"type": "string"}}}')
    for length in lengths:
        words, prompt = list[str](), list[int]()
        while len(prompt) < length:
            words += ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(20)]
            messages = [Message(Role.USER, " ".join(words))]
            prompt = engine.tokenizer.render(messages, thinking=True, tools=(tool,))
        before = 0
        for step in range(_TOOL_STEPS + 1):
            prompt = engine.tokenizer.render(messages, thinking=True, tools=(tool,))
            cached, _ = await ask(engine, prompt)
            if step:
                wanted = promised(before, block_tokens, mtp)
                blocks = length / block_tokens
                calls.append(MeasuredCall(f"tool step {step}", mtp, blocks, len(prompt), cached, wanted))
            before = len(prompt)
            call = ToolCall(f"call-{step}", "weather", json.dumps({"city": f"City {step}"}))
            messages.append(Message(Role.ASSISTANT, "", thought="I ask for the weather.", tool_calls=(call,)))
            messages.append(Message(Role.TOOL, "", tool_results=(ToolResult(call.id, "It rains."),)))
    return calls


def noise(draw: random.Random, length: int) -> list[int]:
    return [draw.randrange(20, 500) for _ in range(length)]


async def block_tokens_of(engine: VllmEngine) -> int:
    return (await engine.cache_bytes())[0]["block_tokens"]


async def measure(blocks: Sequence[int], turns: int) -> list[MeasuredCall]:
    from penstock.config.schema import EngineSettings
    from penstock.engine.vllm.start import start

    calls = []
    for mtp in (True, False):
        engine = await start(EngineSettings(mtp="required" if mtp else "off"))
        try:
            size = await block_tokens_of(engine)
            calls += await second_calls(engine, size, mtp, [count * size + 100 for count in blocks], seed=1)
            calls += await growing_chat(engine, size, mtp, turns, seed=2)
            calls += await tool_loops(engine, size, mtp, [count * size + 100 for count in blocks], seed=3)
        finally:
            await engine.close()
    return calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--blocks",
        type=int,
        nargs="+",
        default=[1, 2, 4, 10],
        help="whole blocks of each prompt; 100 tokens are added to each",
    )
    parser.add_argument("--turns", type=int, default=6, help="number of turns of the chat")
    parser.add_argument("--json", action="store_true")
    wanted = parser.parse_args()
    calls = asyncio.run(measure(wanted.blocks, wanted.turns))
    if wanted.json:
        print(json.dumps([{**asdict(call), "share": round(call.share, 4)} for call in calls], indent=1))
        return
    table = Table("call", "MTP", "blocks", "prompt tokens", "from the cache", "by the rule", "share")
    for call in calls:
        figures = (call.prompt_tokens, call.cached_tokens, call.wanted_tokens)
        row = (f"{call.blocks:.1f}", *(f"{figure:,}" for figure in figures), f"{call.share:.0%}")
        table.add_row(call.kind, "on" if call.mtp else "off", *row)
    Console().print(table)


if __name__ == "__main__":
    main()
