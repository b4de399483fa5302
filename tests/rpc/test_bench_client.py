"""The bare client of `bench`: what it reads of a stream is what the server sent."""

from __future__ import annotations

import asyncio

import pytest
from penstock.config.schema import Config
from penstock.engine.scripted import Reply as Script
from penstock.engine.scripted import ScriptedEngine
from penstock.server.server import Server
from penstock_proto.v1 import generation_pb2 as pb

from bench import grpc_frames, offered, openai_http
from bench.drain import Reply, Work, drained
from bench.report import Round, judged, summary, table
from bench.served import Answered, Served

METHOD = "/penstock.v1.GenerationService/StreamGenerate"


async def test_grpc_by_hand_reads_whole_streams() -> None:
    server = Server(Config.model_validate({"server": {"listen": "127.0.0.1:0"}}))
    address = await server.listen()
    await server.serve_with(ScriptedEngine([Script(thought="hm" * 40, answer="done" * 40, chunk_tokens=3)]))
    message = pb.Message(role=pb.ROLE_USER, content="go")
    spec = pb.GenerationSpec(
        messages=pb.Messages(messages=[message]), thinking=pb.ThinkingConfig(mode=pb.THINKING_MODE_THINKING)
    )
    request = pb.StreamGenerateRequest(spec=spec).SerializeToString()
    host, port = address.rsplit(":", 1)
    connections = tuple(grpc_frames.connection(address, METHOD, [request] * 2) for _ in range(3))
    done = await asyncio.to_thread(drained, Work((host, int(port)), "grpc", connections))
    await server.drain(0)
    assert [len(own) for own in done.replies] == [2, 2, 2]
    for reply in (reply for own in done.replies for reply in own):
        read = list(grpc_frames.messages(reply))
        events = [pb.StreamGenerateResponse.FromString(data).event for _, data in read]
        assert [event.sequence for event in events] == list(range(1, len(events) + 1))
        assert "".join(event.answer.text for event in events) == "done" * 40
        assert events[-1].HasField("finished")
        times = [when for when, _ in read]
        assert times == sorted(times)
        assert times[0] >= reply.sent_at


def test_server_sent_events_come_with_their_packets_times() -> None:
    packets = [b"HTTP/1.1 200 OK\r\n\r\n", b'a\r\ndata: {"n": 1}\n\n\r\n', b'8\r\ndata: {"n"', b": 2}\n\n\r\n0\r\n\r\n"]
    reply = Reply(0.0, [1.0, 2.0, 3.0, 4.0], [len(packet) for packet in packets], b"".join(packets))
    assert list(openai_http.events(reply)) == [(2.0, {"n": 1}), (4.0, {"n": 2})]


def test_ratios_are_of_pairs_in_one_round() -> None:
    def served(seconds: float, cpu: float) -> Served:
        return Served([Answered(0.1, seconds, 100, 50)], seconds, cpu, 0.0)

    speeds = {"in_process": 1.0, "openai": 1.1, "vllm_grpc": 1.2, "penstock": 2.0}
    cpus = {"in_process": 1.0, "openai": 4.0, "vllm_grpc": 5.0, "penstock": 3.0}
    # The second round is slower for all alike.
    measured = [
        Round(turn, 64, name, served(speeds[name] * slower, cpus[name] * slower))
        for turn, slower in ((0, 1.0), (1, 7.0))
        for name in speeds
    ]
    ratios, lines = judged(measured)
    assert [round(found[64], 3) for found in ratios.values()] == [0.5, 1.0]
    assert "goal: >= 0.97 at 64 streams" in lines[0]
    assert "64 streams" in table(summary(measured), {name: name for name in speeds})


@pytest.mark.slow
def test_tokens_that_are_offered_at_a_pace_are_counted_while_all_streams_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offered, "_MIN_STEADY_SHARE", 0.2)  # streams may start late on a machine that is busy
    offer = offered.Offer(tokens_per_second=160, streams=4, tokens_per_step=2, replicas=2, seconds=2.0)
    for runs in offered.measure(offer, (100,), repeats=2).values():
        run = offered.summary(runs)["best"]
        # The token that closes the thought makes a step of its own.
        assert 0 < run["messages_per_token"] <= 0.6, "a message for each step of two tokens, or fewer"
        assert run["tokens_per_second"] > 0
        assert run["cpu_us_per_token"] > 0
        assert run["loop_busy_share_median"] > 0
    assert 0 < offered.engine_cores(offer) < 2
