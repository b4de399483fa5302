"""What `helm test` runs: streams one real answer, and checks that the thinking budget held."""

from __future__ import annotations

import argparse
import sys

from penstock_client import AnswerDelta, Client, PenstockError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", required=True)
    parser.add_argument("--budget", type=int, required=True)
    parser.add_argument("--timeout", type=float, required=True)
    wanted = parser.parse_args()

    try:
        return check(wanted.target, wanted.budget, wanted.timeout)
    except PenstockError as error:
        print(f"{wanted.target}: {type(error).__name__}: {error}", file=sys.stderr)
        return 1


def check(target: str, budget: int, timeout_seconds: float) -> int:
    deltas = 0
    with (
        Client(target) as client,
        client.stream("What is 12 + 30 + 7?", thinking="thinking", budget=budget, timeout=timeout_seconds) as stream,
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
