"""Convert between the messages of RoutingService and the service's types."""

from __future__ import annotations

from dataclasses import dataclass

from penstock_proto.v1 import routing_pb2 as pb

from penstock.engine.expert_load.statistics import LONGEST_WINDOW_SECONDS, ExpertLoad, busiest_rank_share
from penstock.errors import BadRequest, FieldViolation
from penstock.server.convert.generation import duration_to_proto, seconds_from_proto

_MIN_INTERVAL_SECONDS, _LONGEST_INTERVAL_SECONDS = 0.1, 3600.0
_DEFAULT_INTERVAL_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class LoadQuery:
    """Hold what a caller asks for. None is the server's default window, or the ranks as served."""

    window_seconds: float | None
    interval_seconds: float
    ranks: int | None


def load_query_from_proto(request: pb.GetExpertLoadRequest | pb.WatchExpertLoadRequest) -> LoadQuery:
    """Return the query of a request. Raise BadRequest with every field that is out of its range."""
    wrong: list[FieldViolation] = []
    window = interval = None
    if request.HasField("window"):
        window = seconds_from_proto(request.window)
        if not 0 < window <= LONGEST_WINDOW_SECONDS:
            wrong.append(FieldViolation("window", f"must be in (0, 3600] seconds, got {window:g}", "INVALID_FIELD"))
    if isinstance(request, pb.WatchExpertLoadRequest) and request.HasField("interval"):
        interval = seconds_from_proto(request.interval)
        if not _MIN_INTERVAL_SECONDS <= interval <= _LONGEST_INTERVAL_SECONDS:
            wrong.append(
                FieldViolation("interval", f"must be in [0.1, 3600] seconds, got {interval:g}", "INVALID_FIELD")
            )
    ranks = request.rank_count if request.HasField("rank_count") else None
    if ranks is not None and ranks < 1:
        wrong.append(FieldViolation("rank_count", f"must be at least 1, got {ranks}", "INVALID_FIELD"))
    if wrong:
        raise BadRequest(*wrong)
    return LoadQuery(window, _DEFAULT_INTERVAL_SECONDS if interval is None else interval, ranks)


def expert_load_to_proto(load: ExpertLoad, ranks: int | None) -> pb.ExpertLoad:
    """Return a load as a message, for `ranks` as requested. Raise BadRequest for more ranks than experts."""
    ranks = load.ranks if ranks is None else ranks
    experts = min((len(layer.counts) for layer in load.layers), default=ranks)
    if ranks > experts:
        raise BadRequest(
            FieldViolation(
                "rank_count", f"must be at most the number of experts, {experts}, got {ranks}", "INVALID_FIELD"
            )
        )
    return pb.ExpertLoad(
        window=duration_to_proto(load.window_seconds),
        token_count=load.token_count,
        rank_count=ranks,
        layers=[
            pb.LayerLoad(
                layer_index=layer.layer_index,
                expert_token_counts=layer.counts,
                imbalance=layer.imbalance,
                normalized_entropy=layer.normalized_entropy,
                hot_experts=layer.hot_experts,
                busiest_rank_share=busiest_rank_share(layer.counts, ranks),
            )
            for layer in load.layers
        ],
    )
