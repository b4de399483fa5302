"""Define the interface of inference engines. Implementations: `engine.vllm` (the product), `engine.scripted` (tests).

An engine runs one `EngineRequest` and streams the tokens that it samples. It knows nothing of thoughts and answers,
deadlines, prices or callers; continuations are made above it, in `generation`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol

from penstock.engine.expert_load.statistics import ExpertCounts
from penstock.types import (
    EngineChunk,
    EngineRequest,
    Image,
    InterruptionReason,
    Message,
    ModelCard,
    StructuredOutput,
    ThoughtHistory,
    Tool,
)


class Tokenizer(Protocol):
    """Convert text to token ids and back. Implementations can be called from any thread."""

    def encode(self, text: str) -> list[int]:
        """Return the token ids of `text`: special tokens in it are recognised, nothing is added."""
        ...

    def encode_text(self, text: str) -> list[int]:
        """Return the token ids of `text` as plain text: names of special tokens become ordinary characters."""
        ...

    def render(
        self,
        messages: Sequence[Message],
        *,
        thinking: bool,
        tools: Sequence[Tool] = (),
        history: ThoughtHistory = ThoughtHistory.CURRENT_TURN,
    ) -> list[int]:
        """Return the token ids of the chat template with the generation prompt.

        Everything in a message and in a tool is plain text, whatever it spells. System messages that the template does
        not accept at their place are joined into one at the start. As many tokens stand for an image as `tokens` of it
        says.

        Args:
            messages: The conversation. Where the last message is the assistant's, the output continues it.
            thinking: Whether the prompt ends inside an open think section.
            tools: The tools that are described to the model.
            history: Which thoughts of earlier messages the prompt contains.

        Raises:
            BadRequest: The template refuses the conversation.
            FeatureOff: The template shows no images.
        """
        ...

    def shown_images(self, messages: Sequence[Message]) -> tuple[Image, ...]:
        """Return the images of a conversation in the order of their tokens in its prompt."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """Return the UTF-8 bytes of one token; empty for special tokens.

        Raises:
            IndexError: The id is outside the vocabulary.
        """
        ...


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """Report the engine's own counts.

    Attributes:
        running_requests: Requests in the running batch.
        waiting_requests: Requests in the engine's queue.
        kv_cache_usage: Share of the KV cache in use, in [0, 1]; of the fullest rank.
        seconds_per_token: Recent mean time between two tokens of one stream; None at first.
        first_token_seconds: Recent mean time to the first token; None at first.
        steps: Engine steps since its start, of all ranks together; a hung engine makes none.
        ranks: Data-parallel ranks whose steps are counted.
        preemptions: Requests that were preempted since the engine's start.
        prefix_queried_tokens: Prompt tokens looked up in the prefix cache since the engine's start.
        prefix_hit_tokens: Prompt tokens found there since the engine's start.
        accepted_by_position: Accepted draft tokens by position in the draft, since the engine's start.
    """

    running_requests: int
    waiting_requests: int
    kv_cache_usage: float
    seconds_per_token: float | None
    first_token_seconds: float | None
    steps: int = 0
    ranks: int = 1
    preemptions: int = 0
    prefix_queried_tokens: int = 0
    prefix_hit_tokens: int = 0
    accepted_by_position: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Interruption:
    """Report why the engine takes no work.

    Attributes:
        reason: Why it takes no work.
        expected_seconds: Seconds from now until it is expected to; None where that is unknown.
    """

    reason: InterruptionReason
    expected_seconds: float | None


class Engine(Protocol):
    """Run requests on a model. All methods are called on the event loop."""

    @property
    def card(self) -> ModelCard:
        """Return the facts about the served model."""
        ...

    @property
    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer of the served model."""
        ...

    def stream(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:
        """Run one request and yield its tokens. Closing the iterator aborts the request in the engine.

        Raises:
            EngineRefused: The engine refuses the request.
            EngineDown: The engine is dead.
        """
        ...

    async def check_constraint(self, structured: StructuredOutput, caller: str) -> None:
        """Compile and try a constraint in isolation, before a request with it is admitted.

        Args:
            structured: The constraint.
            caller: Key that fairness is between.

        Raises:
            BadRequest: The constraint cannot be compiled, or costs too much.
            Overloaded: Too many constraints wait to be tried.
        """
        ...

    async def image_tokens(self, image: Image, caller: str) -> int:
        """Decode an image, and return how many tokens of a prompt stand for it.

        Args:
            image: The image.
            caller: Key that fairness is between.

        Raises:
            BadRequest: The image cannot be read.
            Overloaded: Too many images wait to be decoded.
        """
        ...

    def load(self) -> EngineLoad:
        """Return the engine's counts at this moment."""
        ...

    async def expert_counts(self) -> ExpertCounts:
        """Return the tokens that each expert processed, in all steps that ended before this call.

        Raises:
            FeatureOff: The engine does not count.
            EngineDown: The engine is dead.
        """
        ...

    async def check(self) -> None:
        """Check that the engine can take work.

        Raises:
            EngineDown: The engine is dead.
        """
        ...

    def interruption(self) -> Interruption | None:
        """Return why the engine takes no work; None while it does, and once it never will again."""
        ...

    async def wait_until_available(self) -> None:
        """Wait until a dead engine can take work again.

        Raises:
            EngineDown: The engine will not be started again.
        """
        ...

    async def close(self) -> None:
        """End the engine and every process that it started."""
        ...
