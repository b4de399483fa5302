"""Remember which callers are suspected of killing the engine, and whose requests are refused; bounded, without prompts.

A request is identified by its caller and by a fingerprint of its sampling parameters and the kind of its constraint. A
conviction refuses that caller's new requests with that fingerprint; a second one, of a request that was running by
then, refuses also those that run. Convictions of several fingerprints of one caller refuse all of its new requests. A
suspicion refuses nothing: the caller's next requests run alone until they have settled (see `supervisor`). Everything
is forgotten after `seconds`.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

from penstock.errors import PoisonousRequest
from penstock.types import Accountable, Sampling, StructuredOutput

MAX_CALLERS = 4096
CONVICTIONS_FOR_ALL = 3
"""Number of convictions of one caller after which all of its requests are refused."""
_IPV6_PREFIX_BITS = 64  # The network of one customer: all addresses in it count as one caller.


@dataclass(slots=True)
class _Record:
    suspicions: int = 0
    suspected_until: float = 0.0
    convicted: dict[str, float] = field(default_factory=dict)
    convicted_again: set[str] = field(default_factory=set)


class PoisonMemory:
    """Keep suspicions and convictions of the last 4,096 callers for `seconds`. Lives on one event loop."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._records: OrderedDict[str, _Record] = OrderedDict()

    def __len__(self) -> int:
        return len(self._records)

    def suspect(self, who: Accountable) -> None:
        """Remember that an unsettled run of this caller was running when the engine died."""
        record = self._record(who.caller)
        record.suspicions = self.suspicions(who) + 1
        record.suspected_until = self._clock() + self._seconds

    def acquit(self, who: Accountable) -> None:
        """Remove one suspicion: that run has settled alone."""
        record = self._records.get(who.caller)
        if record is not None:
            record.suspicions = max(0, record.suspicions - 1)

    def suspicions(self, who: Accountable) -> int:
        """Return the number of runs of this caller that are suspected and have not settled since."""
        record = self._records.get(who.caller)
        return record.suspicions if record is not None and record.suspected_until > self._clock() else 0

    def convict(self, who: Accountable) -> None:
        """Refuse requests like this one from now on."""
        record = self._record(who.caller)
        record.suspicions = 0
        if who.fingerprint in record.convicted:
            record.convicted_again.add(who.fingerprint)
        if len(record.convicted) < CONVICTIONS_FOR_ALL or who.fingerprint in record.convicted:
            record.convicted[who.fingerprint] = self._clock() + self._seconds

    def refuse_convicted(self, who: Accountable, *, continues: bool = False) -> None:
        """Raise PoisonousRequest where this caller's requests of this kind, or all of them, are refused.

        `continues` says that the request has been running: it may be harmless, and is refused less easily.
        """
        record, now = self._records.get(who.caller), self._clock()
        if record is None or not record.convicted:
            return
        record.convicted = {key: until for key, until in record.convicted.items() if until > now}
        record.convicted_again &= record.convicted.keys()
        if continues and who.fingerprint not in record.convicted_again:
            return
        until = record.convicted.get(who.fingerprint, 0.0)
        what = "requests with these sampling parameters and this kind of constraint"
        if len(record.convicted) >= CONVICTIONS_FOR_ALL:
            until, what = max(until, min(record.convicted.values())), "requests"
        if until > now:
            left = max(1, round(until - now))
            raise PoisonousRequest(
                f"requests of this caller killed the engine; its {what} are refused for another {left} s; "
                "send none before",
                refused_for_seconds=left,
            )

    def _record(self, caller: str) -> _Record:
        record = self._records.setdefault(caller, _Record())
        self._records.move_to_end(caller)
        while len(self._records) > MAX_CALLERS:
            self._records.popitem(last=False)
        return record


def accountable(caller: str, sampling: Sampling, structured: StructuredOutput | None) -> Accountable:
    """Return who is responsible for a request. Neither the seed's value nor any text counts."""
    asked = asdict(sampling) | {"seed": sampling.seed is not None, "logit_bias": sorted(sampling.logit_bias.items())}
    kind = structured.kind.value if structured is not None else ""
    return Accountable(caller, hashlib.sha256(json.dumps([asked, kind]).encode()).hexdigest())


def network_of(peer: str) -> str:
    """Return the address of a gRPC peer, such as `ipv4:10.0.0.1:5123`, without its port; of IPv6, the network (/64)."""
    kind, _, rest = peer.partition(":")
    if kind not in ("ipv4", "ipv6"):
        return peer
    host = rest.rpartition(":")[0].replace("%5B", "[").replace("%5D", "]").strip("[]").partition("%")[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return f"{kind}:{host}"
    if address.version == 4:
        return f"ipv4:{address}"
    if address.ipv4_mapped is not None:
        return f"ipv4:{address.ipv4_mapped}"
    return f"ipv6:{ipaddress.ip_network((address, _IPV6_PREFIX_BITS), strict=False)}"
