"""Penstock: the service. `__main__` wires it; docs/architecture.md tells the story of a call."""
