"""Read the engine's metrics from the service's Prometheus endpoint; docs/how-to/observe.md has their names."""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request
from collections import defaultdict
from dataclasses import dataclass, field

from penstock_bench.pilot.results import EngineSeen
from prometheus_client.parser import text_string_to_metric_families

_TIMEOUT_SECONDS = 5.0
_SAMPLE_SECONDS = 1.0
_KV_USAGE = "penstock_engine_kv_cache_usage_ratio"


@dataclass(frozen=True, slots=True)
class Scrape:
    """Sums of metrics by name, and by name and one label's value."""

    values: dict[str, float]
    by_label: dict[tuple[str, str], float]
    cache: dict[str, str] = field(default_factory=dict)

    def whole(self, name: str) -> int | None:
        """Return a count about the cache that the engine reports at its start."""
        try:
            return int(float(self.cache[name]))
        except (KeyError, ValueError):
            return None


class NotSeen(Exception):
    """Report why the endpoint has no metrics."""


def parse(text: str) -> Scrape:
    """Return the metrics of a text. Raises ValueError if it is not in the exposition format."""
    values: dict[str, float] = defaultdict(float)
    by_label: dict[tuple[str, str], float] = {}
    cache: dict[str, str] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            values[sample.name] += sample.value
            for label in ("result", "position"):
                if label in sample.labels:
                    by_label[sample.name, sample.labels[label]] = sample.value
            if sample.name == "vllm:cache_config_info":
                cache = dict(sample.labels)
    return Scrape(dict(values), by_label, cache)


async def scrape(url: str) -> Scrape:
    """Return the metrics of the endpoint. Raises NotSeen."""

    def get() -> str:
        """Return the text of the endpoint."""
        # Without a proxy: the endpoint is the service's own, usually on this machine.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url, timeout=_TIMEOUT_SECONDS) as reply:
            return str(reply.read().decode("utf-8", errors="replace"))

    try:
        found = parse(await asyncio.to_thread(get))
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise NotSeen(f"{url}: {error}") from None
    if _KV_USAGE not in found.values:
        raise NotSeen(f"{url} has no {_KV_USAGE}: it is not Penstock's, or its engine does not report it")
    return found


class Watch:
    """Scrapes during a stage; `seen` has the result."""

    def __init__(self, url: str | None) -> None:
        self._url = url
        self._first: Scrape | None = None
        self._last: Scrape | None = None
        self._kv_usage_most = 0.0

    async def run(self) -> None:
        """Scrape at intervals until cancelled."""
        while self._url is not None:
            await self.sample()
            await asyncio.sleep(_SAMPLE_SECONDS)

    async def sample(self) -> None:
        """Scrape the endpoint once."""
        if self._url is None:
            return
        try:
            self._last = await scrape(self._url)
        except NotSeen:
            return  # The next one may succeed.
        self._first = self._first or self._last
        self._kv_usage_most = max(self._kv_usage_most, self._last.values[_KV_USAGE])

    def seen(self) -> EngineSeen | None:
        """Return the values of the stage; None without two scrapes."""
        if self._first is None or self._last is None:
            return None
        first, last = self._first, self._last

        def grown(name: str, label: str | None = None) -> int | None:
            """Return the growth of a counter over the stage."""
            if label is None:
                return round(last.values[name] - first.values.get(name, 0.0)) if name in last.values else None
            key = (name, label)
            return round(last.by_label[key] - first.by_label.get(key, 0.0)) if key in last.by_label else None

        positions = [grown("penstock_engine_drafts_accepted_total", str(place)) for place in range(1, 9)]
        return EngineSeen(
            kv_usage_most=self._kv_usage_most,
            preemptions=grown("penstock_engine_preemptions_total"),
            prefix_queried_tokens=grown("penstock_engine_prefix_cache_tokens_total", "queried"),
            prefix_hit_tokens=grown("penstock_engine_prefix_cache_tokens_total", "hit"),
            drafts=grown("vllm:spec_decode_num_drafts_total"),
            accepted_by_position=tuple(count for count in positions if count is not None),
        )
