"""Replay prepared tokens: for client tests, conformance and demos without a model.

It must be chosen explicitly (`engine.kind = "scripted"`) and announces itself at start and in its model card. Each byte
of UTF-8 is a token, so text is cut at every byte. It implements what the layer above relies on: limits, bans, stops,
aborts and continuations; budgets are left to that layer.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from penstock.config.schema import EngineSettings
from penstock.engine.base import EngineLoad, Interruption
from penstock.engine.expert_load.statistics import ExpertCounts
from penstock.engine.images.cache import ImageCache
from penstock.errors import BadRequest, ConfigError, EngineDied, FeatureOff, FieldViolation, PoisonousRequest
from penstock.types import (
    EngineChunk,
    EngineRequest,
    EngineStop,
    Feature,
    Image,
    InterruptionReason,
    Markers,
    Message,
    ModelCard,
    Role,
    Sampling,
    StructuredOutput,
    ThoughtHistory,
    TokenLogprob,
    TokenLogprobs,
    Tool,
    ToolCallFormat,
)

# `<|continue|>` stands where the output continues a message of the caller, so that the reply's start is known. The
# markers of tool calls are tokens with text, as in Qwen's vocabulary.
_TOOL_MARKERS = ("<tool_call>", "</tool_call>")
_SPECIALS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<think>",
    "</think>",
    "<|continue|>",
    *_TOOL_MARKERS,
    "<|image_pad|>",
)
_START, _EOS, _OPEN, _CLOSE, _CONTINUE = 257, 258, 259, 260, 261
_IMAGE = 256 + _SPECIALS.index("<|image_pad|>")
_PIXELS_OF_TOKEN = 32
"""Edge of the square of pixels that is one token, as in Qwen3.5."""
_FILLING = ord(".")
_VOCAB_SIZE = 256 + len(_SPECIALS)
_THINKING_OPENING = (_START, *b"assistant\n", _OPEN, *b"\n")
_FAST_OPENING = (*_THINKING_OPENING, *b"\n", _CLOSE, *b"\n\n")
# Number of raw prompts whose length is remembered for continuations; far more than run at once.
_MAX_REMEMBERED = 10_000
_FAULTS = ("", "poison", "internal")
_DEFAULTS = EngineSettings(kind="scripted")


class ByteTokenizer:
    """Convert bytes to ids 0 to 255; the special tokens of the template follow."""

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, special tokens recognised."""
        ids: list[int] = []
        while text:
            hits = [(at, i) for i, special in enumerate(_SPECIALS) if (at := text.find(special)) >= 0]
            if not hits:
                return [*ids, *text.encode()]
            at, index = min(hits)
            ids += [*text[:at].encode(), 256 + index]
            text = text[at + len(_SPECIALS[index]) :]
        return ids

    def encode_text(self, text: str) -> list[int]:
        """Return the ids of `text` as plain text."""
        return [*text.encode()]

    def render(
        self,
        messages: Sequence[Message],
        *,
        thinking: bool,
        tools: Sequence[Tool] = (),
        history: ThoughtHistory = ThoughtHistory.CURRENT_TURN,
    ) -> list[int]:
        """Return the ids of the template: Qwen3.5's layout, each message at its place.

        White space is kept, and a continued message ends with a token of its own.
        """
        begun = messages[-1] if messages and messages[-1].role is Role.ASSISTANT else None
        if begun is not None:
            _check_begun(begun, len(messages) - 1, thinking)
            messages = messages[:-1]
        last_user = max((place for place, message in enumerate(messages) if message.role is Role.USER), default=-1)
        ids = self._tools(tools)
        for place, message in enumerate(messages):
            role = Role.USER if message.role is Role.TOOL else message.role
            ids += self.encode(f"<|im_start|>{role.value}\n")
            shows = history is ThoughtHistory.ALL_TURNS or place > last_user
            if message.role is Role.ASSISTANT and shows and (message.thought or message.tool_calls):
                ids += self._section("" if history is ThoughtHistory.NONE else message.thought)
            ids += self._body(message)
            ids += self.encode("<|im_end|>\n")
        ids += self.encode("<|im_start|>assistant\n")
        if begun is None:
            return [*ids, *self.encode("<think>\n" if thinking else "<think>\n\n</think>\n\n")]
        if thinking:
            return [*ids, _OPEN, *self.encode_text(f"\n{begun.thought}"), *((_CONTINUE,) if begun.thought else ())]
        ids += self._section(begun.thought)
        return [*ids, *self.encode_text(begun.content), _CONTINUE]

    def shown_images(self, messages: Sequence[Message]) -> tuple[Image, ...]:
        """Return the images of a conversation in the order of their tokens in its prompt."""
        return tuple(
            image
            for message in messages
            for image in (*message.images, *(image for result in message.tool_results for image in result.images))
        )

    def _body(self, message: Message) -> list[int]:
        ids: list[int] = []
        written = 0
        for image in message.images:
            ids += [*self.encode_text(message.content[written : image.place]), *([_IMAGE] * image.tokens)]
            written = image.place
        ids += self.encode_text(_text_of(replace(message, content=message.content[written:])))
        return ids + [_IMAGE] * sum(image.tokens for result in message.tool_results for image in result.images)

    def _section(self, thought: str) -> list[int]:
        return [_OPEN, *self.encode_text(f"\n{thought}\n"), _CLOSE, *b"\n\n"]

    def _tools(self, tools: Sequence[Tool]) -> list[int]:
        if not tools:
            return []
        described = [
            json.dumps({"name": tool.name, "description": tool.description}, ensure_ascii=False)[:-1]
            + f', "parameters": {tool.parameters_json_schema or "{}"}}}'
            for tool in tools
        ]
        text = "\n".join(("<tools>", *described, "</tools>"))
        return [*self.encode("<|im_start|>system\n"), *self.encode_text(text), *self.encode("<|im_end|>\n")]

    def token_bytes(self, token_id: int) -> bytes:
        """Return the byte of an id, and the text of a marker of tool calls; empty for other special tokens."""
        if not 0 <= token_id < _VOCAB_SIZE:
            raise IndexError(token_id)
        if token_id < 256:
            return bytes([token_id])
        name = _SPECIALS[token_id - 256]
        return name.encode() if name in _TOOL_MARKERS else b""


