"""Try constraints, each in a child process that can be killed.

Run as `python -m penstock.engine.vllm.constraints.sandbox_process`.

Compilation cannot be interrupted, and a grammar that compiles at once can still take seconds per token. So a child
compiles the constraint and writes some texts under it as the engine would, within limits of time, memory and stack:
what fails there would have blocked all requests in the engine. Children are forked from here because to import the
compiler takes seconds.

stdin: one line with the tokenizer, then a JSON object per line {id, kind, spec, seconds}; kinds as in `_compile`.
stdout: "ready", then per constraint a line "id result" (`SandboxResult`, or -N where signal N ended the child). The
program ends when stdin does.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sys
import time
from enum import IntEnum
from functools import partial
from typing import Any

from penstock.engine.vllm.constraints.mask_budget import MaskTimeBudget
from penstock.engine.vllm.constraints.tours import CLOSINGS, Tour, tours_of
from penstock.engine.vllm.lifetime import end_with_parent

_MEMORY_BYTES = 1 << 30  # in addition to this process's own memory
_STACK_BYTES = 4 << 20  # half of the stack of the engine's threads
_CONVERT_SECONDS = 0.1  # vLLM does this much on the service's own event loop
_NICE = 10
_WALKS = 4
_WALK_TOKENS = 400
_TOUR_TOKENS = 8000  # of all tours together
_MIN_TOUR_TOKENS = 100
_MAX_TOUR_TOKENS = 1000
_MORE_COMMAS = 8  # of a tour, beside those between properties
_ITEMS = 0.5  # how often a list has another item
_DRAWN = (0.0, 0.25)  # of the steps of a tour, how many write any token that is allowed: one tour each


class SandboxResult(IntEnum):
    """The result of a trial."""

    GOOD = 0
    MALFORMED = 1
    SLOW = 2
    DEAD_END = 3


def main() -> int:
    """Read trials from stdin until it ends, and write their results. Return the exit status."""
    os.nice(_NICE)
    import xgrammar

    tokenizer = xgrammar.TokenizerInfo.deserialize_json(sys.stdin.readline())
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stderr.fileno())
    print("ready", flush=True)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children write their own results and are not waited for
    for line in sys.stdin:
        if os.fork() == 0:
            _watch(json.loads(line), tokenizer)
    return 0


def _watch(constraint: dict[str, Any], tokenizer: Any) -> None:
    """Run a trial in a second child and write how it ended. Neither child outlives this program, if it is killed."""
    end_with_parent()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    child = os.fork()
    if child == 0:
        end_with_parent()
        _bound(constraint["seconds"])
        verdict = SandboxResult.MALFORMED
        try:
            verdict = _try(constraint["kind"], constraint["spec"], tokenizer)
        finally:
            os._exit(verdict)
    _, status = os.waitpid(child, 0)
    # One write, so that lines of several children do not mix.
    os.write(sys.stdout.fileno(), f"{constraint['id']} {os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def _bound(seconds: float) -> None:
    with open("/proc/self/statm") as statm:
        mapped = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + _MEMORY_BYTES, mapped + _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_STACK, (_STACK_BYTES, _STACK_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.setitimer(signal.ITIMER_REAL, seconds)  # sends SIGALRM, which is not caught


def _try(kind: str, spec: str, tokenizer: Any) -> SandboxResult:
    import xgrammar

    began = time.thread_time()
    try:
        _convert(kind, spec, xgrammar)
        if time.thread_time() - began > _CONVERT_SECONDS:
            return SandboxResult.SLOW
        compiler = xgrammar.GrammarCompiler(tokenizer, max_threads=_threads(), cache_enabled=False)
        grammar = _compile(kind, spec, compiler)
    except (MemoryError, OSError):
        return SandboxResult.SLOW
    except Exception:
        return SandboxResult.MALFORMED
    matcher = xgrammar.GrammarMatcher(grammar)
    return written(matcher, tokenizer.vocab_size, tours_of(kind, spec))


def written(matcher: Any, vocab_size: int, tours: list[Tour]) -> SandboxResult:
    """Return the result of texts that are written as the engine would write them."""
    import xgrammar

    text = _Text(matcher, xgrammar.allocate_token_bitmask(1, vocab_size), vocab_size)
    most = min(_MAX_TOUR_TOKENS, max(_MIN_TOUR_TOKENS, _TOUR_TOKENS // (len(_DRAWN) * len(tours) or 1)))
    verdicts = (
        *(partial(_walk, text, number) for number in range(_WALKS)),
        *(partial(_tour, text, tour, most, drawn) for drawn in _DRAWN for tour in tours),
    )
    found = (verdict() for verdict in verdicts)
    return next((verdict for verdict in found if verdict is not SandboxResult.GOOD), SandboxResult.GOOD)


def _threads() -> int:
    """Return the number of compiler threads: half of the cores, and no more than vLLM uses."""
    return max(1, min(8, len(os.sched_getaffinity(0)) // 2))


def _convert(kind: str, spec: str, xgrammar: Any) -> None:
    if kind == "json":
        xgrammar.Grammar.from_json_schema(spec)
    elif kind == "regex":
        xgrammar.Grammar.from_regex(spec)
    elif kind == "ebnf":
        xgrammar.Grammar.from_ebnf(spec)
    elif kind == "structural_tag":
        xgrammar.Grammar.from_structural_tag(spec)


def _compile(kind: str, spec: str, compiler: Any) -> Any:
    """Compile as vLLM does with `disable_any_whitespace` (see `args`)."""
    if kind == "json":
        return compiler.compile_json_schema(spec, any_whitespace=False, separators=(",", ":"))
    if kind == "regex":
        return compiler.compile_regex(spec)
    if kind == "structural_tag":
        return compiler.compile_structural_tag(spec)
    return compiler.compile_lark(spec) if kind == "lark" else compiler.compile_grammar(spec)


class _Text:
    """A text that is written token by token, with the time that an engine would let it take."""

    def __init__(self, matcher: Any, mask: Any, vocab_size: int) -> None:
        self.matcher = matcher
        self._mask = mask
        self._vocab_size = vocab_size
        self.budget = MaskTimeBudget()

    def restart(self) -> None:
        """Begin another text."""
        self.matcher.reset()
        self.budget = MaskTimeBudget()

    def allowed(self) -> Any:
        """Return the mask of allowed tokens, in words of 32 bits."""
        began = time.thread_time()
        self.matcher.fill_next_token_bitmask(self._mask, 0)
        self.budget.spend(time.thread_time() - began)
        words = self._mask[0].numpy().view("uint32")
        if self._vocab_size % 32:
            words[-1] &= (1 << self._vocab_size % 32) - 1
        return words

    def write(self, token_id: int | None) -> bool:
        """Write a token. Return whether the text goes on."""
        began = time.thread_time()
        goes_on = token_id is not None and bool(self.matcher.accept_token(token_id))
        self.budget.spend(time.thread_time() - began)
        return goes_on and not self.budget.is_over

    def verdict(self) -> SandboxResult:
        """Return the result of the text so far."""
        return SandboxResult.SLOW if self.budget.is_over else SandboxResult.GOOD


def _walk(text: _Text, number: int) -> SandboxResult:
    """Write one text. The first walk takes the first allowed token every time, the others draw."""
    text.restart()
    draw = random.Random(number)
    for _ in range(_WALK_TOKENS):
        words = text.allowed()
        if not words.any():
            return SandboxResult.DEAD_END
        if not text.write(_pick(words, text.matcher.stop_token_ids, number, draw)):
            break
    return text.verdict()


def _tour(text: _Text, tour: Tour, most: int, drawn: float) -> SandboxResult:
    """Write one text of at most `most` steps that visits the parts of a constraint, and stays where masks are costly.

    A share `drawn` of the steps write any token.
    """
    text.restart()
    matcher, draw = text.matcher, random.Random(0)
    if tour.head and not matcher.accept_string(tour.head):
        return SandboxResult.GOOD
    commas = 2 * len(tour.names) + _MORE_COMMAS  # An open object goes on with each comma.
    for _ in range(most):
        before = text.budget.left_seconds
        words = text.allowed()
        if not words.any():
            return SandboxResult.DEAD_END
        is_costly = text.budget.left_seconds < before
        way = "" if is_costly or draw.random() < drawn else _taken(matcher, tour, draw, has_commas=commas > 0)
        commas -= way == ","
        if way == tour.end != "":
            break
        if not way and not text.write(_pick(words, matcher.stop_token_ids, 1, draw)):
            break
    return text.verdict()


def _taken(matcher: Any, tour: Tour, draw: random.Random, *, has_commas: bool) -> str:
    """Write the first way of a tour that is allowed, and return it; empty for none."""
    closings = [way for way in CLOSINGS if has_commas or way != ","]
    if draw.random() < _ITEMS:
        closings.remove("]")
    ways = (*tour.names, tour.end, *closings)
    return next((way for way in ways if way and matcher.accept_string(way)), "")


def _pick(words: Any, stops: list[int], number: int, draw: random.Random) -> int | None:
    """Return an allowed token that continues the text; None where only the end is allowed.

    `words` is the mask in words of 32 bits. The draw is not uniform: a random word that allows any, then a random bit
    of it.
    """
    for stop in stops:
        words[stop // 32] &= 0xFFFFFFFF ^ (1 << stop % 32)
    allowed = words.nonzero()[0]
    if not len(allowed):
        return None
    place = int(allowed[0] if number == 0 else draw.choice(allowed))
    word = int(words[place])
    bits = [bit for bit in range(32) if word >> bit & 1]
    return place * 32 + (bits[0] if number == 0 else draw.choice(bits))


if __name__ == "__main__":
    sys.exit(main())
