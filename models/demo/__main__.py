"""`python -m models.demo`, which `make model` calls: train from nothing and export into the package."""

from models.demo.train import main

main()
