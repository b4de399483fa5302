"""Run the gateway where the distribution `penstock` is not installed: `penstock-gateway`."""

from __future__ import annotations

import sys

_EXIT_INTERRUPTED = 130


def main() -> None:
    """Run the command."""
    try:
        from penstock_gateway.command import app

        app()
    except KeyboardInterrupt:  # while it is imported
        print("penstock gateway: interrupted", file=sys.stderr)
        sys.exit(_EXIT_INTERRUPTED)


if __name__ == "__main__":
    main()