def _check_begun(message: Message, place: int, thinking: bool) -> None:
    """Raise BadRequest where the output cannot continue the last message."""
    path = f"spec.messages.messages[{place}]"
    if message.tool_calls:
        why = "must not have tool calls as the last message: add a tool message with their results"
        raise BadRequest(FieldViolation(f"{path}.parts", why, "CONFLICTING_FIELDS"))
    if thinking and message.content.strip():
        why = "must have no text as the last message with THINKING_MODE_THINKING: a thought comes before the answer"
        raise BadRequest(FieldViolation(f"{path}.content", why, "CONFLICTING_FIELDS"))


def _text_of(message: Message) -> str:
    """Return the content, the tool calls and the tool results of a message."""
    results = [f"<tool_response>\n{result.text}\n</tool_response>" for result in message.tool_results]
    calls = []
    for call in message.tool_calls:
        arguments = json.loads(call.arguments_json or "{}", parse_int=str, parse_float=str)
        lines = ["<tool_call>", f"<function={call.name}>"]
        for key, value in arguments.items():
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            lines += [f"<parameter={key}>", text, "</parameter>"]
        calls.append("\n".join((*lines, "</function>", "</tool_call>")))
    body = "\n".join((*results, *calls))
    return f"{message.content}\n\n{body}" if message.content and body else message.content or body


