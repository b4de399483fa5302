"""Run models on vLLM. The only package that imports vLLM. `start.start` is the entry point; nothing here imports vLLM until it is called."""
