"""Commands on a disk that is really full, or under a limit on the size of a file: two ways for a write to fail."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import tooling

_SCRIPT = """
mount -t tmpfs -o size=$1 tmpfs "$2" || exit 99
cd "$2" && shift 2
"$@"
code=$?
find . -type f -printf '%P\\n' >&3
exit $code
"""


@dataclass(frozen=True)
class Done:
    """`files` are those that were left in the command's directory."""

    code: int
    stdout: str
    stderr: str
    files: tuple[str, ...]


def on_small_disk(folder: Path, size: int, command: Sequence[str], environ: Mapping[str, str] | None = None) -> Done:
    """Run `command` in `folder`, on which a disk of `size` bytes is mounted for it alone."""
    if why := tooling.missing("mount"):
        pytest.skip(why)
    listed = folder.with_suffix(".files")
    shell = ["unshare", "-rm", "sh", "-c", f"exec 3>{listed}; {_SCRIPT}", "sh", str(size), str(folder), *command]
    done = _run(shell, folder, environ)
    assert done.returncode != 99, done.stderr
    return Done(done.returncode, done.stdout, done.stderr, tuple(sorted(listed.read_text().splitlines())))


def with_small_files(folder: Path, size: int, command: Sequence[str], environ: Mapping[str, str] | None = None) -> Done:
    """Run `command` in `folder`; no file may grow beyond `size` bytes."""
    limit = "import os, resource as r, sys; r.setrlimit(r.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)"
    limit += "; os.execv(sys.argv[2], sys.argv[2:])"
    done = _run([sys.executable, "-c", limit, str(size), *command], folder, environ)
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return Done(done.returncode, done.stdout, done.stderr, tuple(files))


def _run(command: Sequence[str], folder: Path, environ: Mapping[str, str] | None) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")}
    # Python renames a compiled module into its place even where only a part of it could be written.
    kept |= {"PYTHONDONTWRITEBYTECODE": "1"}
    kept |= {"MPLCONFIGDIR": str(folder.parent), "HF_HUB_DISABLE_XET": "1", **(environ or {})}
    return subprocess.run(command, cwd=folder, env=kept, capture_output=True, text=True, timeout=100, check=False)
