"""Read the command line of `scripts/bundle` and of `bundle.pyz`."""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from _bundle.check import check_bundle
from _bundle.manifest import BundleError, LeftOut, digest
from _bundle.unpack import open_bundle

DESCRIPTION = """\
Carry Penstock to machines without a network.

`make` (scripts/bundle, in a checkout with a network) packs wheels, chart, model and other files into slices.
`open` checks the slices, unpacks them, and installs the packages. `check` loads every shared library and asks the
engine a question. Both run from the bundle's own bundle.pyz, with Python's standard library alone."""
MAX_SLICE_MIB = 4096
_NAMED = 4
"""Things left out for the same reason that are named; the others are counted."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    progress = _Progress()
    try:
        options.run(options, progress)
    except BundleError as error:
        progress.end()
        print(f"bundle: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        progress.end()
        print(f"bundle: {error.filename or options.command}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        progress.end()
        print("bundle: interrupted; run the same command again to continue", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="bundle", description=DESCRIPTION, formatter_class=raw)
    commands = parser.add_subparsers(required=True, metavar="make|open|check", dest="command")
    if importlib.util.find_spec("_bundle.collect"):
        _add_make(commands.add_parser("make", help="pack a bundle; needs a network"))
    opening = commands.add_parser("open", help="check, unpack and install a bundle")
    where = "folder with manifest.json and the slices (this program's)"
    opening.add_argument("folder", type=Path, nargs="?", default=_own_folder(), help=where)
    opening.add_argument("--to", type=Path, default=Path("penstock"), help="folder to unpack into (penstock)")
    opening.add_argument("--sha256", help="SHA-256 of manifest.json, as `make` printed it")
    opening.add_argument("--no-install", action="store_true", help="unpack only; any Python and machine will do")
    opening.set_defaults(run=_open)
    checking = commands.add_parser("check", help="load every library and generate a token")
    checking.add_argument("folder", type=Path, nargs="?", default=Path("penstock"), help="opened folder (penstock)")
    checking.add_argument("--no-token", action="store_true", help="do not start the engine")
    checking.add_argument("--start-seconds", type=float, default=1800.0, help="seconds for the service to start (1800)")
    checking.set_defaults(run=_check)
    return parser


def _add_make(making: argparse.ArgumentParser) -> None:
    making.add_argument("--lock", default="cpu", help="cpu, gpu, or a lock file (cpu)")
    making.add_argument("--to", type=Path, default=Path("build/bundle"), help="folder of the bundle (build/bundle)")
    making.add_argument("--python", default="", help="version the wheels are for (3.12 for gpu, else this one)")
    making.add_argument("--architecture", type=int, help="keep device code for this alone: 90, 100")
    making.add_argument("--model", type=Path, help="folder of a checkpoint (the small model, in the wheel)")
    making.add_argument("--preset", action="append", default=[], help="preset whose images are listed")
    making.add_argument("--file", type=Path, action="append", default=[], help="another file, such as an image")
    making.add_argument("--without", action="append", default=[], metavar="NAME", help="package to leave out")
    making.add_argument("--with-tests", action="store_true", help="with the packages that test the project")
    making.add_argument("--slice-mib", type=int, default=48, help="size of a slice in MiB (48)")
    making.set_defaults(run=_make)


def _own_folder() -> Path:
    return Path(sys.argv[0]).resolve().parent


class _Progress:
    """Show what is done now, on one line where stderr is a terminal."""

    def __init__(self) -> None:
        self._tty = sys.stderr.isatty()
        self._last = ""

    def __call__(self, text: str) -> None:
        kind = text.rstrip("0123456789 of")
        if self._tty:
            print(f"\r\033[K  {text[: shutil.get_terminal_size().columns - 4]}", end="", file=sys.stderr, flush=True)
        elif kind != self._last:
            print(f"  {text}", file=sys.stderr, flush=True)
        self._last = kind

    def end(self) -> None:
        if self._tty and self._last:
            print(file=sys.stderr)


def _open(options: argparse.Namespace, progress: _Progress) -> None:
    manifest = open_bundle(
        options.folder, options.to, install=not options.no_install, sha256=options.sha256, progress=progress
    )
    progress.end()
    print(f"{options.to}: Penstock {manifest.version}, {len(manifest.packages)} packages for Python {manifest.python}")
    for why, names in _by_reason(manifest.left_out).items():
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        print(f"  without {', '.join(names[:_NAMED])}{more}: {why}")
    if not options.no_install:
        program = sys.argv[0] if os.access(sys.argv[0], os.X_OK) else f"{sys.executable} -S -I {sys.argv[0]}"
        print(f"next: {program} check {options.to}; then {options.to}/venv/bin/penstock demo")


def _by_reason(left_out: Sequence[LeftOut]) -> dict[str, list[str]]:
    by_reason: dict[str, list[str]] = {}
    for one in left_out:
        by_reason.setdefault(one.why, []).append(one.name)
    return by_reason


def _check(options: argparse.Namespace, progress: _Progress) -> None:
    lines = check_bundle(
        options.folder, token=not options.no_token, start_seconds=options.start_seconds, progress=progress
    )
    progress.end()
    print("\n".join(lines))


def _make(options: argparse.Namespace, progress: _Progress) -> None:
    from _bundle.collect import Wanted, make_bundle

    if not 1 <= options.slice_mib <= MAX_SLICE_MIB:
        raise BundleError(f"--slice-mib must be in [1, {MAX_SLICE_MIB}], got {options.slice_mib}")
    wanted = Wanted(
        lock=options.lock,
        python=options.python,
        architecture=options.architecture,
        model=options.model,
        presets=tuple(options.preset),
        files=tuple(options.file),
        without=tuple(options.without),
        with_tests=options.with_tests,
    )
    try:
        manifest, sha256 = make_bundle(wanted, options.to, options.slice_mib << 20, progress)
    except subprocess.CalledProcessError as error:
        last = ((error.stderr or error.output or "").strip() or "no output").splitlines()[-1]
        raise BundleError(f"{Path(error.cmd[0]).name} failed with exit status {error.returncode}: {last}") from None
    progress.end()
    size = sum(one.size for one in manifest.slices)
    print(f"{options.to}: {len(manifest.slices)} slices, {size / 2**20:,.0f} MiB; {len(manifest.packages)} packages")
    print(f"SHA-256 of bundle.pyz: {digest(options.to / 'bundle.pyz')}")
    print(f"SHA-256 of manifest.json: {sha256}")
