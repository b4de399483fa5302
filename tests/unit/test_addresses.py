"""Tests of addresses that a server listens on."""

from __future__ import annotations

import pytest
from penstock.config.addresses import host_and_port


@pytest.mark.parametrize(
    ("listen", "found"),
    [
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        ("[::]:65535", ("[::]", 65535)),
        (":9464", ("", 9464)),
    ],
)
def test_an_address_is_its_host_as_written_and_its_port(listen: str, found: tuple[str, int]) -> None:
    assert host_and_port(listen) == found


@pytest.mark.parametrize(
    "listen", ["", "here", "9464", "here:", "here:65536", "here:-1", "here:²", "here:1 ", "h:" + "1" * 4301]
)
def test_an_address_without_a_possible_port_is_refused(listen: str) -> None:
    with pytest.raises(ValueError, match=r"must be host:port with a port in \[0, 65535\], got "):
        host_and_port(listen)
