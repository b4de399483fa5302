"""Run `penstock chat`: a streamed conversation through the Python client."""

from __future__ import annotations

import difflib
import importlib
import io
import os
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.cli import options as o

if TYPE_CHECKING:
    from penstock_client import Client, Event, FunctionTool, Stream, ToolCall, ToolResult
    from penstock_client.messages import MessageLike
    from rich.console import Console

HELP = """\
/fast            answer without thinking
/thinking        think, up to the budget
/auto            let the server choose the budget
/budget N        maximum thought tokens; -1 is no limit, without N the server decides
/image FILE      show an image with the next message; can be repeated
/thoughts        show or hide the thoughts
/reset           start a new conversation
/quit            leave, like Ctrl-D. Ctrl-C stops a reply."""

COMMANDS = ("/fast", "/thinking", "/auto", "/budget", "/image", "/thoughts", "/reset", "/help", "/quit", "/exit")


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
    turns: list[MessageLike] = field(default_factory=list)
    tools: list[FunctionTool[..., Any]] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    """Files of the images that the next message shows."""

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
            case "/image":
                file = _image(argument.strip())
                self.images.append(file)
                return f"images with the next message: {', '.join(self.images)}"
            case "/thoughts":
                self.show_thoughts = not self.show_thoughts
                return f"thoughts: {'shown' if self.show_thoughts else 'hidden'}"
            case "/reset":
                self.turns.clear()
                self.images.clear()
                return "a new conversation"
            case "/help":
                return HELP
            case "/quit" | "/exit":
                return None
        near = difflib.get_close_matches(name, COMMANDS, 1)
        raise ValueError(f"not a command; {f'did you mean {near[0]}?' if near else '/help lists them'}")


def _image(file: str) -> str:
    """Return the file. Raise ValueError where there is no image in it."""
    if not file:
        raise ValueError("must name a file: /image FILE")
    try:
        o.with_images("", [file])
    except typer.BadParameter as error:
        raise ValueError(error.message) from None
    return file


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
    tools: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:FUNCTION[,FUNCTION]",
            help="Python functions that the model may call, from the current folder or an installed package. They are "
            "executed on this machine without asking.",
        ),
    ] = None,
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
    talk = Conversation(system, thinking, budget, show_thoughts, sampling, timeout, tools=_tools(tools))
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


def _tools(named: str | None) -> list[FunctionTool[..., Any]]:
    """Import the functions of --tools. Raise BadParameter where that fails."""
    if named is None:
        return []
    from penstock_client import FunctionTool, tool

    module, _, names = named.partition(":")
    if not module or not names:
        raise typer.BadParameter(f"must be MODULE:FUNCTION[,FUNCTION], got {named!r}", param_hint="--tools")
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
    made: list[FunctionTool[..., Any]] = []
    try:
        found = importlib.import_module(module)
        for name in names.split(","):
            function = getattr(found, name.strip())
            made.append(function if isinstance(function, FunctionTool) else tool(function))
    except Exception as error:  # what a user's module raises
        why = f"cannot use {named!r}: {type(error).__name__}: {error}"
        raise typer.BadParameter(why, param_hint="--tools") from None
    if waits := [one.name for one in made if one.is_async]:
        raise typer.BadParameter(f"{waits[0]} is async; chat calls functions that are not", param_hint="--tools")
    return made


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
    system: list[MessageLike] = [("system", talk.system)] if talk.system is not None else []
    content, talk.images = o.with_images(line, talk.images), []
    prompt = [*system, *talk.turns, ("user", content)]
    options = {
        "thinking": talk.thinking,
        "budget": talk.budget,
        "include_thoughts": None if talk.show_thoughts else False,
        "overflow": "drop_oldest_turns",
        **talk.sampling,
    }
    if talk.tools:
        _run(client, talk, prompt, options, _Shown(console, json))
        return
    spec = o.spec(prompt, **options)
    with client.stream(spec=spec, timeout=talk.timeout) as events:
        try:
            _show(events, console, json)
        except KeyboardInterrupt:
            events.cancel()
            console.out("(stopped)", style="dim", highlight=False)
        answer = events.response.answer
        # A stopped reply stays in the conversation; a turn without any answer would be refused later.
        if answer:
            talk.turns += [("user", content), ("assistant", answer)]


class _Shown:
    """Print the turns of a run: text and calls while they arrive, results, and the numbers of each turn."""

    def __init__(self, console: Console, json: bool) -> None:
        from penstock.cli import show

        self.console, self.json, self.show = console, json, show
        self.printer = show.StreamPrinter(console, console)

    def event(self, event: Event) -> None:
        """Print an event."""
        from penstock_client import Finished

        if self.json:
            self.show.print_json(event.proto)
            return
        self.printer.show(event)
        if isinstance(event, Finished):
            self.show.print_numbers(self.console, event.response)

    def result(self, call: ToolCall, result: ToolResult) -> None:
        """Print the result of a call."""
        from penstock_client import Message, build_spec

        if self.json:
            self.show.print_json(build_spec([Message.tool(result)]).messages.messages[0])
        else:
            self.console.out(self.show.result_line(call, result), style="dim", highlight=False)


def _run(client: Client, talk: Conversation, prompt: list[MessageLike], options: dict[str, Any], shown: _Shown) -> None:
    """Send a message with tools, print what happens, and add all of it to the conversation."""
    o.spec(prompt, tools=talk.tools, **options)  # what cannot be sent is refused in the same words
    try:
        run = client.run(
            prompt,
            tools=talk.tools,
            timeout=talk.timeout,
            on_event=shown.event,
            on_result=shown.result,
            **options,
        )
    except KeyboardInterrupt:
        shown.printer.end_line()
        shown.console.out("(stopped; this turn is not kept)", style="dim", highlight=False)
        return
    finally:
        shown.printer.end_line()
    if len(run.turns) > 1 and not shown.json:
        shown.console.out(shown.show.run_line(run), style="dim", highlight=False)
    if run.answer:
        talk.turns = run.messages[len(prompt) - len(talk.turns) - 1 :]


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
