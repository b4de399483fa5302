"""A conversation that grows with each question and reply, and can be sent as a prompt."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Self, overload

from penstock_client.response import Response
from penstock_client.spec import Message, RoleName


class Conversation(Sequence[Message]):
    """The messages of a conversation, oldest first. Pass it to `generate`, `stream` or `count` as the prompt.

    >>> talk = Conversation(system="Answer in one line.")
    >>> reply = client.generate(talk.ask("What is 48 + 27 + 36 + 15?"))
    >>> talk.add(reply)
    >>> reply = client.generate(talk.ask("Which is larger, 53 or 52?"))

    Only answers are kept; a thought is not part of the history.

    Args:
        system: Text of a system message, which comes first. Default: none.
        messages: Earlier messages, oldest first.
    """

    def __init__(self, system: str | None = None, messages: Iterable[Message] = ()) -> None:
        self._messages = [Message("system", system)] if system is not None else []
        self._messages += messages

    def ask(self, text: str) -> Self:
        """Add a user message and return the conversation."""
        return self._grow("user", text)

    def add(self, reply: Response | str) -> Self:
        """Add the first candidate's answer, or a text, as an assistant message and return the conversation."""
        return self._grow("assistant", reply if isinstance(reply, str) else reply.answer)

    def undo(self) -> Message:
        """Remove and return the last message, for instance after a failed call. Raises IndexError if there is none."""
        return self._messages.pop()

    def _grow(self, role: RoleName, content: str) -> Self:
        self._messages.append(Message(role, content))
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
