"""Streams thought and answer apart, then says what it cost."""

import os

from penstock_client import AnswerDelta, Client, ThoughtDelta

with Client(os.environ.get("PENSTOCK_TARGET", "127.0.0.1:50051")) as client:
    stream = client.stream("What is 48 + 27 + 36 + 15?", thinking="auto", timeout=60)
    for event in stream:
        if isinstance(event, ThoughtDelta | AnswerDelta):
            print(event.text, end="", flush=True)
    reply = stream.response
    print(f"\n{reply.thinking_outcome}, {reply.usage}")
    if reply.cost is not None:
        print(f"{reply.cost.usd} USD")
