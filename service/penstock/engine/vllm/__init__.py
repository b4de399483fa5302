"""The only room that imports vLLM. `start.start` is the way in; nothing here imports vLLM until it is called."""
