"""How long a step takes at best: bytes moved, operations done, devices talked to. Pure; docs/capacity.md."""

from __future__ import annotations

from dataclasses import dataclass

from penstock.capacity.memory import Setup
from penstock.sizes.cache import Cache
from penstock.sizes.weights import Matrix, Part, bytes_of, inventory

_DELTA_NET_OPERATIONS = 8
"""Per element of the recurrent state and token: decay, read, difference, outer product and query, roughly."""
_FP8_DISPATCH_BYTES, _COMBINE_BYTES = 1, 2


@dataclass(frozen=True, slots=True)
class Assumptions:
    """What no data sheet says. Shares are of the device's peak; docs/capacity.md holds them against public runs."""

    bandwidth_share: float = 0.7
    compute_share: float = 0.45
    step_seconds: float = 0.003
    exchange_seconds: float = 10e-6
    acceptance: float = 0.7


@dataclass(frozen=True, slots=True)
class _Pass:
    """Through the model or its draft layer: tokens that pass, and those whose logits are wanted."""

    draft: bool
    tokens: int
    logits: int


@dataclass(frozen=True, slots=True)
class Step:
    """One engine step on one device of the layout; all devices do alike."""

    tokens: int
    weight_bytes: float
    expert_share: float
    cache_bytes: float
    operations: float
    memory_seconds: float
    compute_seconds: float
    exchange_seconds: float
    fixed_seconds: float

    @property
    def seconds(self) -> float:
        """Memory and arithmetic overlap; the rest does not."""
        return max(self.memory_seconds, self.compute_seconds) + self.exchange_seconds + self.fixed_seconds

    @property
    def limit(self) -> str:
        """What takes the most of it."""
        parts = {
            "memory": self.memory_seconds,
            "compute": self.compute_seconds,
            "exchange": self.exchange_seconds,
            "fixed": self.fixed_seconds,
        }
        return max(parts, key=lambda name: parts[name])


