"""The same counts in Redis, for replicas that share them. Each decision is one script there, so it is never torn.

Redis' own clock is used: replicas need not agree on the time. Where it cannot be reached nothing is let in: a limit
that holds only while nothing fails is none.
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
# A day's spending is of use while calls of that day may still settle.
_DAY_KEPT_SECONDS = 3 * 24 * 3600
_BUCKET_KEPT_MS = 3600 * 1000

# KEYS: bucket. ARGV: per minute, amount, owing. Returns milliseconds to wait, and what is left.
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
# A caller's day is one hash: `ticks` is what is spent or reserved, `call:<id>` what a call in flight has reserved. So
# each of the two scripts may be sent again, or after the answer to the first one was lost: it counts once.
# KEYS: the day. ARGV: call, ticks, most, seconds to keep. Numbers beyond 2^53 are no amounts of money here.
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
# KEYS: the day. ARGV: call, ticks used less ticks reserved, seconds to keep. Where nothing is reserved the call is
# marked as settled, so that a reservation which is still on its way is refused when it arrives.
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
    """Raises ConfigError for a password file that cannot be read. Connects when first asked."""
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
            "the counts of quotas cannot be reached", resource="quota_counts", retry_after_seconds=1.0
        ) from error


class RedisTokenBucketLimiter:
    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._script: Any = client.register_script(_TAKE)

    async def _run(self, caller: str, kind: str, per_minute: int, amount: int, *, owing: bool) -> tuple[int, int]:
        arguments = [per_minute, amount, int(owing), _BUCKET_KEPT_MS]
        answer = await _asked(self._script(keys=[f"{_PREFIX}{kind}:{caller}"], args=arguments))
        return cast("tuple[int, int]", answer)

    async def acquire(self, caller: str, kind: str, per_minute: int, amount: int, *, owing: bool) -> float:
        return (await self._run(caller, kind, per_minute, amount, owing=owing))[0] / 1000

    async def left(self, caller: str, kind: str, per_minute: int) -> int:
        return max(0, (await self._run(caller, kind, per_minute, 0, owing=True))[1])

    async def close(self) -> None:
        await self._client.aclose()


class RedisDailyBudget:
    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._reserve: Any = client.register_script(_RESERVE)
        self._settle: Any = client.register_script(_SETTLE)

    async def reserve(self, caller: str, day: str, call: str, ticks: int, most_ticks: int) -> bool:
        arguments = [call, ticks, most_ticks, _DAY_KEPT_SECONDS]
        return bool(await _asked(self._reserve(keys=[_key(caller, day)], args=arguments)))

    async def settle(self, caller: str, day: str, call: str, reserved_ticks: int, used_ticks: int) -> None:
        arguments = [call, used_ticks - reserved_ticks, _DAY_KEPT_SECONDS]
        await _asked(self._settle(keys=[_key(caller, day)], args=arguments))

    async def spent(self, caller: str, day: str) -> int:
        return int(await _asked(cast("Awaitable[Any]", self._client.hget(_key(caller, day), "ticks"))) or 0)

    async def close(self) -> None:
        await self._client.aclose()


def _key(caller: str, day: str) -> str:
    return f"{_PREFIX}spent:{day}:{caller}"
