"""Run vLLM's AsyncLLM in this process as an `Engine`. Imported by `start` only, after the environment is set."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import AsyncGenerator
from typing import Any

from vllm.exceptions import VLLMClientError
from vllm.inputs import tokens_input
from vllm.outputs import RequestOutput
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from penstock.engine.base import EngineLoad
from penstock.engine.expert_load.statistics import ExpertCounts
from penstock.engine.images.cache import ImageCache
from penstock.engine.tokenizer import HfTokenizer
from penstock.engine.vllm.compat.plain_text import text_tokens
from penstock.engine.vllm.compat.slow_grammars import TOO_SLOW
from penstock.engine.vllm.constraints.compiling import grammar_of, refusal
from penstock.engine.vllm.constraints.sandbox import ConstraintSandbox
from penstock.engine.vllm.constraints.sandbox_process import SandboxResult
from penstock.engine.vllm.devices import wait_until_free
from penstock.engine.vllm.experts import OutputTally, merged
from penstock.engine.vllm.lifetime import HostResources
from penstock.engine.vllm.load import LoadMeter
from penstock.engine.vllm.parallel import ExpertLayout
from penstock.engine.vllm.pictures import PictureInput
from penstock.engine.vllm.processes import kill, processes_of
from penstock.engine.vllm.sampling import sampling_params, thought_tokens_in_prompt
from penstock.errors import BadRequest, ConstraintLost, EngineDown, EngineRefused, FeatureOff
from penstock.types import (
    EngineChunk,
    EngineRequest,
    EngineStop,
    Image,
    ModelCard,
    StructuredOutput,
    TokenLogprob,
    TokenLogprobs,
)

log = logging.getLogger(__name__)
_KILL_SECONDS = 10.0
_FREE_SECONDS = 30.0


@dataclasses.dataclass(frozen=True, slots=True)
class LoadedModel:
    """An AsyncLLM that has read its weights, with its tokenizer and the meter that it reports its steps to."""

    llm: AsyncLLM
    tokenizer: HfTokenizer
    meter: LoadMeter


class VllmEngine:
    """An `Engine` on an AsyncLLM. All methods belong to one event loop."""

    def __init__(
        self, model: LoadedModel, resources: HostResources, card: ModelCard, constraint_seconds: float
    ) -> None:
        """Take over a loaded model. A constraint may take `constraint_seconds` to compile and try."""
        self._llm = model.llm
        self._resources = resources
        self._card = card
        self._tokenizer = model.tokenizer
        self._meter = model.meter
        self._processes = processes_of(model.llm)
        self._constraint_seconds = constraint_seconds
        self._constraints = ConstraintSandbox(self._compilers_tokenizer, grammar_of, constraint_seconds)
        self._pictures: PictureInput | None = None
        self._layout: ExpertLayout | None = None
        self._outputs: OutputTally | None = None

    @property
    def card(self) -> ModelCard:
        """Return the model card, with what the start-up probe found out."""
        return self._card

    def change_card(self, **fields: Any) -> None:
        """Replace fields of the model card. Only for the start, before requests are served."""
        self._card = dataclasses.replace(self._card, **fields)

    @property
    def tokenizer(self) -> HfTokenizer:
        """Return the model's tokenizer."""
        return self._tokenizer

    async def stream(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:
        """Run one request. See `Engine.stream`. Raise BadRequest for a constraint that cannot be compiled."""
        params = sampling_params(request, self._card, self._tokenizer.name_of)
        outputs = self._llm.generate(
            await self._prompt(request),
            params,
            request.request_id,
            trace_headers=request.trace_headers,
            # The constraint is on the answer; vLLM's own check of the prompt does not know continuations.
            reasoning_ended=self._answers_at_once(request) if request.structured else None,
        )
        try:
            async with contextlib.aclosing(outputs):
                async for output in outputs:
                    if request.structured and output.outputs[0].finish_reason == "error":
                        raise self._failure(request, request.structured, output.outputs[0].stop_reason)
                    if self._outputs is not None and (routed := output.outputs[0].routed_experts) is not None:
                        self._outputs.finished(routed, output.num_cached_tokens or 0)
                    yield _chunk(output, self._card.eos_ids, request.top_logprobs or 0)
        except EngineDeadError as error:
            raise EngineDown("the engine is dead") from error
        except (BadRequest, EngineRefused):
            raise
        except VLLMClientError as error:
            raise self._refusal(request, error) from error
        except Exception as error:
            if self._llm.errored:
                raise EngineDown("the engine is dead") from error
            raise EngineRefused(f"the engine failed on this request: {type(error).__name__}") from error

    async def _prompt(self, request: EngineRequest) -> Any:
        if not request.images:
            return tokens_input(list(request.prompt_token_ids), cache_salt=request.cache_salt)
        return await self._picture_input().prompt(request)

    def _picture_input(self) -> PictureInput:
        if self._pictures is None:
            why = next((f.reason for f in self._card.profile if f.name == "images"), "")
            raise FeatureOff(f"this server reads no images: {why}", feature="images")
        return self._pictures

    def read_images(self, images: ImageCache, stands_for_image: int) -> None:
        """Read images from now on; `stands_for_image` is the id that stands for them in prompts."""
        self._pictures = PictureInput(self._llm, images, stands_for_image)

    async def image_tokens(self, image: Image, caller: str) -> int:
        """Return an image's number of tokens. See `Engine.image_tokens`."""
        return await self._picture_input().tokens(image, caller)

    def start_compiler(self) -> None:
        """Start the process that tries constraints, in the background."""
        self._constraints.start_ahead()

    async def check_constraint(self, structured: StructuredOutput, caller: str) -> None:
        """Compile and try a constraint. See `Engine.check_constraint`."""
        await self._constraints.check(structured, caller)

    def load(self) -> EngineLoad:
        """Return the newest counts that vLLM reported."""
        return self._meter.load()

    async def count_experts(self, layout: ExpertLayout | None, *, by_output: bool = False) -> int:
        """Count experts from now on, in the workers or from vLLM's outputs. Return the number of counted layers.

        A `layout` of None stops counting.
        """
        self._layout = layout
        self._outputs = OutputTally(layout) if layout is not None and by_output else None
        if by_output:
            return layout.layers if layout is not None else 0
        return sum(await self._llm.collective_rpc("count_experts", args=(layout is not None,)))

    async def expert_counts(self) -> ExpertCounts:
        """Return the tokens of each expert. See `Engine.expert_counts`."""
        if self._layout is None:
            why = next((f.reason for f in self._card.profile if f.name == "routing"), "")
            raise FeatureOff(f"expert load is not counted: {why}", feature="routing")
        if self._outputs is not None:
            return self._outputs.counts()
        try:
            return merged(self._layout, await self._llm.collective_rpc("expert_counts"))
        except EngineDeadError as error:
            raise EngineDown("the engine is dead") from error
        except Exception as error:
            raise EngineRefused(f"reading the expert counts failed: {type(error).__name__}") from error

    async def end_thoughts_behind(self, line_ends: list[int]) -> bool:
        """Tell the workers which tokens end a line. Return whether they read `EngineRequest.exit_probability`."""
        return all(await self._llm.collective_rpc("end_thoughts_behind", args=(line_ends,)))

    async def draw_from(self, seed: int) -> None:
        """Seed the random numbers of requests without a seed, in all workers of all nodes. Range [0, 2^32)."""
        await self._llm.collective_rpc("draw_from", args=(seed,))

    async def drawn_from(self) -> list[int]:
        """Return the seed of each worker's generator."""
        return await self._llm.collective_rpc("drawn_from")  # type: ignore[no-any-return]

    async def weight_bytes(self) -> list[dict[str, int]]:
        """Return the bytes of weights by element type, per worker."""
        return await self._llm.collective_rpc("weight_bytes")  # type: ignore[no-any-return]

    async def cache_bytes(self) -> list[dict[str, int]]:
        """Return how vLLM laid out the cache, per worker. See `worker.WorkerReport.cache_bytes`."""
        return await self._llm.collective_rpc("cache_bytes")  # type: ignore[no-any-return]

    @property
    def cache_tokens(self) -> int:
        """Return vLLM's "KV cache size": the tokens of sequences that fill the window."""
        return int(self._llm.vllm_config.cache_config.kv_cache_size_tokens)

    async def check(self) -> None:
        """Raise EngineDown where the engine is dead."""
        try:
            await self._llm.check_health()
        except EngineDeadError as error:
            raise EngineDown("the engine is dead") from error

    def interruption(self) -> None:
        """Return None: an AsyncLLM never comes back."""

    async def wait_until_available(self) -> None:
        """Raise EngineDown where the engine is dead: an AsyncLLM never comes back, the supervisor starts another."""
        await self.check()

    async def kill(self) -> None:
        """End the engine's processes without their help, and wait until vLLM has failed every stream."""
        await asyncio.to_thread(self._end_processes)
        if self._llm.output_handler is not None:
            await asyncio.wait({self._llm.output_handler}, timeout=_KILL_SECONDS)
        with contextlib.suppress(Exception):
            await self.close()

    async def close(self) -> None:
        """End the engine when no request is left.

        Its processes have nothing to save and are killed: an orderly end takes seconds, in the worker alone to unload
        what Python imported.
        """
        await self._constraints.close()
        if self._pictures is not None:
            await self._pictures.close()
        # vLLM ends the processes first, and its output handler then logs an intended end as a failure.
        if self._llm.output_handler is not None:
            self._llm.output_handler.cancel()
        self._llm.engine_core.resources.engine_dead = True  # likewise its monitor
        await asyncio.to_thread(self._end_processes)
        try:
            await asyncio.to_thread(self._llm.shutdown, 0)
        except Exception:
            # The garbage collector waits for open sockets where it frees ZeroMQ's context: for ever, in the event loop.
            await asyncio.to_thread(self._llm.engine_core.resources)
            raise

    def _end_processes(self) -> None:
        self._resources.pipe.close()
        # They are dead or dying now; none may be left after this.
        kill(self._processes, _KILL_SECONDS)
        if not wait_until_free(self._resources.free_before, _FREE_SECONDS):
            log.warning("the ended engine's GPU memory is not free after %g s", _FREE_SECONDS)

    def _compilers_tokenizer(self) -> str:
        """Return the tokenizer as vLLM's backend makes it (v1/structured_output/backend_xgrammar.py), as JSON."""
        vocab_size = self._llm.vllm_config.model_config.get_vocab_size()
        return str(text_tokens(self._llm.renderer.get_tokenizer(), vocab_size).serialize_json())

    def _failure(self, request: EngineRequest, structured: StructuredOutput, why: object) -> BadRequest | EngineRefused:
        """Return the error of a constrained request that the engine ended: too slow (compat.slow_grammars) or
        broken.
        """
        if why != TOO_SLOW:
            return ConstraintLost("the engine sampled a token that the constraint does not allow")
        self._constraints.block(structured, request.caller_id)
        return refusal(structured, SandboxResult.SLOW, self._constraint_seconds)

    def _refusal(self, request: EngineRequest, error: Exception) -> BadRequest | EngineRefused:
        """Return the error of a request that vLLM refuses: about a constraint the caller's, else the service's."""
        if request.structured is None:
            return EngineRefused(f"vLLM refuses the request: {type(error).__name__}")
        return refusal(request.structured, SandboxResult.MALFORMED, self._constraint_seconds)

    def _answers_at_once(self, request: EngineRequest) -> bool:
        markers = self._card.markers
        if markers is None or request.constrained_prompt_tokens:
            # An answer that is continued may have an opening marker in the arguments of a tool call.
            return True
        return thought_tokens_in_prompt(request.prompt_token_ids, markers) is None


def _chunk(output: RequestOutput, eos_ids: frozenset[int], top: int) -> EngineChunk:
    completion = output.outputs[0]
    speculation = completion.spec_decode_metrics
    token_ids = tuple(completion.token_ids)
    return EngineChunk(
        token_ids=token_ids,
        logprobs=_logprobs(token_ids, completion.logprobs, top) if completion.logprobs else (),
        cached_tokens=output.num_cached_tokens or 0,
        stop=_stop(completion, eos_ids),
        queue_seconds=_queue_seconds(output.metrics),
        drafted_tokens=speculation.num_draft_tokens if speculation else None,
        accepted_tokens=sum(place * count for place, count in enumerate(speculation.histogram))
        if speculation
        else None,
    )


def _stop(completion: Any, eos_ids: frozenset[int]) -> EngineStop | None:
    """Return why a completion ended. vLLM's stop_reason is a token id, or None for the tokenizer's own end token."""
    match completion.finish_reason:
        case None:
            return None
        case "length":
            return EngineStop.LENGTH
        case "abort":
            return EngineStop.ABORTED
        case "stop":
            at_end = completion.stop_reason is None or completion.stop_reason in eos_ids
            return EngineStop.EOS if at_end else EngineStop.STOP_TOKEN
        case other:
            raise EngineRefused(f"the engine ended a request with {other}")


def _queue_seconds(metrics: Any) -> float | None:
    if metrics is None or not metrics.scheduled_ts:
        return None
    return max(0.0, float(metrics.scheduled_ts - metrics.queued_ts))


def _logprobs(token_ids: tuple[int, ...], positions: Any, top: int) -> tuple[TokenLogprobs, ...]:
    """Convert vLLM's mapping per position, which has the `top` most likely tokens, and the sampled one at any rank."""
    result = []
    for sampled_id, position in zip(token_ids, positions, strict=True):
        entries = {token_id: TokenLogprob(token_id, entry.logprob, entry.rank) for token_id, entry in position.items()}
        ranked = sorted(entries.values(), key=lambda entry: entry.rank)
        result.append(TokenLogprobs(sampled=entries[sampled_id], top=tuple(ranked[:top])))
    return tuple(result)
