"""The commands of this distribution, found by `penstock` through their entry points."""
