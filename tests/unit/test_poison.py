"""Verdicts about poisonous requests, and who may begin to run beside whom."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest
from penstock.config.schema import SupervisionSettings
from penstock.engine import probation as probations
from penstock.engine import supervisor
from penstock.engine.base import EngineLoad
from penstock.engine.notes import MAX_ALONE, MAX_NOTED, Notes
from penstock.engine.poison import MAX_CALLERS, PoisonMemory, accountable, network_of
from penstock.engine.probation import SETTLING_STEPS, Death, Probation, Run
from penstock.errors import EngineDied, EngineDown, PoisonousRequest
from penstock.types import Accountable, EngineChunk, EngineRequest, Sampling, StructuredKind, StructuredOutput

from tests.rpc.killable import MortalEngine


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


def test_what_runs_is_refused_only_after_a_second_verdict() -> None:
    memory, who = PoisonMemory(600), Accountable("a", "f")
    memory.convict(who)
    memory.refuse_convicted(who, continues=True)
    memory.convict(who)
    memory.refuse_convicted(Accountable("a", "g"), continues=True)
    with pytest.raises(PoisonousRequest):
        memory.refuse_convicted(who, continues=True)


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


# ----------------------------------------------------------------------------------------------- places of earlier runs


def settled(name: str, tokens: int, caller: str = "a") -> Run:
    request = EngineRequest(f"{name}-1", (1,), 1, 0, Sampling(), accountable=Accountable(caller, "f"))
    return Run(request, alone=False, tokens=tokens, settled=True)


def again(notes: Notes, name: str, caller: str = "a") -> Run:
    """The next run of a candidate."""
    request = EngineRequest(f"{name}-2", (1,), 1, 0, Sampling(), accountable=Accountable(caller, "f"))
    note = notes.of(request)
    return Run(request, alone=note is not None, note=note)


def give(one: Run, tokens: int) -> None:
    for _ in range(tokens):
        one.add(EngineChunk((1,)))
    one.settled = one.settled or one.chunks >= SETTLING_STEPS


def test_a_run_is_suspected_until_it_has_settled_and_once_more_at_its_place() -> None:
    notes = Notes(600)
    notes.record([settled("g", 20)], Death())
    one = again(notes, "g")
    suspected = []
    for _ in range(30):
        suspected.append(one.is_suspect)
        give(one, 1)
    assert suspected == [tokens < SETTLING_STEPS or 18 <= tokens <= 22 for tokens in range(30)]
    assert one.is_beyond


def test_the_youngest_runs_are_noted_suspects_first() -> None:
    notes, death = Notes(600), Death()
    young = Run(EngineRequest("young-1", (1,), 1, 0, Sampling(), accountable=None), alone=False, tokens=2)
    old = [settled(f"g{number}", 10 + number) for number in range(MAX_NOTED + 5)]
    notes.record([*old, young], death)
    runs = [again(notes, name) for name in ("young", *(f"g{number}" for number in range(MAX_NOTED + 5)))]
    assert [one.note is not None for one in runs] == [True] * (MAX_NOTED + 1) + [False] * 5
    noted = [one.note for one in runs if one.note is not None]
    # Of one kind the oldest first: it was the first one at the place where all of them kill.
    alone = [0, *range(MAX_ALONE, 1, -1)]
    assert [note.rank for note in noted] == [*alone, *[math.inf] * (MAX_NOTED - MAX_ALONE), 1]
    assert [note.suspected for note in noted] == [True] + [False] * MAX_NOTED
    assert {note.deaths for note in noted} == {(death,)}


def test_the_note_of_a_run_that_left_goes_to_the_next_one_of_its_caller_and_is_forgotten_in_time() -> None:
    notes = Notes(600)
    notes.record([settled("here", 20), settled("left", 30), settled("other", 40, "b")], Death())
    here = again(notes, "here")
    assert here.note is not None
    here.note.run = here
    new = again(notes, "new")
    assert new.note is None
    note = notes.take_over(new, lambda note: True)
    assert note is not None
    assert note.place == 30
    note.run = new
    assert notes.take_over(again(notes, "newer"), lambda note: True) is None
    assert again(notes, "left").note is None
    notes = Notes(0)
    notes.record([settled("here", 20)], Death())
    assert again(notes, "here").note is None


def test_no_note_is_taken_over_that_would_hide_which_of_two_runs_killed() -> None:
    notes, probation = Notes(600), Probation()
    notes.record([settled("killer", 20, "b"), settled("left", 18)], Death())
    killer = again(notes, "killer", "b")
    assert killer.note is not None
    killer.note.run = killer
    probation.watch(killer)

    def taken(name: str) -> bool:
        return notes.take_over(again(notes, name), lambda note: not probation.meets_another(note)) is not None

    give(killer, 3)
    assert not taken("new"), "both would be near their places after 17 and 18 tokens"
    give(killer, 10)
    assert taken("newer"), "the other one is beyond its place by then"


def test_a_verdict_explains_the_deaths_of_all_but_the_same_caller() -> None:
    notes, death = Notes(600), Death()
    notes.record([settled("killer", 20), settled("twin", 30), settled("other", 40, "b")], death)
    killer = again(notes, "killer")
    give(killer, 20)
    assert notes.convict(killer) == (death,)
    assert again(notes, "killer").note is None
    twin = again(notes, "twin").note
    assert twin is not None
    assert twin.place == 20, "it kills at the same place of its run"
    assert again(notes, "other", "b").note is None


async def test_nobody_begins_while_the_engine_is_dead_or_a_run_is_near_its_place() -> None:
    notes, probation, began = Notes(600), Probation(), []
    notes.record([settled("old", 60, "b"), settled("young", 20)], Death())
    probation.close()

    async def start(name: str, one: Run) -> None:
        await probation.start_run(one)
        began.append(name)

    runs = {"old": again(notes, "old", "b"), "young": again(notes, "young"), "new": run(False)}
    tasks = [asyncio.create_task(start(name, one)) for name, one in runs.items()]
    await asyncio.sleep(0)
    assert began == []
    probation.open()
    await asyncio.sleep(0)
    assert began == ["young"], "the one that had given the fewest tokens"
    give(runs["young"], 18)
    probation.end_run(runs["young"])
    await asyncio.sleep(0.1)
    assert began == ["young"], "it is near its place"
    give(runs["young"], 5)
    async with asyncio.timeout(60):
        while began != ["young", "new"]:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    probation.end_run(runs["new"])
    await asyncio.gather(*tasks)
    assert began == ["young", "new", "old"]


async def test_places_hold_up_nobody_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probations, "HOLD_SECONDS", 0.05)
    notes, probation = Notes(600), Probation()
    notes.record([settled("g", 20), *(settled(f"g{number}", 20) for number in range(4))], Death())
    stuck = again(notes, "g")
    probation.open()
    await probation.start_run(stuck)
    give(stuck, 20)
    waiting = [asyncio.create_task(probation.start_run(again(notes, f"g{number}"))) for number in range(4)]
    probation.end_run(stuck)
    async with asyncio.timeout(60):
        await asyncio.gather(*waiting)


class Stepping(MortalEngine):
    """Counts its steps as it is told, and gives one chunk."""

    steps = 0

    def __init__(self) -> None:
        super().__init__(())

    def load(self) -> EngineLoad:
        return EngineLoad(1, 0, 0.0, None, None, steps=self.steps)

    async def stream(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:
        yield EngineChunk((1,))
        await self._dead.wait()
        raise EngineDown("dead")


@pytest.mark.parametrize("steps", [SETTLING_STEPS - 1, SETTLING_STEPS])
async def test_a_run_settles_by_the_engines_steps_and_not_by_time(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "SETTLING_SECONDS", 0.01)
    engine = Stepping()

    async def start() -> MortalEngine:
        return Stepping()

    async def on_change(alive: bool) -> None:
        pass

    supervised = supervisor.SupervisedEngine(engine, start, SupervisionSettings(), on_change)
    async with aclosing(supervised.stream(EngineRequest("g-0-1", (1,), 1, 0, Sampling()))) as chunks:
        await anext(chunks)
        engine.steps = steps
        await asyncio.sleep(0.2)  # many looks
        await engine.kill()
        with pytest.raises(EngineDied) as died:
            await anext(chunks)
        assert died.value.suspected == (steps < SETTLING_STEPS)
    await supervised.close()
