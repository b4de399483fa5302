"""Attacks on what the service holds: memory stays bounded during each and comes back, and a normal client is served.

Short runs in `make test`; long ones, marked `full`, in `make test-full`. Latencies are measured by `bench.attacks`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import pytest
from penstock.config.schema import ServerSettings

from tests.hostile.conftest import Victim
from tests.hostile.held import (
    ATTACKS,
    BY_SIZE,
    TLS_ATTACKS,
    Beside,
    Held,
    idle_connections,
    large_messages,
    no_messages,
    provoked_resets,
    started_and_reset,
)

_MAX_DURING_KIB = 256 * 1024
_MAX_AFTER_KIB = 20 * 1024
_SETTLE_SECONDS = 30
_ROUNDS = 3
_STARTS_PER_SECOND = 50
_CHECK_SECONDS = 0.02
SHORT, LONG = 0, 1


@pytest.fixture(scope="module")
def warm(guarded: Victim) -> Victim:
    """The first of everything loads code and fills pools: what is held is counted from here."""
    return _warmed(guarded, ATTACKS)


@pytest.fixture(scope="module")
def warm_1m(guarded_1m: Victim) -> Victim:
    return _warmed(guarded_1m, {attack: ATTACKS[attack] for attack in BY_SIZE})


@pytest.fixture(scope="module")
def warm_by_tls(guarded_by_tls: Victim) -> Victim:
    return _warmed(guarded_by_tls, TLS_ATTACKS)


def _warmed(victim: Victim, attacks: Mapping[Held, tuple[int, int]]) -> Victim:
    for attack, counts in attacks.items():
        attack(victim.target, counts[SHORT] // 10 + 1)
    victim.await_normal(4)
    return victim


def most_rss_kib(guarded: Victim, attack: Held, count: int) -> int:
    """The highest resident memory while the attack runs."""
    beside, most = Beside(attack, guarded.target, count), guarded.rss_kib()
    beside.start()
    while beside.is_on:
        most = max(most, guarded.rss_kib())
        time.sleep(_CHECK_SECONDS)
    assert beside.result() > 0
    return most


def _most_during_kib(attack: Held) -> int:
    """Return those of large requests from a caller who may send them: as bytes, as a message and as text."""
    return 3 * ServerSettings().max_request_memory_bytes >> 10 if attack is large_messages else _MAX_DURING_KIB


def is_held_off(guarded: Victim, attack: Held, count: int) -> None:
    """Attack in rounds until one leaves nothing: a leak grows in each, the allocator may keep the first one's peak."""
    growths = [round_of(guarded, attack, count)]
    while growths[-1] > _MAX_AFTER_KIB and len(growths) < _ROUNDS:
        growths.append(round_of(guarded, attack, count))
    assert growths[-1] <= _MAX_AFTER_KIB, f"resident memory grew by {growths} KiB"


def round_of(guarded: Victim, attack: Held, count: int) -> int:
    """Attack once; return by how many KiB the resident memory is larger afterwards."""
    before, lines = guarded.rss_kib(), guarded.log.read_text().count("\n")
    began = time.monotonic()
    most = most_rss_kib(guarded, attack, count)
    seconds = time.monotonic() - began
    assert guarded.health() == guarded.health(guarded.health_address) == "SERVING"
    guarded.await_normal(4)
    until = time.monotonic() + _SETTLE_SECONDS
    while (after := guarded.rss_kib()) - before > _MAX_AFTER_KIB and time.monotonic() < until:
        time.sleep(0.5)
    lines = guarded.log.read_text().count("\n") - lines
    print(
        f"{attack.__name__}: {count} things in {seconds:.1f} s; {before} KiB resident, at most {most - before:+}, "
        f"{after - before:+} after; {lines} lines of log"
    )
    assert most - before <= _most_during_kib(attack)
    assert guarded.new_failures() == []
    assert lines <= seconds + 2, guarded.log.read_text()[-2000:]
    return after - before


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_memory_stays_bounded_and_the_normal_client_is_served(warm: Victim, attack: Held) -> None:
    is_held_off(warm, attack, ATTACKS[attack][SHORT])


@pytest.mark.full
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_the_same_for_long(warm: Victim, attack: Held) -> None:
    is_held_off(warm, attack, ATTACKS[attack][LONG])


@pytest.mark.full
@pytest.mark.parametrize("attack", BY_SIZE, ids=lambda attack: attack.__name__)
def test_the_same_where_messages_are_as_large_as_a_window_of_a_million_tokens_needs(
    warm_1m: Victim, attack: Held
) -> None:
    is_held_off(warm_1m, attack, ATTACKS[attack][SHORT])


@pytest.mark.parametrize("attack", TLS_ATTACKS, ids=lambda attack: attack.__name__)
def test_handshakes_that_do_not_end_are_cut_off_and_hold_little(warm_by_tls: Victim, attack: Held) -> None:
    is_held_off(warm_by_tls, attack, TLS_ATTACKS[attack][SHORT])


@pytest.mark.full
@pytest.mark.parametrize("attack", TLS_ATTACKS, ids=lambda attack: attack.__name__)
def test_the_same_of_handshakes_for_long(warm_by_tls: Victim, attack: Held) -> None:
    is_held_off(warm_by_tls, attack, TLS_ATTACKS[attack][LONG])


@pytest.mark.parametrize("attack", [started_and_reset, provoked_resets], ids=lambda attack: attack.__name__)
def test_a_callers_engine_starts_are_bounded(guarded: Victim, attack: Held) -> None:
    guarded.await_normal(4)
    lines, before = len(guarded.samples_file.read_text().splitlines()), guarded.holdings()["starts"]
    began = time.monotonic()
    attack(guarded.target, 3000)
    # In this order: calls start until the service has told their number.
    starts = guarded.holdings()["starts"] - before
    seconds = time.monotonic() - began
    normal = len(guarded.samples_file.read_text().splitlines()) - lines
    print(f"{starts} engine starts in {seconds:.1f} s, {normal} of them the normal client's, for 3,000 calls")
    assert starts - normal >= _STARTS_PER_SECOND, "the attack starts nothing"
    assert starts <= _STARTS_PER_SECOND * (seconds + 1) + normal + 8
    assert guarded.new_failures() == []


def test_strangers_write_at_most_one_line_a_second(guarded: Victim) -> None:
    lines, began = guarded.log.read_text().count("\n"), time.monotonic()
    no_messages(guarded.target, 2000)
    assert guarded.log.read_text().count("\n") - lines <= time.monotonic() - began + 1


def test_idle_connections_do_not_shut_out_health_checks(guarded: Victim) -> None:
    beside = Beside(idle_connections, guarded.target, 400)
    beside.start()
    seen = set()
    while beside.is_on:
        seen.add(guarded.health(guarded.health_address))
    beside.result()
    assert seen == {"SERVING"}
