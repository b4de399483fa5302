"""Count in Redis, for replicas that share limits. Each decision is one script, so that it is atomic.

Redis' own clock is used, so that replicas need not agree on the time. While Redis cannot be reached no call is
admitted: a limit must also hold while something fails.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, TypeVar, cast

import redis.asyncio as redis

from penstock.config.reload import read_text
from penstock.config.security import QuotaSettings
from penstock.errors import ConfigError, Overloaded

T = TypeVar("T")
_TIMEOUT_SECONDS = 2.0
_PREFIX = "penstock:quota:"
# A day is kept for as long as calls of that day may still settle.
_DAY_KEPT_SECONDS = 3 * 24 * 3600
_BUCKET_KEPT_MS = 3600 * 1000

# KEYS: bucket. ARGV: per minute, amount, owing. Returns the milliseconds to wait and what is left.
_TAKE = """
local per_minute, amount, owing = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3] == '1'
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local bucket = redis.call('HMGET', KEYS[1], 'level', 'at')
local level = tonumber(bucket[1]) or per_minute
level = math.min(per_minute, level + (now - (tonumber(bucket[2]) or now)) * per_minute / 60000)
local missing = math.min(amount, per_minute) - level
if not owing and missing > 0 then
    return {math.ceil(missing * 60000 / per_minute), math.floor(level)}
end
level = level - amount
redis.call('HSET', KEYS[1], 'level', level, 'at', now)
redis.call('PEXPIRE', KEYS[1], tonumber(ARGV[4]) + math.ceil(math.max(0, -level) * 60000 / per_minute))
return {0, math.floor(level)}
"""
# A caller's day is one hash: `ticks` is the cost, reservations included; `call:<id>` is the reservation of a call in
# flight. Each of the two scripts may therefore be sent again after a lost answer: it counts once.
# KEYS: the day. ARGV: call, ticks, most, seconds to keep. Amounts stay below 2^53.
_RESERVE = """
local call = 'call:' .. ARGV[1]
local known = redis.call('HGET', KEYS[1], call)
if known then return known == 'settled' and 0 or 1 end
if tonumber(redis.call('HGET', KEYS[1], 'ticks') or '0') + tonumber(ARGV[2]) > tonumber(ARGV[3]) then return 0 end
redis.call('HINCRBY', KEYS[1], 'ticks', ARGV[2])
redis.call('HSET', KEYS[1], call, ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[4])
return 1
"""
# KEYS: the day. ARGV: call, ticks used minus ticks reserved, seconds to keep. Where nothing is reserved the call is
# marked as settled, so that a reservation which arrives later is refused.
_SETTLE = """
local call = 'call:' .. ARGV[1]
local known = redis.call('HGET', KEYS[1], call)
if known == 'settled' then return 0 end
if known then
    redis.call('HDEL', KEYS[1], call)
    redis.call('HINCRBY', KEYS[1], 'ticks', ARGV[2])
    return 1
end
redis.call('HSET', KEYS[1], call, 'settled')
redis.call('EXPIRE', KEYS[1], ARGV[3])
return 0
"""


def connect(settings: QuotaSettings) -> redis.Redis:
    """Return a client, which connects when it is first used.

    Raises:
        ConfigError: The password file cannot be read, or the URL is invalid.
    """
    path = settings.redis_password_file
    password = None if path is None else read_text("quotas.redis_password_file", path).strip()
    try:
        return redis.Redis.from_url(
            settings.redis_url,
            password=password,
            socket_timeout=_TIMEOUT_SECONDS,
            socket_connect_timeout=_TIMEOUT_SECONDS,
        )
    except ValueError as error:
        raise ConfigError(f"quotas.redis_url: {error}") from error


async def _asked(answer: Awaitable[T]) -> T:
    try:
        return await answer
    except (redis.RedisError, OSError) as error:
        raise Overloaded(
            "quota counts cannot be reached; retry later", resource="quota_counts", retry_after_seconds=1.0
        ) from error


class RedisTokenBucketLimiter:
    """Keep token buckets in Redis; each expires an hour after it was last used."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._script: Any = client.register_script(_TAKE)

    async def _run(self, caller: str, kind: str, per_minute: int, amount: int, *, owing: bool) -> tuple[int, int]:
        arguments = [per_minute, amount, int(owing), _BUCKET_KEPT_MS]
        answer = await _asked(self._script(keys=[f"{_PREFIX}{kind}:{caller}"], args=arguments))
        return cast("tuple[int, int]", answer)

    async def acquire(self, caller: str, kind: str, per_minute: int, amount: int, *, owing: bool) -> float:
        """Take `amount` from a caller's bucket; see `TokenBucketLimiter.acquire`."""
        return (await self._run(caller, kind, per_minute, amount, owing=owing))[0] / 1000

    async def left(self, caller: str, kind: str, per_minute: int) -> int:
        """Return what may be taken now; at least 0."""
        return max(0, (await self._run(caller, kind, per_minute, 0, owing=True))[1])

    async def close(self) -> None:
        """Close the connection."""
        await self._client.aclose()


class RedisDailyBudget:
    """Keep cost per caller and day in Redis; a day expires after three days."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._reserve: Any = client.register_script(_RESERVE)
        self._settle: Any = client.register_script(_SETTLE)

    async def reserve(self, caller: str, day: str, call: str, ticks: int, most_ticks: int) -> bool:
        """Charge the worst-case cost of a call; see `DailyBudget.reserve`."""
        arguments = [call, ticks, most_ticks, _DAY_KEPT_SECONDS]
        return bool(await _asked(self._reserve(keys=[_key(caller, day)], args=arguments)))

    async def settle(self, caller: str, day: str, call: str, reserved_ticks: int, used_ticks: int) -> None:
        """Refund what a call did not use; see `DailyBudget.settle`."""
        arguments = [call, used_ticks - reserved_ticks, _DAY_KEPT_SECONDS]
        await _asked(self._settle(keys=[_key(caller, day)], args=arguments))

    async def spent(self, caller: str, day: str) -> int:
        """Return the cost of a day, reservations included."""
        return int(await _asked(cast("Awaitable[Any]", self._client.hget(_key(caller, day), "ticks"))) or 0)

    async def close(self) -> None:
        """Close the connection."""
        await self._client.aclose()


def _key(caller: str, day: str) -> str:
    return f"{_PREFIX}spent:{day}:{caller}"
