"""The loop of `run`: ask, execute the tool calls, send their results, until the model answers. No I/O but the tools."""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import grpc

from penstock_client.conversation import Conversation
from penstock_client.errors import DeadlineExceeded, TurnLimitReached
from penstock_client.events import Event
from penstock_client.functions import FunctionTool, InvalidArguments, ToolError, text_of
from penstock_client.messages import Message, MessageLike, ToolCall, ToolResult
from penstock_client.response import Response
from penstock_client.seconds import call_seconds
from penstock_client.spec import GenerationOptions, Prompt
from penstock_client.tools import tool_of
from penstock_client.tracing import ToolSpan
from penstock_client.values import Cost, FinishReason, ToolCallStatus, Usage

_log = logging.getLogger("penstock_client")
_ENDS = (FinishReason.CANCELLED, FinishReason.DRAINED)


@dataclass(frozen=True, slots=True)
class Hooks:
    """Hold the functions that `run` calls while it works. With `AsyncClient` they may be async.

    Attributes:
        on_event: Gets each event of each turn's stream, in order.
        on_result: Gets each call with its result, error results included.
        on_tool_error: Gets a call and the exception that its tool raised, and returns the text for the model; what it
            raises itself ends the run.
    """

    on_event: Callable[[Event], object] | None = None
    on_result: Callable[[ToolCall, ToolResult], object] | None = None
    on_tool_error: Callable[[ToolCall, Exception], str | Awaitable[str]] | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """One question to the model, and the results of the calls that it answered with.

    Attributes:
        reply: The reply.
        results: One result for each of its tool calls; empty in the last turn.
    """

    reply: Response
    results: tuple[ToolResult, ...] = ()


class Run:
    """Hold the turns of `run`, their usage and their cost.

    Attributes:
        turns: The turns, oldest first.
        messages: The conversation: the prompt, then the replies and the results of all turns. It can be continued.
    """

    def __init__(self, messages: Sequence[MessageLike]) -> None:
        self.turns: list[Turn] = []
        self.messages: list[MessageLike] = list(messages)

    @property
    def reply(self) -> Response:
        """The last reply. Raises IndexError where there is none yet."""
        return self.turns[-1].reply

    @property
    def answer(self) -> str:
        """The text of the last reply."""
        return self.reply.answer

    @property
    def parsed(self) -> Any:
        """The last reply as a value of `response_format`; see `Response.parsed`."""
        return self.reply.parsed

    @property
    def usage(self) -> Usage:
        """Token counts of all turns together. Each turn's prompt counts, as it is billed."""
        return Usage.sum(turn.reply.usage for turn in self.turns if turn.reply.usage is not None)

    @property
    def cost(self) -> Cost | None:
        """Cost of all turns together; None where the server has no price list."""
        costs = [turn.reply.cost for turn in self.turns if turn.reply.cost is not None]
        return Cost.sum(costs) if costs else None

    def __repr__(self) -> str:
        return f"<Run of {len(self.turns)} turns>"


