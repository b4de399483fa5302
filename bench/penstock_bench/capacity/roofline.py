"""Compute the shortest time of a step from bytes, operations and exchanges between devices. No I/O.

docs/how-to/plan.md has the formulas.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache

from penstock.engine.sizing.cache import Cache
from penstock.engine.sizing.shape import Shape
from penstock.engine.sizing.weights import ParallelLayout, Part, bytes_of, inventory
from penstock_bench.capacity.devices import DeviceSpec
from penstock_bench.capacity.memory import Setup

_DELTA_NET_OPERATIONS = 8
"""Operations per element of the recurrent state and token, about: decay, read, difference, outer product and query."""
_FP8_DISPATCH_BYTES, _COMBINE_BYTES = 1, 2


@dataclass(frozen=True, slots=True)
class Assumptions:
    """Constants that no data sheet has. Shares are of the device's peak.

    The defaults are fitted to one half of the published runs (`python scripts/published-runs --fit`).

    Weights of one byte or less reach `narrow_share` of `bandwidth_share`, and arithmetic in FP8 or FP4 `narrow_compute`
    of the share that bfloat16 reaches. `draft_overlap` is the share of a sequence's drafts that select the experts of
    the token before them. `expert_skew` says how uneven the experts are: the variance of their popularity over the
    square of its mean. Prompts reach `compute_share` on one device, and less on more devices (`compute_width`). Between
    its matrices, a layer moves each token's activations, of the model's width in bfloat16, `activation_passes` times.

    A step has a fixed time: `step_seconds`, `layer_seconds` for each layer's kernels, `convert_seconds` for each layer
    whose inputs are made FP8 or FP4, and `sequence_seconds` on the host for each sequence. `exchange_seconds` is the
    time to start one exchange between two devices; it is added each time the devices of a replica double.
    `draft_seconds` is the fixed time of a draft pass. Without asynchronous scheduling the devices wait in each step for
    the host: `host_seconds`, and `host_sequence_seconds` for each sequence; these two are not fitted, but measured by
    others (published_host.py). `acceptance` has the share of drafts accepted at each position,
    given that the one before was; the last value holds for all positions after it.

    On devices whose engine runs on ROCm, the devices' fixed times, not the host's, are `rocm_fixed` times as long, and
    the shares of bandwidth and arithmetic are `rocm_share` of what they are elsewhere.
    """

    bandwidth_share: float = 0.7816
    narrow_share: float = 0.8819
    narrow_compute: float = 0.7447
    draft_overlap: float = 0.4022
    expert_skew: float = 0.5551
    compute_share: float = 0.2683
    compute_width: float = 0.2224
    activation_passes: float = 28.88
    step_seconds: float = 0.001495
    layer_seconds: float = 1.879e-05
    convert_seconds: float = 9.834e-06
    sequence_seconds: float = 9.774e-06
    exchange_seconds: float = 6.544e-06
    draft_seconds: float = 0.0003606
    rocm_fixed: float = 1.512
    rocm_share: float = 0.7961
    host_seconds: float = 0.001107
    host_sequence_seconds: float = 2.18e-05
    acceptance: tuple[float, ...] = (0.93, 0.86, 0.825, 0.88, 0.76, 0.89, 0.62, 0.71)

    def compute_reached(self, tensor: int) -> float:
        """Return the share of the peak that arithmetic reaches.

        More devices have narrower matrices, which reach less.
        """
        return self.compute_share / (1 + self.compute_width * math.log2(tensor))

    def on(self, device: DeviceSpec) -> Assumptions:
        """Return the constants that hold on a device, by its software. Call it once: it multiplies."""
        if device.software != "rocm":
            return self
        return replace(
            self,
            bandwidth_share=self.bandwidth_share * self.rocm_share,
            compute_share=self.compute_share * self.rocm_share,
            step_seconds=self.step_seconds * self.rocm_fixed,
            layer_seconds=self.layer_seconds * self.rocm_fixed,
            convert_seconds=self.convert_seconds * self.rocm_fixed,
            exchange_seconds=self.exchange_seconds * self.rocm_fixed,
            draft_seconds=self.draft_seconds * self.rocm_fixed,
        )

    def fixed_seconds(self, layers: int, converts: bool) -> float:
        """Return the fixed time of a step. `converts`: whether inputs are made FP8 or FP4."""
        return self.step_seconds + layers * (self.layer_seconds + self.convert_seconds * converts)


@dataclass(frozen=True, slots=True)
class _Pass:
    """One pass through the model or its draft layer: its tokens, and those whose logits are computed."""

    draft: bool
    tokens: int
    logits: int
    routed: float = 0.0
    """Number of tokens that select their own experts, if it is smaller."""


@dataclass(frozen=True, slots=True)
class Step:
    """One engine step on one device of the layout; all devices do the same."""

    tokens: int
    weight_bytes: float
    expert_share: float
    cache_bytes: float
    operations: float
    memory_seconds: float
    compute_seconds: float
    activation_seconds: float
    exchange_seconds: float
    fixed_seconds: float

    @property
    def seconds(self) -> float:
        """Return the seconds of the step. Weights, cache and arithmetic overlap; the rest does not."""
        return (
            max(self.memory_seconds, self.compute_seconds)
            + self.activation_seconds
            + self.exchange_seconds
            + self.fixed_seconds
        )

    @property
    def limit(self) -> str:
        """Return the name of the longest part of the step."""
        parts = {
            "memory": self.memory_seconds,
            "compute": self.compute_seconds,
            "activations": self.activation_seconds,
            "exchange": self.exchange_seconds,
            "fixed": self.fixed_seconds,
        }
        return max(parts, key=lambda name: parts[name])


_inventory = cache(inventory)


@cache
def _bytes_where(
    shape: Shape, layout: ParallelLayout, weights: tuple[bool, bool], draft: bool, which: tuple[Part, bool]
) -> int:
    """Return the bytes on one device of a part's matrices, with or without the draft layer. `weights`: (FP8, NVFP4)."""
    wanted = (matrix for matrix in _inventory(shape, draft) if (matrix.part, matrix.draft) == which)
    return bytes_of(wanted, weights[0], shape, layout, nvfp4=weights[1])


