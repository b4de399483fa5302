"""Measure the decode time per token at growing context lengths, against a full-attention twin of the same size.

    python -m bench.context_cost                                          # print the table
    python -m bench.context_cost --json docs/results/context.json --png docs/context-cost.png

Both models have the demo model's shape, random weights and a long window. The hybrid has three Gated DeltaNet layers
of four; the twin has four full-attention layers. Both engines run at once and take turns at each length, so that other
work on the machine slows both alike. One stream decodes, and MTP is off.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penstock.config.schema import DEMO_MODEL_DIR, EngineSettings
from penstock.engine.sizing.cache import CPU_BLOCK_TOKENS, Cache, CacheSettings, plan_cache
from penstock.engine.sizing.shape import Shape, read_shape
from penstock.engine.sizing.weights import ParallelLayout, parameters
from penstock.engine.vllm.checkpoint import read_checkpoint
from penstock.engine.vllm.start import start
from penstock.types import EngineRequest, Sampling

from bench.machine import machine

if TYPE_CHECKING:
    from penstock.engine.vllm.engine import VllmEngine

LENGTHS = (1024, 4096, 16_384, 32_768)
"""Context lengths in tokens. The last one is the demo model's window. Reading more takes minutes on a CPU."""
TOKENS, ROUNDS, SKIPPED = 48, 5, 4
"""Tokens decoded per turn, turns per length, and first tokens of a turn that are not timed."""
CACHE_GIB = 0.5
MODELS = {
    "hybrid": ("linear_attention", "linear_attention", "linear_attention", "full_attention"),
    "twin": ("full_attention",) * 4,
}
_SMALLEST_ID = 16  # below it are the markers


@dataclass(frozen=True, slots=True)
class Point:
    """Milliseconds per decoded token after `context_tokens`: minimum and median of the turns' means.

    Compare the minimum: other work on the machine can only make a turn slower.
    """

    context_tokens: int
    read_seconds: float
    least_ms: float
    median_ms: float


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes of the cache: computed from the configuration, as vLLM allocated it, and in tokens as vLLM logs it."""

    parameters: int
    kv_bytes_per_token: int
    state_bytes: int
    vllm: dict[str, int]
    vllm_tokens: int
    paper_tokens: int

    @property
    def agree(self) -> bool:
        """Exactly."""
        told = (self.vllm["kv_bytes_per_token"], self.vllm["state_bytes"], self.vllm_tokens)
        return told == (self.kv_bytes_per_token, self.state_bytes, self.paper_tokens)


def text_config(kinds: Sequence[str], window_tokens: int) -> dict[str, Any]:
    """Return the demo model's text configuration with other layers and window."""
    layers = {"num_hidden_layers": len(kinds), "layer_types": list(kinds)}
    return {**read_checkpoint(str(DEMO_MODEL_DIR)).text, **layers, "max_position_embeddings": window_tokens}


