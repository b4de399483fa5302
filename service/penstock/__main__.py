"""`penstock` and `python -m penstock`."""

import sys

_EXIT_INTERRUPTED = 130


def main() -> None:
    try:
        from penstock.cli import app

        app(prog_name="penstock")
    except KeyboardInterrupt:  # while it is imported; a running command says what it leaves
        print("penstock: interrupted", file=sys.stderr)
        sys.exit(_EXIT_INTERRUPTED)


if __name__ == "__main__":
    main()
