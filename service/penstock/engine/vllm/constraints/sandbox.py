"""Check constraints before the engine sees them: a process of its own tries each once (`sandbox_process`).

A result is about the constraint only and is kept for a while. A constraint that the engine found too slow in one
caller's call is refused to that caller only. A caller has one trial at a time and all callers together have two, so a
caller with costly constraints waits for its own trials.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import json
import signal
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from typing import Any

from penstock import tasks
from penstock.engine.child_process import ChildProgram, NotStarted, end
from penstock.engine.vllm.constraints.compiling import GrammarOf, refusal
from penstock.engine.vllm.constraints.sandbox_process import SandboxResult
from penstock.errors import Overloaded
from penstock.types import StructuredOutput

_PROGRAM = ChildProgram(
    name="the constraint sandbox",
    module="penstock.engine.vllm.constraints.sandbox_process",
    start_seconds=120.0,
    # One arena and no helper threads: the memory limit counts address space, and threads do not survive a fork.
    environment={"MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    line_bytes=1 << 20,
)
_TRIALS_AT_ONCE = 2
_MAX_WAITING = 64
_MAX_WAITING_OF_CALLER = 32
_MAX_REMEMBERED = 4096
_KEPT_SECONDS = 3600.0
_COSTLY_SECONDS = 600.0
_GRACE_SECONDS = 30.0  # in addition to the trial's own time, because the process runs at a low priority
_WRITTEN_AT_ONCE = 2048  # characters of a constraint that is converted in the event loop; a longer one in a thread


class ConstraintSandbox:
    """The process that tries constraints, and its results. Belongs to one event loop.

    Args:
        tokenizer_json: Returns the compiler's view of the tokenizer as JSON; called when the process starts.
        grammar_of: Converts a constraint for the compiler.
        seconds: Maximum time of a trial.
        doubted_seconds: Time after which a trial that ran out of time may be repeated: the machine may have been slow.
        costly_seconds: Time for which other refusals for cost are kept.
    """

    def __init__(
        self,
        tokenizer_json: Callable[[], str],
        grammar_of: GrammarOf,
        seconds: float,
        doubted_seconds: float = 60.0,
        costly_seconds: float = _COSTLY_SECONDS,
    ) -> None:
        self._tokenizer_json = tokenizer_json
        self._grammar_of = grammar_of
        self._seconds = seconds
        self._doubted_seconds = doubted_seconds
        self._costly_seconds = costly_seconds
        self._verdicts: OrderedDict[bytes, tuple[int, float]] = OrderedDict()
        self._process: asyncio.subprocess.Process | None = None
        self._starting: asyncio.Task[asyncio.subprocess.Process] | None = None
        self._slots = asyncio.Semaphore(_TRIALS_AT_ONCE)
        self._callers: dict[str, tuple[asyncio.Lock, int]] = {}
        self._waiting = 0
        self._running: dict[bytes, asyncio.Task[int]] = {}
        self._pending: dict[int, asyncio.Future[int]] = {}
        self._numbers = itertools.count()
        self._reading: asyncio.Task[None] | None = None

    def start_ahead(self) -> None:
        """Start the process in the background, so that the first constraint does not wait for it."""
        self._start_once()

    async def check(self, structured: StructuredOutput, caller: str) -> None:
        """Return where the engine may run the constraint.

        When the caller is cancelled, its trial continues: the result is there when it asks again.

        Raises:
            BadRequest: The constraint is refused.
            Overloaded: Too many constraints wait, or the process does not start.
        """
        if _characters(structured) > _WRITTEN_AT_ONCE:
            kind, spec = await asyncio.to_thread(self._grammar_of, structured)
        else:
            kind, spec = self._grammar_of(structured)
        key = _key(kind, spec)
        verdict = self._remembered(_key_of_caller(key, caller)) or self._remembered(key)
        if verdict is None:
            verdict = await self._sandbox_result(key, kind, spec, caller)
        if verdict != SandboxResult.GOOD:
            raise refusal(structured, verdict, self._seconds)

    def block(self, structured: StructuredOutput, caller: str) -> None:
        """Refuse a constraint to one caller for a while: the engine found it too slow in a call of that caller."""
        key = _key_of_caller(_key(*self._grammar_of(structured)), caller)
        self._remember(key, SandboxResult.SLOW)

    async def close(self) -> None:
        """End the process and all tasks that wait for it."""
        waiting = [*self._running.values(), *(task for task in (self._starting, self._reading) if task is not None)]
        await tasks.end(*waiting)
        if self._process is not None:
            await end(self._process)

    def _remembered(self, key: bytes) -> int | None:
        verdict, until = self._verdicts.get(key, (None, 0.0))
        if verdict is None or time.monotonic() > until:
            return None
        self._verdicts.move_to_end(key)
        return verdict

    def _remember(self, key: bytes, verdict: int) -> None:
        if verdict == -signal.SIGKILL:
            return  # Killed from outside, for example by the kernel: not a result.
        seconds = _KEPT_SECONDS if verdict in (SandboxResult.GOOD, SandboxResult.MALFORMED) else self._costly_seconds
        seconds = self._doubted_seconds if verdict == -signal.SIGALRM else seconds
        self._verdicts[key] = (verdict, time.monotonic() + seconds)
        self._verdicts.move_to_end(key)
        while len(self._verdicts) > _MAX_REMEMBERED:
            self._verdicts.popitem(last=False)

    async def _sandbox_result(self, key: bytes, kind: str, spec: str, caller: str) -> int:
        task = self._running.get(key)
        if task is None:
            async with contextlib.AsyncExitStack() as turn:
                await turn.enter_async_context(self._turn_of(caller))
                verdict = self._remembered(key)  # another call may have asked meanwhile
                if verdict is not None:
                    return verdict
                task = self._running.get(key)
                if task is None:
                    task = asyncio.create_task(self._run_in_sandbox(key, kind, spec, turn.pop_all()))
                    task.add_done_callback(_retrieve)
                    self._running[key] = task
        return await asyncio.shield(task)

    @contextlib.asynccontextmanager
    async def _turn_of(self, caller: str) -> AsyncIterator[None]:
        own, users = self._callers.get(caller, (asyncio.Lock(), 0))
        if self._waiting >= _MAX_WAITING or users >= _MAX_WAITING_OF_CALLER:
            raise Overloaded(
                f"too many constraints wait to be tried: at most {_MAX_WAITING}, {_MAX_WAITING_OF_CALLER} per caller",
                resource="constraints",
                retry_after_seconds=self._seconds,
            )
        self._callers[caller] = (own, users + 1)
        self._waiting += 1
        try:
            async with own, self._slots:
                yield
        finally:
            self._waiting -= 1
            own, users = self._callers.pop(caller)
            if users > 1:
                self._callers[caller] = (own, users - 1)

    async def _run_in_sandbox(self, key: bytes, kind: str, spec: str, turn: contextlib.AsyncExitStack) -> int:
        async with turn:
            try:
                verdict = await self._try(kind, spec)
            finally:
                del self._running[key]
            self._remember(key, verdict)
            return verdict

    async def _try(self, kind: str, spec: str) -> int:
        process = await self._started()
        assert process.stdin is not None
        number = next(self._numbers)
        trial = {"id": number, "kind": kind, "spec": spec, "seconds": self._seconds}
        self._pending[number] = asyncio.get_running_loop().create_future()
        try:
            process.stdin.write(json.dumps(trial).encode() + b"\n")
            async with asyncio.timeout(self._seconds + _GRACE_SECONDS):
                return await self._pending[number]
        except TimeoutError:
            raise Overloaded(
                "the constraint was not tried in time",
                resource="constraints",
                retry_after_seconds=self._seconds,
            ) from None
        finally:
            self._pending.pop(number, None)

    async def _started(self) -> asyncio.subprocess.Process:
        """Return the process once it is ready. When the caller is cancelled, the start continues."""
        if self._process is not None and self._process.returncode is None:
            return self._process
        try:
            return await asyncio.shield(self._start_once())
        except NotStarted as error:
            raise Overloaded(
                "constraints cannot be compiled now: the compiler did not start",
                resource="constraints",
                retry_after_seconds=self._seconds,
            ) from error

    def _start_once(self) -> asyncio.Task[asyncio.subprocess.Process]:
        if self._starting is None or self._starting.done():
            self._starting = asyncio.create_task(self._start())
            self._starting.add_done_callback(_retrieve)
        return self._starting

    async def _start(self) -> asyncio.subprocess.Process:
        """Start the process, which takes seconds to import the compiler. Raise NotStarted."""
        process = await _PROGRAM.start(first_input=lambda: self._tokenizer_json().encode() + b"\n")
        self._process = process
        self._reading = asyncio.create_task(self._read(process))
        return process

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            number, verdict = line.split()
            waiting = self._pending.get(int(number))
            if waiting is not None and not waiting.done():
                waiting.set_result(int(verdict))
        if self._process is process:
            self._process = None  # The process ended; the next trial starts another.
        for waiting in self._pending.values():
            if not waiting.done():
                waiting.set_result(-signal.SIGKILL)


def _retrieve(task: asyncio.Task[Any]) -> None:
    """Retrieve the exception, which asyncio would report where no caller is left that waits for the task."""
    if not task.cancelled():
        task.exception()


def _characters(structured: StructuredOutput) -> int:
    tools = structured.tool_calls.tools if structured.tool_calls is not None else ()
    texts = [structured.spec, *structured.choices, *(tool.parameters_json_schema for tool in tools)]
    return sum(map(len, texts))


def _key(kind: str, spec: str) -> bytes:
    return hashlib.sha256(f"{kind}\n{spec}".encode()).digest()


def _key_of_caller(key: bytes, caller: str) -> bytes:
    return key + caller.encode()