class Roofline:
    """Steps of one setup."""

    def __init__(self, setup: Setup, cache: Cache, assumed: Assumptions) -> None:
        self._setup, self._cache, self._assumed = setup, cache, assumed
        self._matrices = inventory(setup.shape, draft=setup.drafted > 0)

    def decode(self, sequences: int, context_tokens: float) -> Step:
        """One step of a replica with so many sequences, each with its drafts to verify and new ones to draft."""
        setup, drafted = self._setup, self._setup.drafted
        verified = sequences * (1 + drafted)
        # The first draft pass takes in what was verified, the later ones a token each.
        passes = [_Pass(False, verified, verified)]
        passes += [_Pass(True, sequences if number else verified, sequences) for number in range(drafted)]
        cache_bytes = sequences * (
            context_tokens * (self._cache.kv_bytes_per_token + drafted * self._cache.draft_kv_bytes_per_token)
            # The state is read once and written for the step's token and each of its drafts.
            + self._cache.state_bytes * (2 + drafted)
        )
        attended = verified * context_tokens * (setup.shape.full_layers + setup.shape.draft_layers * (drafted > 0))
        return self._step(verified, passes, cache_bytes, attended)

    def prefill(self, prompt_tokens: int) -> Step:
        """One full step of a prompt's tokens, in the middle of the prompt; a short prompt shares it with others."""
        setup = self._setup
        tokens = setup.batch_tokens
        before = prompt_tokens / 2
        cache_bytes = before * self._cache.kv_bytes_per_token + 2 * self._cache.state_bytes
        cache_bytes *= max(1.0, tokens / max(1, prompt_tokens))
        attended = tokens * before * setup.shape.full_layers
        passes = [_Pass(False, tokens, 1), *([_Pass(True, tokens, 1)] if setup.drafted else [])]
        return self._step(tokens, passes, cache_bytes, attended)

    def _step(self, tokens: int, passes: list[_Pass], cache_bytes: float, attended: float) -> Step:
        setup, assumed = self._setup, self._assumed
        device, shape = setup.device, setup.shape
        weights = sum(map(self._read, passes))
        operations = sum(map(self._multiply, passes))
        attention = attended * 4 * shape.heads * shape.head_dim / setup.layout.tensor
        attention += tokens * self._recurrent_operations() / setup.layout.tensor
        share = assumed.compute_share
        return Step(
            tokens=tokens,
            weight_bytes=weights,
            expert_share=self._experts_read(tokens),
            cache_bytes=cache_bytes,
            operations=operations + attention,
            memory_seconds=(weights + cache_bytes) / (device.bandwidth_gb_per_second * 1e9 * assumed.bandwidth_share),
            compute_seconds=operations / (device.flops(setup.fp8_weights) * share)
            + attention / (device.flops(False) * share),
            exchange_seconds=self._exchange(tokens),
            fixed_seconds=assumed.step_seconds,
        )

    def _experts_read(self, tokens: int) -> float:
        """Share of the experts that at least one token picked, picks being even and independent."""
        shape, layout = self._setup.shape, self._setup.layout
        if not shape.experts:
            return 1.0
        everyone = tokens * (layout.data if layout.experts else 1)
        return 1 - float((1 - shape.experts_per_token / shape.experts) ** everyone)

    def _read(self, one: _Pass) -> float:
        """Bytes of weights on one device; the draft passes use the model's own head."""
        setup = self._setup

        def bytes_where(part: Part, of_draft: bool) -> int:
            def wanted(matrix: Matrix) -> bool:
                return matrix.part is part and matrix.draft is of_draft

            return bytes_of(self._matrices, setup.fp8_weights, setup.shape, setup.layout, wanted)

        head = bytes_where(Part.HEAD, False) or bytes_where(Part.EMBEDDING, False)
        dense = bytes_where(Part.MIXER, one.draft) + bytes_where(Part.DENSE, one.draft)
        return head + dense + bytes_where(Part.EXPERTS, one.draft) * self._experts_read(one.tokens)

    def _multiply(self, one: _Pass) -> float:
        """Operations on one device: two per weight and token, and of the experts only a token's own."""
        shape, layout = self._setup.shape, self._setup.layout
        total = 0.0
        for matrix in self._matrices:
            share = float(matrix.share(shape, layout))
            if matrix.part is Part.EMBEDDING and not shape.tied:
                continue
            if matrix.part in (Part.HEAD, Part.EMBEDDING):
                total += 2 * matrix.elements * share * one.logits
            elif matrix.draft is one.draft and matrix.part is Part.EXPERTS:
                everyone = one.tokens * (layout.data if layout.experts else 1)
                total += 2 * matrix.elements * share * everyone * shape.experts_per_token / shape.experts
            elif matrix.draft is one.draft:
                total += 2 * matrix.elements * share * one.tokens
        return total

    def _recurrent_operations(self) -> float:
        shape = self._setup.shape
        state = shape.linear_values * shape.linear_key_dim * shape.linear_value_dim
        return shape.linear_layers * state * _DELTA_NET_OPERATIONS

    def _exchange(self, tokens: int) -> float:
        """Two sums per layer within a replica; with experts over replicas, each token's rows there and back."""
        setup, layout = self._setup, self._setup.layout
        one_way = setup.device.link_gb_per_second * 1e9 / 2
        seconds = 0.0
        if layout.tensor > 1:
            moved = 2 * (layout.tensor - 1) / layout.tensor * tokens * setup.shape.hidden * 2
            seconds += 2 * setup.shape.layers * (moved / one_way + self._assumed.exchange_seconds)
        if layout.experts and layout.data > 1:
            rows = tokens / layout.tensor * setup.shape.experts_per_token * (layout.ranks - 1) / layout.ranks
            moved = rows * setup.shape.hidden * (_FP8_DISPATCH_BYTES + _COMBINE_BYTES)
            seconds += setup.shape.layers * (moved / one_way + 2 * self._assumed.exchange_seconds)
        return seconds
