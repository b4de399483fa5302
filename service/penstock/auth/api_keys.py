"""Make, store and verify API keys of the form `penstock_<id>_<secret>`. Only SHA-256 of the whole key is stored.

A plain hash is enough: the secret is 256 random bits, which no dictionary holds, and a slow hash would let strangers
keep the service busy. The id finds the entry and the hashes are compared in constant time; an unknown id takes as long.
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
    """Define the JSON file that `penstock keys` writes."""

    keys: tuple[ApiKey, ...] = ()


class ApiKeyStore:
    """Hold the valid API keys by id."""

    def __init__(self, keys: Iterable[ApiKey] = ()) -> None:
        self._keys: Mapping[str, ApiKey] = {key.id: key for key in keys}

    def find(self, shown: str, now: datetime) -> ApiKey | None:
        """Return the entry of a key; None where it is unknown, wrong or expired, without telling which.

        Args:
            shown: The bearer token that the caller sent.
            now: Time of the call, for keys that expire.
        """
        match = _KEY.fullmatch(shown)
        key = self._keys.get(match[1]) if match else None
        is_right = hmac.compare_digest(digest(shown), key.sha256 if key else _NO_HASH)
        if key is None or not is_right or (key.expires is not None and key.expires <= now):
            return None
        return key


def digest(key: str) -> str:
    """Return the hexadecimal SHA-256 of a whole key."""
    return hashlib.sha256(key.encode()).hexdigest()


def looks_like_key(token: str) -> bool:
    """Return whether a bearer token has the prefix of API keys."""
    return token.startswith(PREFIX)


def make(caller: str, lifetime: timedelta | None = None) -> tuple[str, ApiKey]:
    """Return a new key and its entry. The key itself is stored nowhere.

    Args:
        caller: Id of the caller that the key is for.
        lifetime: Time until the key expires; None for never.
    """
    identity, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
    key, now = f"{PREFIX}{identity}_{secret}", datetime.now(UTC).replace(microsecond=0)
    expires = None if lifetime is None else now + lifetime
    return key, ApiKey(id=identity, caller=caller, sha256=digest(key), created=now, expires=expires)


def parse(name: str, text: str) -> tuple[ApiKey, ...]:
    """Return the entries of a key file; an empty file has none.

    Args:
        name: The file's name, for errors.
        text: The file's content, which is never repeated in errors.

    Raises:
        ConfigError: The text is not JSON, has an invalid entry, or has an id twice.
    """
    if not text.strip():
        return ()
    try:
        keys = KeyFile.model_validate(json.loads(text)).keys
    except ValidationError as error:
        places = sorted({".".join(map(str, problem["loc"])) or "the whole file" for problem in error.errors()})
        raise ConfigError(
            f"auth.keys_file: {name}: invalid at {', '.join(places)}; use `penstock keys` to write this file"
        ) from None
    except ValueError:
        raise ConfigError(f"auth.keys_file: {name} is not JSON; use `penstock keys` to write this file") from None
    ids = [key.id for key in keys]
    if twice := sorted({one for one in ids if ids.count(one) > 1}):
        raise ConfigError(f"auth.keys_file: {name}: duplicate ids: {', '.join(twice)}")
    return keys


def to_text(keys: Iterable[ApiKey]) -> str:
    """Return the content of a key file with these entries, as `parse` reads it."""
    entries = [key.model_dump(mode="json", exclude_none=True) for key in keys]
    return json.dumps({"keys": entries}, indent=2) + "\n"
