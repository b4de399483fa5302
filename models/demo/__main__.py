"""Train the demo model from nothing and export it into the package: `python -m models.demo`, run by `make model`."""

from models.demo.train import main

main()
