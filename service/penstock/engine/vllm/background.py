"""Run blocking work that cannot be interrupted, such as importing vLLM, without delaying the end of the process."""

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

    When the caller is cancelled, the work continues and its result is dropped. Neither the event loop nor the
    interpreter waits for it at its end, as both do for the threads of an executor.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[_Result] = loop.create_future()

    def work() -> None:
        """Run `function` and hand its result or error to the event loop."""
        try:
            result = function(*arguments)
        except BaseException as error:
            _deliver(loop, done, done.set_exception, error)
        else:
            _deliver(loop, done, done.set_result, result)

    threading.Thread(target=work, name=THREAD_NAME, daemon=True).start()
    return await done


def is_busy() -> bool:
    """Return whether work of `run_in_background` is running, also for a caller that was cancelled."""
    return any(thread.name == THREAD_NAME for thread in threading.enumerate())


def _deliver(
    loop: asyncio.AbstractEventLoop, done: asyncio.Future[Any], settle: Callable[[Any], None], how: Any
) -> None:
    def settle_if_wanted() -> None:
        """Set the result unless the caller was cancelled."""
        if not done.done():
            settle(how)

    with contextlib.suppress(RuntimeError):  # the loop is closed: no caller waits any more
        loop.call_soon_threadsafe(settle_if_wanted)
