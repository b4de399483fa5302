"""End a thought early where more of it would not change the answer.

Two signs are read, both of the running thought. `marker`: the probability that the model gives to the closing marker at
the end of a line, in the log probabilities of the running request; the parser compares it. `probe`: beside the thought,
a continuation of prompt, thought so far and closing marker generates the first tokens of the answer. The thought ends
where these are certain enough, or the same several times in a row.

Probes are the server's own cost. They generate nothing that a client sees, are bounded as a share of the call's tokens,
and stop while calls wait for the engine.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field, replace

from penstock import tasks
from penstock.config.schema import ThinkingSettings
from penstock.engine.base import Engine
from penstock.errors import EngineDied, PenstockError
from penstock.types import (
    EarlyExit,
    EarlyExitPlan,
    EngineChunk,
    EngineRequest,
    GenerationPlan,
    ModelCard,
    Sampling,
)

_LINE_TIMES = 4
"""Points are ends of lines; in a longer line there is one after so many intervals."""
_PAUSE_SECONDS = 600.0
"""How long no probe starts after the engine died while one had just begun."""
_DEATH_SECONDS = 10.0
"""How long to wait for a probe's own error after the engine's death."""
_LENGTHS_KEPT, _MIN_LENGTHS = 256, 16
_GREEDY = Sampling(temperature=0.0, top_p=1.0, presence_penalty=0.0, frequency_penalty=0.0, repetition_penalty=1.0)


def logprobs_needed(plan: EarlyExitPlan) -> int:
    """Return how many of the most likely tokens show whether the marker reaches its threshold."""
    return math.floor(1 / plan.marker_probability + 1e-9)


class ThoughtLengths:
    """Estimate how long a thought would have become, from recent ones that nobody ended early."""

    def __init__(self) -> None:
        self._tokens: deque[int] = deque(maxlen=_LENGTHS_KEPT)

    def saw(self, thought_tokens: int) -> None:
        """Add the length of a thought that ended by itself or at its budget."""
        self._tokens.append(thought_tokens)

    def saved_tokens(self, spent: int, budget: int) -> int | None:
        """Return by how much recent thoughts that were longer than `spent` exceeded it, on average; at most the budget.

        None while fewer than 16 thoughts are known. Where early exits are common the long ones are missing, so that it
        is rather too low.
        """
        if len(self._tokens) < _MIN_LENGTHS:
            return None
        longer = [min(length, budget) - spent for length in self._tokens if length > spent]
        return max(0, round(sum(longer) / len(longer))) if longer else 0


@dataclass(eq=False)
class ProbeConditions:
    """Say whether probes may run now. One for each service.

    Attributes:
        calls_waiting: Number of calls that wait for admission.
        lengths: Of recent thoughts.
    """

    calls_waiting: Callable[[], int] = lambda: 0
    lengths: ThoughtLengths = field(default_factory=ThoughtLengths)
    _paused_until: float = 0.0

    def allow(self, engine: Engine, *, running: bool) -> bool:
        """Return whether a probe may start, or go on where it is `running`: nobody else must wait for the engine."""
        if self.calls_waiting() > 0 or time.monotonic() < self._paused_until:
            return False
        load = engine.load()
        room = (
            load.running_requests <= engine.card.max_num_seqs
            if running
            else (load.running_requests < engine.card.max_num_seqs)
        )
        return room and load.waiting_requests == 0

    def pause(self) -> None:
        """Start no probe for ten minutes: the engine died while one had just begun, and one after another would end
        the service.
        """
        self._paused_until = time.monotonic() + _PAUSE_SECONDS


@dataclass(frozen=True, slots=True)
class Reading:
    """Hold what one probe read: the first tokens of the answer, and how likely they are together, in [0, 1]."""

    token_ids: tuple[int, ...]
    probability: float


class ProbeRun:
    """One probe in the engine. What it computes is counted as it comes, also where it is given up."""

    def __init__(self, engine: Engine, request: EngineRequest) -> None:
        self._chunks = engine.stream(request)
        self._given: list[EngineChunk] = []
        self.request = request
        self.tokens = 0
        """Tokens that the engine computed: of the prompt without cached ones, and of the answer."""
        self.cached_tokens = 0
        self.caused_death = False
        """Whether it is suspected of the engine's death."""

    async def read(self, least: float, most_tokens: int) -> Reading | None:
        """Return the first tokens of the answer, at least `most_tokens` where it is so long; None where that failed.

        It ends once they are less likely than `least` together. The run goes on until `close`, or in `rest`.
        """
        ids: list[int] = []
        log_probability = 0.0
        least = math.log(least) if least > 0 else -math.inf
        try:
            async for chunk in self._chunks:
                if not self._given:
                    self.cached_tokens = chunk.cached_tokens
                    self.tokens = len(self.request.prompt_token_ids) - chunk.cached_tokens
                self._given.append(chunk)
                self.tokens += len(chunk.token_ids)
                ids += chunk.token_ids
                log_probability += sum(one.sampled.logprob for one in chunk.logprobs)
                if len(ids) >= most_tokens or log_probability < least:
                    break
        except PenstockError as error:
            # Whatever failed, the thought goes on.
            self.caused_death = isinstance(error, EngineDied) and error.suspected
            return None
        return Reading(tuple(ids), math.exp(min(0.0, log_probability)))

    async def rest(self) -> AsyncGenerator[EngineChunk, None]:
        """Yield all chunks of the run, those that were read once more, to its end."""
        try:
            for chunk in self._given:
                yield chunk
            async for chunk in self._chunks:
                yield chunk
        finally:
            await self.close()

    async def close(self) -> None:
        """Abort the run in the engine."""
        await self._chunks.aclose()


