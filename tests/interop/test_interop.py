"""Clients that this project did not write speak to the service, directly and through proxies, plain and by TLS."""

from __future__ import annotations

import time

import pytest

from tests.interop.clients import CLIENTS, run
from tests.interop.conftest import PARALLEL, Fronts
from tests.interop.proxies import NAMES, Tls

_SETTLE_SECONDS = 60
_EXPECTED = {
    "unary": "a short answer",
    "stream": "a short answer",
    "bidi": "cut short",
    "cancel": "CANCELLED",
    "deadline": "DEADLINE_EXCEEDED",
    "parallel": f"{PARALLEL} told",
}
_FRONTS = [pytest.param("direct"), *(pytest.param(name, marks=pytest.mark.needs(name)) for name in NAMES)]
_CLIENTS = [pytest.param(name, marks=pytest.mark.needs(*tools)) for name, (_, tools) in CLIENTS.items()]


@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.parametrize("is_secure", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("client", _CLIENTS)
@pytest.mark.parametrize("front", _FRONTS)
def test_every_kind_of_call(fronts: Fronts, tls: Tls, front: str, client: str, is_secure: bool) -> None:
    address, service = fronts.address(front, is_secure), fronts.service(is_secure)
    before = service.holdings()["starts"]
    command, _ = CLIENTS[client]
    assert run(command(address, tls.authority if is_secure else "", PARALLEL)) == _EXPECTED
    until = time.monotonic() + _SETTLE_SECONDS
    while (held := service.holdings())["open"] and time.monotonic() < until:
        time.sleep(0.1)
    assert held["open"] == 0, "a generation goes on whose client has left"
    assert held["starts"] - before == PARALLEL + 5, "a generation ran twice"