@dataclass(frozen=True, slots=True)
class Reply:
    """Define the tokens for prompts that contain `match`. The first reply that matches wins; "" matches all prompts.

    `chunk_tokens` tokens come per step, `step_seconds` apart. Thought and answer may contain the special markers. An
    engine that dies takes no new run for `restart_seconds`; other runs continue.
    """

    match: str = ""
    thought: str = "I was told to think of nothing."
    answer: str = "This is the scripted engine: canned text, no model."
    chunk_tokens: int = 1
    step_seconds: float = 0.0
    keeps_schedule: bool = False
    """With `step_seconds`: a stream that is read late gets the tokens of all steps that came due since in one chunk, as
    vLLM's own queue merges them. Otherwise the steps that it missed are put off, and its text comes later."""
    dies_after_tokens: int = 0
    """Number of tokens after which the engine dies during this reply, once; 0 is never."""
    restart_seconds: float = 0.0
    probability: float = 1.0
    """Probability of each token, in (0, 1]."""
    marker_probability: float = 0.0
    """Probability of the closing marker beside each token, in [0, 1); 0 tells none."""
    fault: str = ""
    """poison: fail like a request that kills engines, without a death. internal: fail like a bug."""

    def __post_init__(self) -> None:
        if self.fault not in _FAULTS:
            raise ValueError(f"fault must be one of {', '.join(filter(None, _FAULTS))}, got {self.fault!r}")
        if not (0 < self.probability <= 1 and 0 <= self.marker_probability < 1):
            got = f"{self.probability} and {self.marker_probability}"
            raise ValueError(f"probability must be in (0, 1] and marker_probability in [0, 1), got {got}")


async def _sleep_until(due: float) -> None:
    """Return at a time of the monotonic clock: event loops sleep in whole milliseconds, and may wake up early."""
    while (left := due - time.monotonic()) > 0:  # noqa: ASYNC110 # a time, not an event
        await asyncio.sleep(max(left, 0.001))


