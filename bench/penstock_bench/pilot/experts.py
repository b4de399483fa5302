"""Read the expert load from RoutingService."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from penstock_bench.pilot.results import Experts, Layer
from penstock_client import FeatureOff, NotImplementedYet, PenstockError
from penstock_proto.v1 import routing_pb2

WOULD_BE_RANKS = 8
"""Number of ranks to compute for a service on one device: those of a node."""
Ask = Callable[[routing_pb2.GetExpertLoadRequest], Awaitable[routing_pb2.GetExpertLoadResponse]]


async def observe(ask: Ask, window_seconds: float) -> tuple[Experts | None, str | None]:
    """Return the load of the window that ends now or, if there is none, the reason.

    For experts on one rank, it is the load of `WOULD_BE_RANKS` ranks, or of as many as there are experts.
    """
    request = routing_pb2.GetExpertLoadRequest()
    request.window.FromMilliseconds(min(3_600_000, max(1000, round(window_seconds * 1000))))
    try:
        load = (await ask(request)).load
        if not load.token_count:
            return None, "the service saw no tokens routed"
        ranks = served = max(1, load.rank_count)
        if served == 1 and load.layers:
            ranks = min(WOULD_BE_RANKS, len(load.layers[0].expert_token_counts))
            request.rank_count = ranks
            load = (await ask(request)).load
    except NotImplementedYet:
        return None, "this version of the service does not observe routing (UNIMPLEMENTED)"
    except FeatureOff as error:
        return None, f"the service does not observe routing: {error.message}"
    except PenstockError as error:
        return None, f"{error.reason or type(error).__name__}: {error.message}"
    return _experts(load, ranks, as_served=ranks == served), None


def _experts(load: routing_pb2.ExpertLoad, ranks: int, *, as_served: bool) -> Experts:
    layers = tuple(
        Layer(
            layer=layer.layer_index,
            expert_tokens=tuple(layer.expert_token_counts),
            imbalance=layer.imbalance,
            busiest_rank_share=layer.busiest_rank_share,
        )
        for layer in load.layers
    )
    return Experts(
        window_seconds=load.window.ToMilliseconds() / 1000,
        tokens=load.token_count,
        ranks=ranks,
        as_served=as_served,
        layers=layers,
    )
