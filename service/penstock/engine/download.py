"""Download a model from Hugging Face into its cache, file by file, and check large ones by SHA-256."""

from __future__ import annotations

import errno
import hashlib
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Protocol

from penstock.errors import ConfigError, PenstockError
from penstock.files import free_bytes, size, why_not_written

WANTED = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")
_CHUNK_BYTES = 8 * 1024 * 1024
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


class DownloadFailed(PenstockError):
    """Report a download that failed or whose content is wrong."""


@dataclass(frozen=True, slots=True)
class File:
    """Describe one file. `sha256` is None for small files, which the hub keeps in git."""

    name: str
    bytes: int
    sha256: str | None


@dataclass(frozen=True, slots=True)
class Fetched:
    """Report what was downloaded."""

    commit: str
    files: int
    bytes: int
    verified: int


class Hub(Protocol):
    """Define the part of Hugging Face that is used."""

    def resolve(self, model: str, revision: str) -> tuple[str, list[File]]:
        """Return the commit of a revision, and its files. Raise ConfigError."""
        ...

    def get(self, model: str, name: str, revision: str) -> Path:
        """Return the path of a file in the cache, after downloading it where it is missing or incomplete."""
        ...

    @property
    def cache(self) -> Path:
        """Return the cache directory."""
        ...

    def has(self, model: str, name: str, commit: str) -> bool:
        """Return whether the whole file is in the cache."""
        ...


OnFile = Callable[[str, int, int], None]
"""Called after each file with its name, bytes so far and bytes in all."""


def fetch(hub: Hub, model: str, revision: str, *, verified_stamps: Path | None, on_file: OnFile) -> Fetched:
    """Download a model into the cache.

    Args:
        hub: Where the files come from.
        model: Hugging Face name.
        revision: Branch, tag or commit; empty is the default branch.
        verified_stamps: Directory with a stamp for each file whose SHA-256 was checked, so that it is not read again.
            None checks no file.
        on_file: Called after each file.

    Raises:
        ConfigError: There is no such model, or it has no weights.
        DownloadFailed: A file did not arrive, could not be written or has another SHA-256. Such a file is deleted, so
            that the next attempt downloads it again.
    """
    commit, listed = hub.resolve(model, revision)
    files = [file for file in listed if any(fnmatch(file.name, pattern) for pattern in WANTED)]
    if not any(file.name.endswith(".safetensors") for file in files):
        raise ConfigError(f"{model} has no weights (*.safetensors)")
    total, done, verified = sum(file.bytes for file in files), 0, 0
    _check_space(hub, model, files, commit)
    # Small files first: mistakes in the configuration are found before 400 GB are downloaded.
    for file in sorted(files, key=lambda file: file.bytes):
        path = hub.get(model, file.name, revision)
        if verified_stamps is not None and file.sha256 is not None:
            _verify(path, file, verified_stamps)
            verified += 1
        done += file.bytes
        on_file(file.name, done, total)
    return Fetched(commit, len(files), total, verified)


def _check_space(hub: Hub, model: str, files: list[File], commit: str) -> None:
    """Raise DownloadFailed before the download where the disk is too small, rather than hours later."""
    needed, free = sum(file.bytes for file in files if not hub.has(model, file.name, commit)), free_bytes(hub.cache)
    if free is not None and free < needed:
        raise DownloadFailed(
            f"{hub.cache} has not enough space for {model}: {size(needed)} needed, {size(free)} free; free some or set "
            "HF_HOME to a directory on a larger disk"
        )


def _verify(path: Path, file: File, stamps: Path) -> None:
    assert file.sha256 is not None
    stamp = stamps / file.sha256
    blob = path.resolve()
    if stamp.exists() and blob.stat().st_size == file.bytes:
        return
    digest = hashlib.sha256()
    with blob.open("rb") as content:
        while chunk := content.read(_CHUNK_BYTES):
            digest.update(chunk)
    if digest.hexdigest() != file.sha256:
        path.unlink()
        blob.unlink(missing_ok=True)
        raise DownloadFailed(
            f"{file.name}: SHA-256 must be {file.sha256}, got {digest.hexdigest()}; the file was deleted"
        )
    try:
        stamps.mkdir(parents=True, exist_ok=True)
        stamp.touch()
    except OSError as error:
        raise DownloadFailed(why_not_written(stamp, error)) from error


class HuggingFace:
    """Access the hub, or the server that HF_ENDPOINT names; HF_TOKEN has the token."""

    def resolve(self, model: str, revision: str) -> tuple[str, list[File]]:
        """Return the commit of a revision, and its files."""
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError

        try:
            with _quiet():
                info: Any = HfApi().model_info(model, revision=revision or None, files_metadata=True)
        except (HfHubHTTPError, HFValidationError) as error:
            at = f" at {revision}" if revision else ""
            raise ConfigError(f"{model}{at}: not found on Hugging Face, or this token has no access") from error
        except _transport_errors() as error:
            raise DownloadFailed(f"{model}: cannot reach Hugging Face: {_cause(error)}") from error
        files = [File(s.rfilename, s.size or 0, s.lfs.sha256 if s.lfs else None) for s in info.siblings or ()]
        return str(info.sha), files

    def get(self, model: str, name: str, revision: str) -> Path:
        """Return the path of a file in the cache, after downloading it."""
        from huggingface_hub import hf_hub_download

        try:
            with _quiet():
                return Path(hf_hub_download(model, name, revision=revision or None))
        except _transport_errors() as error:
            if _is_of_the_disk(error):
                raise DownloadFailed(f"{model}: {name}: {why_not_written(self.cache, error)}") from error
            raise DownloadFailed(f"{model}: download of {name} failed: {_cause(error)}") from error

    @property
    def cache(self) -> Path:
        """Return the cache directory."""
        from huggingface_hub import constants

        return Path(constants.HF_HUB_CACHE)

    def has(self, model: str, name: str, commit: str) -> bool:
        """Return whether the whole file is in the cache."""
        return self.cached(model, name, commit) is not None

    def cached(self, model: str, name: str, revision: str) -> Path | None:
        """Return the path of a file in the cache; None where it is not there. Ask no server."""
        from huggingface_hub import try_to_load_from_cache

        path = try_to_load_from_cache(model, name, revision=revision or None)
        return Path(path) if isinstance(path, str) else None


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the library's warnings and log, such as those of a full disk: what fails is reported by its exception."""
    log = logging.getLogger("huggingface_hub")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        log.setLevel(level)


def _transport_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions that huggingface_hub passes on from its HTTP library."""
    from huggingface_hub.utils import _http

    library = getattr(_http, "httpx2", None) or getattr(_http, "httpx", None)
    # hf_xet raises RuntimeError for every failure.
    return (OSError, RuntimeError, library.HTTPError) if library is not None else (OSError, RuntimeError)


def _is_of_the_disk(error: Exception) -> bool:
    number = error.errno if isinstance(error, OSError) else None
    return number in _DISK_ERRORS or any(f"os error {one}" in str(error) for one in _DISK_ERRORS)


def _cause(error: Exception) -> str:
    """Return one line of text about an error; its cause where the error has no text."""
    said = str(error).strip() or str(error.__cause__ or "").strip()
    said = re.sub(r"^\[Errno -?\d+\] ", "", said)
    return said.splitlines()[0].rstrip(".") if said else type(error).__name__
