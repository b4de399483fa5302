"""Report failures of commands in plain words, with an exit code. Expected failures never show a traceback."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import sys
from collections.abc import Coroutine
from pathlib import Path
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
    "spec.thinking.stop_patterns.strings": "--thought-stop",
    "spec.thinking.early_exit": "--early-exit",
    "spec.thinking.early_exit_probability": "--early-exit-probability",
    "spec.thinking.stop_patterns.regex": "--thought-stop-regex",
    "spec.sampling.temperature": "--temperature",
    "spec.sampling.top_p": "--top-p",
    "spec.sampling.top_k": "--top-k",
    "spec.sampling.seed": "--seed",
}


# typer carries a click of its own, whose module has no public name.
UsageError: Any = typer.BadParameter.__mro__[1]


class Commands(TyperGroup):
    """Turn the exceptions that a user can meet into a few lines on stderr and an exit code."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments, and silence gRPC's own log."""
        _output.as_json, _output.stdout_is_gone = "--json" in args, False
        if args and args[0] not in _SERVES:
            os.environ.setdefault(
                "GRPC_VERBOSITY", "NONE"
            )  # Set before its import: errors are reported by this module.
        try:
            return super().parse_args(ctx, args)
        except KeyboardInterrupt:  # Typer imports Pydantic here, and would say nothing.
            raise _interrupted() from None

    def invoke(self, ctx: Any) -> Any:
        """Run the command and report its failure."""
        from penstock.errors import ConfigError
        from penstock.errors import PenstockError as ServiceError

        try:
            result = super().invoke(ctx)
            sys.stdout.flush()  # Here a full disk can be reported; when the process ends it cannot.
            return result
        except KeyboardInterrupt:
            raise _interrupted() from None
        except UsageError as error:
            if not _output.as_json:
                raise
            fail(error.format_message(), exit_code=EXIT_USAGE)
            raise typer.Exit(EXIT_USAGE) from None
        except ConfigError as error:
            lines = (f"  {line}" for line in error.message.splitlines())
            fail("invalid configuration:", *lines, exit_code=EXIT_USAGE)
            raise typer.Exit(EXIT_USAGE) from None
        except ServiceError as error:
            fail(error.message)
            raise typer.Exit(EXIT_REFUSED) from None
        except BrokenPipeError:  # The reader of the output has closed it.
            _let_go_of_stdout()
            raise typer.Exit(EXIT_REFUSED) from None
        except OSError as error:
            fail(_os_error_in_words(error))
            raise typer.Exit(EXIT_REFUSED) from None


def _interrupted() -> typer.Exit:
    typer.echo("penstock: interrupted", err=True)
    return typer.Exit(EXIT_INTERRUPTED)


_SERVES = ("serve", "demo")


class _Output:
    """Hold how failures are reported: as text on stderr, or with --json as one JSON object on stdout."""

    as_json = False
    stdout_is_gone = False


_output = _Output()


def fail(*lines: str, exit_code: int = EXIT_REFUSED, **facts: object) -> None:
    """Report a failure: the first line is the cause. `facts` go into the JSON of --json."""
    if _output.as_json and not _output.stdout_is_gone:
        told = {"message": " ".join(line.strip() for line in lines), "exit_code": exit_code, **facts}
        try:
            sys.stdout.write(json.dumps({"error": told}, ensure_ascii=False) + "\n")
            sys.stdout.flush()
            return
        except OSError:
            _let_go_of_stdout()
    for number, line in enumerate(lines):
        typer.echo(line if number else f"penstock: {line}", err=True)


def fail_call(error: PenstockError, target: str, tls: bool | None = None, ca: Path | None = None) -> None:
    """Report the failure of a call to `target`."""
    fail(
        *in_words(error, target, tls, ca),
        type=type(error).__name__,
        code=error.code.name if error.code else None,
        reason=error.reason,
        metadata=dict(error.metadata),
        violations=[{"field": v.field, "description": v.description} for v in error.violations],
        retry_after_seconds=error.retry_after_seconds,
    )


