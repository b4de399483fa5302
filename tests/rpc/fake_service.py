"""A service of canned replies on a real channel, for tests of the client and the command line."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import grpc.aio
from google.protobuf import any_pb2
from google.rpc import status_pb2
from grpc_status import rpc_status
from penstock_proto.v1 import generation_pb2 as pb
from penstock_proto.v1 import generation_pb2_grpc, model_pb2, model_pb2_grpc

THOUGHT = ("17+25", "=42\n", "42+8=50")
ANSWER = ("The answer", " is é", "50.")


def settings() -> pb.EffectiveSettings:
    return pb.EffectiveSettings(
        thinking_mode=pb.THINKING_MODE_THINKING,
        thinking_budget=16,
        answer_reserve=8,
        max_output_tokens=64,
        thinking_reason="asked for",
        sampling=pb.SamplingConfig(temperature=0.5, top_k=0),
        window_tokens=128,
        dropped=pb.DroppedContext(tokens=3, messages=1),
    )


def finished() -> pb.GenerationFinished:
    usage = pb.Usage(
        prompt_tokens=31, cached_tokens=16, reasoning_tokens=12, answer_tokens=5, output_tokens=17, total_tokens=48
    )
    result = pb.CandidateResult(
        finish_reason=pb.FINISH_REASON_STOP, thinking_outcome=pb.THINKING_OUTCOME_BUDGET_REACHED, usage=usage
    )
    made = pb.GenerationFinished(results=[result], usage=usage, effective_settings=settings())
    made.cost.total_usd_ticks = 231_000
    made.timing.first_token.FromMilliseconds(210)
    made.timing.total.FromMilliseconds(410)
    return made


def events() -> list[pb.GenerationEvent]:
    started = pb.GenerationStarted(generation_id="g1", model="fake", effective_settings=settings())
    made = [pb.GenerationEvent(started=started)]
    made += [pb.GenerationEvent(thought=pb.Delta(text=text, token_count=4)) for text in THOUGHT]
    ended = pb.ThinkingFinished(outcome=pb.THINKING_OUTCOME_BUDGET_REACHED, reasoning_tokens=12)
    made.append(pb.GenerationEvent(thinking_finished=ended))
    made += [
        pb.GenerationEvent(answer=pb.Delta(text=text, token_count=n)) for text, n in zip(ANSWER, (2, 2, 1), strict=True)
    ]
    made.append(pb.GenerationEvent(finished=finished()))
    for sequence, event in enumerate(made, 1):
        event.sequence = sequence
    return made


def numbered(script: list[pb.GenerationEvent]) -> list[pb.GenerationEvent]:
    for sequence, event in enumerate(script, 1):
        event.sequence = sequence
    return script


def tool_call(name: str, arguments: str, number: int = 0, status: Any = pb.TOOL_CALL_STATUS_COMPLETE) -> pb.ToolCall:
    return pb.ToolCall(id=f"call-{number}", name=name, arguments_json=arguments, status=status)


def calling(*calls: pb.ToolCall, thought: str = "") -> list[pb.GenerationEvent]:
    """A stream that ends with these calls, each in three pieces; each of its events is two tokens."""
    started = pb.GenerationStarted(generation_id="g2", model="fake", resume_token="t2", effective_settings=settings())
    made = [pb.GenerationEvent(started=started)]
    if thought:
        made.append(pb.GenerationEvent(thought=pb.Delta(text=thought, token_count=3)))
    for index, call in enumerate(calls):
        begun = pb.ToolCallStarted(call_index=index, id=call.id, name=call.name, token_count=2)
        made.append(pb.GenerationEvent(tool_call_started=begun))
        middle = len(call.arguments_json) // 2
        for piece in (call.arguments_json[:middle], call.arguments_json[middle:]):
            more = pb.ToolCallArguments(call_index=index, json_fragment=piece, token_count=2)
            made.append(pb.GenerationEvent(tool_call_arguments=more))
        ended = pb.ToolCallFinished(call_index=index, call=call, token_count=2)
        made.append(pb.GenerationEvent(tool_call_finished=ended))
    end = finished()
    tokens = 8 * len(calls)
    cut = any(call.status != pb.TOOL_CALL_STATUS_COMPLETE for call in calls)
    end.results[0].finish_reason = pb.FINISH_REASON_MAX_OUTPUT_TOKENS if cut else pb.FINISH_REASON_TOOL_CALLS
    for usage in (end.usage, end.results[0].usage):
        usage.CopyFrom(pb.Usage(prompt_tokens=40, reasoning_tokens=3, tool_tokens=tokens))
        usage.output_tokens = 3 + tokens
        usage.total_tokens = 43 + tokens
    made.append(pb.GenerationEvent(finished=end))
    return numbered(made)


def _generates(request: Any) -> bool:
    return "spec" in request.DESCRIPTOR.fields_by_name


RATE_LIMITS = (("x-ratelimit-limit-requests", "60"), ("x-ratelimit-remaining-requests", "59"))


class FakeService(generation_pb2_grpc.GenerationServiceServicer, model_pb2_grpc.ModelServiceServicer):
    """`script` is what the next streams send; a status in it ends the stream; `hang_after` waits after that many.

    `scripts` are for one stream each, before `script`. A stream whose status ended it can be resumed.
    `metadata` is the last call's, of any method; `generation_metadata` the last one's that has a spec.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.script: list[pb.GenerationEvent | status_pb2.Status] = list(events())
        self.scripts: list[list[pb.GenerationEvent | status_pb2.Status]] = []
        self.playing: list[pb.GenerationEvent | status_pb2.Status] = []
        self.candidate: pb.Candidate | None = None
        self.error: status_pb2.Status | None = None
        self.hang_after: int | None = None
        self.requests: list[Any] = []
        self.metadata: dict[str, Any] = {}
        self.generation_metadata: dict[str, Any] = {}
        self.seconds_left: float | None = None
        self.cancelled = 0

    async def StreamGenerate(  # noqa: N802
        self, request: pb.StreamGenerateRequest, context: Any
    ) -> AsyncIterator[pb.StreamGenerateResponse]:
        await self._note(request, context)
        script = self.playing = self.scripts.pop(0) if self.scripts else self.script
        try:
            for position, event in enumerate(script):
                if position == self.hang_after:
                    await asyncio.sleep(60)
                if isinstance(event, status_pb2.Status):
                    await context.abort_with_status(rpc_status.to_status(event))
                else:
                    yield pb.StreamGenerateResponse(event=event)
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += 1
            raise

    async def Resume(  # noqa: N802
        self, request: pb.ResumeRequest, context: Any
    ) -> AsyncIterator[pb.ResumeResponse]:
        await self._note(request, context)
        for event in self.playing:
            if isinstance(event, pb.GenerationEvent) and event.sequence > request.last_sequence:
                yield pb.ResumeResponse(event=event)

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> pb.GenerateResponse:  # noqa: N802
        await self._note(request, context)
        end = finished()
        candidate = self.candidate or pb.Candidate(thought="".join(THOUGHT), answer="".join(ANSWER))
        if not candidate.HasField("result"):
            candidate.result.CopyFrom(end.results[0])
        return pb.GenerateResponse(
            generation_id="g1",
            model="fake",
            candidates=[candidate],
            usage=end.usage,
            cost=end.cost,
            effective_settings=end.effective_settings,
            timing=end.timing,
        )

    async def CountTokens(self, request: pb.CountTokensRequest, context: Any) -> pb.CountTokensResponse:  # noqa: N802
        await self._note(request, context)
        return pb.CountTokensResponse(
            prompt_tokens=31,
            effective_prompt_tokens=28,
            window_tokens=128,
            window_left_tokens=100,
            dropped=pb.DroppedContext(tokens=3, messages=1),
            cost_estimate=pb.CostEstimate(min_usd_ticks=1, max_usd_ticks=20_000),
            effective_settings=settings(),
        )

    async def GetModel(  # noqa: N802
        self, request: model_pb2.GetModelRequest, context: Any
    ) -> model_pb2.GetModelResponse:
        await self._note(request, context)
        return model_pb2.GetModelResponse(
            default_early_exit=pb.EARLY_EXIT_MARKER,
            max_early_exit=pb.EARLY_EXIT_PROBE,
            model="fake",
            architecture="Qwen3_5MoeForCausalLM",
            vocab_size=512,
            context_window_tokens=128,
            native_context_window_tokens=128,
            thinking_modes=[pb.THINKING_MODE_FAST, pb.THINKING_MODE_THINKING, pb.THINKING_MODE_AUTO],
            default_thinking_mode=pb.THINKING_MODE_AUTO,
            default_sampling=pb.SamplingConfig(temperature=0.6),
            profile=[model_pb2.ProfileFeature(name="mtp", enabled=False, reason="no MTP layer [here]")],
            price_tiers=[model_pb2.PriceTier(input_usd_ticks_per_token=4000, output_usd_ticks_per_token=40_000)],
            limits=model_pb2.Limits(max_messages=9),
            refused_fields=[model_pb2.RefusedField(field="spec.sampling.min_p", reason="beside MTP")],
            service_version="0.1.0",
            engine_version="fake 1",
        )

    @property
    def generations(self) -> list[Any]:
        """The requests that have a spec. A gateway asks for the model beside them, once it has started."""
        return [request for request in self.requests if _generates(request)]

    async def _note(self, request: Any, context: Any) -> None:
        self.requests.append(request)
        self.metadata = dict(context.invocation_metadata())
        if _generates(request):
            self.generation_metadata = self.metadata
        self.seconds_left = context.time_remaining()
        if self.error is not None:
            refused = rpc_status.to_status(self.error)
            await context.abort_with_status(
                refused._replace(trailing_metadata=(*refused.trailing_metadata, *RATE_LIMITS))
            )
        context.set_trailing_metadata(RATE_LIMITS)


def status(code: grpc.StatusCode, message: str, details: Iterable[Any] = ()) -> status_pb2.Status:
    made = status_pb2.Status(code=code.value[0], message=message)
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        made.details.append(packed)
    return made


@contextmanager
def running(service: FakeService) -> Iterator[str]:
    """Serves on a thread of its own, so that blocking clients can be tested; gives the target."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start() -> tuple[grpc.aio.Server, int]:
        server = grpc.aio.server()
        generation_pb2_grpc.add_GenerationServiceServicer_to_server(service, server)
        model_pb2_grpc.add_ModelServiceServicer_to_server(service, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        return server, port

    server, port = asyncio.run_coroutine_threadsafe(start(), loop).result(60)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(0), loop).result(60)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def until(condition: Callable[[], bool], seconds: float = 60.0) -> bool:
    """Waits, from a thread that is not the service's, for something that the service will do."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()
