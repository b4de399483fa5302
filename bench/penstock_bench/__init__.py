"""Measure, evaluate and plan: sees the client, the sizes of models, and what a plan decides as the engine does."""
