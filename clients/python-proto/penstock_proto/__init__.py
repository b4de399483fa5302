"""Generated stubs of Penstock's gRPC API, by version."""
