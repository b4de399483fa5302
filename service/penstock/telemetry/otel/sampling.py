"""Decide which calls are traced.

A caller's `sampled` flag is not trusted. It may take its own call out of the traces, but not put it in: otherwise
anyone could make each call cost as much as a traced one, whatever ratio the operator chose.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from random import getrandbits

from opentelemetry.context import Context
from opentelemetry.sdk.environment_variables import OTEL_TRACES_SAMPLER
from opentelemetry.sdk.trace.sampling import ParentBased, Sampler, SamplingResult, TraceIdRatioBased
from opentelemetry.trace import Link, SpanKind, TraceState
from opentelemetry.util.types import Attributes


class _RandomRatio(TraceIdRatioBased):
    """Draw a number instead of reading it from the trace id, which a caller chooses as well."""

    # OpenTelemetry's signature.
    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        return super().should_sample(parent_context, getrandbits(64), name, kind, attributes, links, trace_state)


def sampler_of_calls(ratio: float | None, *, trusts_callers: bool) -> Sampler | None:
    """Return the sampler for calls, or None for the SDK's own, which OTEL_TRACES_SAMPLER names.

    Args:
        ratio: Share of calls that are traced, in [0, 1]. None takes OTEL_TRACES_SAMPLER, or 1 where that is not set.
        trusts_callers: Whether a caller's sampled flag decides for its call, as in the SDK's parent-based samplers.
    """
    if ratio is None and os.environ.get(OTEL_TRACES_SAMPLER):
        return None
    share = 1.0 if ratio is None else ratio
    root = TraceIdRatioBased(share)
    return ParentBased(root) if trusts_callers else ParentBased(root, remote_parent_sampled=_RandomRatio(share))
