"""Measure what large images cost: the event loop's lateness for text streams, and the time to the first token.

python -m bench.images [--images 16] [--streams 8] [--megapixels 4] [--json FILE]

The engine runs the official layout with a vision tower and random weights, with the service's defaults. A process of
its own sends the calls: text streams all the time, then the calls with images at once. A task in the service's event
loop sleeps 2 ms at a time; what it wakes up later than that is the lateness of every message of every stream. Then, one
call at a time, each of some images is asked about twice: the second time it is in all caches.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from penstock.generation.percentiles import percentile

from bench.machine import machine

_SLEEP_SECONDS = 0.002
_ALONE_SECONDS = 10.0
_ASKED_TWICE = 20


def photo(megapixels: float, seed: int) -> bytes:
    """Return a JPEG like a photo: gradients and noise."""
    import io

    from PIL import Image

    side = round((megapixels * 1e6) ** 0.5)
    gradient = Image.linear_gradient("L").resize((side, side))
    noise = Image.effect_noise((side, side), 20 + seed % 10)
    made = Image.merge("RGB", (gradient, noise, gradient.rotate(90)))
    buffer = io.BytesIO()
    made.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


async def send(target: str, images: int, streams: int, megapixels: float) -> None:
    """Send the calls. Write a line to stdout when the images begin, and one when all are answered."""
    import grpc
    from penstock_proto.v1 import generation_pb2 as pb
    from penstock_proto.v1 import generation_pb2_grpc

    pictures = [photo(megapixels, number) for number in range(images)]
    async with grpc.aio.insecure_channel(target) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)

        async def call(parts: Sequence[pb.Part], tokens: int) -> None:
            spec = pb.GenerationSpec(
                messages=pb.Messages(messages=[pb.Message(role=pb.ROLE_USER, parts=parts)]),
                thinking=pb.ThinkingConfig(mode=pb.THINKING_MODE_FAST),
                output=pb.OutputConfig(max_output_tokens=tokens, min_output_tokens=tokens),
            )
            async for _ in stub.StreamGenerate(pb.StreamGenerateRequest(spec=spec)):
                pass

        async def first_token_seconds(parts: Sequence[pb.Part]) -> float:
            spec = pb.GenerationSpec(
                messages=pb.Messages(messages=[pb.Message(role=pb.ROLE_USER, parts=parts)]),
                thinking=pb.ThinkingConfig(mode=pb.THINKING_MODE_FAST),
                output=pb.OutputConfig(max_output_tokens=4, min_output_tokens=4),
            )
            reply = await stub.Generate(pb.GenerateRequest(spec=spec))
            seconds: float = reply.timing.first_token.ToNanoseconds() / 1e9
            return seconds

        async def text(number: int) -> None:
            while True:
                await call([pb.Part(text=f"Count to {number}.")], 200)

        texts = [asyncio.create_task(text(number)) for number in range(streams)]
        await asyncio.sleep(_ALONE_SECONDS)
        print("images", flush=True)
        shown = [[pb.Part(image=pb.Image(mime_type="image/jpeg", data=data)), pb.Part(text="?")] for data in pictures]
        await asyncio.gather(*(call(parts, 8) for parts in shown))
        print("answered", flush=True)
        for task in texts:
            task.cancel()
        await asyncio.gather(*texts, return_exceptions=True)
        first_tokens: dict[str, list[float]] = {"new": [], "again": []}
        for number in range(_ASKED_TWICE):
            data = photo(megapixels, images + number)
            parts = [pb.Part(image=pb.Image(mime_type="image/jpeg", data=data)), pb.Part(text="What is it?" * 100)]
            for found in first_tokens.values():
                found.append(await first_token_seconds(parts))
        medians = {name: round(statistics.median(found) * 1e3, 1) for name, found in first_tokens.items()}
        print(json.dumps(medians), flush=True)


async def measure(images: int, streams: int, megapixels: float) -> dict[str, Any]:
    """Return the lateness in milliseconds, without images and beside them."""
    from penstock.config.schema import Config, EngineSettings
    from penstock.engine.vllm.start import start
    from penstock.server.server import Server

    from models.small.random_checkpoint import random_checkpoint

    lateness: dict[str, list[float]] = {"alone": [], "beside_images": []}
    phase = "warming"

    async def sample() -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(_SLEEP_SECONDS)
            if phase in lateness:
                lateness[phase].append(max(0.0, time.perf_counter() - began - _SLEEP_SECONDS) * 1e3)

    with tempfile.TemporaryDirectory() as folder:
        engine = await start(EngineSettings(model=str(random_checkpoint(Path(folder)))))
        server = Server(Config.model_validate({"server": {"listen": "127.0.0.1:0"}}))
        target = await server.listen()
        await server.serve_with(engine)
        sampling = asyncio.create_task(sample())
        command = (sys.executable, "-m", "bench.images", "--send", target)
        options = ("--images", f"{images}", "--streams", f"{streams}", "--megapixels", f"{megapixels}")
        sender = await asyncio.create_subprocess_exec(*command, *options, stdout=asyncio.subprocess.PIPE)
        assert sender.stdout is not None
        phase = "alone"
        await sender.stdout.readline()
        phase, began = "beside_images", time.perf_counter()
        answered = await sender.stdout.readline()
        phase, seconds = "over", time.perf_counter() - began
        first_tokens = json.loads(await sender.stdout.readline() or b"{}")
        await sender.wait()
        sampling.cancel()
        await server.drain(0)
        await engine.close()
    if answered != b"answered\n":
        raise RuntimeError("the images were not answered")
    found = {name: {f"p{p}": round(percentile(late, p), 2) for p in (50, 99, 100)} for name, late in lateness.items()}
    return {"seconds_beside_images": round(seconds, 1), "lateness_ms": found, "first_token_ms": first_tokens}


def main() -> int:
    """Measure, or send the calls of a measurement."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=16, help="calls with an image, all at once")
    parser.add_argument("--streams", type=int, default=8, help="text streams beside them")
    parser.add_argument("--megapixels", type=float, default=4.0)
    parser.add_argument("--json", type=Path, help="file to write")
    parser.add_argument("--send", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    size = (asked.images, asked.streams, asked.megapixels)
    if asked.send:
        asyncio.run(send(asked.send, *size))
        return 0
    found = asyncio.run(measure(*size))
    settings = {"images": asked.images, "streams": asked.streams, "megapixels": asked.megapixels}
    result = {**machine(), "date": f"{date.today()}", **settings, **found}
    if asked.json:
        asked.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
