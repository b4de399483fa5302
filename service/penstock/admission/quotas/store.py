"""Choose the stores of quotas that the configuration names."""

from __future__ import annotations

from penstock.admission.quotas.days import SqliteDailyBudget
from penstock.admission.quotas.quotas import Quotas
from penstock.config.security import QuotaSettings
from penstock.errors import ConfigError


def quotas_of(settings: QuotaSettings) -> Quotas:
    """Return the quotas of this server.

    Raises:
        ConfigError: The counts cannot be kept where the configuration wants them.
    """
    if settings.redis_url:
        try:
            from penstock.admission.quotas.redis_store import RedisDailyBudget, RedisTokenBucketLimiter, connect
        except ModuleNotFoundError as error:
            raise ConfigError("quotas.redis_url needs the package redis: pip install 'penstock[redis]'") from error
        client = connect(settings)
        return Quotas(RedisTokenBucketLimiter(client), RedisDailyBudget(client))
    return Quotas(daily_budget=SqliteDailyBudget(settings.daily_file) if settings.daily_file is not None else None)
