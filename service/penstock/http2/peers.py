"""What TLS knows of a peer, under the names that gRPC gives it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_KINDS = {"DNS": "peer_dns", "URI": "peer_uri", "email": "peer_email", "IP Address": "peer_ip"}


def names_of(certificate: Mapping[str, Any] | None) -> Mapping[str, Sequence[bytes]]:
    """`certificate` as `ssl.SSLSocket.getpeercert` tells it; empty or None is a peer that showed none."""
    names: dict[str, list[bytes]] = {"transport_security_type": [b"ssl"]}
    if not certificate:
        return names
    for part in certificate.get("subject", ()):
        for key, value in part:
            if key == "commonName":
                names.setdefault("x509_common_name", []).append(value.encode())
    for kind, value in certificate.get("subjectAltName", ()):
        names.setdefault("x509_subject_alternative_name", []).append(value.encode())
        if kind in _KINDS:
            names.setdefault(_KINDS[kind], []).append(value.encode())
    uris = names.get("peer_uri", [])
    if len(uris) == 1 and uris[0].startswith(b"spiffe://"):  # as SPIFFE wants it: the only one
        names["peer_spiffe_id"] = uris
    return names
