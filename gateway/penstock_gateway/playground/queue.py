"""Read how full the service is from its Prometheus page, where this gateway is told the address."""

from __future__ import annotations

import asyncio
import os
import time
import urllib.request
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

METRICS_URL = "PENSTOCK_PLAYGROUND_METRICS_URL"
"""Environment variable: address of the service's Prometheus page (its setting `telemetry.prometheus_listen`)."""
_MAX_BYTES = 4 * 1024 * 1024
_TIMEOUT_SECONDS = 2.0
_KEPT_SECONDS = 0.5
_NAMES = {
    "penstock_sequences_running": "running_sequences",
    "penstock_sequences_capacity": "capacity_sequences",
    "penstock_queue_calls": "queued_calls",
    "penstock_queue_tokens": "queued_tokens",
    "penstock_streams_resumable": "resumable_streams",
    "penstock_engine_restarts_total": "engine_restarts",
}


@dataclass(frozen=True, slots=True)
class QueueState:
    """Numbers of the queue by the names that the page has for them; None, and the reason, where they are not known."""

    numbers: dict[str, int] | None
    reason: str | None = None


@dataclass(slots=True)
class QueueReader:
    """Reads the numbers for all who ask: half a second long they are told the same."""

    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    _last: QueueState | None = None
    _read_at: float = 0.0

    async def read(self) -> QueueState:
        """Return the numbers of now."""
        async with self._lock:
            if self._last is None or time.monotonic() > self._read_at + _KEPT_SECONDS:
                self._last = await asyncio.to_thread(_state)
                self._read_at = time.monotonic()
            return self._last


def _state() -> QueueState:
    url = os.environ.get(METRICS_URL, "")
    if not url:
        return QueueState(None, f"the gateway does not know the service's metrics; set {METRICS_URL}")
    try:
        return QueueState(parse(_get(url)))
    except (OSError, ValueError) as error:
        return QueueState(None, f"the service's metrics cannot be read: {type(error).__name__}")


def _get(url: str) -> str:
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"{METRICS_URL} must begin with http:// or https://")
    with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as page:
        return str(page.read(_MAX_BYTES).decode())


def parse(page: str) -> dict[str, int]:
    """Return the numbers of a Prometheus page by the names that the playground has for them."""
    lines = [line for line in page.splitlines() if line.startswith(tuple(_NAMES))]
    families = text_string_to_metric_families("\n".join(lines))
    samples = (sample for family in families for sample in family.samples)
    return {_NAMES[sample.name]: round(sample.value) for sample in samples if sample.name in _NAMES}