class ToolLoop:
    """The state of one run. The clients stream `messages` with `options`, and execute what `calls_of` returns.

    Args:
        prompt: The prompt of the run.
        options: The options of `run`.
        max_turns: Highest number of replies.
        timeout: Seconds for the whole run, or None.
        hooks: What to call.
        allows_async: Whether tools may be async.

    Raises:
        ImportError: A function is given as a tool, and pydantic is not installed.
        TypeError: A tool has no function.
        ValueError: An option does not go with a run.
    """

    # One parameter for each part of a run.
    def __init__(
        self,
        prompt: Prompt,
        options: GenerationOptions,
        *,
        max_turns: int,
        timeout: float | None,
        hooks: Hooks,
        allows_async: bool,
    ) -> None:
        if max_turns < 1:
            raise ValueError(f"max_turns must be at least 1, got {max_turns}")
        if (options.get("candidates") or 1) != 1:
            raise ValueError("run follows one candidate: remove candidates")
        if isinstance(prompt, str):
            prompt = [Message("user", prompt)]
        self.run = Run(prompt)
        self._conversation = prompt if isinstance(prompt, Conversation) else None
        self._tools = _executable(options.get("tools"), allows_async)
        given = options.get("allowed_tools") or ()
        allowed = [given] if isinstance(given, str) else list(given)
        self._allowed = set() if options.get("tool_mode") == "none" else set(allowed or self._tools)
        self._options = cast(
            GenerationOptions, {**options, "tools": list(self._tools.values()), "allowed_tools": allowed}
        )
        self._max_turns = max_turns
        seconds = call_seconds(timeout)
        self._ends_at = None if seconds is None else time.monotonic() + seconds
        self._hooks = hooks
        self._one_at_a_time = asyncio.Lock()

    @property
    def messages(self) -> list[MessageLike]:
        """The prompt of the next turn."""
        return self.run.messages

    @property
    def options(self) -> GenerationOptions:
        """The options of the next turn. REQUIRED is for the first one: a model that must call never answers."""
        if self.run.turns and self._options.get("tool_mode") == "required":
            return cast(GenerationOptions, {**self._options, "tool_mode": "validated"})
        return self._options

    def seconds_left(self) -> float | None:
        """Return the seconds until the deadline of the run; None without one. Raises DeadlineExceeded after it."""
        left = None if self._ends_at is None else self._ends_at - time.monotonic()
        if left is not None and left <= 0:
            passed = DeadlineExceeded("the deadline of the run passed", code=grpc.StatusCode.DEADLINE_EXCEEDED)
            usage = self.run.usage
            passed.count(usage.reasoning_tokens, usage.answer_tokens, usage.tool_tokens)
            raise passed
        return left

    def saw(self, event: Event) -> object:
        """Give an event to the hook, and return what it returns."""
        return self._hooks.on_event(event) if self._hooks.on_event is not None else None

    def calls_of(self, reply: Response) -> tuple[ToolCall, ...]:
        """Add a reply to the run and return the calls to answer; none ends the run.

        Raises:
            TurnLimitReached: There are calls, but no turn is left.
        """
        self.run.turns.append(Turn(reply))
        calls = () if reply.finish_reason in _ENDS else reply.tool_calls
        if not calls:
            self._grow(reply.message, reply)
        elif len(self.run.turns) >= self._max_turns:
            raise TurnLimitReached(
                f"the model still calls tools after {self._max_turns} turns (max_turns): see .run for what there is"
            )
        return calls

    def answer(self, reply: Response, results: Sequence[ToolResult]) -> None:
        """Add the results of a reply's calls, in the order of the calls."""
        self.run.turns[-1] = Turn(reply, tuple(results))
        self._grow(reply.message, reply)
        self._grow(Message.tool(*results))

    def _grow(self, message: Message, reply: Response | None = None) -> None:
        self.run.messages.append(message)
        if self._conversation is not None:  # it decides itself what it keeps of a reply
            self._conversation.add(reply if reply is not None else message)

    def execute(self, call: ToolCall) -> ToolResult:
        """Execute a call and return its result; an error result where it cannot be executed or fails."""
        result = self._execute(call)
        if self._hooks.on_result is not None:
            self._hooks.on_result(call, result)
        return result

    def _execute(self, call: ToolCall) -> ToolResult:
        checked = self._check(call)
        if isinstance(checked, ToolResult):
            return checked
        tool, arguments = checked
        with ToolSpan(tool.name, call.id, call.arguments_json) as span:
            try:
                return _told(span, _result(call, text_of(tool.function(**arguments))))
            except Exception as error:
                span.failed(error)
                return _told(span, _error(call, self._words(call, error)))

    async def execute_all(self, calls: Sequence[ToolCall]) -> list[ToolResult]:
        """Execute calls, and return their results in the same order.

        Async functions run concurrently, and other functions one after another in a thread.
        """
        running = [asyncio.ensure_future(self._execute_and_tell(call)) for call in calls]
        try:
            async with asyncio.timeout(self.seconds_left()):
                return list(await asyncio.gather(*running))
        except TimeoutError:
            self.seconds_left()
            raise
        finally:
            for one in running:
                one.cancel()

    async def _execute_and_tell(self, call: ToolCall) -> ToolResult:
        result = await self._execute_async(call)
        if self._hooks.on_result is not None:
            told = self._hooks.on_result(call, result)
            if inspect.isawaitable(told):
                await told
        return result

    async def _execute_async(self, call: ToolCall) -> ToolResult:
        checked = self._check(call)
        if isinstance(checked, ToolResult):
            return checked
        tool, arguments = checked
        with ToolSpan(tool.name, call.id, call.arguments_json) as span:
            try:
                if tool.is_async:
                    value = await tool.function(**arguments)
                else:
                    async with self._one_at_a_time:
                        value = _value(await asyncio.to_thread(_outcome, tool.function, arguments))
                    if inspect.isawaitable(value):  # of a decorated async function
                        value = await value
                return _told(span, _result(call, text_of(value)))
            except Exception as error:
                span.failed(error)
                words = self._words(call, error)
                return _told(span, _error(call, await words if inspect.isawaitable(words) else words))
            except asyncio.CancelledError as error:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                span.failed(error)  # something inside the tool was cancelled, and not the run
                return _error(call, "the tool failed: CancelledError")

    def _check(self, call: ToolCall) -> tuple[FunctionTool[..., Any], dict[str, Any]] | ToolResult:
        """Return the tool and its arguments, or the error result of a call that must not be executed."""
        if call.status is not ToolCallStatus.COMPLETE:
            return _error(call, "the call was cut before its end, and was not executed")
        tool = self._tools.get(call.name)
        if tool is None or call.name not in self._allowed:
            return _error(
                call, f"no such tool, not executed; the tools are: {', '.join(sorted(self._allowed)) or 'none'}"
            )
        try:
            return tool, tool.arguments_of(call.arguments_json)
        except InvalidArguments as error:
            return _error(call, f"invalid arguments, not executed: {error}")
        except Exception as error:  # of a validator in the user's types
            _log.warning("a tool failed: %s", type(error).__qualname__)
            return _error(call, f"the tool failed: {type(error).__name__}")

    def _words(self, call: ToolCall, error: Exception) -> Any:
        """Return what the model is told of an exception, or an awaitable of it."""
        if isinstance(error, ToolError):
            return str(error)
        _log.warning("a tool failed: %s", type(error).__qualname__)
        if self._hooks.on_tool_error is not None:
            return self._hooks.on_tool_error(call, error)
        # The text may hold paths, addresses or secrets, and what the model is given it may repeat to the user.
        return f"the tool failed: {type(error).__name__}"


