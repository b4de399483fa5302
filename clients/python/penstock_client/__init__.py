"""Python client of Penstock."""
