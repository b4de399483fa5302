"""Make a bundle: fetch the wheels of a lock, add what else is to be carried, and write slices."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from _bundle import manifest as m
from _bundle import slices, wheels
from _bundle.manifest import BundleError, LeftOut, Manifest, Piece

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm/penstock"
PROJECTS = ("clients/python-proto", "clients/python", ".", "bench", "gateway")
PRESETS = {"cpu": "demo-cpu", "gpu": "qwen3.5-35b-a3b-fp8"}
PYTHONS = {"gpu": "3.12"}
_PROGRAM = ("__init__", "manifest", "slices", "unpack", "check", "libraries", "cli")
_START = "import sys\n\nfrom _bundle.cli import main\n\nsys.exit(main())\n"
_ALSO_LEFT_OUT = (
    LeftOut("Python, pip, C library and compiler", "the target machine has its own"),
    LeftOut("NVIDIA's driver", "the target machine has its own"),
    LeftOut("container images", "images.txt names them; `make --file` carries an archive that `docker save` wrote"),
)

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Wanted:
    """Describe a bundle to be made. The fields are the options of `make`."""

    lock: str
    python: str = ""
    architecture: int | None = None
    model: Path | None = None
    presets: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()
    without: tuple[str, ...] = ()
    with_tests: bool = False

    @property
    def lock_file(self) -> Path:
        named = ROOT / "requirements" / f"{self.lock}.lock"
        return named if named.exists() else Path(self.lock)

    @property
    def target_python(self) -> str:
        return self.python or PYTHONS.get(self.lock_file.stem) or ".".join(map(str, sys.version_info[:2]))


def make_bundle(wanted: Wanted, to: Path, slice_bytes: int, progress: Progress) -> tuple[Manifest, str]:
    """Write the bundle into `to`; return its manifest, and the SHA-256 of manifest.json.

    Downloads and built wheels are kept beside it, in a folder that ends with .work. Raises BundleError,
    subprocess.CalledProcessError, OSError.
    """
    _check(wanted)
    work = to.with_name(f"{to.name}.work")
    for folder in (to, work):
        folder.mkdir(parents=True, exist_ok=True)
    (to / m.NAME).unlink(missing_ok=True)  # it is written last: an unfinished bundle has none
    kept, left_out = choose(wanted)
    progress(f"fetching the wheels of {len(kept)} packages")
    packages = wheels.fetch(kept, work, wanted.target_python)
    if wanted.architecture is not None:
        packages, whole = wheels.thin_all(packages, wanted.architecture, work, progress)
        why = f"--architecture {wanted.architecture}"
        left_out += [LeftOut("device code of other GPUs", why), *whole]
    progress("building Penstock's own wheels")
    own, chart = wheels.own(work, PROJECTS, ROOT)
    packages += own
    _describe(wanted, packages, chart, work, progress)
    parts = _parts(wanted, packages, chart, work, progress)
    manifest = Manifest(
        version=next(one.package.version for one in packages if one.package.name == "penstock"),
        lock=wanted.lock_file.name,
        lock_sha256=m.digest(wanted.lock_file),
        python=wanted.target_python,
        machine=platform.machine(),
        architecture=wanted.architecture,
        installed_bytes=sum(wheels.unpacked_bytes(one.path) for one in packages),
        slices=slices.write(parts, to, slice_bytes, progress),
        files=tuple(piece for piece, _ in parts),
        packages=tuple(one.package for one in packages),
        images=tuple((work / "images.txt").read_text(encoding="utf-8").split()),
        left_out=(*left_out, *_ALSO_LEFT_OUT),
        model="model" if wanted.model else "",
    )
    write_program(to / "bundle.pyz")
    (to / m.NAME).write_text(manifest.to_json(), encoding="utf-8")
    return m.read(to / m.NAME), m.digest(to / m.NAME)


def _check(wanted: Wanted) -> None:
    """Raise BundleError for what can be seen before anything is fetched."""
    if not wanted.lock_file.is_file():
        raise BundleError(f"--lock must be cpu, gpu or a lock file, got {wanted.lock!r}")
    if wanted.model is not None and not (wanted.model / "config.json").is_file():
        raise BundleError(f"--model must be a folder with config.json, got {wanted.model}")
    for file in wanted.files:
        if not file.is_file():
            raise BundleError(f"--file must be a file, got {file}")
    if len({file.name for file in wanted.files}) != len(wanted.files):
        raise BundleError("--file: two files have the same name")
    if not re.fullmatch(r"3\.\d{1,2}", wanted.target_python):
        raise BundleError(f"--python must be a version such as 3.12, got {wanted.python!r}")
    if wanted.architecture is not None and not 50 <= wanted.architecture <= 200:
        raise BundleError(f"--architecture must be a compute capability such as 90, got {wanted.architecture}")


def choose(wanted: Wanted) -> tuple[dict[str, str], list[LeftOut]]:
    """Return the lock's entries that are carried, by name, and those that are not, with the reason."""
    entries = wheels.entries_of(wanted.lock_file.read_text(encoding="utf-8"))
    reasons = {} if wanted.with_tests else dict.fromkeys(_of_tests(), "only tests and documents the project")
    unknown = [name for name in wanted.without if wheels.normal(name) not in entries]
    if unknown:
        raise BundleError(f"--without: {wanted.lock_file.name} has no package {unknown[0]!r}")
    reasons |= {wheels.normal(name): "left out by --without" for name in wanted.without}
    kept = {name: entry for name, entry in entries.items() if name not in reasons}
    left_out = [LeftOut(name, why) for name, why in reasons.items() if name in entries]
    without = ROOT / "requirements/cpu-without.txt"
    if wanted.lock_file.stem == "cpu":
        left_out += [LeftOut(name, "not in the lock (decision 1)") for name in _names(without)]
    return kept, left_out


