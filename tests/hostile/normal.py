"""A well-behaved client in a process of its own: asks, reads to the end, asks again. A program, started by `conftest`.

argv: address, how many at a time, an API key or "", the file of the service's authority or "" where it is plaintext.
stdout: per request a line "end seconds", `end` by the wall clock; or "FAILED code".
"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import grpc
from penstock_proto.v1 import generation_pb2 as pb
from penstock_proto.v1 import generation_pb2_grpc


def say(line: str) -> None:
    """In one write: threads do not mix."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _channel(address: str, authority: str) -> grpc.Channel:
    options = [("grpc.use_local_subchannel_pool", 1)]
    if not authority:
        return grpc.insecure_channel(address, options=options)
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(Path(authority).read_bytes()), options=options)


def ask(address: str, key: str, authority: str) -> None:
    spec = pb.GenerationSpec(messages=pb.Messages(messages=[pb.Message(role=pb.ROLE_USER, content="NORMAL")]))
    request = pb.StreamGenerateRequest(spec=spec)
    metadata = (("authorization", f"Bearer {key}"),) if key else ()
    with _channel(address, authority) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        while True:
            began = time.monotonic()
            try:
                events = [reply.event for reply in stub.StreamGenerate(request, timeout=60, metadata=metadata)]
                assert events[-1].WhichOneof("event") == "finished"
                say(f"{time.time()} {time.monotonic() - began}")
            except grpc.RpcError as error:
                say(f"FAILED {error.code().name}")
                time.sleep(0.2)


if __name__ == "__main__":
    for _ in range(int(sys.argv[2])):
        threading.Thread(target=ask, args=(sys.argv[1], *sys.argv[3:]), daemon=True).start()
    sys.stdin.read()