def probe_request(
    engine: Engine, plan: GenerationPlan, prompt: tuple[int, ...], answer_tokens: int, request_id: str
) -> EngineRequest:
    """Return the request of a probe: the first tokens of the answer behind a prompt, greedy, for the plan's caller."""
    return EngineRequest(
        request_id=request_id,
        prompt_token_ids=prompt,
        max_tokens=answer_tokens,
        min_tokens=0,
        sampling=_GREEDY,
        top_logprobs=0,
        banned_token_ids=tuple(sorted(engine.card.image_token_ids)),
        images=plan.context.images,
        cache_salt=plan.request.context.cache_salt,
        caller_id=plan.request.caller_id,
        accountable=plan.accountable,
        continues=True,
    )


def as_answer(request: EngineRequest, plan: GenerationPlan, spent_tokens: int) -> EngineRequest:
    """Return the request of a greedy probe with the answer's own limits, so that it can go on as the answer.

    `spent_tokens` are the thought's.
    """
    output = plan.request.output
    left = plan.budget.max_output_tokens - spent_tokens
    room = plan.context.window_tokens - len(request.prompt_token_ids)
    return replace(
        request,
        max_tokens=max(1, min(left, room)),
        min_tokens=max(0, min(output.min_tokens - spent_tokens, left)),
        sampling=plan.sampling,
        stop_token_ids=output.stop_token_ids,
        top_logprobs=output.top_logprobs or 0,
    )


def begins_answer(reading: Reading, card: ModelCard) -> bool:
    """Return whether an answer can begin like this: with the end of turn or a second thought the model would go on."""
    markers = card.markers
    empty = not reading.token_ids or reading.token_ids[0] in card.eos_ids
    return not empty and (markers is None or markers.open_id not in reading.token_ids)


@dataclass(frozen=True, slots=True)
class AutoReading:
    """Hold what AUTO read before the thought.

    Attributes:
        probability: Of the answer's first tokens without a thought; None where nothing was read.
        tokens: That the engine computed for it.
        caused_death: Whether it is suspected of the engine's death.
        run: Goes on as the answer, where that is certain and greedy; who gets it closes it.
    """

    probability: float | None = None
    tokens: int = 0
    caused_death: bool = False
    run: ProbeRun | None = None


async def read_before_thought(
    engine: Engine, fast: GenerationPlan, settings: ThinkingSettings, conditions: ProbeConditions, name: str
) -> AutoReading:
    """Return how certain the answer is without a thought, by the plan of the call in mode FAST.

    Nothing is read while others wait, or where the engine takes no work: then the call thinks. Cancelling it aborts the
    engine's work.
    """
    if engine.interruption() is not None or not conditions.allow(engine, running=False):
        return AutoReading()
    prompt = fast.context.prompt_token_ids
    tokens = min(settings.early_exit_answer_tokens, fast.budget.max_output_tokens)
    request = probe_request(engine, fast, prompt, tokens, f"{name}-0-auto")
    can_be_answer = fast.sampling.temperature == 0 and fast.request.output.candidate_count == 1
    run = ProbeRun(engine, as_answer(request, fast, 0) if can_be_answer else request)
    goes_on = False
    try:
        reading = await run.read(settings.auto_probability, tokens)
        certain = reading.probability if reading is not None and begins_answer(reading, engine.card) else None
        goes_on = can_be_answer and certain is not None and certain >= settings.auto_probability
    finally:
        if not goes_on:
            await run.close()
    if run.caused_death:
        conditions.pause()
    # As the answer's run it is counted there.
    return AutoReading(certain, 0 if goes_on else run.tokens, run.caused_death, run if goes_on else None)


