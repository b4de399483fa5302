"""The border to whatever runs the model. Two implementations: `engine.vllm` (the product), `engine.scripted` (tests).

An engine runs one `EngineRequest` and streams what it samples. It knows nothing of thoughts and answers, deadlines,
prices or callers, and continuation lives above it, once, in `generation`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol

from penstock.engine.expert_load.statistics import ExpertCounts
from penstock.types import EngineChunk, EngineRequest, InterruptionReason, Message, ModelCard, StructuredOutput


class Tokenizer(Protocol):
    """Text to ids and back. Implementations are safe to call from any thread."""

    def encode(self, text: str) -> list[int]:
        """Ids of `text` as it stands, special tokens in it recognised, nothing added."""
        ...

    def encode_text(self, text: str) -> list[int]:
        """Ids of `text` as text: names of special tokens in it are letters, never those tokens."""
        ...

    def render(self, messages: Sequence[Message], *, thinking: bool) -> list[int]:
        """Ids of the chat template with the generation prompt; with `thinking` it ends inside an open think section.

        What a message says is text, whatever it spells. System messages that the template does not take where they
        stand are joined into one at the start. Raises `errors.BadRequest` where the template refuses the conversation.
        """
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """UTF-8 bytes that one token stands for; empty for special tokens. Raises IndexError outside the vocabulary."""
        ...


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """The engine's own counts. Seconds per token is the recent mean between two tokens of one stream, None at first."""

    running_requests: int
    waiting_requests: int
    kv_cache_usage: float
    seconds_per_token: float | None
    first_token_seconds: float | None
    steps: int = 0
    """Engine steps so far; a hung engine makes none."""
    preemptions: int = 0
    prefix_queried_tokens: int = 0
    prefix_hit_tokens: int = 0
    accepted_by_position: tuple[int, ...] = ()
    """Drafts that speculation got right, by their place in the draft. This and the counts above: since its start."""


@dataclass(frozen=True, slots=True)
class Interruption:
    """Why the engine takes no work, and the seconds from now until it is expected to; None where that is unknown."""

    reason: InterruptionReason
    expected_seconds: float | None


class Engine(Protocol):
    @property
    def card(self) -> ModelCard: ...

    @property
    def tokenizer(self) -> Tokenizer: ...

    def stream(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:
        """Runs one request. Closing the iterator aborts it in the engine.

        Raises `errors.EngineRefused` where the engine refuses the request, `errors.EngineDown` where it is dead.
        """
        ...

    async def check_constraint(self, structured: StructuredOutput, caller: str) -> None:
        """Tries a constraint where it can hurt nobody, before a request with it is let in.

        Raises `errors.BadRequest` where it cannot be compiled or costs too much, `errors.Overloaded` where too many
        wait to be tried. `caller` is whoever fairness is between.
        """
        ...

    def load(self) -> EngineLoad: ...

    async def expert_counts(self) -> ExpertCounts:
        """Tokens that each expert was given, of all steps that ended before this was asked.

        Raises `errors.FeatureOff` where the engine does not count, `errors.EngineDown` where it is dead.
        """
        ...

    async def check(self) -> None:
        """Raises `errors.EngineDown` where the engine cannot take work."""
        ...

    def interruption(self) -> Interruption | None:
        """Return why the engine takes no work; None where it does, or never will again."""
        ...

    async def wait_until_available(self) -> None:
        """Waits until a dead engine can take work again. Raises `errors.EngineDown` where it never will."""
        ...

    async def close(self) -> None:
        """Ends the engine and every process it started."""
        ...
