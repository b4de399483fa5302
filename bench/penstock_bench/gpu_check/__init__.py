"""Check on a GPU host, in minutes, what the project's tests show on a CPU."""