def write_model(folder: Path, kinds: Sequence[str], window_tokens: int) -> Shape:
    """Write a checkpoint without weights, for vLLM's dummy loader. The folder must not exist."""
    shutil.copytree(DEMO_MODEL_DIR, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = text_config(kinds, window_tokens)
    whole = json.loads((folder / "config.json").read_text(encoding="utf-8")) | {"text_config": config}
    (folder / "config.json").write_text(json.dumps(whole), encoding="utf-8")
    # The service looks for weights before it starts; the dummy loader never opens them.
    (folder / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    return read_shape(config)


def settings(folder: Path) -> EngineSettings:
    return EngineSettings(
        model=str(folder),
        device="cpu",
        mtp="off",
        kv_cache_gib=CACHE_GIB,
        max_concurrent_requests=2,
        extra_args={"load_format": "dummy"},
    )


def paper(shape: Shape) -> Cache:
    return plan_cache(shape, ParallelLayout(), CacheSettings(kv_fp8=True, min_block_tokens=CPU_BLOCK_TOKENS))


async def sizes(engine: VllmEngine, shape: Shape) -> Sizes:
    cache = paper(shape)
    (worker,) = await engine.cache_bytes()
    return Sizes(
        parameters=parameters(shape),
        kv_bytes_per_token=cache.kv_bytes_per_token,
        state_bytes=cache.state_bytes,
        vllm=worker,
        vllm_tokens=engine.cache_tokens,
        paper_tokens=cache.tokens(int(CACHE_GIB * 2**30), shape.window_tokens),
    )


@dataclass(frozen=True, slots=True)
class Turn:
    """One reply: seconds to its first token, prompt tokens from the cache, and milliseconds per timed token."""

    read_seconds: float
    cached_tokens: int
    ms_per_token: float


async def turn(engine: VllmEngine, prompt: tuple[int, ...], tokens: int) -> Turn:
    request = EngineRequest(
        f"context-{time.monotonic_ns()}",
        prompt,
        max_tokens=tokens,
        min_tokens=tokens,
        sampling=Sampling(temperature=0.0),
    )
    asked, cached = time.perf_counter(), 0
    # One entry per token. Where the loop was late, several chunks came at once, so only the whole span is exact.
    times: list[float] = []
    async for chunk in engine.stream(request):
        cached = max(cached, chunk.cached_tokens)
        times += [time.perf_counter()] * len(chunk.token_ids)
    timed = times[SKIPPED:]
    return Turn(times[0] - asked, cached, (timed[-1] - timed[0]) / (len(timed) - 1) * 1e3)


async def measure(
    engines: dict[str, VllmEngine], lengths: Sequence[int], tokens: int, rounds: int
) -> dict[str, list[Point]]:
    found: dict[str, list[Point]] = {name: [] for name in engines}
    for length in lengths:
        prompt = tuple(random.Random(length).choices(range(_SMALLEST_ID, 512), k=length - tokens))
        turns: dict[str, list[Turn]] = {name: [] for name in engines}
        for _ in range(rounds):
            for name, engine in engines.items():
                # The prompt is read once; later turns find it in the prefix cache.
                one = await turn(engine, prompt, tokens)
                turns[name].append(one)
                said = (
                    f"{one.read_seconds:.1f} s to read, {one.cached_tokens:,} cached, {one.ms_per_token:.2f} ms a token"
                )
                print(f"{length:>8,} tokens, {name}: {said}", file=sys.stderr)
        for name in engines:
            each = [one.ms_per_token for one in turns[name]]
            read = turns[name][0].read_seconds
            found[name].append(Point(length, read, min(each), statistics.median(each)))
    return found


async def run(lengths: Sequence[int], tokens: int = TOKENS, rounds: int = ROUNDS) -> dict[str, Any]:
    """Start both engines, measure, and end them. Returns plain values, as written to JSON."""
    window = max(lengths)
    engines: dict[str, VllmEngine] = {}
    with tempfile.TemporaryDirectory(prefix="penstock-context-") as temporary:
        try:
            shapes = {name: write_model(Path(temporary) / name, kinds, window) for name, kinds in MODELS.items()}
            for name in MODELS:
                print(f"starting {name} ...", file=sys.stderr)
                engines[name] = await start(settings(Path(temporary) / name))
            told = {name: await sizes(engines[name], shape) for name, shape in shapes.items()}
            points = await measure(engines, lengths, tokens, rounds)
        finally:
            for engine in engines.values():
                await engine.close()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "tokens": tokens,
        "rounds": rounds,
        "models": {
            name: {
                "sizes": asdict(told[name]) | {"agree": told[name].agree},
                "points": [asdict(point) for point in points[name]],
            }
            for name in MODELS
        },
    }


def table(found: dict[str, Any]) -> str:
    """Return the result as a table in text."""
    hybrid, twin = (found["models"][name] for name in MODELS)
    lines = ["ms per decoded token, minimum of all turns (their median)"]
    lines.append(f"{'context':>9}  {'hybrid':>18}  {'twin':>18}  {'twin / hybrid':>13}")
    for one, other in zip(hybrid["points"], twin["points"], strict=True):
        cells = [f"{p['least_ms']:.2f} ({p['median_ms']:.2f})" for p in (one, other)]
        ratio = other["least_ms"] / one["least_ms"]
        lines.append(f"{one['context_tokens']:>9,}  {cells[0]:>18}  {cells[1]:>18}  {ratio:>13.2f}")
    lines += ["", "ms per token added from the shortest context to the longest:"]
    lines += [f"  {name:<7} {grown(found, name):+.2f}" for name in MODELS]
    lines += ["", "bytes of cache, computed (and as vLLM allocated it)"]
    for name in MODELS:
        one = found["models"][name]["sizes"]
        lines.append(
            f"  {name:<7} {one['kv_bytes_per_token']:,} ({one['vllm']['kv_bytes_per_token']:,}) per token, "
            f"{one['state_bytes']:,} ({one['vllm']['state_bytes']:,}) of state per sequence; "
            f"{one['paper_tokens']:,} ({one['vllm_tokens']:,}) tokens in {CACHE_GIB:g} GiB"
        )
    lines.append(f"{found['machine']['cpu']}, {found['machine']['cores']} cores, {found['date']}")
    return "\n".join(lines)


def grown(found: dict[str, Any], name: str) -> float:
    """Return the milliseconds per token that the longest context adds to the shortest."""
    points = found["models"][name]["points"]
    return float(points[-1]["least_ms"] - points[0]["least_ms"])


def draw(found: dict[str, Any], file: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0, 3.6), dpi=200, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    styles = {
        "hybrid": ("#0072B2", "o", "3 of 4 layers Gated DeltaNet"),
        "twin": ("#D55E00", "v", "all layers full attention"),
    }
    for name, (colour, marker, label) in styles.items():
        points = found["models"][name]["points"]
        x, y = [p["context_tokens"] for p in points], [p["least_ms"] for p in points]
        axes.plot(x, y, color=colour, marker=marker, markersize=5, label=label)
        axes.fill_between(x, y, [p["median_ms"] for p in points], color=colour, alpha=0.15)
    axes.set_xscale("log", base=2)
    axes.set_xticks([p["context_tokens"] for p in points], [f"{p['context_tokens'] // 1024}k" for p in points])
    axes.set(xlabel="context, tokens", ylabel="ms per decoded token", ylim=(0, None))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False)
    about = f"{found['machine']['cpu']}, {found['machine']['cores']} cores, {found['date'][:10]}"
    figure.suptitle(f"{about}; line: minimum of the turns, band: up to their median", fontsize=8)
    figure.savefig(file)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.context_cost", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--lengths", default=",".join(map(str, LENGTHS)), help="context lengths in tokens, in rising order"
    )
    parser.add_argument("--tokens", type=int, default=TOKENS, help="tokens decoded per turn")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="turns of each model at each length")
    parser.add_argument("--json", metavar="FILE", help="file for the result; - is stdout")
    parser.add_argument("--png", metavar="FILE", type=Path, help="file for a plot of it")
    parser.add_argument(
        "--from", dest="source", metavar="FILE", type=Path, help="file of an earlier result to show, without measuring"
    )
    options = parser.parse_args()
    try:
        lengths = sorted({int(one) for one in options.lengths.split(",")})
    except ValueError:
        parser.error(f"--lengths must be whole numbers separated by commas, got {options.lengths!r}")
    if options.tokens <= SKIPPED + 2 or options.rounds < 1 or lengths[0] <= options.tokens:
        parser.error(f"needs more than {SKIPPED + 2} --tokens, a round, and lengths above --tokens")
    if options.source:
        found = json.loads(options.source.read_text(encoding="utf-8"))
    else:
        found = asyncio.run(run(lengths, options.tokens, options.rounds))
    print(table(found), file=sys.stderr if options.json == "-" else sys.stdout)
    if options.json == "-":
        print(json.dumps(found))
    elif options.json:
        Path(options.json).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if options.png:
        draw(found, options.png)
    if not all(model["sizes"]["agree"] for model in found["models"].values()):
        sys.exit("the computed size of the cache differs from what vLLM allocated")


if __name__ == "__main__":
    main()
