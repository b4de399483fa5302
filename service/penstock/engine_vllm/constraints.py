"""The door for constraints: each is tried once by a process of its own (`trial`) before the engine sees it.

Verdicts are remembered. A caller has one trial at a time, all callers together two, so that a caller of bombs waits for
its own bombs and others hardly do.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import json
import math
import os
import signal
import sys
import time
from collections import OrderedDict
from collections.abc import Callable

from penstock.engine_vllm.trial import Verdict
from penstock.errors import BadRequest, FieldViolation, Overloaded
from penstock.types import StructuredKind, StructuredOutput

_TRIALS_AT_ONCE = 2
_MOST_WAITING = 64
_MOST_REMEMBERED = 4096
_GRACE_SECONDS = 5.0  # for the process itself, beside the trial's own time
_START_SECONDS = 120.0
_LINE_BYTES = 1 << 20


GrammarOf = Callable[[StructuredOutput], tuple[str, str]]
"""Kind (as in `trial`) and text of a constraint, as vLLM's backend compiles it."""


class Constraints:
    """Belongs to one event loop. `tokenizer_json` gives the compiler's own view of the tokenizer, asked for at the
    first constraint; a trial takes at most `seconds`. One that ran out of them may have been slowed by the machine: it
    may be tried again after `doubted_seconds`."""

    def __init__(
        self,
        tokenizer_json: Callable[[], str],
        grammar_of: GrammarOf,
        seconds: float,
        doubted_seconds: float = 60.0,
    ) -> None:
        self._tokenizer_json = tokenizer_json
        self._grammar_of = grammar_of
        self._seconds = seconds
        self._doubted_seconds = doubted_seconds
        self._verdicts: OrderedDict[bytes, tuple[int, float]] = OrderedDict()
        self._process: asyncio.subprocess.Process | None = None
        self._starting = asyncio.Lock()
        self._slots = asyncio.Semaphore(_TRIALS_AT_ONCE)
        self._callers: dict[str, tuple[asyncio.Lock, int]] = {}
        self._waiting = 0
        self._pending: dict[int, asyncio.Future[int]] = {}
        self._numbers = itertools.count()
        self._reading: asyncio.Task[None] | None = None

    async def check(self, structured: StructuredOutput, caller: str) -> None:
        """Raises BadRequest where the engine must not see it, Overloaded where too many wait."""
        kind, spec = self._grammar_of(structured)
        key = _key(kind, spec)
        verdict = self._remembered(key)
        if verdict is None:
            verdict = await self._tried(key, kind, spec, caller)
        if verdict != Verdict.GOOD:
            raise refusal(structured, malformed=verdict == Verdict.MALFORMED, seconds=self._seconds)

    def condemn(self, structured: StructuredOutput) -> None:
        """What the trial did not find, the engine did: never again."""
        self._remember(_key(*self._grammar_of(structured)), Verdict.SLOW)

    async def close(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    def _remembered(self, key: bytes) -> int | None:
        verdict, until = self._verdicts.get(key, (None, 0.0))
        if verdict is None or time.monotonic() > until:
            return None
        self._verdicts.move_to_end(key)
        return verdict

    def _remember(self, key: bytes, verdict: int) -> None:
        seconds = self._doubted_seconds if verdict == -signal.SIGALRM else math.inf
        self._verdicts[key] = (verdict, time.monotonic() + seconds)
        self._verdicts.move_to_end(key)
        while len(self._verdicts) > _MOST_REMEMBERED:
            self._verdicts.popitem(last=False)

    async def _tried(self, key: bytes, kind: str, spec: str, caller: str) -> int:
        if self._waiting >= _MOST_WAITING:
            raise Overloaded("too many constraints wait to be tried", retry_after_seconds=self._seconds)
        own, users = self._callers.get(caller, (asyncio.Lock(), 0))
        self._callers[caller] = (own, users + 1)
        self._waiting += 1
        try:
            async with own, self._slots:
                verdict = self._remembered(key)  # another call may have asked meanwhile
                if verdict is None:
                    verdict = await self._try(kind, spec)
                    if verdict != -signal.SIGKILL:  # somebody else's doing, such as the kernel's
                        self._remember(key, verdict)
                return verdict
        finally:
            self._waiting -= 1
            own, users = self._callers.pop(caller)
            if users > 1:
                self._callers[caller] = (own, users - 1)

    async def _try(self, kind: str, spec: str) -> int:
        async with self._starting:
            if self._process is None or self._process.returncode is not None:
                await self._start()
        process = self._process
        assert process is not None
        assert process.stdin is not None
        number = next(self._numbers)
        trial = {"id": number, "kind": kind, "spec": spec, "seconds": self._seconds}
        self._pending[number] = asyncio.get_running_loop().create_future()
        try:
            process.stdin.write(json.dumps(trial).encode() + b"\n")
            async with asyncio.timeout(self._seconds + _GRACE_SECONDS):
                return await self._pending[number]
        except TimeoutError:
            return -signal.SIGALRM
        finally:
            self._pending.pop(number, None)

    async def _start(self) -> None:
        """Imports the compiler, which takes seconds: once, at the first constraint."""
        # One arena and no helper threads: the memory limit counts address space, and threads do not survive a fork.
        quiet = {"MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-W", "ignore", "-m", "penstock.engine_vllm.trial"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            limit=_LINE_BYTES,
            env=os.environ | quiet,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        tokenizer = await asyncio.to_thread(self._tokenizer_json)
        with contextlib.suppress(ConnectionError):
            process.stdin.write(tokenizer.encode() + b"\n")
            await process.stdin.drain()
            async with asyncio.timeout(_START_SECONDS):
                await process.stdout.readline()
        self._process = process
        self._reading = asyncio.create_task(self._read(process.stdout))

    async def _read(self, lines: asyncio.StreamReader) -> None:
        async for line in lines:
            number, verdict = line.split()
            waiting = self._pending.get(int(number))
            if waiting is not None and not waiting.done():
                waiting.set_result(int(verdict))
        for waiting in self._pending.values():
            if not waiting.done():
                waiting.set_result(-signal.SIGKILL)


def _key(kind: str, spec: str) -> bytes:
    return hashlib.sha256(f"{kind}\n{spec}".encode()).digest()


def field_of(structured: StructuredOutput) -> str:
    return f"spec.output.{'choices' if structured.choices else structured.kind.value}"


def refusal(structured: StructuredOutput, *, malformed: bool, seconds: float) -> BadRequest:
    """Malformed, or dearer than this server allows."""
    if malformed:
        return BadRequest(FieldViolation(field_of(structured), "the constraint cannot be compiled", "INVALID_FIELD"))
    return BadRequest(
        FieldViolation(
            field_of(structured),
            f"the constraint is too costly: compiling it takes more than {seconds:g} s or far too much memory, or it "
            "holds up every token; make it smaller or less ambiguous",
            "LIMIT_EXCEEDED",
        )
    )


def grammar_of(structured: StructuredOutput) -> tuple[str, str]:
    """See `GrammarOf`; for the xgrammar backend."""
    from vllm.v1.structured_output.utils import choice_as_grammar, grammar_is_likely_lark

    match structured.kind:
        case StructuredKind.JSON_SCHEMA:
            return "json", structured.spec
        case StructuredKind.REGEX:
            return "regex", structured.spec
        case StructuredKind.GRAMMAR:
            return "lark" if grammar_is_likely_lark(structured.spec) else "ebnf", structured.spec
        case StructuredKind.CHOICE:
            return "ebnf", choice_as_grammar(list(structured.choices))
