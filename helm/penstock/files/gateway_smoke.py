"""Run by `helm test`: list the model, and stream a short chat completion through the gateway."""

from __future__ import annotations

import argparse
import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

QUESTION = "What is 48 + 27 + 36 + 15?"
# The gateway is in the cluster, whatever proxy this pod has.
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--budget", type=int, required=True)
    parser.add_argument("--timeout", type=float, required=True)
    wanted = parser.parse_args()
    try:
        return check(wanted.url.rstrip("/"), wanted.budget, wanted.timeout)
    except urllib.error.HTTPError as error:
        print(f"{error.url}: {error.code} {error.read(2000).decode(errors='replace')}", file=sys.stderr)
    except OSError as error:
        print(f"{wanted.url}: {error}", file=sys.stderr)
    return 1


def check(url: str, budget: int, timeout_seconds: float) -> int:
    with OPENER.open(request(f"{url}/v1/models"), timeout=timeout_seconds) as reply:
        (model,) = (one["id"] for one in json.load(reply)["data"])
    print(f"model: {model}")
    asked = {
        "model": model,
        "messages": [{"role": "user", "content": QUESTION}],
        "thinking_mode": "thinking",
        "thinking_budget": budget,
        "stream": True,
        "stream_options": {"include_usage": True},
        "timeout": timeout_seconds,
    }
    answer, thought = "", -1
    with OPENER.open(request(f"{url}/v1/chat/completions", asked), timeout=timeout_seconds) as reply:
        for chunk in events(reply):
            if "error" in chunk:
                print(chunk["error"]["message"], file=sys.stderr)
                return 1
            for choice in chunk["choices"]:
                answer += choice["delta"].get("content") or ""
            if usage := chunk.get("usage"):
                thought = usage["completion_tokens_details"]["reasoning_tokens"]
    print(f"{answer}\n{thought} thought tokens of at most {budget}")
    if not answer or thought < 0:
        print("the stream brought no answer or no usage", file=sys.stderr)
        return 1
    if thought > budget:
        print("the budget did not hold", file=sys.stderr)
        return 1
    return 0


def request(url: str, body: dict[str, Any] | None = None) -> urllib.request.Request:
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get("PENSTOCK_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    return urllib.request.Request(url, None if body is None else json.dumps(body).encode(), headers)


def events(lines: Iterator[bytes]) -> Iterator[dict[str, Any]]:
    """Yield the stream's chunks. Raises OSError where it breaks off before its end."""
    for line in lines:
        name, _, value = line.strip().partition(b": ")
        if name == b"data" and value == b"[DONE]":
            return
        if name == b"data":
            yield json.loads(value)
    raise OSError("the stream ended without [DONE]")


if __name__ == "__main__":
    sys.exit(main())
