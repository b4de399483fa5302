"""Penstock: the service. `__main__` wires it; docs/architecture.md tells the story of a call."""

import os

# gRPC's core writes a line for each call that a stranger gets wrong. It reads this when it is imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
