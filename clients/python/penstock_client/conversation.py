"""A conversation that grows with each question and reply, and can be sent as a prompt."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Self, overload

from penstock_client.messages import Message, ToolResult
from penstock_client.response import Response


class Conversation(Sequence[Message]):
    """The messages of a conversation, oldest first. Pass it to `generate`, `stream` or `count` as the prompt.

    >>> talk = Conversation(system="Answer in one line.")
    >>> reply = client.generate(talk.ask("What is 48 + 27 + 36 + 15?"))
    >>> talk.add(reply)
    >>> reply = client.generate(talk.ask("Which is larger, 53 or 25?"))

    A reply is added with its tool calls; add their results next. A thought is kept where the reply has tool calls,
    because the model needs it until it has answered.

    Args:
        system: Text of a system message, which comes first. Default: none.
        messages: Earlier messages, oldest first.
        keep_thoughts: Whether the thoughts of all replies are kept, for `history="all_turns"`.
    """

    def __init__(
        self, system: str | None = None, messages: Iterable[Message] = (), *, keep_thoughts: bool = False
    ) -> None:
        self._messages = [Message("system", system)] if system is not None else []
        self._messages += messages
        self._keep_thoughts = keep_thoughts

    def ask(self, text: str | Message) -> Self:
        """Add a user message and return the conversation."""
        return self._grow(text if isinstance(text, Message) else Message("user", text))

    def add(self, reply: Response | Message | str) -> Self:
        """Add the first candidate's answer and tool calls, a message or a text, and return the conversation."""
        if isinstance(reply, str):
            return self._grow(Message("assistant", reply))
        if isinstance(reply, Message):
            return self._grow(reply)
        keeps_thought = self._keep_thoughts or bool(reply.tool_calls)
        return self._grow(reply.message if keeps_thought else Message("assistant", reply.answer))

    def add_results(self, *results: ToolResult) -> Self:
        """Add the results of the last reply's tool calls, one for each call, and return the conversation."""
        return self._grow(Message.tool(*results))

    def undo(self) -> Message:
        """Remove and return the last message, for instance after a failed call. Raises IndexError if there is none."""
        return self._messages.pop()

    def _grow(self, message: Message) -> Self:
        self._messages.append(message)
        return self

    @overload
    def __getitem__(self, index: int) -> Message: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Message]: ...
    def __getitem__(self, index: int | slice) -> Message | Sequence[Message]:
        return self._messages[index]

    def __len__(self) -> int:
        return len(self._messages)

    def __iter__(self) -> Iterator[Message]:
        return iter(self._messages)
