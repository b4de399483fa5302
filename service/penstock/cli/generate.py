"""Run `penstock generate`: one prompt, one reply."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from penstock.cli import options as o

if TYPE_CHECKING:
    from penstock_client import Response, Stream
    from rich.console import Console


# One parameter for each option.
def generate(
    prompt: Annotated[str, typer.Argument(help="The prompt; `-` reads stdin.")],
    thinking: o.ThinkingOption = None,
    budget: o.Budget = None,
    answer_reserve: Annotated[int | None, typer.Option(help="Output tokens reserved for the answer.")] = None,
    show_thoughts: o.ShowThoughts = True,
    system: o.System = None,
    image: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="PNG, JPEG or WebP before the prompt; can be repeated.")
    ] = None,
    max_output_tokens: o.MaxOutputTokens = None,
    temperature: o.Temperature = None,
    top_p: Annotated[float | None, typer.Option(help="Nucleus sampling, in (0, 1]; 1 is off.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Sample from the k most likely tokens; 0 is off.")] = None,
    seed: o.Seed = None,
    stop: Annotated[list[str] | None, typer.Option(help="Text before which the answer ends; can be repeated.")] = None,
    thought_stop: Annotated[
        list[str] | None, typer.Option(help="Text that ends the thought where it shows; can be repeated.")
    ] = None,
    thought_stop_regex: Annotated[
        str | None, typer.Option(help="Regular expression that ends the thought where it matches.")
    ] = None,
    early_exit: Annotated[
        o.EarlyExit | None,
        typer.Option(help="What ends the thought before its budget, where more would not change the answer."),
    ] = None,
    early_exit_probability: Annotated[
        float | None, typer.Option(help="Probability from which on --early-exit ends the thought.")
    ] = None,
    json_schema: Annotated[str | None, typer.Option(help="JSON schema that the answer must match.")] = None,
    timeout: o.Timeout = None,
    stream: Annotated[
        bool, typer.Option("--stream/--no-stream", help="With --json: print events, or one reply.")
    ] = True,
    json: o.Json = False,
    target: o.Target = o.DEFAULT_TARGET,
    tls: o.Tls = None,
    ca: o.Ca = None,
) -> None:
    """Ask one question. The answer goes to stdout; the thought and the token counts go to stderr."""
    turns = [("system", system)] if system is not None else []
    spec = o.spec(
        [*turns, ("user", o.with_images(o.text_of(prompt), image))],
        thinking=thinking,
        budget=budget,
        answer_reserve=answer_reserve,
        include_thoughts=None if show_thoughts else False,
        max_output_tokens=max_output_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
        stop=stop or None,
        thought_stop=thought_stop or None,
        thought_stop_regex=thought_stop_regex,
        early_exit=early_exit,
        early_exit_probability=early_exit_probability,
        json_schema=json_schema,
    )
    from rich.console import Console

    notes = Console(stderr=True)
    with o.connected(target, tls, ca) as client:
        if stream:
            with client.stream(spec=spec, timeout=timeout) as events:
                _show_events(events, notes, json=json)
        else:
            _show_reply(client.generate(spec=spec, timeout=timeout), notes, show_thoughts=show_thoughts, json=json)


def _show_events(events: Stream, notes: Console, *, json: bool) -> None:
    """Print the answer to stdout while it arrives, and thought and counts to `notes`; or each event as JSON."""
    from rich.console import Console

    from penstock.cli import show

    printer = show.StreamPrinter(notes, Console())
    try:
        for event in events:
            if json:
                show.print_json(event.proto)
            else:
                printer.show(event)
    finally:
        printer.end_line()
    if not json:
        show.print_numbers(notes, events.response)


def _show_reply(reply: Response, notes: Console, *, show_thoughts: bool, json: bool) -> None:
    """Print the answer to stdout, and thought and counts to `notes`; or the reply as JSON."""
    from penstock.cli import show

    if json and reply.raw is not None:
        show.print_json(reply.raw)
        return
    if show_thoughts and reply.thought:
        notes.out(reply.thought.rstrip("\n"), style="dim", highlight=False)
    typer.echo(reply.answer)
    show.print_numbers(notes, reply)
