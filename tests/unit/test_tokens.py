"""Tokens of an issuer: which are good, keys that rotate, and an issuer that is asked no more than it must be."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm
from penstock.auth import jwt as tokens_module
from penstock.auth.api_keys import make
from penstock.auth.authenticator import Authenticator
from penstock.auth.jwt import JwtVerifier
from penstock.config.security import AuthSettings, JwtSettings
from penstock.errors import CallerUnknown, ConfigError

from tests.clock import stopped

RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC = ec.generate_private_key(ec.SECP256R1())
OTHER = ec.generate_private_key(ec.SECP256R1())
ISSUER = "https://login.example.com/"
GENERATE = "/penstock.v1.GenerationService/Generate"


def jwks(**keys: Any) -> dict[str, Any]:
    made = []
    for kid, key in keys.items():
        algorithm: Any = RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else ECAlgorithm
        made.append(algorithm.to_jwk(key.public_key(), as_dict=True) | {"kid": kid, "use": "sig"})
    return {"keys": made}


def token(key: Any = EC, kid: str | None = "e1", algorithm: str = "ES256", **claims: Any) -> str:
    now = time.time()
    body = {"iss": ISSUER, "aud": "penstock", "sub": "alice", "iat": now, "exp": now + 60} | claims
    body = {name: value for name, value in body.items() if value is not None}
    return jwt.encode(body, key, algorithm=algorithm, headers={"kid": kid} if kid else None)


@pytest.fixture
def from_file(tmp_path: Path) -> JwtVerifier:
    (tmp_path / "jwks.json").write_text(json.dumps(jwks(e1=EC, r1=RSA)))
    return JwtVerifier(JwtSettings(issuer=ISSUER, audience="penstock", jwks_file=tmp_path / "jwks.json"))


async def test_good_tokens_name_their_caller(from_file: JwtVerifier) -> None:
    assert await from_file.verify(token()) == "alice"
    assert await from_file.verify(token(RSA, "r1", "RS256", sub="bob", aud=["x", "penstock"])) == "bob"
    assert await from_file.verify(token(exp=time.time() - 10)) == "alice", "clocks may differ by the leeway"


HMAC = "0" * 64


@pytest.mark.parametrize(
    "bad",
    [
        token(aud="another"),
        token(aud=None),
        token(iss="https://evil.example.com/"),
        token(exp=time.time() - 120),
        token(exp=None),
        token(nbf=time.time() + 300),
        token(sub=None),
        token(sub=""),
        token(sub="x" * 5000),
        token(OTHER),
        token(kid="nobody"),
        token(kid=None),
        token(RSA, "e1", "RS256"),
        token(RSA, "r1", "RS512"),
        token(RSA, "r1", "PS256"),
        token(HMAC, "e1", "HS256"),
        jwt.encode({"sub": "alice"}, None, algorithm="none"),
        token()[:-4] + "AAAA",
        "a.b.c",
        "x" * 100_000,
    ],
)
async def test_bad_tokens_are_refused(from_file: JwtVerifier, bad: str) -> None:
    with pytest.raises(CallerUnknown):
        await from_file.verify(bad)


async def test_a_key_of_an_algorithm_that_is_not_allowed_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "jwks.json").write_text(json.dumps(jwks(r1=RSA)))
    strict = JwtVerifier(
        JwtSettings(issuer=ISSUER, audience="penstock", jwks_file=tmp_path / "jwks.json", algorithms=("ES256",))
    )
    with pytest.raises(CallerUnknown):
        await strict.verify(token(RSA, "r1", "RS256"))


class Issuer:
    """Publishes what a test puts into `pages`, and counts."""

    def __init__(self) -> None:
        self.pages: dict[str, Any] = {}
        self.asked: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                page = outer.pages.get(self.path)
                self.send_response(302 if isinstance(page, str) else 200 if page is not None else 404)
                if isinstance(page, str):
                    self.send_header("Location", page)
                self.end_headers()
                self.wfile.write(json.dumps(page).encode())

            def log_message(self, *args: Any) -> None: ...

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    made = Issuer()
    thread = threading.Thread(target=made.server.serve_forever)
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


async def test_keys_are_fetched_once_kept_and_asked_for_again_when_they_rotate(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = stopped(monkeypatch, tokens_module)
    issuer.pages["/keys"] = jwks(e1=EC)
    settings = JwtSettings(issuer=ISSUER, audience="penstock", jwks_url=f"{issuer.url}/keys")
    tokens = JwtVerifier(settings, least_seconds=10.0)
    for _ in range(5):
        await tokens.verify(token())
    assert len(issuer.asked) == 1
    issuer.pages["/keys"] = jwks(e2=OTHER)
    for _ in range(20):  # made-up key ids do not make us ask each time
        with pytest.raises(CallerUnknown):
            await tokens.verify(token(kid="made-up"))
    assert len(issuer.asked) == 1
    clock.now += 11
    assert await tokens.verify(token(OTHER, "e2")) == "alice"
    with pytest.raises(CallerUnknown):
        await tokens.verify(token())
    issuer.pages.clear()
    clock.now += 11
    with pytest.raises(CallerUnknown):
        await tokens.verify(token(kid="e3"))
    assert await tokens.verify(token(OTHER, "e2")) == "alice", "an issuer that is away takes no key with it"


@pytest.mark.parametrize("kid", ["e1", None])
async def test_known_keys_verify_while_a_fetch_hangs_and_strangers_share_one_fetch(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch, kid: str | None
) -> None:
    monkeypatch.setattr("penstock.auth.jwt._MAX_WAIT_SECONDS", 60.0)
    issuer.pages["/keys"] = jwks(e1=EC)
    settings = JwtSettings(issuer=ISSUER, audience="penstock", jwks_url=f"{issuer.url}/keys", cache_seconds=1e-9)
    tokens = JwtVerifier(settings, least_seconds=0)
    assert await tokens.verify(token(kid=kid)) == "alice"
    hangs, fetch, fetches = threading.Event(), tokens._fetch, 0

    def slow_fetch() -> Any:
        nonlocal fetches
        fetches += 1
        hangs.wait(60)
        return fetch()

    monkeypatch.setattr(tokens, "_fetch", slow_fetch)
    try:
        strangers = [asyncio.create_task(tokens.verify(token(OTHER, "e2"))) for _ in range(50)]
        await asyncio.sleep(0)
        async with asyncio.timeout(30):
            for _ in range(50):
                assert await tokens.verify(token(kid=kid)) == "alice", "stale keys serve"
                with pytest.raises(CallerUnknown):
                    await tokens.verify(token(OTHER, kid))
        assert not any(stranger.done() for stranger in strangers)
        issuer.pages["/keys"] = jwks(e1=EC, e2=OTHER)
        hangs.set()
        assert await asyncio.gather(*strangers) == ["alice"] * 50
        assert fetches == 1
        hangs.clear()
        monkeypatch.setattr("penstock.auth.jwt._MAX_WAIT_SECONDS", 0.01)
        for _ in range(3):
            with pytest.raises(CallerUnknown):
                await tokens.verify(token(kid="made-up"))
        assert fetches == 2, "nobody waits for longer, and nobody starts another one"
    finally:
        hangs.set()
    while tokens._fetching is not None:
        await asyncio.wait({tokens._fetching})


async def test_a_single_key_that_is_replaced_is_fetched_for_tokens_without_a_key_id(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = stopped(monkeypatch, tokens_module)
    issuer.pages["/keys"] = jwks(e1=EC)
    tokens = JwtVerifier(JwtSettings(issuer=ISSUER, audience="penstock", jwks_url=f"{issuer.url}/keys"))
    assert await tokens.verify(token(kid=None)) == "alice"
    issuer.pages["/keys"] = jwks(e2=OTHER)
    clock.now += 11
    for _ in range(20):
        with pytest.raises(CallerUnknown):
            await tokens.verify(token(OTHER, None))
    while tokens._fetching is not None:
        await asyncio.wait({tokens._fetching})
    assert await tokens.verify(token(OTHER, None)) == "alice"
    with pytest.raises(CallerUnknown):
        await tokens.verify(token(kid=None))
    assert len(issuer.asked) == 2


async def test_an_issuer_that_fails_is_asked_after_growing_waits(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("penstock.auth.jwt.time", SimpleNamespace(monotonic=lambda: now))
    settings = JwtSettings(issuer=ISSUER, audience="penstock", jwks_url=f"{issuer.url}/keys")
    tokens, asked_at = JwtVerifier(settings, least_seconds=10), []
    for _ in range(200):
        with pytest.raises(CallerUnknown):
            await tokens.verify(token())
        if len(issuer.asked) > len(asked_at):
            asked_at.append(now)
        now += 1
    assert [later - at for at, later in itertools.pairwise(asked_at)] == [20, 40, 60, 60]


async def test_discovery_finds_the_keys_and_believes_no_other_issuer_and_no_redirect(issuer: Issuer) -> None:
    tokens = JwtVerifier(JwtSettings(issuer=issuer.url, audience="penstock"), least_seconds=0)
    good = token(iss=issuer.url)
    page = {"issuer": ISSUER, "jwks_uri": f"{issuer.url}/keys"}
    issuer.pages |= {"/.well-known/openid-configuration": page, "/keys": jwks(e1=EC)}
    with pytest.raises(CallerUnknown):
        await tokens.verify(good)
    page |= {"issuer": issuer.url, "jwks_uri": "http://keys.example.com/"}
    with pytest.raises(CallerUnknown):
        await tokens.verify(good)
    page["jwks_uri"] = f"{issuer.url}/moved"
    issuer.pages["/moved"] = f"{issuer.url}/keys"
    with pytest.raises(CallerUnknown):
        await tokens.verify(good)
    page["jwks_uri"] = f"{issuer.url}/keys"
    assert await tokens.verify(good) == "alice"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"issuer": ISSUER}, "must be set together"),
        ({"issuer": "http://login.example.com", "audience": "p"}, "https"),
        ({"issuer": ISSUER, "audience": "p", "jwks_url": "file:///etc/passwd"}, "https"),
        ({"issuer": ISSUER, "audience": "p", "algorithms": ["HS256"]}, "algorithms"),
    ],
)
def test_unsafe_settings_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        JwtSettings.model_validate(settings)


async def test_subjects_are_listed_callers_or_their_own_and_keys_still_work(tmp_path: Path) -> None:
    (tmp_path / "jwks.json").write_text(json.dumps(jwks(e1=EC)))
    (tmp_path / "callers.toml").write_text('[callers.team-a]\nsubjects = ["alice"]\npermissions = ["generate"]\n')
    key, entry = make("team-b")
    authenticator = Authenticator(
        AuthSettings(callers_file=tmp_path / "callers.toml", keys=(entry,)),
        JwtSettings(issuer=ISSUER, audience="penstock", jwks_file=tmp_path / "jwks.json"),
    )
    ids = []
    for shown in (token(), token(sub="auth0|7"), token(sub="team-b"), key):
        caller = await authenticator.authenticate(GENERATE, [("authorization", f"Bearer {shown}")])
        assert caller is not None
        ids.append((caller.id, caller.label))
    assert ids[0] == ("team-a", "team-a")
    assert ids[1][0].startswith("jwt:sha256-")
    assert ids[2] == ("jwt:team-b", "jwt")
    assert ids[3] == ("team-b", "team-b")


def test_a_file_that_is_no_key_set_is_named(tmp_path: Path) -> None:
    for text in ("{}", "[]", "hello", '{"keys": []}', '{"keys": [{"kty": "x"}]}'):
        (tmp_path / "jwks.json").write_text(text)
        with pytest.raises(ConfigError, match="not a JWK set"):
            JwtVerifier(JwtSettings(issuer=ISSUER, audience="p", jwks_file=tmp_path / "jwks.json"))
