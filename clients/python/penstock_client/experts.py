"""Tokens per expert: replies of `expert_load()` and `watch_expert_load()`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

from penstock_proto.v1 import routing_pb2 as pb

from penstock_client.seconds import duration_of


@dataclass(frozen=True, slots=True)
class LayerLoad:
    """One MoE layer's load. Without tokens the load counts as even: imbalance and entropy are 1.

    Attributes:
        layer_index: Index of the layer in the model.
        expert_token_counts: Number of tokens that each expert processed.
        imbalance: Tokens of the busiest expert divided by the mean; 1 is even.
        normalized_entropy: 1 is even, 0 is one expert for all tokens.
        hot_experts: Experts with more than twice the mean, busiest first.
        busiest_rank_share: Share of the tokens that the busiest rank processed, in [0, 1].
    """

    layer_index: int
    expert_token_counts: tuple[int, ...]
    imbalance: float
    normalized_entropy: float
    hot_experts: tuple[int, ...]
    busiest_rank_share: float


@dataclass(frozen=True, slots=True)
class ExpertLoad:
    """The expert load of one window.

    Attributes:
        window_seconds: Length of the window.
        token_count: Number of tokens; a token counts once although several experts process it.
        rank_count: Number of expert-parallel ranks that the shares are computed for.
        layers: One entry for each MoE layer.
        raw: The message as it came.
    """

    window_seconds: float
    token_count: int
    rank_count: int
    layers: tuple[LayerLoad, ...]
    raw: pb.ExpertLoad = field(repr=False)

    @classmethod
    def from_proto(cls, load: pb.ExpertLoad) -> Self:
        """Convert the message."""
        return cls(
            window_seconds=load.window.ToTimedelta().total_seconds(),
            token_count=load.token_count,
            rank_count=load.rank_count,
            layers=tuple(
                LayerLoad(
                    layer.layer_index,
                    tuple(layer.expert_token_counts),
                    layer.imbalance,
                    layer.normalized_entropy,
                    tuple(layer.hot_experts),
                    layer.busiest_rank_share,
                )
                for layer in load.layers
            ),
            raw=load,
        )


def load_request(window_seconds: float | None, ranks: int | None) -> pb.GetExpertLoadRequest:
    """Return the request of `expert_load`; None leaves the choice to the server."""
    return pb.GetExpertLoadRequest(window=duration_of("window_seconds", window_seconds), rank_count=ranks)


def watch_request(
    window_seconds: float | None, interval_seconds: float | None, ranks: int | None
) -> pb.WatchExpertLoadRequest:
    """Return the request of `watch_expert_load`; None leaves the choice to the server."""
    return pb.WatchExpertLoadRequest(
        window=duration_of("window_seconds", window_seconds),
        interval=duration_of("interval_seconds", interval_seconds),
        rank_count=ranks,
    )