def _of_tests() -> Iterator[str]:
    """Yield what docker/cpu.Dockerfile takes out as well; torch imports setuptools, and quotas may need redis."""
    for file in ("dev.in", "docs.in"):
        yield from (name for name in _names(ROOT / "requirements" / file) if name not in ("setuptools", "redis"))


def _names(file: Path) -> Iterator[str]:
    for line in file.read_text(encoding="utf-8").splitlines():
        if found := re.match(r"[A-Za-z0-9][\w.-]*", line):
            yield wheels.normal(found[0])


_DESCRIPTIONS = ("requirements.txt", "images.txt", "sbom.cdx.json")


def _describe(wanted: Wanted, packages: Sequence[wheels.Wheel], chart: Path, work: Path, progress: Progress) -> None:
    """Write what is in the bundle: packages with the hashes of their wheels, images, and a bill of materials."""
    requirements = work / "requirements.txt"
    requirements.write_text(m.requirements(one.package for one in packages), encoding="utf-8")
    progress("writing the bill of materials")
    bill = _run([sys.executable, str(ROOT / "scripts/supply-chain"), "sbom", str(requirements)])
    (work / "sbom.cdx.json").write_text(bill, encoding="utf-8")
    presets = wanted.presets or (PRESETS.get(wanted.lock_file.stem, PRESETS["cpu"]),)
    images = sorted({image for preset in presets for image in images_of(preset, chart)})
    (work / "images.txt").write_text("".join(f"{image}\n" for image in images), encoding="utf-8")


def _parts(
    wanted: Wanted, packages: Sequence[wheels.Wheel], chart: Path, work: Path, progress: Progress
) -> slices.Parts:
    """Return all files of the bundle in the order of the stream."""
    named = [(name, work / name) for name in _DESCRIPTIONS]
    named += [(f"wheels/{one.path.name}", one.path) for one in packages]
    named += _below("chart/penstock", chart)
    named += _below("model", wanted.model) if wanted.model else []
    named += [(f"files/{file.name}", file) for file in wanted.files]
    progress(f"reading {len(named)} files")
    return [(_piece(name, path), path) for name, path in named]


def _below(name: str, folder: Path) -> list[tuple[str, Path]]:
    """Return the files below a folder. Links are followed, so a snapshot in Hugging Face's cache can be named."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return [(f"{name}/{path.relative_to(folder).as_posix()}", path) for path in files]


def _piece(name: str, path: Path) -> Piece:
    m.check_path(name)
    return Piece(name, path.stat().st_size, m.digest(path), os.access(path, os.X_OK))


def images_of(preset: str, chart: Path = CHART) -> list[str]:
    """Return the container images that the chart names with a preset."""
    import yaml

    helm = Path(sys.executable).parent / "helm"
    text = _run([str(helm), "template", "penstock", str(chart), f"--set=preset={preset}"])
    return sorted(set(_images(list(yaml.safe_load_all(text)))))


def _images(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        image = value.get("image")
        if isinstance(image, str):
            yield image
        elif isinstance(image, dict) and isinstance(image.get("reference"), str):
            yield image["reference"]
    inner: Iterable[object] = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for one in inner:
        yield from _images(one)


def write_program(path: Path) -> None:
    """Write the modules of `open` and `check` as a program that Python runs by itself."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo("__main__.py"), _START)
        for name in _PROGRAM:
            archive.writestr(zipfile.ZipInfo(f"_bundle/{name}.py"), (Path(__file__).parent / f"{name}.py").read_bytes())


def _run(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
