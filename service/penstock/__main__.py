"""`penstock` and `python -m penstock`."""

import sys

from penstock.cli.failures import EXIT_INTERRUPTED


def main() -> None:
    try:
        from penstock.cli import app

        app(prog_name="penstock")
    except KeyboardInterrupt:  # while it is imported
        sys.exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    main()
