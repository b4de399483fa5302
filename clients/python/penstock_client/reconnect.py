"""Decide whether, when and from where a stream resumes after a lost connection. No I/O: both clients use it."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import grpc
from penstock_proto.v1 import generation_pb2 as pb

from penstock_client.errors import BrokenStream, DeadlineExceeded, Overloaded, PenstockError, Unavailable
from penstock_client.events import Event, EventReader
from penstock_client.seconds import seconds_of
from penstock_client.tracing import CallSpan

_log = logging.getLogger("penstock_client")
# Status codes of a cut connection, from gRPC itself and from proxies; the service's own errors have a reason.
_CUT = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL)


@dataclass(frozen=True, slots=True)
class Reconnect:
    """Bounds of the attempts to resume a stream. Each event that comes resets them.

    The wait doubles from `first_wait_seconds` to `max_wait_seconds`, with jitter.

    Attributes:
        max_attempts: Highest number of attempts.
        max_seconds: Longest time for all attempts. Choose a little less than the server's `resume.grace_seconds` (60
            by default): after the grace period the generation is gone.
        first_wait_seconds: Wait before the second attempt; the first one is made at once.
        max_wait_seconds: Longest wait between two attempts.
    """

    max_attempts: int = 20
    max_seconds: float = 50.0
    first_wait_seconds: float = 0.1
    max_wait_seconds: float = 5.0


def checked(policy: Reconnect | None) -> Reconnect | None:
    """Return the policy.

    Raises TypeError for another type, also of a bound: it would fail at the first lost connection.
    """
    if policy is None:
        return None
    if not isinstance(policy, Reconnect):
        raise TypeError(f"reconnect must be a Reconnect or None, got {type(policy).__name__}")
    most = policy.max_attempts
    if isinstance(most, bool) or not isinstance(most, int):
        raise TypeError(f"reconnect.max_attempts must be an int, got {most!r}")
    for name in ("max_seconds", "first_wait_seconds", "max_wait_seconds"):
        seconds_of(f"reconnect.{name}", getattr(policy, name))
    return policy


def _nowhere(work: Callable[[], Any]) -> None:
    raise RuntimeError("this link has no way to run work outside the user's code")


@dataclass(frozen=True, slots=True)
class Link:
    """The parts of its client that a stream uses, also after its connection is lost.

    Attributes:
        span: Span of the call.
        timeout: Seconds until the stream's deadline, or None.
        policy: Bounds of the attempts to resume; None: do not resume.
        resume: The stub's `Resume`.
        abandon: Cancels a generation on the server without waiting.
        steer: The client's `steer`.
        resumable: Whether the server continues the generation without a connection until `abandon` ends it.
        retries: Number of retries of a refused start.
        run_apart: Runs a function outside the user's code: in a thread, or as a task of the event loop.
    """

    span: CallSpan
    timeout: float | None
    policy: Reconnect | None
    resume: Callable[..., Any]
    abandon: Callable[[pb.CancelRequest], None]
    steer: Callable[..., Any]
    resumable: bool = False
    retries: int = 0
    run_apart: Callable[[Callable[[], Any]], None] = _nowhere

    def options(self, timeout: float | None = None) -> dict[str, Any]:
        """Return a stub's keyword arguments, with `timeout` (seconds) instead of the link's own where given."""
        return {"timeout": self.timeout if timeout is None else timeout, "metadata": self.span.metadata}

    def without_policy(self) -> Link:
        """Return a link that neither resumes nor retries."""
        return replace(self, policy=None, resumable=False, retries=0)


class Recovery:
    """The state that one stream keeps over its connections.

    Attributes:
        reconnections: Number of connections that were lost.
    """

    def __init__(self, reader: EventReader, policy: Reconnect | None, timeout: float | None) -> None:
        self._reader = reader
        self._policy = policy
        self._ends_at = None if timeout is None else time.monotonic() + timeout
        self._attempts = 0
        self._cut_at = 0.0
        self._drained: pb.GenerationEvent | None = None
        self.reconnections = 0

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the deadline of the stream, over all its connections; None without a deadline."""
        return None if self._ends_at is None else self._ends_at - time.monotonic()

    @property
    def is_orphan(self) -> bool:
        """Whether the server continues a generation that this client will not resume."""
        return self.has_token and not self._reader.finished

    def accept(self, proto: pb.GenerationEvent) -> Event | None:
        """Return the event for the user.

        None means a repeated event, an unknown kind, or the last event of a draining server whose generation another
        server can continue.
        """
        self._attempts = 0
        if self._policy is not None and proto.finished.resume_token and proto.sequence > self._reader.last_sequence:
            self._drained = proto
            return None
        if self._drained is not None:
            # The other server knows the stream by the token with which it was resumed.
            self._reader.response.resume_token = self._drained.finished.resume_token
            self._reader.last_sequence, self._drained = self._drained.sequence, None
        return self._reader.read(proto)

    def last_event(self) -> Event | None:
        """Return the last event of a drained server where no other server continued; None if there is none."""
        drained, self._drained = self._drained, None
        return self._reader.read(drained) if drained is not None else None

    def wait_seconds(self, failure: PenstockError) -> float:
        """Return the seconds to wait before `request` is sent.

        Raises:
            PenstockError: `failure`, where the stream cannot be resumed or the bounds are reached.
            DeadlineExceeded: The deadline would pass during the wait.
        """
        policy = self._policy
        if isinstance(failure, DeadlineExceeded) and failure.is_own:
            self._count(failure)
        if policy is None or not self._may_go_on(failure):
            raise failure
        now = time.monotonic()
        if self._attempts == 0:
            self._cut_at = now
        elif self._attempts >= policy.max_attempts or now - self._cut_at > policy.max_seconds:
            raise failure
        wait = min(policy.max_wait_seconds, policy.first_wait_seconds * 2.0**self._attempts)
        wait = max(wait * random.uniform(0.5, 1.0), failure.retry_after_seconds or 0.0)
        if self._attempts == 0 and self._drained is None:
            wait = 0.0  # The connection may be cut while the server is well.
        left = self.seconds_left
        if left is not None and left <= wait:
            passed = DeadlineExceeded(
                "the deadline passed while the connection was lost", code=grpc.StatusCode.DEADLINE_EXCEEDED
            )
            self._count(passed)
            raise passed from failure
        _log.info("connection lost (%s); resuming in %.2f s", failure.message.partition("\n")[0][:100], wait)
        self.reconnections += self._attempts == 0  # count lost connections, not attempts
        self._attempts += 1
        return wait

    def _count(self, passed: DeadlineExceeded) -> None:
        candidates = self._reader.response.candidates
        passed.count(
            sum(one.reasoning_tokens for one in candidates),
            sum(one.answer_tokens for one in candidates),
            sum(one.tool_tokens for one in candidates),
        )

    def _may_go_on(self, failure: PenstockError) -> bool:
        if isinstance(failure, BrokenStream):
            return failure.is_cut_short and self.has_token
        if self._drained is not None:
            # Any server that shares the key will do, and the next attempt may reach one.
            return isinstance(failure, Unavailable | Overloaded) or self._is_cut(failure)
        return self.has_token and (self._is_cut(failure) or failure.reason == "DRAINING")

    @staticmethod
    def _is_cut(failure: PenstockError) -> bool:
        return failure.code in _CUT and not failure.reason

    @property
    def has_token(self) -> bool:
        """Whether a resume token came, which can resume or end the generation."""
        return self._drained is not None or bool(self._reader.response.resume_token)

    def cancel_request(self) -> pb.CancelRequest:
        """Return the request that ends the generation on the server where it runs."""
        request = self.request()
        return pb.CancelRequest(generation_id=request.generation_id, resume_token=request.resume_token)

    def place(self) -> tuple[str, str]:
        """Return the generation's id and token. Raise RuntimeError where there is no token."""
        if not self.has_token:
            raise RuntimeError(
                "the stream has no resume token: read its first event, and start it with resumable=True; "
                "`interact` starts one that can be steered without"
            )
        request = self.request()
        return request.generation_id, request.resume_token

    def request(self) -> pb.ResumeRequest:
        """Return the request that resumes the stream after its newest event."""
        response, drained = self._reader.response, self._drained
        return pb.ResumeRequest(
            generation_id=response.generation_id,
            resume_token=drained.finished.resume_token if drained is not None else response.resume_token,
            last_sequence=drained.sequence if drained is not None else self._reader.last_sequence,
        )
