"""API keys: `penstock_<id>_<secret>`. The service keeps only SHA-256 of the whole key.

A plain hash is enough because the secret is 256 random bits, which no dictionary holds; a slow one would be a way to
keep the service busy. The id finds the entry, the hash is compared in constant time, an unknown id costs the same.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta

from pydantic import ValidationError

from penstock.config.base import Section
from penstock.config.security import ApiKey
from penstock.errors import ConfigError

PREFIX = "penstock_"
_KEY = re.compile(r"penstock_([0-9a-f]{8,32})_[A-Za-z0-9_-]{43}")
_NO_HASH = "0" * 64


class KeyFile(Section):
    """The file that `penstock keys` writes: JSON."""

    keys: tuple[ApiKey, ...] = ()


class ApiKeyStore:
    """All keys that are good, by id."""

    def __init__(self, keys: Iterable[ApiKey] = ()) -> None:
        self._keys: Mapping[str, ApiKey] = {key.id: key for key in keys}

    def find(self, shown: str, now: datetime) -> ApiKey | None:
        """The entry of the key that was shown; None where it is unknown, wrong or expired: which one is not told."""
        match = _KEY.fullmatch(shown)
        key = self._keys.get(match[1]) if match else None
        is_right = hmac.compare_digest(digest(shown), key.sha256 if key else _NO_HASH)
        if key is None or not is_right or (key.expires is not None and key.expires <= now):
            return None
        return key


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def looks_like_key(token: str) -> bool:
    return token.startswith(PREFIX)


def make(caller: str, lifetime: timedelta | None = None) -> tuple[str, ApiKey]:
    """A new key and its entry. The key itself is nowhere else."""
    identity, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
    key, now = f"{PREFIX}{identity}_{secret}", datetime.now(UTC).replace(microsecond=0)
    expires = None if lifetime is None else now + lifetime
    return key, ApiKey(id=identity, caller=caller, sha256=digest(key), created=now, expires=expires)


def parse(name: str, text: str) -> tuple[ApiKey, ...]:
    """The entries of a key file; an empty file has none. Raises ConfigError without ever repeating its content."""
    if not text.strip():
        return ()
    try:
        keys = KeyFile.model_validate(json.loads(text)).keys
    except ValidationError as error:
        places = sorted({".".join(map(str, problem["loc"])) or "the whole" for problem in error.errors()})
        raise ConfigError(f"auth.keys_file: {name}: wrong at {', '.join(places)}; `penstock keys` writes it") from None
    except ValueError:
        raise ConfigError(f"auth.keys_file: {name} is not JSON; `penstock keys` writes it") from None
    ids = [key.id for key in keys]
    if twice := sorted({one for one in ids if ids.count(one) > 1}):
        raise ConfigError(f"auth.keys_file: {name}: the ids {', '.join(twice)} are there twice")
    return keys


def to_text(keys: Iterable[ApiKey]) -> str:
    """What `parse` reads."""
    entries = [key.model_dump(mode="json", exclude_none=True) for key in keys]
    return json.dumps({"keys": entries}, indent=2) + "\n"
