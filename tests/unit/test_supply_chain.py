"""Nothing is installed that was not pinned by hash; what is pinned is told, and looked up where there are data."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCKS = sorted((ROOT / "requirements").glob("*.lock"))


def supply_chain(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts/supply-chain"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)


def test_every_package_is_pinned_with_its_hashes() -> None:
    assert len(LOCKS) >= 2
    for lock in LOCKS:
        entries = re.split(r"\n(?=\S)", lock.read_text().strip())
        loose = [entry.split()[0] for entry in entries if not re.match(r"\S+==\S+ .*--hash=sha256:", entry, re.DOTALL)]
        assert loose == [], lock.name
        assert "git+" not in lock.read_text()


def test_installing_demands_the_hashes() -> None:
    assert "--require-hashes" in (ROOT / "scripts/setup").read_text()
    for dockerfile in (ROOT / "docker").glob("*Dockerfile"):
        for command in re.findall(r"pip install(?:[^\n]*\\\n)*[^\n]*", dockerfile.read_text()):
            # What is built here has no hash; it may bring nothing along, or (on vLLM's own image, whose Python is
            # another than the lock's) only the lock's versions.
            held = ("--require-hashes", "--no-deps", "/constraints.txt")
            assert any(option in command for option in held), f"{dockerfile.name}: {command}"


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_the_bill_of_materials_has_every_package_and_is_reproducible(lock: Path) -> None:
    first, second = supply_chain("sbom", lock), supply_chain("sbom", lock)
    assert first.returncode == 0, first.stderr
    assert first.stdout == second.stdout
    bill = json.loads(first.stdout)
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    assert re.fullmatch(r"urn:uuid:[0-9a-f-]{36}", bill["serialNumber"])
    listed = {(component["name"], component["version"]) for component in bill["components"]}
    assert len(listed) == len(re.findall(r"^\S+==", lock.read_text(), re.MULTILINE))
    assert all(component["hashes"] for component in bill["components"])
    references = {component["bom-ref"] for component in bill["components"]}
    assert set(bill["dependencies"][0]["dependsOn"]) == references


def test_without_data_the_audit_says_so_and_passes(tmp_path: Path) -> None:
    done = supply_chain("audit", "--database", tmp_path / "none.zip")
    assert done.returncode == 0
    assert done.stdout.count("\n") == 1
    assert "not looked up" in done.stdout


@pytest.mark.parametrize(
    ("events", "found"),
    [
        ([{"introduced": "0"}, {"fixed": "1.2"}], False),
        ([{"introduced": "0"}, {"fixed": "1.2.1"}], True),
        ([{"introduced": "1.2"}, {"last_affected": "1.2"}], True),
        ([{"introduced": "1.3"}], False),
        ([{"introduced": "0"}, {"fixed": "1.0"}, {"introduced": "1.1"}, {"fixed": "2"}], True),
    ],
)
def test_a_known_hole_is_told(tmp_path: Path, events: list[dict[str, str]], found: bool) -> None:
    lock, database = tmp_path / "a.lock", tmp_path / "advisories.zip"
    lock.write_text(f"Some.Package==1.2+cpu \\\n    --hash=sha256:{'0' * 64}\n")
    package = {"name": "some-package", "ecosystem": "PyPI"}
    advisory = {
        "id": "PYSEC-1",
        "summary": "bad",
        "affected": [{"package": package, "ranges": [{"type": "ECOSYSTEM", "events": events}]}],
    }
    with zipfile.ZipFile(database, "w") as archive:
        archive.writestr("PYSEC-1.json", json.dumps(advisory))
    done = supply_chain("audit", "--database", database, "--lock", lock, "--json")
    rows = [{"package": "some-package", "version": "1.2+cpu", "id": "PYSEC-1"}] if found else []
    assert json.loads(done.stdout) == {"looked_up": True, "holes": rows}
    assert done.returncode == int(found)
