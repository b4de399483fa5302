"""Verify JSON web tokens of an OpenID Connect issuer: signature, issuer, audience and lifetime.

The issuer's keys come from a file or a URL. Keys from a URL are cached, and fetched again in the background while
verification goes on with the cached ones. Only a token with an unknown key id waits for a fetch: one fetch for all such
tokens, at most once every `least_seconds`, so that invented key ids do not make this server flood the issuer. A token
without a key id, where the issuer has a single key, is refused at once where its signature is wrong, and the keys are
fetched for the next one. While the issuer cannot be reached, the cached keys stay valid and the waits between fetches
grow.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
import urllib.request
from typing import Any

import jwt

from penstock.config.reload import ReloadableFiles, read_text
from penstock.config.security import JwtSettings, is_safe_url
from penstock.errors import CallerUnknown, ConfigError

log = logging.getLogger(__name__)
_FETCH_SECONDS = 5.0
# Longest wait of a token with an unknown key for a fetch, and longest pause after failed fetches.
_MAX_WAIT_SECONDS = 5.0
_MAX_BACKOFF_SECONDS = 60.0
_MAX_BYTES = 1024 * 1024
_MAX_TOKEN_BYTES = 16 * 1024
_MAX_NAME_CHARS = 1024


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Refuse redirects: the issuer's documents are read from where the operator configured, or not at all."""

    def redirect_request(self, *args: Any) -> None:
        return None


class JwtVerifier:
    """Verify tokens against the issuer's keys.

    Attributes:
        files: Files that are reloaded while serving.
    """

    def __init__(self, settings: JwtSettings, *, least_seconds: float = 10.0) -> None:
        self._settings = settings
        self._least_seconds = least_seconds
        self._keys: dict[str, jwt.PyJWK] = {}
        self._fetched_at = self._next_fetch_at = -math.inf
        self._failures = 0
        self._fetching: asyncio.Task[None] | None = None
        self.files: list[ReloadableFiles] = []
        if settings.jwks_file is not None:
            self.files.append(ReloadableFiles((settings.jwks_file,), self._load_file))

    def _load_file(self) -> None:
        path = self._settings.jwks_file
        assert path is not None
        try:
            self._keys = _parse(read_text("jwt.jwks_file", path))
        except ValueError as error:
            raise ConfigError(f"jwt.jwks_file: {path} is not a JWK set with usable signature keys") from error

    async def verify(self, token: str) -> str:
        """Return the caller's name: the value of the configured claim.

        Raises:
            CallerUnknown: The token is invalid. The message does not tell why.
        """
        try:
            if len(token) > _MAX_TOKEN_BYTES:
                raise jwt.InvalidTokenError
            key_id = str(jwt.get_unverified_header(token).get("kid", ""))
            key = await self._key(key_id)
            # The key determines the algorithm: a token must not choose it.
            claims = jwt.decode(
                token,
                key,
                algorithms=[one for one in self._settings.algorithms if one == key.algorithm_name],
                audience=self._settings.audience,
                issuer=self._settings.issuer,
                leeway=self._settings.leeway_seconds,
                options={"require": ["exp", "iss", "aud", self._settings.claim]},
            )
        except jwt.PyJWTError as error:
            if isinstance(error, jwt.InvalidSignatureError) and not key_id and self._settings.jwks_file is None:
                self._fetch_in_background()  # the single key may have been replaced: no key id tells
            log.debug("JWT refused: %s", type(error).__name__)
            raise CallerUnknown("invalid token") from None
        name = claims[self._settings.claim]
        if not isinstance(name, str) or not 0 < len(name) <= _MAX_NAME_CHARS:
            raise CallerUnknown("invalid token")
        return name

    async def _key(self, key_id: str) -> jwt.PyJWK:
        key = self._cached(key_id)
        is_stale = time.monotonic() - self._fetched_at > self._settings.cache_seconds
        if self._settings.jwks_file is None and (key is None or is_stale):
            fetching = self._fetch_in_background()
            if fetching is not None and key is None:
                await asyncio.wait({fetching}, timeout=_MAX_WAIT_SECONDS)
                key = self._cached(key_id)
        if key is None:
            raise jwt.InvalidKeyError
        return key

    def _cached(self, key_id: str) -> jwt.PyJWK | None:
        # An issuer with a single key need not send a key id.
        if not key_id and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        return self._keys.get(key_id)

    def _fetch_in_background(self) -> asyncio.Task[None] | None:
        """Return the running fetch or a new one; None where the issuer was asked too recently."""
        if self._fetching is None and time.monotonic() >= self._next_fetch_at:
            self._fetching = asyncio.create_task(self._refresh())
        return self._fetching

    async def _refresh(self) -> None:
        began = time.monotonic()
        try:
            self._keys = await asyncio.to_thread(self._fetch)
            self._fetched_at, self._failures = began, 0
        except Exception as error:
            self._failures += 1
            log.error("fetch of the JWT keys of %s failed: %s", self._settings.issuer, type(error).__name__)
        finally:
            wait = self._least_seconds * 2 ** min(self._failures, 10)
            # Counted from the end of the fetch, so that a fetch that hangs is not followed by another one at once.
            self._next_fetch_at = time.monotonic() + min(wait, max(self._least_seconds, _MAX_BACKOFF_SECONDS))
            self._fetching = None

    def _fetch(self) -> dict[str, jwt.PyJWK]:
        url = self._settings.jwks_url
        if not url:
            found = json.loads(_get(self._settings.issuer.rstrip("/") + "/.well-known/openid-configuration"))
            if not isinstance(found, dict) or found.get("issuer") != self._settings.issuer:
                raise ValueError("the document belongs to another issuer")
            url = str(found.get("jwks_uri", ""))
        return _parse(_get(url))


def _get(url: str) -> str:
    if not is_safe_url(url):
        raise ValueError("the URL is not https")
    with urllib.request.build_opener(_NoRedirects).open(url, timeout=_FETCH_SECONDS) as reply:
        data: bytes = reply.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise ValueError(f"the document is larger than {_MAX_BYTES} bytes")
    return data.decode()


def _parse(text: str) -> dict[str, jwt.PyJWK]:
    """Return the signature keys of a JWK set by key id. Raise ValueError where there are none."""
    try:
        found = jwt.PyJWKSet.from_dict(json.loads(text)).keys
    except (jwt.PyJWTError, AttributeError, TypeError) as error:
        raise ValueError("not a JWK set") from error
    keys = {key.key_id or "": key for key in found if key.public_key_use in (None, "sig")}
    if not keys:
        raise ValueError("the JWK set has no signature keys")
    return keys
