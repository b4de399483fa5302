"""Keys, names, permissions and the files they come from."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from penstock.auth import caller_policy as listed
from penstock.auth import key_file
from penstock.auth.api_keys import ApiKeyStore, digest, make, parse, to_text
from penstock.auth.authenticator import REQUIRED_PERMISSIONS, Authenticator, required_permissions
from penstock.auth.identity import ALL_PERMISSIONS, ANONYMOUS, AuthMethod, derived_id, is_caller_id
from penstock.cli import app
from penstock.config.reload import ReloadableFiles
from penstock.config.security import AuthSettings
from penstock.errors import CallerNotAllowed, CallerUnknown, ConfigError
from penstock.sessions.checkpoints import Checkpoint, sign_checkpoint, verify_checkpoint
from penstock.sessions.streams import StreamOrigin, StreamStore
from penstock_proto.v1 import generation_pb2, model_pb2, routing_pb2
from typer.testing import CliRunner

NOW = datetime.now(UTC)
GENERATE = "/penstock.v1.GenerationService/Generate"
LOAD = "/penstock.v1.RoutingService/GetExpertLoad"


def test_a_key_opens_for_its_caller_alone_until_it_expires() -> None:
    (one, entry), (other, _) = make("team-a"), make("team-b")
    short, brief = make("team-a", timedelta(hours=1))
    store = ApiKeyStore((entry, brief))
    assert store.find(one, NOW) == entry
    assert store.find(other, NOW) is None
    assert store.find(one[:-1] + ("A" if one[-1] != "A" else "B"), NOW) is None
    assert store.find(short, NOW) == brief
    assert store.find(short, NOW + timedelta(hours=2)) is None
    assert one not in to_text((entry,))
    assert parse("f", to_text((entry, brief))) == (entry, brief)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("not json", "is not JSON"),
        ('{"keys": [{"id": "0011223344556677", "caller": "a b", "sha256": "x"}]}', "keys.0.caller, keys.0.sha256"),
        ('{"key": []}', "invalid at key"),
    ],
)
def test_a_bad_key_file_is_told_by_place_and_never_repeated(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        parse("keys.json", text)
    assert "a b" not in caught.value.message


def test_an_id_twice_is_refused() -> None:
    _, entry = make("a")
    with pytest.raises(ConfigError, match="duplicate ids"):
        parse("keys.json", to_text((entry, entry)))


def test_ids_are_bounded_printable_and_never_those_of_another_kind() -> None:
    assert derived_id(AuthMethod.CERTIFICATE, "spiffe://prod/a") == "certificate:spiffe://prod/a"
    hashed = derived_id(AuthMethod.CERTIFICATE, "a\nb" * 1000)
    assert hashed.isprintable()
    assert len(hashed) < 64
    assert is_caller_id(hashed)
    assert is_caller_id("team-a")
    assert not is_caller_id("address:1")
    assert not is_caller_id("team a")


def test_every_method_says_what_it_needs() -> None:
    services = [
        f"penstock.v1.{name}"
        for module in (generation_pb2, model_pb2, routing_pb2)
        for name in module.DESCRIPTOR.services_by_name
    ]
    assert set(services) <= set(REQUIRED_PERMISSIONS), (
        "a new service needs a line in NEEDS; until then it is for admins"
    )
    assert required_permissions("/penstock.v1.Another/Method") == {"admin"}


def gate(tmp_path: Path, callers: str = "", **settings: Any) -> tuple[Authenticator, str]:
    key, entry = make("team-a")
    (tmp_path / "keys.json").write_text(to_text((entry,)))
    if callers:
        (tmp_path / "callers.toml").write_text(callers)
        settings["callers_file"] = tmp_path / "callers.toml"
    return Authenticator(AuthSettings(keys_file=tmp_path / "keys.json", **settings)), key


async def test_permissions_are_the_callers_own_or_the_default(tmp_path: Path) -> None:
    closed, key = gate(tmp_path)
    shown = (("authorization", f"bearer {key}"),)
    caller = await closed.authenticate(GENERATE, shown)
    assert caller is not None
    assert (caller.id, caller.permissions, caller.label) == ("team-a", {"generate"}, "team-a")
    with pytest.raises(CallerNotAllowed) as caught:
        await closed.authenticate(LOAD, shown)
    assert caught.value.metadata == {"needs": "diagnostics"}
    wide, key = gate(tmp_path, '[callers.team-a]\npermissions = ["diagnostics"]\n')
    assert await wide.authenticate(LOAD, (("authorization", f"Bearer {key}"),))


async def test_credentials_that_are_not_good_are_all_told_the_same(tmp_path: Path) -> None:
    closed, key = gate(tmp_path)
    told = set()
    for shown in (make("team-a")[0], key[:-2], "", "eyJ.e.s", "x" * 10_000):
        with pytest.raises(CallerUnknown) as caught:
            await closed.authenticate(GENERATE, (("authorization", f"Bearer {shown}"),))
        told.add(caught.value.message)
    assert len(told) == 1
    for metadata in ([("authorization", "Basic eHg=")], [("authorization", f"Bearer {key}")] * 2):
        with pytest.raises(CallerUnknown):
            await closed.authenticate(GENERATE, metadata)
    with pytest.raises(CallerUnknown):
        closed.authorize(GENERATE, await closed.authenticate(GENERATE, ()), "ipv4:1.2.3.4:5", {})


async def test_certificates_name_listed_callers_and_unlisted_ones(tmp_path: Path) -> None:
    text = '[callers.team-b]\ncertificates = ["spiffe://prod/b", "b.example"]\n'
    closed, _ = gate(tmp_path, text, certificates=True)
    listed_one = closed.authorize(GENERATE, None, "peer", {"peer_dns": [b"b.example"], "x509_common_name": [b"x"]})
    assert (listed_one.id, listed_one.label) == ("team-b", "team-b")
    unlisted = closed.authorize(GENERATE, None, "peer", {"peer_uri": [b"spiffe://prod/c"], "x509_common_name": [b"x"]})
    assert (unlisted.id, unlisted.label) == ("certificate:spiffe://prod/c", "certificate")
    # A name chosen by whoever has a certificate is never that of a caller with a key.
    assert closed.authorize(GENERATE, None, "peer", {"x509_common_name": [b"team-a"]}).id == "certificate:team-a"


async def test_without_any_way_to_know_callers_the_gate_is_open() -> None:
    anyone = Authenticator(AuthSettings())
    caller = anyone.authorize(LOAD, await anyone.authenticate(LOAD, ()), "ipv4:127.0.0.1:9", {})
    assert (caller.id, caller.permissions, caller.owner) == ("ipv4:127.0.0.1:9", ALL_PERMISSIONS, "")


def test_mistakes_in_the_callers_file_have_their_line(tmp_path: Path) -> None:
    path = tmp_path / "callers.yaml"
    path.write_text("callers:\n  a: {certificates: [x]}\n  b: {certificates: [x]}\n  c d: {}\n")
    with pytest.raises(ConfigError) as caught:
        listed.read(path)
    assert "line 3" in caught.value.message
    assert "'c d' is not a valid caller name" in caught.value.message
    path.write_text("callers:\n  a: {permission: [generate]}\n")
    with pytest.raises(ConfigError, match=r"line 2: callers\.a\.permission"):
        listed.read(path)


def test_a_file_that_turns_bad_leaves_what_was_in_force(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, seen = tmp_path / "f", []

    def load() -> None:
        text = path.read_text()
        if text == "bad":
            raise ConfigError("f: is bad")
        seen.append(text)

    path.write_text("one")
    watched = ReloadableFiles((path, None), load)
    assert not watched.refresh()
    path.write_text("bad")
    assert not watched.refresh()
    assert not watched.refresh()
    assert caplog.text.count("keeping the previous version") == 1
    replacement = tmp_path / "g"
    replacement.write_text("two")
    os.replace(replacement, path)
    assert watched.refresh()
    assert seen == ["one", "two"]


async def test_a_resumable_stream_and_a_sealed_one_are_their_callers_own() -> None:
    from penstock.config.schema import ResumeSettings
    from penstock.errors import GenerationNotFound

    one, entry = make("a")
    mine, other = [
        await Authenticator(AuthSettings(keys=(e,))).authenticate(GENERATE, [("authorization", f"Bearer {k}")])
        for k, e in ((one, entry), make("b"))
    ]
    assert mine is not None
    assert other is not None
    streams = StreamStore(ResumeSettings())
    stream = await streams.create(StreamOrigin("g", mine.owner))
    assert await streams.get("g", stream.token, mine) is stream
    key = os.urandom(32)
    token = sign_checkpoint(Checkpoint("g", "m", b"", 3, {}, ()), key, mine)
    assert verify_checkpoint(token, key, mine).sequence == 3
    told = []
    for stranger in (other, ANONYMOUS):
        for refused in (stream.token, "no such token"):
            with pytest.raises(GenerationNotFound) as caught:
                await streams.get("g", refused, stranger)
            told.append(caught.value.message)
    assert len(set(told)) == 1
    for caller, sealing in ((other, key), (ANONYMOUS, key), (mine, os.urandom(32))):
        with pytest.raises(GenerationNotFound) as caught:
            verify_checkpoint(token, sealing, caller)
        told.append(caught.value.message)
    assert len(set(told)) == 2


def test_keys_are_made_listed_and_revoked_on_the_command_line(tmp_path: Path) -> None:
    run, path = CliRunner(), tmp_path / "keys.json"
    made = run.invoke(app, ["keys", "new", "team-a", "--file", str(path), "--days", "7", "--json"])
    assert made.exit_code == 0, made.output
    shown = json.loads(made.stdout)
    assert path.stat().st_mode & 0o777 == 0o600
    assert shown["key"] not in path.read_text()
    assert digest(shown["key"]) in path.read_text()
    run.invoke(app, ["keys", "new", "team-b", "--file", str(path)])
    listing = json.loads(run.invoke(app, ["keys", "list", "--file", str(path), "--json"]).stdout)
    assert [one["caller"] for one in listing] == ["team-a", "team-b"]
    assert "sha256" not in listing[0]
    assert run.invoke(app, ["keys", "revoke", shown["id"], "--file", str(path)]).exit_code == 0
    assert [entry.caller for entry in key_file.entries(path)] == ["team-b"]
    assert run.invoke(app, ["keys", "revoke", shown["id"], "--file", str(path)]).exit_code == 1
    assert run.invoke(app, ["keys", "new", "team a", "--file", str(path)]).exit_code == 2
    assert run.invoke(app, ["keys", "list"]).exit_code == 2
