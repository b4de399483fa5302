"""Run one check: start a service for each configuration, ask it, and keep what was found so far."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from penstock_bench.commands.bench_service import Service, connected
from penstock_bench.commands.expert_load import asking
from penstock_bench.gpu_check import probes
from penstock_bench.gpu_check.plan import CheckPlan, Configuration
from penstock_bench.gpu_check.results import Variant
from penstock_bench.load.machine import model_facts
from penstock_bench.load.serving import NotServing, served
from penstock_bench.pilot import experts
from penstock_client import PenstockError

_CONNECTIONS = 4
_ASK_SECONDS = 30.0
_START_SECONDS = 3600.0
"""Kernels may compile at the first start of an engine."""
_QUEUE = {"admission.max_queued_calls": "1024", "admission.max_starts_per_second": "1e6"}

Show = Callable[[str], None]


class GpuCheckRun:
    """One check. `variants` has what was found so far, whenever it ends; `logs` gets the output of each service."""

    def __init__(self, plan: CheckPlan, engine: str, model: str, logs: Path, show: Show) -> None:
        self.variants: list[Variant] = []
        self.served: dict[str, Any] = {}
        self._plan, self._engine, self._model, self._logs, self._show = plan, engine, model, logs, show

    async def run(self) -> None:
        """Try all configurations, one after the other."""
        for configuration in self._plan.configurations:
            await self._try(configuration)

    async def _try(self, configuration: Configuration) -> None:
        """Start a service and ask it. A failure of one configuration does not end the check."""
        settings = {**_QUEUE, "engine.device": self._engine, **configuration.settings, **self._plan.settings}
        self.variants.append(Variant(name=configuration.name, settings=settings))
        self._show(f"{configuration.name}: starting the engine")
        began = time.monotonic()
        try:
            with ExitStack() as stack:
                flags = [f"{name}={value}" for name, value in settings.items()]
                log = self._logs / f"{configuration.name.replace(' ', '-')}.log"
                address = stack.enter_context(served(self._model, flags, seconds=_START_SECONDS, log=log))
                self._found(start_seconds=time.monotonic() - began)
                async with connected(address, None, _CONNECTIONS, None) as service:
                    await self._ask(configuration, service, address)
        except NotServing as error:
            self._found(error=_cause(str(error)))
        except (PenstockError, RuntimeError, OSError) as error:
            self._found(error=f"{type(error).__name__}: {error}".splitlines()[0])

    def _found(self, **values: Any) -> None:
        """Add values to the running variant."""
        self.variants[-1] = self.variants[-1].model_copy(update=values)

    async def _ask(self, configuration: Configuration, service: Service, address: str) -> None:
        plan, client, name = self._plan, service.clients[0], configuration.name
        self.served = model_facts(service.card)
        self._found(profile=tuple(self.served["profile"]))
        self._show(f"{name}: budgets")
        self._found(budgets=await probes.budgets(client, plan))
        self._show(f"{name}: questions")
        rows = await probes.answers(client, plan)
        drafted = [row.drafted_tokens for row in rows if row.drafted_tokens is not None]
        accepted = [row.accepted_tokens for row in rows if row.accepted_tokens is not None]
        self._found(
            asked=len(rows),
            right=sum(row.right for row in rows),
            drafted_tokens=sum(drafted) if drafted else None,
            accepted_tokens=sum(accepted) if accepted else None,
        )
        prompt, cached = await probes.repeated_prompt(client, service.prompts, plan)
        self._found(repeated_prompt_tokens=prompt, cached_tokens=cached)
        async with asking(address, None, _ASK_SECONDS) as ask:
            counts, why = await experts.observe(ask, self.variants[-1].start_seconds or 60.0)
        self._found(experts=counts, experts_not_seen=why)
        if configuration.is_loaded and service.front_end is not None:
            await self._load(service)

    async def _load(self, service: Service) -> None:
        plan, front_end = self._plan, service.front_end
        assert front_end is not None
        for streams in plan.streams:
            self._show(f"speed: {streams} stream{'s'[: streams > 1]}")
            stage = await probes.speed(service.clients, service.prompts, front_end, plan, streams)
            self._found(stages=(*self.variants[-1].stages, stage))
        self._show("kill -9 of the engine under load")
        self._found(killed=await probes.killed(service.clients[0], front_end, plan))


def _cause(text: str) -> str:
    """Return why a service did not start: the last line of its log that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f"{lines[0].rstrip(':')}: {lines[-1]}" if len(lines) > 1 else text
