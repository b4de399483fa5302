"""Asks many questions at once; each gets five seconds, and the server plans its thought so that the answer fits."""

import asyncio
import os

from penstock_client import AsyncClient, DeadlineExceeded, Overloaded, Response


async def ask(client: AsyncClient, question: str) -> Response | None:
    while True:
        try:
            return await client.generate(question, thinking="auto", timeout=5)
        except Overloaded as full:
            await asyncio.sleep(full.retry_after_seconds or 1)
        except DeadlineExceeded:
            return None


async def main() -> None:
    async with AsyncClient(os.environ.get("PENSTOCK_TARGET", "127.0.0.1:50051")) as client:
        questions = [f"What is {n} + {n + 1}?" for n in range(1, 9)]
        for question, reply in zip(questions, await asyncio.gather(*(ask(client, q) for q in questions)), strict=True):
            print(question, "no answer in time" if reply is None else reply.answer)


asyncio.run(main())
