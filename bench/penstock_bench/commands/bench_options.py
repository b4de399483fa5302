"""Define the options that `penstock bench` and `penstock bench knee` share, and convert them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from penstock.cli.failures import no_client

if TYPE_CHECKING:
    from penstock_bench.load.workload import Workload
    from penstock_client import AsyncClient

T = TypeVar("T")

PromptTokens = Annotated[str, typer.Option(help="Mix of prompt lengths, such as 128@3,1024-2048@1.")]
OutputTokens = Annotated[str, typer.Option(help="Mix of output lengths; empty: up to the service's limit.")]
UntilEnd = Annotated[bool, typer.Option("--until-end", help="Allow outputs to end before their length.")]
Thinking = Annotated[str, typer.Option(help="Mix of thinking modes, such as fast@3,thinking:64@1,auto.")]
Prefixes = Annotated[int, typer.Option(min=0, help="Number of shared prefixes; 0: each prompt is different.")]
PrefixTokens = Annotated[int, typer.Option(min=1, help="Tokens of a shared prefix, which is a part of the prompt.")]
Deadline = Annotated[float | None, typer.Option(min=0.001, help="Deadline of each call in seconds.")]
Questions = Annotated[
    Path | None,
    typer.Option(
        exists=True, dir_okay=False, help="File of JSON lines with prompt and kind, sent instead of made-up text."
    ),
]
Objective = Annotated[
    list[str] | None, typer.Option(metavar="NAME=SECONDS", help="first-token, first-answer, per-token, end-to-end.")
]
Seed = Annotated[int, typer.Option(help="Seed of arrivals and lengths.")]
Connections = Annotated[int, typer.Option(min=1, max=64, help="Number of connections; calls use them in turns.")]
Drain = Annotated[float, typer.Option(min=0, help="Longest time in seconds to wait for running calls at the end.")]
JsonFile = Annotated[str | None, typer.Option(metavar="FILE", help="File for all results as JSON; `-` is stdout.")]
Pid = Annotated[
    int | None,
    typer.Option(
        help="Process id of the service on this machine. Default: the one that listens at the target on loopback."
    ),
]


# One parameter for each option.
def workload_of(
    prompt_tokens: str,
    output_tokens: str,
    thinking: str,
    prefixes: int,
    prefix_tokens: int,
    deadline: float | None,
    questions: Path | None = None,
) -> Workload:
    """Return the workload of the options. Raises typer.BadParameter."""
    from penstock_bench.load import question_files
    from penstock_bench.load import workload as w

    return w.Workload(
        prompt=parsed(w.Lengths.parse, prompt_tokens, "--prompt-tokens"),
        output=parsed(w.Lengths.parse, output_tokens, "--output-tokens") if output_tokens else None,
        thinking=parsed(w.Thinking.parse, thinking, "--thinking"),
        prefixes=prefixes,
        prefix_tokens=prefix_tokens,
        deadline_seconds=deadline,
        questions=() if questions is None else parsed(question_files.read, questions, "--questions"),
    )


def parsed(parse: Callable[[Any], T], given: Any, option: str) -> T:
    """Return what an option means. Raises typer.BadParameter with the option's name."""
    try:
        return parse(given)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None


def client_for(target: str, tls: bool | Path | None, number: int = 0) -> AsyncClient:
    """Return a client whose connection is its own, and that does not hide a lost one."""
    from penstock_client import AsyncClient

    try:
        return AsyncClient(
            target,
            tls=tls,
            reconnect=None,
            channel_options=[("grpc.use_local_subchannel_pool", 1), ("grpc.channel_id", number)],
        )
    except ValueError as error:
        raise no_client(error, target) from None