class AnswerProbe:
    """Probe the answer of one candidate while it thinks: at most one probe at a time."""

    def __init__(
        self, engine: Engine, plan: GenerationPlan, settings: EarlyExitPlan, conditions: ProbeConditions
    ) -> None:
        self._engine = engine
        self._plan = plan
        self._settings = settings
        self._conditions = conditions
        self._run: ProbeRun | None = None
        self._task: asyncio.Task[None] | None = None
        self._is_off = settings.mode is not EarlyExit.PROBE
        self._died = False
        self._last: Reading | None = None
        self._streak = 0
        self._at_tokens = 0
        self._cached_tokens = 0
        self._tokens_before = 0
        self.probes = 0
        """Probes that brought a reading."""
        self.has_converged = False
        self._taken = asyncio.Event()

    @property
    def tokens(self) -> int:
        """Return the tokens that the engine computed for probes."""
        return self._tokens_before + (self._run.tokens if self._run is not None else 0)

    @property
    def is_under_way(self) -> bool:
        """Return whether a probe runs."""
        return self._task is not None and not self._task.done()

    @property
    def can_be_answer(self) -> bool:
        """Return whether a probe draws its tokens as the answer does, so that it can become the answer."""
        return self._plan.sampling.temperature == 0

    def state(self) -> list[int]:
        """Return plain data from which another one can count on."""
        return [self.probes, self.tokens]

    def restore(self, state: Sequence[int]) -> None:
        """Count on from the `state` of another one."""
        self.probes, self._tokens_before = state

    def is_due(self, thought_tokens: int, budget_left: int, *, at_line_end: bool) -> bool:
        """Return whether the thought is at a place for a probe: the end of a line, or a distance in a long one."""
        passed, interval = thought_tokens - self._at_tokens, self._settings.interval_tokens
        if self._is_off or self.is_under_way or passed < interval or budget_left < interval:
            return False
        return at_line_end or passed >= _LINE_TIMES * interval

    def start(self, request: EngineRequest, thought_tokens: int) -> bool:
        """Start a probe, and return whether it was allowed: by its share of the call, and by those who wait."""
        settings, prompt_tokens = self._settings, len(request.prompt_token_ids)
        self._at_tokens = thought_tokens
        cost = prompt_tokens - self._cached_tokens + settings.answer_tokens
        allowed = settings.share * (len(self._plan.context.prompt_token_ids) + thought_tokens)
        room = self._plan.context.window_tokens - prompt_tokens >= settings.answer_tokens
        if not room or self.tokens + cost > allowed or not self._conditions.allow(self._engine, running=False):
            return False
        self._run = ProbeRun(self._engine, request)
        self._task = asyncio.create_task(self._read(self._run))
        return True

    def check(self) -> None:
        """Give up a running probe where others wait."""
        if self.is_under_way and not self._conditions.allow(self._engine, running=True):
            self.give_up()

    def give_up(self) -> None:
        """Give up the running probe. The engine aborts it within a step."""
        if self._task is not None:
            self._task.cancel()

    def pop_converged(self) -> ProbeRun | None:
        """Return the probe that converged, to go on as the answer's run; None where it draws otherwise than the answer.

        Its tokens are no longer the probe's.
        """
        self._is_off = True
        if not self.can_be_answer:
            return None
        self._taken.set()
        run, self._run = self._run, None
        return run

    async def _read(self, run: ProbeRun) -> None:
        settings = self._settings
        try:
            least = 0.0 if settings.agreements else settings.answer_probability
            reading = await run.read(least, settings.answer_tokens)
            if reading is None:
                self._is_off = True
                self._died = run.caused_death
                if run.caused_death:
                    self._conditions.pause()
                return
            self.probes += 1
            self._cached_tokens = run.cached_tokens
            self.has_converged = self._converges(reading)
            if self.has_converged and self.can_be_answer:
                # The engine goes on with the answer, until the thought's next step takes it or ends otherwise.
                await self._taken.wait()
        finally:
            if not self._taken.is_set():
                self._tokens_before += run.tokens
                self._run = None
                await run.close()

    def _converges(self, reading: Reading) -> bool:
        if not begins_answer(reading, self._engine.card):
            self._last, self._streak = None, 0
            return False
        same = self._last is not None and self._last.token_ids == reading.token_ids
        self._streak = self._streak + 1 if same else 1
        self._last = reading
        settings = self._settings
        agrees = settings.agreements > 0 and self._streak >= settings.agreements
        return agrees or reading.probability >= settings.answer_probability

    async def end(self) -> None:
        """Return once no probe runs any more."""
        self._is_off = True
        if self._task is not None:
            await tasks.end(self._task)
            self._task = None

    async def caused_death(self) -> bool:
        """Return whether a probe is suspected of the engine's death, which the run beside it has met."""
        if self._task is not None and not self._task.done():
            await asyncio.wait({self._task}, timeout=_DEATH_SECONDS)
        died, self._died = self._died, False
        return died
