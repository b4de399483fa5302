"""Run by `helm test`: stream one real answer, and check that the thinking budget held."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import grpc
from penstock_client import AnswerDelta, Client, PenstockError

QUESTION = "What is 48 + 27 + 36 + 15?"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", required=True)
    parser.add_argument("--budget", type=int, required=True)
    parser.add_argument("--timeout", type=float, required=True)
    parser.add_argument("--tls", type=Path, help="directory with ca.crt and, for mutual TLS, tls.crt and tls.key")
    wanted = parser.parse_args()

    try:
        return check(wanted.target, wanted.budget, wanted.timeout, wanted.tls)
    except PenstockError as error:
        print(f"{wanted.target}: {type(error).__name__}: {error}", file=sys.stderr)
        return 1


def credentials(folder: Path | None) -> grpc.ChannelCredentials | None:
    """Return the credentials in the directory; without an authority, the system's roots."""
    if folder is None:
        return None
    authority, key, chain = (
        path.read_bytes() if path.is_file() else None
        for path in (folder / "ca.crt", folder / "tls.key", folder / "tls.crt")
    )
    return grpc.ssl_channel_credentials(authority, key if chain else None, chain if key else None)


def check(target: str, budget: int, timeout_seconds: float, tls: Path | None) -> int:
    deltas = 0
    with (
        Client(target, api_key=os.environ.get("PENSTOCK_API_KEY"), tls=credentials(tls) or False) as client,
        client.stream(QUESTION, thinking="thinking", budget=budget, timeout=timeout_seconds) as stream,
    ):
        for event in stream:
            if isinstance(event, AnswerDelta):
                deltas += 1
                print(event.text, end="", flush=True)
    thought = stream.response.usage.reasoning_tokens
    print(f"\n{deltas} answer deltas, {thought} thought tokens of at most {budget}")
    if not deltas:
        print("no answer came", file=sys.stderr)
        return 1
    if thought > budget:
        print("the budget did not hold", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
