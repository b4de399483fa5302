"""What keeps one caller's requests from another's: pure."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

from penstock.auth.identity import Principal
from penstock.errors import CallerNotAllowed
from penstock.types import Priority, Request


def own_prefixes(request: Request, caller: Principal) -> Request:
    """The request in a part of the prefix cache that no other caller reads: how fast it is answered tells nobody what
    somebody else has asked. Callers that nobody knows share one."""
    if not caller.is_known:
        return request
    salt = hashlib.sha256(json.dumps([caller.id, request.context.cache_salt]).encode()).hexdigest()
    return replace(request, context=replace(request.context, cache_salt=salt))


def class_of(asked: Priority | None, caller: Principal) -> Priority:
    """The class of a call that asks for one, or (None) for none. Raises CallerNotAllowed above the caller's highest."""
    highest = caller.limits.max_priority
    if asked is None:
        return Priority.NORMAL if highest.value >= Priority.NORMAL.value else highest
    if asked.value > highest.value:
        raise CallerNotAllowed(
            f"this caller's calls are at most of priority {highest.name}", field="spec.priority", highest=highest.name
        )
    return asked
