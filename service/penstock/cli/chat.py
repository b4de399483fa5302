"""Run `penstock chat`: a streamed conversation through the Python client."""

from __future__ import annotations

import difflib
import io
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import typer

from penstock.cli import options as o

if TYPE_CHECKING:
    from penstock_client import Client, Stream
    from rich.console import Console

HELP = """\
/fast            answer without thinking
/thinking        think, up to the budget
/auto            let the server choose the budget
/budget N        maximum thought tokens; -1 is no limit, without N the server decides
/thoughts        show or hide the thoughts
/reset           start a new conversation
/quit            leave, like Ctrl-D. Ctrl-C stops a reply."""

COMMANDS = ("/fast", "/thinking", "/auto", "/budget", "/thoughts", "/reset", "/help", "/quit", "/exit")


@dataclass
class Conversation:
    """Hold the turns so far, and the settings of the next reply."""

    system: str | None
    thinking: o.Thinking | None
    budget: int | None
    show_thoughts: bool
    sampling: dict[str, int | float | None] = field(default_factory=dict)
    timeout: float | None = None
    """Seconds for each reply."""
    turns: list[tuple[str, str]] = field(default_factory=list)

    def command(self, line: str) -> str | None:
        """Run a slash command and return what it did; None to leave. Raise ValueError for an invalid one."""
        name, _, argument = line.partition(" ")
        match name:
            case "/fast" | "/thinking" | "/auto":
                self.thinking = o.Thinking(name[1:])
                # A budget with FAST would contradict it.
                self.budget = None if name == "/fast" else self.budget
                return f"thinking: {self.thinking}"
            case "/budget":
                self.budget = _budget(argument.strip())
                if self.thinking is o.Thinking.fast:
                    self.thinking = None
                return f"budget: {'the server decides' if self.budget is None else f'{self.budget} tokens'}"
            case "/thoughts":
                self.show_thoughts = not self.show_thoughts
                return f"thoughts: {'shown' if self.show_thoughts else 'hidden'}"
            case "/reset":
                self.turns.clear()
                return "a new conversation"
            case "/help":
                return HELP
            case "/quit" | "/exit":
                return None
        near = difflib.get_close_matches(name, COMMANDS, 1)
        raise ValueError(f"not a command; {f'did you mean {near[0]}?' if near else '/help lists them'}")


def _budget(argument: str) -> int | None:
    if not argument:
        return None
    try:
        budget = int(argument)
    except ValueError:
        budget = -2
    if not -1 <= budget < 2**31:
        raise ValueError(f"the budget must be a whole number of tokens, -1 for no limit, or absent, got {argument!r}")
    return budget


# One parameter for each option.
def chat(
    thinking: o.ThinkingOption = None,
    budget: o.Budget = None,
    show_thoughts: o.ShowThoughts = True,
    system: o.System = None,
    max_output_tokens: o.MaxOutputTokens = None,
    temperature: o.Temperature = None,
    timeout: o.Timeout = None,
    json: o.Json = False,
    target: o.Target = o.DEFAULT_TARGET,
    tls: o.Tls = None,
    ca: o.Ca = None,
) -> None:
    """Chat with the model. /help lists the commands; Ctrl-C stops a reply, Ctrl-D leaves."""
    from penstock_client import PenstockError
    from rich.console import Console

    from penstock.cli.failures import in_words

    if isinstance(sys.stdin, io.TextIOWrapper):
        # A stray byte in the terminal must not end the conversation.
        sys.stdin.reconfigure(encoding="utf-8", errors="replace")
    console = Console(stderr=json)
    sampling = {"max_output_tokens": max_output_tokens, "temperature": temperature}
    talk = Conversation(system, thinking, budget, show_thoughts, sampling, timeout)
    with o.connected(target, tls, ca) as client:
        card = client.model(timeout=10)
        if sys.stdin.isatty():
            console.out(f"{card.model} at {target}; /help lists the commands", style="dim", highlight=False)
        while (line := _read(console)) is not None:
            if not line.strip():
                continue
            if line.startswith("/"):
                if not _command(talk, line.strip(), console):
                    return
                continue
            try:
                _reply(client, talk, line, console, json)
            except PenstockError as error:
                console.out("\n".join(in_words(error, target, tls, ca)), style="red", highlight=False)
            except typer.BadParameter as error:
                console.out(error.message, style="red", highlight=False)


def _read(console: Console) -> str | None:
    """Return the next line; None at the end. Ctrl-C clears the line, as in a shell."""
    if not sys.stdin.isatty():
        line = sys.stdin.readline()
        return line.rstrip("\n") if line else None
    import readline  # noqa: F401 - gives input() its line editing and history

    while True:
        try:
            return input("> ")
        except KeyboardInterrupt:
            console.out("\nCtrl-D or /quit leaves", style="dim", highlight=False)
        except EOFError:
            console.out()
            return None


def _command(talk: Conversation, line: str, console: Console) -> bool:
    """Run a slash command. Return False where the user wants to leave."""
    try:
        said = talk.command(line)
    except ValueError as error:
        said = f"{line}: {error}"
    if said is not None:
        console.out(said, style="dim", highlight=False)
    return said is not None


def _reply(client: Client, talk: Conversation, line: str, console: Console, json: bool) -> None:
    """Send a message, print the reply while it arrives, and add both to the conversation."""
    system = [("system", talk.system)] if talk.system is not None else []
    spec = o.spec(
        [*system, *talk.turns, ("user", line)],
        thinking=talk.thinking,
        budget=talk.budget,
        include_thoughts=None if talk.show_thoughts else False,
        overflow="drop_oldest_turns",
        **talk.sampling,
    )
    with client.stream(spec=spec, timeout=talk.timeout) as events:
        try:
            _show(events, console, json)
        except KeyboardInterrupt:
            events.cancel()
            console.out("(stopped)", style="dim", highlight=False)
        answer = events.response.answer
        # A stopped reply stays in the conversation; a turn without any answer would be refused later.
        if answer:
            talk.turns += [("user", line), ("assistant", answer)]


def _show(events: Stream, console: Console, json: bool) -> None:
    from penstock.cli import show

    printer = show.StreamPrinter(console, console)
    try:
        for event in events:
            if json:
                show.print_json(event.proto)
            else:
                printer.show(event)
    finally:
        printer.end_line()
    if not json:
        show.print_numbers(console, events.response)
