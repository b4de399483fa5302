"""Run this node's part of an engine: `python -m penstock.engine.vllm.headless`. Settings come by stdin; see `nodes`."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys

from penstock.config.schema import EngineSettings
from penstock.engine.vllm.lifetime import end_with_service


def main() -> int:
    """Read the settings from stdin and run. Return the exit status."""
    from penstock.errors import PenstockError

    end_with_service()
    try:
        run(EngineSettings.model_validate_json(sys.stdin.read()))
    except PenstockError as error:
        print(f"penstock: {error}", file=sys.stderr)
        return 2
    return 0


def run(settings: EngineSettings) -> None:
    """Plan as node 0 does, from the same configuration, and run vLLM until this node's workers end."""
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
    # The default of vLLM's command line, which is not used here.
    run_headless(argparse.Namespace(**named | {"api_server_count": 0}))


if __name__ == "__main__":
    sys.exit(main())
