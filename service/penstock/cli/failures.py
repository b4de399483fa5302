"""What went wrong, in plain words, and the exit code that goes with it. Never a traceback for what can be expected."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from penstock_client import PenstockError

EXIT_REFUSED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

# Where a field of the request is set on the command line.
_OPTION_OF_FIELD = {
    "spec.model": "",
    "spec.thinking.mode": "--thinking",
    "spec.thinking.thinking_budget": "--budget",
    "spec.thinking.answer_reserve": "--answer-reserve",
    "spec.output.max_output_tokens": "--max-output-tokens",
    "spec.output.stop_strings": "--stop",
    "spec.sampling.temperature": "--temperature",
    "spec.sampling.top_p": "--top-p",
    "spec.sampling.top_k": "--top-k",
    "spec.sampling.seed": "--seed",
}


class Commands(TyperGroup):
    """Turns the exceptions that a user can meet into a few lines on stderr and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        from penstock.errors import ConfigError
        from penstock.errors import PenstockError as ServiceError

        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except ConfigError as error:
            fail("the configuration is wrong:", *(f"  {line}" for line in error.message.splitlines()))
            raise typer.Exit(EXIT_USAGE) from None
        except ServiceError as error:
            fail(error.message)
            raise typer.Exit(EXIT_REFUSED) from None


def fail(*lines: str) -> None:
    for number, line in enumerate(lines):
        typer.echo(line if number else f"penstock: {line}", err=True)


def ended(measuring: Coroutine[Any, Any, None], target: str) -> int:
    """Runs to its end what measures `target`. The exit code: not 0 where Ctrl-C or a failure ended it early."""
    from penstock_client import PenstockError

    try:
        asyncio.run(measuring)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except PenstockError as error:
        fail(*in_words(error, target))
        return EXIT_REFUSED
    return 0


def nothing_measured(exit_code: int, why: str) -> int:
    """Say why there is no result and return the exit code, never 0. What `ended` has told is not told again."""
    if exit_code == 0:
        fail(why)
        return EXIT_REFUSED
    if exit_code == EXIT_INTERRUPTED:
        fail("interrupted before anything was measured")
    return exit_code


def in_words(error: PenstockError, target: str) -> list[str]:
    """What went wrong with a call to `target`, where, and what to do about it."""
    import penstock_client as pc

    match error:
        case pc.ContextOverflow() | pc.BudgetDoesNotFit():
            return [error.message, *_numbers(error), "ask for less, or see the limits with `penstock model`"]
        case pc.InvalidRequest() if error.violations:
            return ["the request was refused:", *(f"  {_place(v.field)}: {v.description}" for v in error.violations)]
        case pc.FeatureOff():
            return [error.message, "see what is on and why with `penstock model`"]
        case pc.Overloaded(reason="QUOTA_EXCEEDED"):
            return [f"the quota is used up: {error.message}", f"try again in {error.retry_after_seconds or 0:.0f} s"]
        case pc.Overloaded():
            wait = error.retry_after_seconds
            return [f"the service has no room now{f'; try again in {wait:g} s' if wait is not None else ''}"]
        case pc.DeadlineExceeded():
            return ["the time given was not enough", *_numbers(error), "give more (--timeout) or a smaller --budget"]
        case pc.Unavailable() if not error.reason and "connect" in error.message.lower():
            return [f"nothing answers at {target}: start it with `penstock serve`"]
        case pc.Unavailable():
            return [f"{target}: {error.message}"]
        case pc.CallerRefused():
            return [f"{target} refused the caller: {error.message}", "is the API key right? (PENSTOCK_API_KEY)"]
        case pc.ServerFault():
            identity = error.metadata.get("generation_id", "")
            return [f"the service failed: {error.message}", *([f"its log has it as {identity}"] if identity else [])]
    return [error.message]


def _place(field: str) -> str:
    option = _OPTION_OF_FIELD.get(field, "")
    return f"{option} ({field})" if option else field


def _numbers(error: PenstockError) -> list[str]:
    return ["  " + ", ".join(f"{name} {value}" for name, value in error.metadata.items())] if error.metadata else []
