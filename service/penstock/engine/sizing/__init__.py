"""How large a model is on paper: its weights, what it keeps per sequence and per token, how vLLM pages that. Pure."""
