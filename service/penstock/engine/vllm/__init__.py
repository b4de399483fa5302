"""Run models on vLLM: the only package that imports it, with `start.start` as its entry point.

Nothing here imports vLLM until it is called.
"""
