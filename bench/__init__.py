"""Measurements against other servers and of the front end alone. Not part of the service; run from a checkout."""
