"""Verdicts about poisonous requests, and who may begin to run beside whom."""

from __future__ import annotations

import asyncio

import pytest
from penstock.engine.poison import MAX_CALLERS, PoisonMemory, accountable, network_of
from penstock.engine.probation import Probation, Run
from penstock.errors import PoisonousRequest
from penstock.types import Accountable, EngineRequest, Sampling, StructuredKind, StructuredOutput


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def is_refused(memory: PoisonMemory, who: Accountable) -> bool:
    try:
        memory.refuse_convicted(who)
    except PoisonousRequest:
        return True
    return False


def test_a_verdict_is_about_one_caller_and_one_way_to_ask_and_expires() -> None:
    clock = Clock()
    memory = PoisonMemory(600, clock)
    memory.convict(Accountable("a", "f"))
    assert is_refused(memory, Accountable("a", "f"))
    assert not is_refused(memory, Accountable("a", "g"))
    assert not is_refused(memory, Accountable("b", "f"))
    clock.now = 599
    assert is_refused(memory, Accountable("a", "f"))
    clock.now = 601
    assert not is_refused(memory, Accountable("a", "f"))


def test_the_memory_is_bounded() -> None:
    memory = PoisonMemory(600)
    for number in range(MAX_CALLERS + 10):
        memory.suspect(Accountable(str(number), "f"))
        memory.convict(Accountable("one", str(number)))
    assert len(memory) == MAX_CALLERS
    assert memory.suspicions(Accountable("0", "f")) == 0
    assert is_refused(memory, Accountable("one", "anything"))


def test_a_suspicion_refuses_nothing_and_is_taken_back() -> None:
    memory, who = PoisonMemory(600), Accountable("a", "f")
    memory.suspect(who)
    memory.suspect(who)
    assert (memory.suspicions(who), is_refused(memory, who)) == (2, False)
    memory.acquit(who)
    memory.acquit(who)
    memory.acquit(who)
    assert memory.suspicions(who) == 0


def test_the_fingerprint_knows_parameters_and_kind_and_no_text() -> None:
    choice = StructuredOutput(StructuredKind.CHOICE, choices=("a",))

    def key(structured: StructuredOutput | None = None, **fields: object) -> str:
        return accountable("a", Sampling(**fields), structured).fingerprint  # type: ignore[arg-type]

    assert key(temperature=1.0, seed=1) == key(temperature=1.0, seed=2) != key(temperature=1.0)
    assert key(top_k=5) != key(top_k=6)
    assert key(logit_bias={1: 2.0, 3: 4.0}) == key(logit_bias={3: 4.0, 1: 2.0}) != key()
    assert key(choice) == key(StructuredOutput(StructuredKind.CHOICE, choices=("b",))) != key()


@pytest.mark.parametrize(
    ("peer", "network"),
    [
        ("ipv4:10.0.0.1:5123", "ipv4:10.0.0.1"),
        ("ipv6:%5B2001:db8:1:2:3:4:5:6%5D:5123", "ipv6:2001:db8:1:2::/64"),
        ("ipv6:[2001:db8:1:2::9]:7", "ipv6:2001:db8:1:2::/64"),
        ("ipv6:[fe80::1%25eth0]:7", "ipv6:fe80::/64"),
        ("ipv6:[::ffff:10.0.0.1]:7", "ipv4:10.0.0.1"),
        ("unix:/tmp/socket", "unix:/tmp/socket"),
        ("unknown", "unknown"),
    ],
)
def test_a_caller_that_nobody_knows_is_its_address_without_the_port(peer: str, network: str) -> None:
    assert network_of(peer) == network


def run(alone: bool) -> Run:
    return Run(EngineRequest("g-0-1", (1,), 1, 0, Sampling()), alone)


async def test_suspects_begin_alone_and_take_turns_with_the_others() -> None:
    probation, began = Probation(), []

    async def start(name: str, one: Run) -> None:
        await probation.start_run(one)
        began.append(name)

    runs = {name: run(name.startswith("suspect")) for name in ("first", "suspect 1", "suspect 2", "late 1", "late 2")}
    tasks = [asyncio.create_task(start(name, one)) for name, one in runs.items()]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    expected = [["first"], ["suspect 1"], ["late 1", "late 2"], ["suspect 2"]]
    for place in range(len(expected)):
        assert began == [name for names in expected[: place + 1] for name in names]
        for name in expected[place]:
            probation.end_run(runs[name])
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    await asyncio.gather(*tasks)


async def test_who_goes_away_while_waiting_holds_up_nobody() -> None:
    probation, first, suspect, late = Probation(), run(False), run(True), run(False)
    await probation.start_run(first)
    waiting = asyncio.create_task(probation.start_run(suspect))
    await asyncio.sleep(0)
    behind = asyncio.create_task(probation.start_run(late))
    await asyncio.sleep(0)
    probation.end_run(first)
    waiting.cancel()  # at the moment in which it is let in
    await asyncio.gather(waiting, return_exceptions=True)
    async with asyncio.timeout(60):
        await behind