def no_client(error: ValueError, target: str) -> Exception:
    """Return the failure to raise where the client refused `target` or what goes with it."""
    from penstock_client.reach import why_no_target

    return typer.BadParameter(why_no_target(target) or str(error))


def _os_error_in_words(error: OSError) -> str:
    why = error.strerror or str(error)
    if error.filename is not None:
        return f"{error.filename}: {why}"
    # Files are written through penstock.files, which names them: this is stdout.
    if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EIO):
        _let_go_of_stdout()
        return f"cannot write the output: {why}"
    return why


def _let_go_of_stdout() -> None:
    """Detach stdout, so that Python does not retry a failed write, and complain, when the process ends."""
    _output.stdout_is_gone = True
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def ended(measuring: Coroutine[Any, Any, None], target: str, tls: bool | Path | None) -> int:
    """Run a measurement of `target` to its end. Return the exit code: not 0 where Ctrl-C or a failure ended it
    early.
    """
    from penstock_client import PenstockError

    try:
        asyncio.run(measuring)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except PenstockError as error:
        ca = tls if isinstance(tls, Path) else None
        fail_call(error, target, None if ca else bool(tls), ca)
        return EXIT_REFUSED
    return 0


def nothing_measured(exit_code: int, why: str) -> int:
    """Report why there is no result and return the exit code, never 0. What `ended` has reported is not repeated."""
    if exit_code == 0:
        fail(why)
        return EXIT_REFUSED
    if exit_code == EXIT_INTERRUPTED:
        fail("interrupted before anything was measured")
    return exit_code


def in_words(error: PenstockError, target: str, tls: bool | None = None, ca: Path | None = None) -> list[str]:
    """Return the cause of a failed call to `target`, and what to do about it, as lines of text."""
    import penstock_client as pc

    match error:
        case pc.ContextOverflow() | pc.BudgetDoesNotFit():
            return [error.message, *_numbers(error), "lower the value; `penstock model` shows the limits"]
        case pc.InvalidRequest() if error.violations:
            return ["the request was refused:", *(f"  {_place(v.field)}: {v.description}" for v in error.violations)]
        case pc.FeatureOff():
            return [error.message, "`penstock model` shows which features are on, and why"]
        case pc.Overloaded(reason="QUOTA_EXCEEDED"):
            return [f"quota exceeded: {error.message}", f"retry in {error.retry_after_seconds or 0:.0f} s"]
        case pc.Overloaded():
            wait = error.retry_after_seconds
            return [f"the service is overloaded{f'; retry in {wait:g} s' if wait is not None else ''}"]
        case pc.DeadlineExceeded():
            return ["the deadline passed", *_numbers(error), "raise --timeout or lower --budget"]
        case pc.Unavailable():
            return [_why_unavailable(error, target, tls, ca)]
        case pc.NotImplementedYet() if not error.reason:  # Not from a Penstock service.
            return [f"{target} speaks gRPC but has no such method; it may not be a Penstock service"]
        case pc.CallerRefused() if error.code and error.code.name == "PERMISSION_DENIED":
            needs = error.metadata.get("needs")
            return [f"{target} does not let this caller do that{f': it needs the permission {needs}' if needs else ''}"]
        case pc.CallerRefused():
            return [f"{target} refused the caller: {error.message}", "is the API key right? (PENSTOCK_API_KEY)"]
        case pc.ServerFault():
            identity = error.metadata.get("generation_id", "")
            said = (
                error.message
                if error.message.startswith("the service failed")
                else f"the service failed: {error.message}"
            )
            return [f"{said} as {identity}" if identity else said]
    return [error.message]


def _why_unavailable(error: PenstockError, target: str, tls: bool | None, ca: Path | None) -> str:
    from penstock_client.reach import why_unreachable

    # Only the service sends a reason; without one, something else has answered.
    why = "" if error.reason else why_unreachable(target, tls, ca)
    return why or f"{target}: {error.message}"


def _place(field: str) -> str:
    option = _OPTION_OF_FIELD.get(field, "")
    return f"{option} ({field})" if option else field


def _numbers(error: PenstockError) -> list[str]:
    return ["  " + ", ".join(f"{name} {value}" for name, value in error.metadata.items())] if error.metadata else []
