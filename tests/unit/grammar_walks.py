"""Random texts that a compiled grammar allows, made without an engine: byte by byte, towards an end."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from typing import Any

import xgrammar

END = 256


@cache
def compiler() -> Any:
    vocabulary = [bytes([byte]) for byte in range(256)] + [b""]
    tokenizer = xgrammar.TokenizerInfo(vocabulary, stop_token_ids=[END])
    return xgrammar.GrammarCompiler(tokenizer, max_threads=1, cache_enabled=False)


def compiled_schema(text: str) -> Any:
    """As the engine compiles it."""
    return compiler().compile_json_schema(text, any_whitespace=False, separators=(",", ":"))


def compiled_tag(text: str) -> Any:
    """As the engine compiles a structural tag."""
    return compiler().compile_structural_tag(text)


def accepts(grammar: Any, text: bytes) -> bool:
    """Whether the grammar allows exactly these bytes."""
    matcher = xgrammar.GrammarMatcher(grammar)
    return all(matcher.accept_token(byte) for byte in text) and bool(matcher.accept_token(END))


def walks(grammar: Any, count: int, *, seed: int = 0, most: int = 300, endings: Sequence[bytes] = ()) -> list[str]:
    """Texts that ended within `most` bytes; fewer than `count` where walks did not end.

    `endings` lead out of free text: now and then one is written where the grammar allows all of it.
    """
    matcher = xgrammar.GrammarMatcher(grammar)
    mask = xgrammar.allocate_token_bitmask(1, END + 1)
    texts = (_walk(matcher, mask, random.Random(f"{seed}-{number}"), most, endings) for number in range(count))
    return [text for text in texts if text is not None]


def _writes(matcher: Any, text: bytes) -> bool:
    """Write all of a text, or nothing."""
    for place, byte in enumerate(text):
        if not matcher.accept_token(byte):
            if place:
                matcher.rollback(place)
            return False
    return True


def _walk(matcher: Any, mask: Any, draw: random.Random, most: int, endings: Sequence[bytes]) -> str | None:
    matcher.reset()
    written = bytearray()
    # Some walks end soon, others as late as they can.
    patience = draw.choice((0.5, 0.1, 0.02))
    while len(written) < most:
        matcher.fill_next_token_bitmask(mask, 0)
        bits = int.from_bytes(mask[0].numpy().tobytes(), "little")
        allowed = [token for token in range(END + 1) if bits >> token & 1]
        assert allowed, f"no way to go on after {bytes(written)!r}"
        if allowed == [END] or (END in allowed and draw.random() < 0.5):
            # xgrammar lets tokens spell surrogates, which no text has: whoever decodes them sees U+FFFD.
            return written.decode(errors="replace")
        ending = next((text for text in endings if draw.random() < patience and _writes(matcher, text)), b"")
        if ending:
            written += ending
            continue
        text = [token for token in allowed if token != END]
        closing = [token for token in text if token in b'"]}']
        token = draw.choice(closing) if closing and draw.random() < patience else _drawn(text, draw)
        assert matcher.accept_token(token)
        written.append(token)
    return None


def _drawn(tokens: list[int], draw: random.Random) -> int:
    """Mostly what JSON and words are made of, so that texts get somewhere; sometimes anything."""
    usual = [token for token in tokens if token in b'abxfo019-.,:{[tn"']
    return draw.choice(usual if usual and draw.random() < 0.7 else tokens)
