"""The audit log's files: when a new one begins, when old ones go, and what a flood may write."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from penstock.config.security import AuditSettings
from penstock.errors import ConfigError
from penstock.telemetry.audit import NO_AUDIT, audit_of


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_are_whole_in_order_and_without_what_is_unknown(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    audit = audit_of(AuditSettings(file=path))
    for number in range(100):
        audit.write("call", number=number, reason=None)
    audit.close()
    audit.close()  # a second signal drains anew
    audit.write("call", number=-1)
    said = lines(path)
    assert [line["number"] for line in said] == list(range(100))
    assert set(said[0]) == {"time", "event", "number"}
    again = audit_of(AuditSettings(file=path))
    again.write("call", number=100)
    again.close()
    assert len(lines(path)) == 101


def test_a_new_file_begins_at_its_size_and_only_so_many_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    audit = audit_of(AuditSettings(file=path, max_file_bytes=4096, keep_files=2))
    for number in range(400):
        audit.write("call", number=number)
    audit.close()
    assert sorted(one.name for one in tmp_path.iterdir()) == ["audit.jsonl", "audit.jsonl.1", "audit.jsonl.2"]
    kept = [line["number"] for name in (".2", ".1", "") for line in lines(Path(f"{path}{name}"))]
    assert kept == list(range(kept[0], 400))
    for one in tmp_path.iterdir():
        assert one.stat().st_size <= 4096
        assert one.stat().st_mode & 0o777 == 0o600


def test_a_new_file_begins_with_the_day_and_old_ones_go(tmp_path: Path) -> None:
    path, old = tmp_path / "audit.jsonl", tmp_path / "audit.jsonl.1"
    for file, days in ((path, 2), (old, 10)):
        file.write_text('{"event": "call"}\n')
        os.utime(file, (time.time() - days * 86400,) * 2)
    audit = audit_of(AuditSettings(file=path, keep_days=5))
    assert not old.exists()
    audit.write("call", number=1)
    audit.close()
    assert [line.get("number") for line in lines(path)] == [1]
    assert lines(old) == [{"event": "call"}]


def test_who_is_turned_away_a_thousand_times_gets_a_count(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    audit = audit_of(AuditSettings(file=path))
    for number in range(1000):
        audit.write_turned_away("call", number=number)
    audit.close()
    said = lines(path)
    counted = sum(line.get("count", 1) for line in said)
    assert counted == 1000
    assert len(said) < 100


def test_stderr_and_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    audit = audit_of(AuditSettings(file=Path("-")))
    audit.write("call", number=1)
    audit.close()
    assert json.loads(capsys.readouterr().err)["number"] == 1
    assert audit_of(AuditSettings()) is NO_AUDIT
    NO_AUDIT.write("call", number=1)
    with pytest.raises(ConfigError, match="cannot be written"):
        audit_of(AuditSettings(file=tmp_path / "none" / "a"))