@cache
def _elements(shape: Shape, layout: ParallelLayout, drafted: bool, draft: bool) -> tuple[float, float, float]:
    """Return the weights on one device that a pass multiplies: of the head, the experts and all else."""
    head = experts = dense = 0.0
    for matrix in _inventory(shape, drafted):
        elements = matrix.elements * float(matrix.share(shape, layout))
        if matrix.part is Part.HEAD or (matrix.part is Part.EMBEDDING and shape.tied):
            head += elements
        elif matrix.part is Part.EXPERTS and matrix.draft is draft:
            experts += elements
        elif matrix.part is not Part.EMBEDDING and matrix.draft is draft:
            dense += elements
    return head, experts, dense


class Roofline:
    """Compute the steps of one setup."""

    def __init__(self, setup: Setup, cache: Cache, assumed: Assumptions) -> None:
        self._setup, self._cache, self._assumed = setup, cache, assumed

    def decode(self, sequences: int, context_tokens: float) -> Step:
        """Return one decode step of a replica: each sequence verifies its drafts and drafts new ones."""
        setup, drafted = self._setup, self._setup.drafted
        verified = sequences * (1 + drafted)
        # The first draft pass reads the verified tokens, each later one a single token.
        routed = sequences * (1 + drafted * (1 - self._assumed.draft_overlap))
        passes = [_Pass(False, verified, verified, routed)]
        passes += [
            _Pass(True, sequences, sequences) if number else _Pass(True, verified, sequences, routed)
            for number in range(drafted)
        ]
        cache_bytes = sequences * (
            context_tokens * (self._cache.kv_bytes_per_token + drafted * self._cache.draft_kv_bytes_per_token)
            # The state is read once and written for the step's token and each of its drafts.
            + self._cache.state_bytes * (2 + drafted)
        )
        attended = verified * context_tokens * (setup.shape.full_layers + setup.shape.draft_layers * (drafted > 0))
        fixed = self._fixed(sequences) + drafted * self._assumed.draft_seconds
        return self._step(verified, passes, cache_bytes, attended, fixed)

    def prefill(self, prompt_tokens: int) -> Step:
        """Return one full step of prompt tokens, in the middle of a prompt. Short prompts share a step."""
        setup = self._setup
        tokens = setup.batch_tokens
        before = prompt_tokens / 2
        cache_bytes = before * self._cache.kv_bytes_per_token + 2 * self._cache.state_bytes
        cache_bytes *= max(1.0, tokens / max(1, prompt_tokens))
        attended = tokens * before * setup.shape.full_layers
        passes = [_Pass(False, tokens, 1), *([_Pass(True, tokens, 1)] if setup.drafted else [])]
        return self._step(tokens, passes, cache_bytes, attended, self._fixed(1))

    def _fixed(self, sequences: int) -> float:
        """Return the seconds of a step that do not depend on bytes or operations."""
        setup = self._setup
        assumed = self._assumed
        fixed = assumed.fixed_seconds(setup.shape.layers, setup.fp8_weights or setup.nvfp4_weights)
        fixed += sequences * assumed.sequence_seconds
        if not setup.async_scheduling:
            fixed += assumed.host_seconds + sequences * assumed.host_sequence_seconds
        return fixed

    def encode_seconds(self, image_tokens: int) -> float:
        """Return the seconds in which a replica encodes one image of so many tokens; 0 where images are off."""
        setup, tensor = self._setup, self._setup.layout.tensor
        if setup.tower is None or not image_tokens:
            return 0.0
        reached = setup.device.flops(False) * self._assumed.compute_reached(tensor)
        return setup.tower.operations(image_tokens) / tensor / reached

    def _step(self, tokens: int, passes: list[_Pass], cache_bytes: float, attended: float, fixed: float) -> Step:
        setup, assumed = self._setup, self._assumed
        device, shape = setup.device, setup.shape
        weights = sum(map(self._read, passes))
        in_experts, elsewhere = (sum(parts) for parts in zip(*map(self._multiply, passes), strict=True))
        operations = in_experts + elsewhere
        attention = attended * 4 * shape.heads * shape.head_dim / setup.layout.tensor
        attention += tokens * self._recurrent_operations() / setup.layout.tensor
        narrow = setup.fp8_weights or setup.nvfp4_weights
        share = assumed.compute_reached(setup.layout.tensor)
        narrow_reached = share * assumed.narrow_compute
        bandwidth = device.bandwidth_gb_per_second * 1e9 * assumed.bandwidth_share
        return Step(
            tokens=tokens,
            weight_bytes=weights,
            expert_share=self._experts_read(passes[0].routed or tokens),
            cache_bytes=cache_bytes,
            operations=operations + attention,
            memory_seconds=(weights / (assumed.narrow_share if narrow else 1) + cache_bytes) / bandwidth,
            compute_seconds=in_experts
            / (device.flops(setup.fp8_weights, setup.nvfp4_weights) * (narrow_reached if narrow else share))
            + elsewhere / (device.flops(setup.fp8_weights) * (narrow_reached if setup.fp8_weights else share))
            + attention / (device.flops(False) * share),
            activation_seconds=assumed.activation_passes * tokens * shape.layers * shape.hidden * 2 / bandwidth,
            exchange_seconds=self._exchange(tokens),
            fixed_seconds=fixed,
        )

    def _experts_read(self, tokens: float) -> float:
        """Return the share of the experts that at least one token selects.

        The popularity of experts follows a gamma distribution, so how often one is selected follows a negative binomial
        distribution. Without skew all experts are selected evenly.
        """
        shape, layout = self._setup.shape, self._setup.layout
        if not shape.experts:
            return 1.0
        everyone = tokens * (layout.data if layout.experts else 1)
        each, skew = shape.experts_per_token / shape.experts, self._assumed.expert_skew
        missed = (1 + skew * everyone * each) ** (-1 / skew) if skew else (1 - each) ** everyone
        picked = 1 - float(missed)
        if not layout.experts or layout.ranks == 1:
            return picked
        # All ranks wait for the one with the most selected experts: the expected maximum of the ranks' counts.
        held = shape.experts / layout.ranks
        spread = math.sqrt(2 * math.log(layout.ranks) * picked * (1 - picked) / held)
        return min(1.0, picked + spread)

    def _read(self, one: _Pass) -> float:
        """Return the bytes of weights that one device reads. The draft passes use the model's own head."""
        setup = self._setup

        def bytes_where(part: Part, of_draft: bool) -> int:
            """Return the bytes of the matrices that `wanted` selects, on one device."""
            weights = (setup.fp8_weights, setup.nvfp4_weights)
            return _bytes_where(setup.shape, setup.layout, weights, setup.drafted > 0, (part, of_draft))

        head = bytes_where(Part.HEAD, False) or bytes_where(Part.EMBEDDING, False)
        dense = bytes_where(Part.MIXER, one.draft) + bytes_where(Part.DENSE, one.draft)
        return head + dense + bytes_where(Part.EXPERTS, one.draft) * self._experts_read(one.routed or one.tokens)

    def _multiply(self, one: _Pass) -> tuple[float, float]:
        """Return the operations in the experts and elsewhere: two per weight and token.

        A token uses its own experts only.
        """
        shape, layout = self._setup.shape, self._setup.layout
        head, experts, dense = _elements(shape, layout, self._setup.drafted > 0, one.draft)
        everyone = one.tokens * (layout.data if layout.experts else 1)
        in_experts = 2 * experts * everyone * shape.experts_per_token / shape.experts if experts else 0.0
        return in_experts, 2 * (head * one.logits + dense * one.tokens)

    def _recurrent_operations(self) -> float:
        shape = self._setup.shape
        state = shape.linear_values * shape.linear_key_dim * shape.linear_value_dim
        return shape.linear_layers * state * _DELTA_NET_OPERATIONS

    def _exchange(self, tokens: int) -> float:
        """Return the seconds of exchanges: two sums per layer within a replica.

        With experts over several replicas, each token's rows are sent there and back, too.
        """
        setup, layout = self._setup, self._setup.layout
        one_way = setup.device.link_gb_per_second * 1e9 / 2
        seconds = 0.0
        if layout.tensor > 1:
            moved = 2 * (layout.tensor - 1) / layout.tensor * tokens * setup.shape.hidden * 2
            start = self._assumed.exchange_seconds * math.log2(layout.tensor)
            seconds += 2 * setup.shape.layers * (moved / one_way + start)
        if layout.experts and layout.data > 1:
            rows = tokens / layout.tensor * setup.shape.experts_per_token * (layout.ranks - 1) / layout.ranks
            moved = rows * setup.shape.hidden * (_FP8_DISPATCH_BYTES + _COMBINE_BYTES)
            seconds += setup.shape.layers * (moved / one_way + 2 * self._assumed.exchange_seconds)
        return seconds
