"""Connect to the service to measure, and write the results as JSON."""

from __future__ import annotations

import json as json_module
import shlex
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from penstock_bench.commands.bench_options import client_for

if TYPE_CHECKING:
    import psutil
    from penstock_bench.load.prompts import Prompts
    from penstock_client import AsyncClient, ModelCard


@dataclass(frozen=True, slots=True)
class Service:
    """A connected service. `not_local` is the reason why its processes are not observed; None if they are."""

    clients: Sequence[AsyncClient]
    card: ModelCard
    prompts: Prompts
    front_end: psutil.Process | None
    not_local: str | None


@asynccontextmanager
async def connected(target: str, tls: bool | Path | None, connections: int, pid: int | None) -> AsyncIterator[Service]:
    """Connect, and measure the lengths of made-up words in tokens. Raises PenstockError."""
    from penstock_bench.load import processes
    from penstock_bench.load.prompts import Prompts

    async with AsyncExitStack() as stack:
        clients = [client_for(target, tls, number) for number in range(connections)]
        for client in clients:
            await stack.enter_async_context(client)
        card, prompts = await clients[0].model(), await Prompts.learn(clients[0])
        front_end, not_local = None, None
        try:
            front_end = processes.find(target, pid)
        except processes.NotLocal as error:
            not_local = str(error)
        yield Service(clients, card, prompts, front_end, not_local)


def write_json(json: str, card: ModelCard, figures: dict[str, Any]) -> None:
    """Write the figures with the facts about service and machine; `-` is stdout. Raises FileNotWritten."""
    from penstock.files import write_text
    from penstock_bench.load.machine import client_machine, model_facts

    made = {
        "command": shlex.join(["penstock", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "client_machine": client_machine(),
        "model": model_facts(card),
        **figures,
    }
    text = json_module.dumps(made, indent=1) + "\n"
    typer.echo(text, nl=False) if json == "-" else write_text(Path(json), text)
