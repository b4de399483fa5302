"""Run the gateway where the distribution `penstock` is not installed: `penstock-gateway`."""

from __future__ import annotations

import typer

from penstock_gateway.command import gateway


def main() -> None:
    """Run the command."""
    typer.run(gateway)


if __name__ == "__main__":
    main()
