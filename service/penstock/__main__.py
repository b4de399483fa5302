"""`penstock` and `python -m penstock`."""

from penstock.cli import app


def main() -> None:
    app(prog_name="penstock")


if __name__ == "__main__":
    main()
