"""Which experts the tokens went to: replies of `expert_load()` and `watch_expert_load()`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

from google.protobuf.duration_pb2 import Duration
from penstock_proto.v1 import routing_pb2 as pb


@dataclass(frozen=True, slots=True)
class LayerLoad:
    """One MoE layer's load. Without tokens all is even: imbalance and entropy are 1."""

    layer_index: int
    expert_token_counts: tuple[int, ...]
    imbalance: float
    """The busiest expert over the mean."""
    normalized_entropy: float
    """1 is even, 0 is one expert for all."""
    hot_experts: tuple[int, ...]
    """Over twice the mean, busiest first."""
    busiest_rank_share: float


@dataclass(frozen=True, slots=True)
class ExpertLoad:
    """Hold the load of the experts over a window.

    `token_count` counts a token once, however many experts processed it. `rank_count` is the number of ranks that the
    ranks' shares are computed for.
    """

    window_seconds: float
    token_count: int
    rank_count: int
    layers: tuple[LayerLoad, ...]
    raw: pb.ExpertLoad = field(repr=False)

    @classmethod
    def from_proto(cls, load: pb.ExpertLoad) -> Self:
        """Return the load of a message."""
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
    """Return the request for one load."""
    return pb.GetExpertLoadRequest(window=_duration(window_seconds), rank_count=ranks)


def watch_request(
    window_seconds: float | None, interval_seconds: float | None, ranks: int | None
) -> pb.WatchExpertLoadRequest:
    """Return the request for loads at an interval."""
    return pb.WatchExpertLoadRequest(
        window=_duration(window_seconds), interval=_duration(interval_seconds), rank_count=ranks
    )


def _duration(seconds: float | None) -> Duration | None:
    if seconds is None:
        return None
    made = Duration()
    made.FromNanoseconds(round(seconds * 1e9))
    return made
