"""Keep the requests of one caller apart from those of others."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

from penstock.auth.identity import Principal
from penstock.errors import CallerNotAllowed
from penstock.types import Priority, Request


def own_prefixes(request: Request, caller: Principal) -> Request:
    """Return the request with a cache salt of its caller, so that no other caller shares its prefix cache entries.

    Response times then tell nobody what others have asked. Anonymous callers share one part of the cache.
    """
    if not caller.is_known:
        return request
    salt = hashlib.sha256(json.dumps([caller.id, request.context.cache_salt]).encode()).hexdigest()
    return replace(request, context=replace(request.context, cache_salt=salt))


def class_of(asked: Priority | None, caller: Principal) -> Priority:
    """Return the priority of a call.

    Args:
        asked: The priority that the request names; None where it names none.
        caller: The principal, with the highest priority that it may use.

    Raises:
        CallerNotAllowed: `asked` is above the caller's highest priority.
    """
    highest = caller.limits.max_priority
    if asked is None:
        return Priority.NORMAL if highest.value >= Priority.NORMAL.value else highest
    if asked.value > highest.value:
        raise CallerNotAllowed(
            f"priority {asked.name} is not allowed for this caller, at most {highest.name} is",
            field="spec.priority",
            highest=highest.name,
        )
    return asked
