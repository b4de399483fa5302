"""Requests nobody should send, by the thousand: none crashes the service, leaks from it, or is felt by its neighbours.

`--hostile-requests N` says how many (2,000 by default; `make test-full` sends 10,000). They run in order: the last
test looks at what the others left.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable

import grpc
import pytest
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from penstock_proto.v1 import generation_pb2 as pb
from penstock_proto.v1 import model_pb2, routing_pb2

from tests.hostile.attacks import ATTACKS, Attack, half_open, question, rapid_reset
from tests.hostile.conftest import TASKS_MORE, Victim, pause
from tests.hostile.strategies import messages, mutated

pytestmark = pytest.mark.usefixtures("quiet_before_and_after")
_MAX_RSS_GROWTH_KIB = 20 * 1024
_ROUNDS = 3
_IN_FLIGHT = 16
_METHODS: dict[str, type[Message]] = {
    "GenerationService/Generate": pb.GenerateRequest,
    "GenerationService/StreamGenerate": pb.StreamGenerateRequest,
    "GenerationService/Interact": pb.InteractRequest,
    "GenerationService/Resume": pb.ResumeRequest,
    "GenerationService/Cancel": pb.CancelRequest,
    "GenerationService/Steer": pb.SteerRequest,
    "GenerationService/CountTokens": pb.CountTokensRequest,
    "ModelService/GetModel": model_pb2.GetModelRequest,
    "RoutingService/GetExpertLoad": routing_pb2.GetExpertLoadRequest,
    "RoutingService/WatchExpertLoad": routing_pb2.WatchExpertLoadRequest,
}
# What a caller may be told for its own mistakes, or for asking too much. INTERNAL and UNKNOWN are ours.
_HONEST = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}


def answer_to(channel: grpc.Channel, method: str, body: bytes) -> Callable[[], grpc.StatusCode]:
    """Sends bytes to a method, as one message of a stream, which every kind of method takes; its status when asked."""
    call = channel.stream_stream(f"/penstock.v1.{method}")(iter([body]), timeout=60)

    def status() -> grpc.StatusCode:
        try:
            for _ in call:
                pass
        except grpc.RpcError:
            pass
        return call.code()

    return status


def drive(victim: Victim, calls: list[tuple[str, bytes]]) -> Counter[grpc.StatusCode]:
    """Some at a time; how they ended. Nothing may end in a way that is ours to answer for."""
    ends: Counter[grpc.StatusCode] = Counter()
    under_way: deque[tuple[str, bytes, Callable[[], grpc.StatusCode]]] = deque()
    with grpc.insecure_channel(victim.address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        for method, body in [*calls, *[("", b"")] * _IN_FLIGHT]:
            if len(under_way) == _IN_FLIGHT or (not method and under_way):
                asked, sent, status = under_way.popleft()
                code = status()
                ends[code] += 1
                assert code in _HONEST, f"{asked} said {code} to {sent!r}"
            if method:
                under_way.append((method, body, answer_to(channel, method, body)))
    return ends


@pytest.fixture(scope="module", autouse=True)
def warm(victim: Victim) -> None:
    """The first of everything loads code and fills pools: what is held is counted from here."""
    draw = random.Random(0)
    drive(victim, [(method, mutated(question(), draw)) for method in _METHODS for _ in range(40)])
    rapid_reset(victim.address, 300)
    half_open(victim.address, 30)
    pause()
    victim.before, victim.rss_kib_before = victim.holdings(), victim.rss_kib()


def test_messages_of_any_content(victim: Victim, requests: int) -> None:
    batches = max(1, requests // 4 // 10)
    one = st.sampled_from(sorted(_METHODS)).flatmap(
        lambda method: st.tuples(st.just(method), messages(_METHODS[method].DESCRIPTOR))
    )
    ends: Counter[grpc.StatusCode] = Counter()

    @settings(
        max_examples=batches, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(st.lists(one, min_size=10, max_size=10))
    def fuzz(calls: list[tuple[str, Message]]) -> None:
        ends.update(drive(victim, [(method, message.SerializeToString()) for method, message in calls]))

    with victim.under("messages", batches * 10):
        fuzz()
    print({code.name: count for code, count in ends.items()})
    assert ends.total() >= batches * 9


def test_bytes_mutated_on_the_wire(victim: Victim, requests: int) -> None:
    draw = random.Random(1)
    methods = sorted(_METHODS)
    calls = [(draw.choice(methods), mutated(question(), draw)) for _ in range(requests // 4)]
    with victim.under("bytes", len(calls)):
        ends = drive(victim, calls)
    print({code.name: count for code, count in ends.items()})
    assert ends[grpc.StatusCode.INVALID_ARGUMENT] > 0


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_http2_misbehaviour(victim: Victim, requests: int, attack: Attack) -> None:
    share = requests // 2 * ATTACKS[attack] // 100
    with victim.under(attack.__name__, 0):
        victim.sent[attack.__name__] = attack(victim.address, share)
    assert victim.health() == "SERVING"


def rss_growth_kib(victim: Victim, requests: int) -> list[int]:
    """Growth of the resident memory, and of further rounds of the same attacks while it is too large.

    Beside load, more requests are held at once, and the allocator keeps that peak. A leak grows in each round.
    """
    growths = [victim.rss_kib() - victim.rss_kib_before]
    while growths[-1] >= _MAX_RSS_GROWTH_KIB and len(growths) < _ROUNDS:
        before, draw = victim.rss_kib(), random.Random(len(growths))
        calls = [(draw.choice(sorted(_METHODS)), mutated(question(), draw)) for _ in range(requests // 2)]
        with victim.under("bytes", len(calls)):
            drive(victim, calls)
        for attack, share in ATTACKS.items():
            with victim.under(attack.__name__, requests // 2 * share // 100):
                attack(victim.address, requests // 2 * share // 100)
        victim.settled()
        growths.append(victim.rss_kib() - before)
    return growths


def test_nothing_is_left_of_it_and_nobody_felt_it(victim: Victim, requests: int) -> None:
    victim.settled()
    growths = rss_growth_kib(victim, requests)
    after = victim.settled()
    victim.await_normal(20)
    quiet, beside, failed = victim.normal_requests()
    print(f"sent {sum(victim.sent.values())} hostile requests: {victim.sent}")
    print(f"held before {victim.before}, after {after}, {growths} KiB resident more by round")
    print(f"normal requests: {quiet} alone, {beside} beside an attack")
    assert victim.health() == "SERVING"
    assert victim.process.poll() is None
    assert failed == []
    assert beside > 0
    assert after["tasks"] <= victim.before["tasks"] + TASKS_MORE
    assert after["fds"] <= victim.before["fds"] + 3
    assert after["threads"] <= victim.before["threads"] + 8
    assert growths[-1] < _MAX_RSS_GROWTH_KIB, f"resident memory grew by {growths} KiB"
