"""`python -m penstock.engine.vllm.headless`: this node's part of an engine. Settings come by stdin; see `nodes`."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys

from penstock.config.schema import EngineSettings
from penstock.engine.vllm.lifetime import end_with_service


def main() -> int:
    from penstock.errors import PenstockError

    end_with_service()
    try:
        run(EngineSettings.model_validate_json(sys.stdin.read()))
    except PenstockError as error:
        print(f"penstock: {error}", file=sys.stderr)
        return 2
    return 0


def run(settings: EngineSettings) -> None:
    """Plans as node 0 does, from the same configuration, and hands over to vLLM until this node's workers end."""
    from penstock.engine.vllm.start import plan

    _, planned, _ = plan(settings)
    os.environ.update(planned.environment)

    from penstock.engine.vllm import compat

    compat.general_plugin()
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.cli.serve import run_headless

    from penstock.engine.vllm.start import in_vllms_types

    arguments = AsyncEngineArgs(**in_vllms_types(planned.arguments))
    named = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(arguments)}
    # Its command line's own default, for want of a command line.
    run_headless(argparse.Namespace(**named | {"api_server_count": 0}))


if __name__ == "__main__":
    sys.exit(main())
