"""Resumable streams: what an event costs its readers, and when a stream that nobody reads ends."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest
from penstock.config.schema import ResumeSettings
from penstock.errors import BadRequest, GenerationNotFound
from penstock.sessions.streams import ResumableStream, StreamOrigin, StreamStore
from penstock_proto.v1 import generation_pb2 as pb


class Counted(dict[int, Any]):
    """Counts every entry that anybody looks at."""

    touched = 0

    def __getitem__(self, key: int) -> Any:
        self.touched += 1
        return super().__getitem__(key)

    def pop(self, key: int) -> Any:  # type: ignore[override]
        self.touched += 1
        return super().pop(key)

    def _all(self) -> None:
        raise AssertionError("looks at all events")

    __iter__ = keys = values = items = _all  # type: ignore[assignment]


def event(sequence: int) -> pb.GenerationEvent:
    made = pb.GenerationEvent(sequence=sequence)
    made.answer.text = "token"
    return made


async def events(count: int, *, yield_every: int = 100) -> AsyncGenerator[pb.GenerationEvent, None]:
    for sequence in range(1, count + 1):
        yield event(sequence)
        if sequence % yield_every == 0:
            await asyncio.sleep(0)


async def endless() -> AsyncGenerator[pb.GenerationEvent, None]:
    sequence = 0
    while True:
        sequence += 1
        yield event(sequence)
        await asyncio.sleep(0.01)


async def read(stream: ResumableStream, last_sequence: int = 0) -> list[int]:
    return [event.sequence async for event in stream.read(last_sequence)]


async def test_an_event_that_was_not_yet_is_refused_by_its_field() -> None:
    stream = ResumableStream(StreamOrigin("g", sequence=7), 10_000)
    assert await read_nothing(stream, 8) == "must be at most 7, the newest event of this generation, got 8"
    await stream.feed(events(9))
    assert await read(stream, 9) == []
    for ahead in (10, 2**64 - 1):
        assert f"at most 9, the newest event of this generation, got {ahead}" in await read_nothing(stream, ahead)
    assert stream.readers == 0


async def read_nothing(stream: ResumableStream, last_sequence: int) -> str:
    with pytest.raises(BadRequest) as refused:
        await read(stream, last_sequence)
    assert refused.value.violations[0].field == "last_sequence"
    return refused.value.violations[0].description


@pytest.mark.slow
@pytest.mark.parametrize("keeps_all", [True, False])
async def test_each_event_is_looked_at_once_by_each_reader(keeps_all: bool) -> None:
    count = 100_000
    size = event(count).ByteSize()
    stream = ResumableStream(StreamOrigin("g"), size * (count if keeps_all else 1000))
    stream._events = counted = Counted()
    feeding = asyncio.create_task(stream.feed(events(count)))
    stream.task = feeding
    heard = await asyncio.gather(*(read(stream) for _ in range(3)))
    await feeding
    assert heard == [list(range(1, count + 1))] * 3
    evicted = count - len(counted)
    assert counted.touched == 3 * count + evicted
    assert bool(evicted) is not keeps_all
    assert stream._bytes == sum(size for _, size in dict.values(counted)) <= stream._max_bytes
    oldest = count - len(counted) + 1
    assert await read(stream, oldest - 1) == list(range(oldest, count + 1))
    if evicted:
        with pytest.raises(GenerationNotFound) as caught:
            await read(stream, 5)
        assert caught.value.metadata == {"last_sequence": "5", "oldest_kept_sequence": str(oldest)}


async def test_a_slow_reader_holds_up_nobody_and_is_told_when_it_is_too_late() -> None:
    stream = ResumableStream(StreamOrigin("g"), 10 * event(1).ByteSize())
    slow = stream.read(0)
    stream.task = asyncio.create_task(stream.feed(events(100, yield_every=1)))
    assert (await anext(slow)).sequence == 1
    assert await read(stream, 1) == list(range(2, 101)), "the quick one reads all"
    with pytest.raises(GenerationNotFound, match="no longer kept"):
        await anext(slow)


async def _never_read(streams: StreamStore, stream: ResumableStream) -> None: ...


async def _left(streams: StreamStore, stream: ResumableStream) -> None:
    reader = stream.read(0)
    await anext(reader)
    await reader.aclose()


_STUCK: list[AsyncGenerator[pb.GenerationEvent, None]] = []


async def _stuck(streams: StreamStore, stream: ResumableStream) -> None:
    _STUCK.append(stream.read(0))
    await anext(_STUCK[-1])


async def broken() -> AsyncGenerator[pb.GenerationEvent, None]:
    yield event(1)
    raise RuntimeError


async def silent() -> AsyncGenerator[pb.GenerationEvent, None]:
    yield event(1)
    await asyncio.Event().wait()


@pytest.mark.slow
@pytest.mark.parametrize("source", [endless, broken, silent, lambda: events(3)])
@pytest.mark.parametrize("how", [_never_read, _left, _stuck])
async def test_a_stream_that_nobody_reads_ends_by_itself_and_gives_its_memory_back(
    source: Callable[[], AsyncGenerator[pb.GenerationEvent, None]], how: Callable[[StreamStore, ResumableStream], Any]
) -> None:
    streams = StreamStore(ResumeSettings(grace_seconds=0.05))
    stream = await streams.create(StreamOrigin("g"))
    generating = source()
    stream.task = task = asyncio.create_task(stream.feed(generating))
    await how(streams, stream)
    ended = weakref.ref(stream)
    async with asyncio.timeout(30):
        while len(streams):  # noqa: ASYNC110 - nothing else calls it: the server is idle
            await asyncio.sleep(0.01)
        await asyncio.wait({task})
    assert not stream._events
    assert stream._timer is None or stream._timer.cancelled() or stream._has_ended
    if how is _stuck:
        # What failed before is told as it failed.
        with pytest.raises(RuntimeError if source is broken else GenerationNotFound):
            async for _ in _STUCK[-1]:
                pass
    _STUCK.clear()
    del stream, task
    await asyncio.sleep(0)
    gc.collect()
    assert ended() is None


async def test_a_reader_that_waits_keeps_its_stream_without_a_timer() -> None:
    streams = StreamStore(ResumeSettings(grace_seconds=0.02))
    stream = await streams.create(StreamOrigin("g"))
    stream.task = asyncio.create_task(stream.feed(silent()))
    reader = stream.read(0)
    await anext(reader)
    waiting = asyncio.create_task(anext(reader))
    await asyncio.sleep(0.2)  # many times the grace
    assert stream._timer is None, "an idle server is not woken"
    assert not stream.task.done()
    assert len(streams) == 1
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    async with asyncio.timeout(30):
        while len(streams):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_finished_stream_makes_room_only_once_it_was_read() -> None:
    streams = StreamStore(ResumeSettings(max_streams=1))
    first = await streams.create(StreamOrigin("a"))
    first.task = asyncio.create_task(first.feed(events(3)))
    assert await read(first) == [1, 2, 3]
    second = await streams.create(StreamOrigin("b"))
    assert len(streams) == 1
    with pytest.raises(GenerationNotFound):
        await streams.get("a", first.token)
    await streams.cancel("b", second.token)
    assert not len(streams)
    await streams.close()
