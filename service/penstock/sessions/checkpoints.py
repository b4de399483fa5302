"""Encode a drained generation as a checkpoint token, with which another server continues it.

A checkpoint holds only what the caller has sent and received anyway (its request, the tokens generated so far, the
counts), so it is signed and not encrypted. Servers that share `resume.key_file` can verify each other's checkpoints.
The caller is part of what is signed: a checkpoint of another caller fails like a forged one.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from penstock.auth.identity import ANONYMOUS, Principal
from penstock.config.schema import ResumeSettings
from penstock.errors import ConfigError, GenerationNotFound

_PREFIX = "c1."
_MIN_KEY_BYTES = 32
# A token is at most as large as a message may be; a token that inflates beyond this is not one of ours.
_MAX_INFLATED_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Hold the state that one server passes to the next. `plan` and `candidates` are JSON-able."""

    generation_id: str
    model: str
    spec: bytes
    sequence: int
    plan: Mapping[str, Any]
    candidates: tuple[Mapping[str, Any], ...]
    trace_headers: Mapping[str, str] = field(default_factory=dict)
    flush_seconds: float = 0.0


def signing_key(settings: ResumeSettings) -> bytes | None:
    """Return the shared secret; None without `resume.key_file`.

    Raises:
        ConfigError: The file cannot be read, or has fewer than 32 bytes.
    """
    path = settings.key_file
    if path is None:
        return None
    try:
        key = path.read_bytes().strip()
    except OSError as error:
        raise ConfigError(f"resume.key_file: {path} cannot be read: {error.strerror}") from error
    if len(key) < _MIN_KEY_BYTES:
        raise ConfigError(f"resume.key_file: {path} must have at least {_MIN_KEY_BYTES} bytes, got {len(key)}")
    return key


def is_checkpoint(token: str) -> bool:
    """Return whether a resume token is a checkpoint, rather than the token of a stream of this server."""
    return token.startswith(_PREFIX)


def sign_checkpoint(checkpoint: Checkpoint, key: bytes, caller: Principal = ANONYMOUS) -> str:
    """Return the token of a checkpoint; empty where it would be larger than `verify_checkpoint` accepts."""
    content = {
        "id": checkpoint.generation_id,
        "model": checkpoint.model,
        "spec": base64.b64encode(checkpoint.spec).decode(),
        "sequence": checkpoint.sequence,
        "plan": checkpoint.plan,
        "candidates": checkpoint.candidates,
        "trace": checkpoint.trace_headers,
        "flush": checkpoint.flush_seconds,
    }
    whole = json.dumps(content, separators=(",", ":")).encode()
    if len(whole) > _MAX_INFLATED_BYTES:
        return ""
    packed = zlib.compress(whole)
    return _PREFIX + base64.urlsafe_b64encode(_signature(packed, key, caller) + packed).decode()


def verify_checkpoint(token: str, key: bytes, caller: Principal = ANONYMOUS) -> Checkpoint:
    """Return the checkpoint of a token.

    Raises:
        GenerationNotFound: The token was not signed with this key for this caller.
    """
    try:
        raw = base64.urlsafe_b64decode(token.removeprefix(_PREFIX))
        signature, packed = raw[:32], raw[32:]
        if not hmac.compare_digest(signature, _signature(packed, key, caller)):
            raise ValueError("signature")
        inflater = zlib.decompressobj()
        content = json.loads(inflater.decompress(packed, _MAX_INFLATED_BYTES))
        return Checkpoint(
            generation_id=content["id"],
            model=content["model"],
            spec=base64.b64decode(content["spec"]),
            sequence=content["sequence"],
            plan=content["plan"],
            candidates=tuple(content["candidates"]),
            trace_headers=content.get("trace", {}),
            flush_seconds=content.get("flush", 0.0),
        )
    except (ValueError, KeyError, zlib.error) as error:
        raise GenerationNotFound(
            "invalid resume_token: not issued to this caller with this server's resume.key_file"
        ) from error


def _signature(packed: bytes, key: bytes, caller: Principal) -> bytes:
    # The owner is preceded by its length, so that no two pairs of owner and token sign the same bytes. Without an owner
    # nothing is added, so that tokens of earlier versions stay valid.
    owner = caller.owner.encode()
    bound = len(owner).to_bytes(4, "big") + owner if owner else b""
    return hmac.new(key, _PREFIX.encode() + bound + packed, hashlib.sha256).digest()
