"""Train the small model from nothing: `python -m models.small`."""

from models.small.train import main

main()
