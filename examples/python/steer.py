"""Stops a thought that takes too long: the answer starts at once."""

import os

from penstock_client import Client

with (
    Client(os.environ.get("PENSTOCK_TARGET", "127.0.0.1:50051")) as client,
    client.interact("What is 48 + 27 + 36 + 15?", thinking="thinking", budget=-1, timeout=60) as interaction,
):
    for _ in interaction:
        if interaction.response.candidate(0).reasoning_tokens == 10:
            interaction.finish_thinking()
    reply = interaction.response
    print(f"{reply.thinking_outcome}: {reply.answer}")
