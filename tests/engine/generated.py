"""Valid requests of every pair of parameter values: deterministic by seed, each pair in the first few hundred.

A row takes one value per dimension. Rows are made so that each holds as many pairs as possible that no row before had;
once all pairs were there, they begin again in another order. Fields that the engine refuses are left out.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from penstock_proto.v1 import generation_pb2 as pb

_TRIES = 12
_SCHEMA = '{"type":"object","properties":{"n":{"type":"integer"},"ok":{"type":"boolean"}},"required":["n","ok"]}'
_GRAMMAR = 'root ::= "yes" | "no" | [0-9]+'
GRAMMAR_AS_REGEX = {_GRAMMAR: "yes|no|[0-9]+"}
_SMALL, _LARGE = 1e-40, 2.0


@dataclass(frozen=True)
class Dimension:
    """A field of the request and its values; None leaves it out. `field` is its proto path, as refusals name it."""

    field: str
    values: tuple[Any, ...]


def dimensions(vocab_size: int, window_tokens: int, an_id: int, eos_id: int) -> tuple[Dimension, ...]:
    biases = {an_id: 100.0}, {an_id: -100.0, eos_id: -100.0}, {vocab_size - 1: 3.0}
    return (
        Dimension("input", ("short", "turns", "text", "one id", "two ids", "open thought", "long", "longer")),
        Dimension("thinking.mode", (None, 1, 2, 3)),
        Dimension("thinking.thinking_budget", (None, -1, 0, 1, 7)),
        Dimension("thinking.include_thoughts", (None, False)),
        Dimension("thinking.answer_reserve", (None, 1, 4)),
        Dimension("thinking.closing_message", (None, "", "Enough.\n")),
        Dimension("thinking.stop_patterns.strings", (None, ("\n",), ("7", "Ünïcode"))),
        Dimension("thinking.stop_patterns.regex", (None, r"\d{2}", r"=\s*\d+\n")),
        Dimension("thinking.early_exit", (None, 1, 2, 3)),
        Dimension("thinking.early_exit_probability", (None, 0.05, 1.0)),
        Dimension("context.max_context_tokens", (None, window_tokens)),
        Dimension("context.cache_salt", (None, "salt")),
        Dimension("sampling.temperature", (None, 0.0, _SMALL, 1e-5, 0.7, 1.0, _LARGE)),
        Dimension("sampling.top_p", (None, 1e-300, 0.5, 1.0)),
        Dimension("sampling.top_k", (None, 0, 1, 5, vocab_size - 1, vocab_size)),
        Dimension("sampling.min_p", (None, 0.0, 0.1, 1.0)),
        Dimension("sampling.presence_penalty", (None, -2.0, 2.0)),
        Dimension("sampling.frequency_penalty", (None, -2.0, 2.0)),
        Dimension("sampling.repetition_penalty", (None, 1e-3, 1.2, 2.0)),
        Dimension("sampling.seed", (None, 0, 1, 2**32, 2**63 - 1)),
        Dimension("sampling.logit_bias", (None, *biases)),
        Dimension("output.max_output_tokens", (1, 2, 12, 16, 33)),
        Dimension("output.min_output_tokens", (None, 0, 1, 8)),
        Dimension("output.stop_strings", (None, (" ",), ("\n", "Ünïcode", "x" * 256))),
        Dimension("output.stop_token_ids", (None, (an_id,), (0, eos_id, vocab_size - 1))),
        Dimension("output.candidate_count", (None, 1, 3)),
        Dimension("output.top_logprobs", (None, 0, 1, 20)),
        Dimension("output.return_token_ids", (None, True)),
        Dimension("output.structured_output", (None, None, "json", "regex", "grammar", "choices")),
        Dimension("method", ("Generate", "StreamGenerate", "resumable")),
    )


def rows(dims: tuple[Dimension, ...], refused: Collection[str], seed: int) -> Iterator[dict[str, Any]]:
    """Endless; one value of each dimension a row, by field."""
    rng = random.Random(seed)
    dims = tuple(d for d in dims if f"spec.{d.field}" not in refused)
    sizes = [range(len(d.values)) for d in dims]
    every = [
        ((a, i), (b, j)) for a, b in itertools.combinations(range(len(dims)), 2) for i in sizes[a] for j in sizes[b]
    ]
    left: set[Any] = set()
    while True:
        if not left:
            left = set(every)
        must = rng.choice(sorted(left)) if len(left) < 400 else ()
        best, gain = None, -1
        for _ in range(_TRIES):
            choice = [rng.choice(size) for size in sizes]
            for dimension, value in must:
                choice[dimension] = value
            new = sum(pair in left for pair in itertools.combinations(enumerate(choice), 2))
            if new > gain:
                best, gain = choice, new
        assert best is not None
        left.difference_update(itertools.combinations(enumerate(best), 2))
        yield {d.field: d.values[i] for d, i in zip(dims, best, strict=True)}


def spec_of(row: dict[str, Any], tokenizer: Any, markers: Any, an_id: int) -> pb.GenerationSpec:
    """The request of a row, made valid: where two of its values contradict each other, the later one gives way."""
    row = _agreeing(row)
    spec = pb.GenerationSpec()
    _input(spec, row["input"], tokenizer, markers, an_id)
    for field, value in row.items():
        section, _, name = field.rpartition(".")
        if value is None or not section or name == "structured_output":
            continue
        message = attrgetter(section)(spec)
        if name == "logit_bias":
            message.logit_bias.update(value)
        elif isinstance(value, tuple):
            getattr(message, name).extend(value)
        else:
            setattr(message, name, value)
    match row["output.structured_output"]:
        case "json":
            spec.output.json_schema = _SCHEMA
        case "regex":
            spec.output.regex = r"[0-9]{1,3}( apples)?"
        case "grammar":
            spec.output.grammar = _GRAMMAR
        case "choices":
            spec.output.choices.choices.extend(["red", "green", "Ünïcode"])
    return spec


def _agreeing(row: dict[str, Any]) -> dict[str, Any]:
    row = dict(row)
    budget, most = row["thinking.thinking_budget"], row["output.max_output_tokens"]
    if row["thinking.mode"] == 1 and (budget or 0) != 0:
        row["thinking.thinking_budget"] = None
    if row["input"] == "open thought" and row["thinking.mode"] == 1:
        row["thinking.mode"] = None
    if row["output.structured_output"] and row["output.min_output_tokens"]:
        row["output.min_output_tokens"] = None
    budget, reserve = row["thinking.thinking_budget"] or 0, row["thinking.answer_reserve"] or 1
    if max(budget, 0) + reserve > most:
        row["thinking.thinking_budget"] = row["thinking.answer_reserve"] = None
    if (row["output.min_output_tokens"] or 0) > most:
        row["output.min_output_tokens"] = None
    return row


def _input(spec: pb.GenerationSpec, kind: str, tokenizer: Any, markers: Any, an_id: int) -> None:
    user, assistant, system = pb.ROLE_USER, pb.ROLE_ASSISTANT, pb.ROLE_SYSTEM
    match kind:
        case "short":
            turns = [(user, "What is 17 + 25 + 3?")]
        case "turns":
            turns = [(system, "Be brief."), (user, "Hello"), (assistant, "Hi."), (user, "Sort 41, 7 and 93.")]
        case "long":
            turns = [(user, "What is 1 + 2 + 3 + 4 + 5? " * 24)]
        case "longer":  # several steps, several blocks of the cache
            turns = [(user, "What is 1 + 2 + 3 + 4 + 5? " * 96)]
        case "text":
            spec.text = "<|im_start|>user\nWhat is 12 + 30?<|im_end|>\n<|im_start|>assistant\n"
            return
        case "one id":
            spec.token_ids.ids.append(an_id)
            return
        case "two ids":
            spec.token_ids.ids.extend([an_id, an_id])
            return
        case "open thought":
            spec.token_ids.ids.extend([*tokenizer.encode("1 + 1 = ?"), markers.open_id, *tokenizer.encode("\n1")])
            return
        case other:
            raise AssertionError(other)
    spec.messages.messages.extend(pb.Message(role=role, content=text) for role, text in turns)
