"""Remember which runs were on an engine when it died, and what each had given, until they are known to be harmless."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

from penstock.engine.probation import Death, Note, Run
from penstock.types import Accountable, EngineRequest

MAX_ALONE = 8
"""Settled runs that start one at a time after a death, those that had given the fewest tokens, less the suspects. The
oldest of each of their kinds does so too."""
MAX_NOTED = 32
"""Settled runs that are noted at a death. One that had given more tokens than so many others is an unlikely cause."""
_MAX_NOTES = 4096


class Notes:
    """Keep the notes of the last 4,096 candidates for `seconds`. Lives on one event loop."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._notes: OrderedDict[str, Note] = OrderedDict()

    def record(self, runs: Iterable[Run], death: Death) -> None:
        """Note the runs that were on the engine at this death: all suspects, and the youngest of the others."""
        ordered = sorted(runs, key=lambda run: (not run.is_suspect, run.tokens))
        suspects = sum(run.is_suspect for run in ordered)
        until = time.monotonic() + self._seconds
        noted = ordered[: suspects + MAX_NOTED]
        ranks = _ranks(noted, max(suspects, MAX_ALONE))
        for run in ordered:
            self._notes.pop(run.candidate, None)
        # In reverse: of a candidate and its probe the one that had given fewer tokens is noted.
        for run in reversed(noted):
            before = run.note.deaths if run.note is not None and run.is_suspect else ()
            self._notes[run.candidate] = Note(
                place=run.tokens,
                margin=run.margin,
                deaths=(*before, death),
                suspected=run.is_suspect,
                settled=run.settled,
                rank=ranks.get(run, math.inf),
                who=run.request.accountable,
                until=until,
            )
        while len(self._notes) > _MAX_NOTES:
            self._notes.popitem(last=False)

    def of(self, request: EngineRequest) -> Note | None:
        """Return the note of the candidate that asks for this run; None without one."""
        self._forget_old()
        return self._notes.get(Run(request, alone=False).candidate)

    def take_over(self, run: Run, may_take: Callable[[Note], bool]) -> Note | None:
        """Return the note of a run of the same caller that did not go on, which this run takes over; None without one.

        Its caller may have left because of the death, or its continuation had less left to give than it had given.
        A note that this run may not take stays for the caller's next one.
        """
        who = run.request.accountable
        if who is None:
            return None
        for candidate, note in self._notes.items():
            if note.run is None and note.who is not None and note.who.caller == who.caller and may_take(note):
                del self._notes[candidate]
                self._notes[run.candidate] = note
                return note
        return None

    def drop(self, run: Run) -> None:
        """Forget the note of a run."""
        if self._notes.get(run.candidate) is run.note:
            del self._notes[run.candidate]

    def convict(self, run: Run) -> tuple[Death, ...]:
        """Return the deaths that this run was the cause of. Only runs of the same caller stay suspected of them.

        Those of the same kind are then expected to kill at the same place of a run.
        """
        deaths = run.note.deaths if run.note is not None else ()
        who = run.request.accountable
        self._notes.pop(run.candidate, None)
        for candidate, note in list(self._notes.items()):
            same = who is not None and note.who is not None and note.who.caller == who.caller
            if not same and set(note.deaths) <= set(deaths):
                del self._notes[candidate]
            elif note.who == who and run.settled:
                note.place, note.margin = run.tokens, run.margin
        return deaths

    def _forget_old(self) -> None:
        now = time.monotonic()
        while self._notes and next(iter(self._notes.values())).until <= now:
            self._notes.popitem(last=False)


def _ranks(noted: Sequence[Run], count: int) -> dict[Run, int]:
    """Return the order of those that start alone: the first `count`, and of each of their kinds the oldest.

    Those of one kind start in turn, first the one with the most tokens: where all of them kill at the same place of a
    run, it was the first one there.
    """
    kinds: dict[Accountable | Run, list[Run]] = {}
    for run in noted[:count]:
        kinds.setdefault(run.request.accountable or run, []).append(run)
    oldest = {run.request.accountable or run: run for run in sorted(noted, key=lambda run: run.tokens)}
    for kind, runs in kinds.items():
        if oldest[kind] not in runs:
            runs.append(oldest[kind])
    ordered = (run for kind in kinds.values() for run in sorted(kind, key=lambda run: -run.tokens))
    return {run: rank for rank, run in enumerate(ordered)}
