"""Run `penstock demo`: a service on a free port, questions through the client, and a clean end."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from penstock.cli import options as o
from penstock.cli.failures import EXIT_REFUSED, fail
from penstock.cli.own_service import ServiceDied, log_of, own_directory, own_service, tail, wait_until_ready

if TYPE_CHECKING:
    from penstock_client import Client
    from rich.console import Console

QUESTION = "What is 48 + 27 + 36 + 15?"
ASKED = (
    ("With no limit on thinking:", {"thinking": "thinking"}),
    ("With a budget of 4 thought tokens, which holds exactly:", {"thinking": "thinking", "budget": 4}),
    ("Without thinking:", {"thinking": "fast"}),
)
# Greedy, so that all users see the same; bounded, so that it ends soon whatever the model does.
SETTINGS = {"temperature": 0.0, "max_output_tokens": 512}
NEXT = """\
What to try next
  penstock serve                                              run the same service until Ctrl-C
  penstock chat                                               chat with it, from a second terminal
  penstock playground                                         the same in the browser, with a service of its own
  penstock generate "What is 48 + 27 + 36 + 15?" --budget 64  ask one question with a budget
  penstock model                                              show the model, its features and limits
docs/quick-start.md shows the next steps; docs/index.md lists all pages."""
_PICTURE_COLUMNS = 110


def demo(
    question: Annotated[str, typer.Option(help="Question to ask.")] = QUESTION,
    start_seconds: Annotated[float, typer.Option(help="Maximum seconds for the service to start.")] = 600.0,
    picture: Annotated[Path | None, typer.Option(help="Also write the output as an SVG picture.")] = None,
) -> None:
    """Start the service on the demo model, ask it questions, show the streams, and stop it."""
    from penstock_client import Client, PenstockError
    from rich.console import Console

    from penstock.files import replacing

    o.refuse_unwritable(("--picture", picture))
    # A picture shows what a terminal would show, whatever stdout is.
    console = Console(record=True, width=_PICTURE_COLUMNS, force_terminal=True) if picture else Console()
    kept_for = (ServiceDied, PenstockError)
    try:
        with own_directory("penstock-demo-", *kept_for) as directory, own_service(directory) as process:
            address = wait_until_ready(process, directory, start_seconds, console)
            with Client(address) as client:
                if picture:
                    console.export_text()  # forgets the start, which is not part of the picture
                _ask_all(client, question, console)
                if picture:
                    with replacing(picture) as partial:
                        console.save_svg(str(partial), title="penstock demo")
    except kept_for as error:
        log = log_of(directory)
        fail(f"{error}; the last lines of its log, {log}:", *tail(log))
        raise typer.Exit(EXIT_REFUSED) from None
    console.out(f"\n{NEXT}", highlight=False)


def _ask_all(client: Client, question: str, console: Console) -> None:
    from penstock.cli import show

    for title, options in ASKED:
        console.out(f"\n{title}\n> {question}", style="bold", highlight=False)
        printer = show.StreamPrinter(console, console, labels=not console.is_terminal)
        with client.stream(spec=o.spec(question, **options, **SETTINGS)) as events:
            try:
                for event in events:
                    printer.show(event)
            finally:
                printer.end_line()
        console.out(show.fitted(show.usage_line(events.response), console), style="cyan", highlight=False)
