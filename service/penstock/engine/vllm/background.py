"""Blocking work that nothing can interrupt, such as importing vLLM, without making the end of the process wait."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any, TypeVar

THREAD_NAME = "penstock-start"
_Result = TypeVar("_Result")


async def run_in_background(function: Callable[..., _Result], *arguments: object) -> _Result:
    """Return or raise what `function` does, like `asyncio.to_thread`, but in a daemon thread.

    Cancelled, the work goes on unheard; neither the event loop nor the interpreter waits for it at its end, as both do
    for the threads of an executor.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[_Result] = loop.create_future()

    def work() -> None:
        try:
            result = function(*arguments)
        except BaseException as error:
            _deliver(loop, done, done.set_exception, error)
        else:
            _deliver(loop, done, done.set_result, result)

    threading.Thread(target=work, name=THREAD_NAME, daemon=True).start()
    return await done


def is_busy() -> bool:
    """Whether work of `run_in_background` is under way that its caller may have given up."""
    return any(thread.name == THREAD_NAME for thread in threading.enumerate())


def _deliver(
    loop: asyncio.AbstractEventLoop, done: asyncio.Future[Any], settle: Callable[[Any], None], how: Any
) -> None:
    def settle_if_wanted() -> None:
        if not done.done():
            settle(how)

    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
        loop.call_soon_threadsafe(settle_if_wanted)