class _Clock:
    """The steps of all streams of one pace: they step together, as a real engine's do, and one timer wakes them all."""

    def __init__(self, step_seconds: float) -> None:
        self._step_seconds = step_seconds
        self._loop: asyncio.AbstractEventLoop | None = None
        self._due = 0.0
        self._waiting: list[asyncio.Future[None]] = []

    def now(self) -> int:
        """Return the number of the latest step that is due."""
        return int(time.monotonic() // self._step_seconds)

    async def next(self) -> None:
        """Return at the next step's time."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._loop, self._waiting = loop, []
        if not self._waiting:
            self._due = (self.now() + 1) * self._step_seconds
            self._wake_later(loop)
        waiting = loop.create_future()
        self._waiting.append(waiting)
        await waiting

    def _wake_later(self, loop: asyncio.AbstractEventLoop) -> None:
        """Event loops sleep in whole milliseconds, and may wake up early."""
        loop.call_later(max(self._due - time.monotonic(), 0.001), self._wake, loop)

    def _wake(self, loop: asyncio.AbstractEventLoop) -> None:
        if time.monotonic() < self._due:
            self._wake_later(loop)
            return
        woken, self._waiting = self._waiting, []
        for one in woken:
            if not one.done():
                one.set_result(None)


class _Steps:
    """The steps of one stream."""

    def __init__(self, clock: _Clock | None, *, keeps_schedule: bool) -> None:
        self._clock = clock
        self._keeps_schedule = keeps_schedule
        self._last = clock.now() if clock else 0

    async def next(self) -> int:
        """Return how many steps came due since the last call, at least 1; wait for the next one where none did."""
        clock = self._clock
        if clock is None:
            await asyncio.sleep(0)
            return 1
        if not self._keeps_schedule:
            await clock.next()
            return 1
        if clock.now() <= self._last:
            await clock.next()
        before, self._last = self._last, max(clock.now(), self._last + 1)
        return self._last - before


class ScriptedEngine:
    """Replay replies: the prompt selects one, and a continuation goes on from its prompt's end."""

    def __init__(
        self,
        replies: Sequence[Reply],
        *,
        context_window_tokens: int = 4096,
        settings: EngineSettings = _DEFAULTS,
    ) -> None:
        self.tokenizer = ByteTokenizer()
        self._replies = (*replies, Reply())
        self._raw_prompts: dict[str, int] = {}
        self._clocks: dict[float, _Clock] = {}
        self._running = 0
        self._images = ImageCache(settings)
        self._down_until = 0.0
        self.card = ModelCard(
            name="scripted",
            architecture="scripted",
            vocab_size=_VOCAB_SIZE,
            context_window_tokens=context_window_tokens,
            native_context_window_tokens=context_window_tokens,
            eos_ids=frozenset({_EOS}),
            markers=Markers(_OPEN, _CLOSE),
            default_sampling=Sampling(temperature=1.0),
            forces_budget=False,
            max_num_seqs=1024,
            tool_call_format=ToolCallFormat.XML,
            unsupported_fields={
                "spec.output.structured_output": "the scripted engine replays prepared tokens and cannot constrain them"
            },
            image_token_ids=frozenset({_IMAGE}) if settings.images != "off" else frozenset(),
            unsupported_beside="scripted",
            profile=(
                Feature("scripted", True, "", "prepared tokens, no model: engine.kind = scripted"),
                Feature("tool_calls", True, ToolCallFormat.XML.value, "the layout of its prompts"),
                Feature("images", settings.images != "off", "a token per 32 x 32 pixels", "decoded, not looked at"),
            ),
            engine_version="scripted",
        )

    @classmethod
    def from_settings(cls, settings: EngineSettings) -> ScriptedEngine:
        """Return the engine for a JSON file with a list of replies, `settings.model`; empty replays the default one."""
        window = settings.max_context_tokens or 4096
        if not settings.model:
            return cls((), context_window_tokens=window, settings=settings)
        try:
            replies = [Reply(**entry) for entry in json.loads(Path(settings.model).read_text(encoding="utf-8"))]
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(f"engine.model: {settings.model} is not a list of scripted replies: {error}") from error
        return cls(replies, context_window_tokens=window, settings=settings)

    async def image_tokens(self, image: Image, caller: str) -> int:
        """Return an image's number of tokens; see `Engine.image_tokens`."""
        decoded = await self._images.decode(image, caller)
        across, down = (-(-side // _PIXELS_OF_TOKEN) for side in (decoded.width, decoded.height))
        return across * down

    async def stream(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:
        """Replay a reply; see `Engine.stream`."""
        reply, played, whole = self._script(request)
        if reply.fault == "poison":
            raise PoisonousRequest(
                "the engine died while it ran this request (deaths: 2, limit for its caller: 2); do not send it again",
                engine_deaths=2,
            )
        if reply.fault:
            raise RuntimeError("the scripted engine fails on purpose (fault = internal)")
        steps = _Steps(self._clock(reply.step_seconds), keeps_schedule=reply.keeps_schedule)
        stops = {_EOS: EngineStop.EOS} | dict.fromkeys(request.stop_token_ids, EngineStop.STOP_TOKEN)
        script = [token_id for token_id in whole if token_id not in request.banned_token_ids] or [_EOS]
        least = request.min_tokens
        # Below the minimum nothing ends the reply: full stops replace the end.
        script[:least] = [_FILLING if i in stops else i for i in script[:least]] + [_FILLING] * (least - len(script))
        self._running += 1
        try:
            sent = 0
            while True:
                if played < reply.dies_after_tokens <= played + sent:
                    self._down_until = time.monotonic() + reply.restart_seconds
                    raise EngineDied(suspected=False)
                tokens = reply.chunk_tokens * await steps.next()
                chunk = script[sent : min(sent + tokens, request.max_tokens)]
                sent += tokens
                ended = next((n for n, i in enumerate(chunk) if i in stops), None)
                stop = EngineStop.LENGTH if sent >= min(request.max_tokens, len(script)) else None
                if ended is not None:
                    chunk, stop = chunk[: ended + 1], stops[chunk[ended]]
                yield EngineChunk(tuple(chunk), self._logprobs(chunk, request, reply), stop=stop, queue_seconds=0.0)
                if stop is not None:
                    return
        finally:
            self._running -= 1

    def _clock(self, step_seconds: float) -> _Clock | None:
        return self._clocks.setdefault(step_seconds, _Clock(step_seconds)) if step_seconds > 0 else None

    def _script(self, request: EngineRequest) -> tuple[Reply, int, list[int]]:
        """Return the reply and the tokens that this run replays: those that its prompt does not contain yet."""
        prompt = request.prompt_token_ids
        base = self._base_tokens(request)
        text = bytes(i for i in prompt[:base] if i < 256).decode(errors="replace")
        reply = next(r for r in self._replies if r.match in text)
        played = list(prompt[base:])
        thought = self.tokenizer.encode(reply.thought)
        answer = [*self.tokenizer.encode(reply.answer), _EOS]
        marker = next((i for i in reversed(prompt[:base]) if i in (_OPEN, _CLOSE)), _CLOSE)
        if marker == _CLOSE:
            return reply, len(played), answer[len(played) :]
        if _CLOSE in played:
            return reply, len(played), answer[len(played) - 1 - played.index(_CLOSE) :]
        return reply, len(played), [*thought, _CLOSE, *answer][len(played) :]

    def _base_tokens(self, request: EngineRequest) -> int:
        """Return the length of the caller's prompt in the prompt of any run.

        For chat prompts it follows from the template's opening, so that another engine can continue; raw ones are
        remembered.
        """
        prompt = request.prompt_token_ids
        for at in range(len(prompt) - len(_THINKING_OPENING), -1, -1):
            if prompt[at : at + len(_THINKING_OPENING)] != _THINKING_OPENING:
                continue
            if _CONTINUE in prompt[at:]:
                return prompt.index(_CONTINUE, at) + 1
            is_fast = prompt[at : at + len(_FAST_OPENING)] == _FAST_OPENING
            return at + len(_FAST_OPENING if is_fast else _THINKING_OPENING)
        candidate = request.request_id.rsplit("-", 1)[0]
        if len(self._raw_prompts) >= _MAX_REMEMBERED:
            self._raw_prompts.clear()
        return self._raw_prompts.setdefault(candidate, len(prompt))

    @staticmethod
    def _logprobs(chunk: Sequence[int], request: EngineRequest, reply: Reply) -> tuple[TokenLogprobs, ...]:
        if request.top_logprobs is None:
            return ()
        told = [TokenLogprob(token_id, math.log(reply.probability), 1) for token_id in chunk]
        beside = [TokenLogprob(_CLOSE, math.log(reply.marker_probability), 2)] if reply.marker_probability else []
        return tuple(TokenLogprobs(one, (one, *beside)[: request.top_logprobs]) for one in told)

    async def check_constraint(self, structured: StructuredOutput, caller: str) -> None:
        """Fail: constraints are refused before, as unsupported fields."""
        raise AssertionError("constraints are refused as unsupported fields of the model card")

    def load(self) -> EngineLoad:
        """Return fixed counts."""
        return EngineLoad(self._running, 0, 0.0, None, None)

    async def expert_counts(self) -> ExpertCounts:
        """Raise FeatureOff: there are no experts."""
        raise FeatureOff("expert load is not counted: the scripted engine has no experts", feature="routing")

    async def check(self) -> None:
        """Raise EngineDown while the engine is dead."""
        return

    def interruption(self) -> Interruption | None:
        """Return why the engine takes no work; None while it does."""
        left = self._down_until - time.monotonic()
        return Interruption(InterruptionReason.ENGINE_DIED, left) if left > 0 else None

    async def wait_until_available(self) -> None:
        """Wait until a dead engine takes work again."""
        await _sleep_until(self._down_until)

    async def close(self) -> None:
        """End the process that decodes images."""
        await self._images.close()