def _executable(given: Any, allows_async: bool) -> dict[str, FunctionTool[..., Any]]:
    found: dict[str, FunctionTool[..., Any]] = {}
    for tool in map(tool_of, given or ()):
        if not isinstance(tool, FunctionTool):
            raise TypeError(
                f"run executes functions, and the tool {tool.name!r} has none: make it with the decorator tool"
            )
        if tool.is_async and not allows_async:
            raise TypeError(f"the tool {tool.name!r} is async: use AsyncClient.run")
        if tool.name in found:
            raise ValueError(f"two tools have the name {tool.name!r}")
        found[tool.name] = tool
    return found


def _told(span: ToolSpan, result: ToolResult) -> ToolResult:
    span.returned(result.text)
    return result


def _error(call: ToolCall, text: object) -> ToolResult:
    if not isinstance(text, str):
        raise TypeError(f"on_tool_error must return a str, got {type(text).__name__}")
    return _result(call, text, is_error=True)


def _result(call: ToolCall, text: str, *, is_error: bool = False) -> ToolResult:
    # A name of a file, for instance, may have what no UTF-8 can hold.
    return ToolResult(call.id, text.encode("utf-8", "replace").decode(), is_error)


def _outcome(function: Callable[..., Any], arguments: Mapping[str, Any]) -> tuple[Any, Exception | None]:
    """Return the value, or the exception: asyncio cannot pass every exception from a thread (StopIteration)."""
    try:
        return function(**arguments), None
    except Exception as error:
        return None, error


def _value(outcome: tuple[Any, Exception | None]) -> Any:
    value, error = outcome
    if error is not None:
        raise error
    return value
