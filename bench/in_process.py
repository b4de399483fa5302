"""Run AsyncLLM alone in a process that reads jobs from stdin and writes answers to stdout, one line of JSON each.

It makes its own load, without a client or a socket: no server can be faster.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from typing import Any


async def main(plan: dict[str, Any]) -> None:
    from vllm import SamplingParams
    from vllm.config import StructuredOutputsConfig
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.inputs import tokens_input
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.engine.async_llm import AsyncLLM

    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # other code may print to stdout
    structured = StructuredOutputsConfig(**plan["arguments"].pop("structured_outputs_config"))
    arguments = AsyncEngineArgs(**plan["arguments"], structured_outputs_config=structured)
    llm = AsyncLLM.from_engine_args(arguments)

    async def one(prompt: list[int], name: str) -> dict[str, Any]:
        params = SamplingParams(
            temperature=0.0,
            max_tokens=plan["max_tokens"],
            output_kind=RequestOutputKind.DELTA,
            detokenize=True,
        )
        sent, times, tokens = time.monotonic(), [], 0
        async for output in llm.generate(tokens_input(prompt), params, name):
            times.append(time.monotonic())
            tokens += len(output.outputs[0].token_ids)
        return {"sent": sent, "times": times, "tokens": tokens}

    async def stream(number: int, prompts: list[list[int]], run: int) -> list[dict[str, Any]]:
        return [await one(prompt, f"{run}-{number}-{place}") for place, prompt in enumerate(prompts)]

    def say(result: object) -> None:
        results.write(json.dumps(result) + "\n")
        results.flush()

    say("ready")
    runs = 0
    while line := await asyncio.to_thread(sys.stdin.readline):
        runs += 1
        began = time.monotonic()
        replies = await asyncio.gather(*(stream(n, prompts, runs) for n, prompts in enumerate(json.loads(line))))
        say({"seconds": time.monotonic() - began, "replies": [reply for own in replies for reply in own]})
    llm.shutdown()


if __name__ == "__main__":
    import uvloop

    with open(sys.argv[1], encoding="utf-8") as file:
        uvloop.run(main(json.load(file)))
