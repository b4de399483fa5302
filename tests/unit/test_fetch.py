"""`penstock download`: what comes, in which order, and what is done about a file that is not what it should be."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from penstock.cli import app
from penstock.engine import download as module
from penstock.engine.download import DownloadFailed, Fetched, File, fetch
from penstock.errors import ConfigError
from typer.testing import CliRunner

WEIGHTS = b"weights" * 1000


class Shelf:
    """A hub of files in memory; its cache has links to blobs, as Hugging Face's has."""

    def __init__(self, cache: Path, sent: bytes = WEIGHTS) -> None:
        self.cache = cache
        self.sent = {"config.json": b"{}", "a.safetensors": sent, "model.bin": b"old", "README.md": b"#"}
        self.got: list[str] = []

    def resolve(self, model: str, revision: str) -> tuple[str, list[File]]:
        digest = hashlib.sha256(WEIGHTS).hexdigest()
        return "c0ffee", [File(name, len(data), digest if "safe" in name else None) for name, data in self.sent.items()]

    def has(self, model: str, name: str, commit: str) -> bool:
        return (self.cache / name).exists()

    def get(self, model: str, name: str, revision: str) -> Path:
        self.got.append(name)
        path, blob = self.cache / name, self.cache / f"blob-{name}"
        if not path.exists():
            blob.write_bytes(self.sent[name])
            path.symlink_to(blob)
        return path


def run(hub: Shelf, verify: bool = True) -> tuple[Fetched, list[tuple[str, int, int]]]:
    said: list[tuple[str, int, int]] = []
    stamps = hub.cache / "stamps" if verify else None
    done = fetch(hub, "org/m", "", verified_stamps=stamps, on_file=lambda *told: said.append(told))
    return done, said


def test_should_fetch_what_is_needed_small_files_first(tmp_path: Path) -> None:
    hub = Shelf(tmp_path)
    done, said = run(hub)
    assert hub.got == ["config.json", "a.safetensors"]
    assert done == Fetched("c0ffee", 2, 2 + len(WEIGHTS), 1)
    assert said[-1] == ("a.safetensors", done.bytes, done.bytes)


def test_should_read_a_file_once_to_verify_it(tmp_path: Path) -> None:
    hub = Shelf(tmp_path)
    run(hub)
    (tmp_path / "blob-a.safetensors").write_bytes(b"!" * len(WEIGHTS))
    assert run(hub)[0].verified == 1, "400 GB are not read again at every start"


def test_should_delete_what_is_not_what_the_repository_says(tmp_path: Path) -> None:
    broken = Shelf(tmp_path, sent=WEIGHTS[:-1] + b"!")
    with pytest.raises(DownloadFailed, match=r"a\.safetensors: SHA-256"):
        run(broken)
    assert not (tmp_path / "a.safetensors").exists()
    assert not (tmp_path / "blob-a.safetensors").exists()
    assert run(Shelf(tmp_path))[0].verified == 1


def test_should_refuse_a_repository_without_weights(tmp_path: Path) -> None:
    hub = Shelf(tmp_path)
    del hub.sent["a.safetensors"]
    with pytest.raises(ConfigError, match="no weights"):
        run(hub)


def test_the_command_should_say_what_came(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HuggingFace", lambda: Shelf(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    done = CliRunner().invoke(app, ["download", "--model", "org/m", "--verify", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "model": "org/m",
        "commit": "c0ffee",
        "files": 2,
        "bytes": 2 + len(WEIGHTS),
        "verified_files": 1,
    }


@pytest.mark.parametrize("model", ["", "/models/m", "s3://bucket/m"])
def test_the_command_should_refuse_what_is_no_hugging_face_name(model: str) -> None:
    done = CliRunner().invoke(app, ["download", "--model", model])
    assert done.exit_code != 0
