"""Authenticate callers and decide what they may do."""
