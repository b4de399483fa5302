"""Compute the size of a model: its weights, its cache per sequence and token, and how vLLM pages the cache."""
