"""Write an FP8 checkpoint from a bfloat16 one, in the layout of the official ones. Torch and safetensors only.

Each converted weight `w` becomes e4m3 under its own name, with `w_scale_inv` beside it. Experts that are stored
together in the source (`experts.gate_up_proj`) are stored one by one (`experts.3.gate_proj.weight`), as in the official
ones. Routers, norms, convolutions, embeddings, the head, the small projections of Gated DeltaNet (a, b), the draft
layer's `mtp.fc` and all visual weights stay unchanged.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from penstock.engine.vllm.fp8.blocks import BLOCK, quantize
from penstock.errors import ConfigError, PenstockError
from penstock.files import free_bytes, is_of_space, size, why_not_written

_CONVERTED = re.compile(
    r"(^|\.)layers\.\d+\."
    r"(self_attn\.[qkvo]_proj|linear_attn\.(in_proj_qkv|in_proj_z|out_proj)"
    r"|mlp\.(shared_expert\.|experts\.\d+\.)?(gate|up|down)_proj)\.weight$"
)
_TOGETHER = re.compile(r"^(.*\.experts)\.(gate_up_proj|down_proj)$")
_ENTRY = 120
"""Bytes of a tensor's entry in the header of its file, without its name; rounded up."""

Progress = Callable[[int, int, str], None]
"""Called with bytes read so far, bytes in all, and the tensor's name."""


@dataclass
class Written:
    """The result of `write`. Sizes are bytes of the weight files."""

    source_bytes: int
    bytes: int = 0
    converted_tensors: int = 0
    kept_modules: list[str] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """Return the written bytes over the source's."""
        return self.bytes / self.source_bytes


def write(source: Path, target: Path, progress: Progress = lambda done, total, name: None) -> Written:
    """Write `target`, completely or not at all. Raise ConfigError, and PenstockError where the disk is too small."""
    config = _config(source)
    shards = sorted(source.glob("*.safetensors"))
    if not shards:
        raise ConfigError(f"{source} has no weights (*.safetensors)")
    if target.exists():
        raise ConfigError(f"{target} exists already; name a directory that does not exist")
    written = Written(sum(shard.stat().st_size for shard in shards))
    partial = target.with_name(f".{target.name}.partial")
    # Before the space is looked at: a run that was killed may have filled it.
    shutil.rmtree(partial, ignore_errors=True)
    needed = _space_needed(source, shards)
    _check_space(target, needed)
    partial.mkdir(parents=True)
    try:
        _write_weights(shards, partial, written, progress)
        _write_rest(source, partial, config, written)
        partial.rename(target)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, SafetensorError) or (isinstance(error, OSError) and is_of_space(error)):
            why = why_not_written(target, error, needed)
            raise PenstockError(f"{why}; nothing was left behind") from error
        raise
    return written


def _space_needed(source: Path, shards: list[Path]) -> int:
    """Return bytes: the files to copy, each tensor as it will be stored, and the index of several shards.

    Only headers are read. Raise ConfigError for one that cannot be.
    """
    needed = sum(path.stat().st_size for path in _copied(source))
    for shard in shards:
        try:
            for name, weight, element_bytes in _parts(shard):
                needed += sum(_bytes(name, weight, element_bytes))
                if len(shards) > 1:
                    needed += 2 * (_ENTRY + len(name))
        except SafetensorError as error:
            raise ConfigError(f"{shard} cannot be read: {error}") from error
    return needed


def _parts(shard: Path) -> Iterator[tuple[str, torch.Tensor, int]]:
    """Yield each weight that will be written with its shape alone, and the bytes of its elements in the source."""
    with safe_open(shard, "pt") as file:
        for name in file.keys():  # noqa: SIM118 # not a mapping
            stored = file.get_slice(name)
            bits = re.search(r"\d+", stored.get_dtype())  # of BF16: 16; BOOL has none, and takes a byte
            for part, weight in _apart(name, torch.empty(stored.get_shape(), dtype=torch.int8, device="meta")):
                yield part, weight, int(bits[0]) // 8 if bits else 1


def _bytes(name: str, weight: torch.Tensor, element_bytes: int) -> Iterator[int]:
    """Yield the bytes of what is stored of a weight, with the entries in the header."""
    if _is_converted(name, weight):
        yield weight.numel() + _ENTRY + len(name)
        yield 4 * weight.numel() // BLOCK**2 + _ENTRY + len(f"{name}_scale_inv")
    else:
        yield weight.numel() * element_bytes + _ENTRY + len(name)


def _write_weights(shards: list[Path], folder: Path, written: Written, progress: Progress) -> None:
    """Write the weights shard by shard, so that memory holds one at a time."""
    places: dict[str, str] = {}
    read = 0
    for shard in shards:
        tensors: dict[str, torch.Tensor] = {}
        with safe_open(shard, "pt") as file:
            for name in file.keys():  # noqa: SIM118 # not a mapping
                tensor = file.get_tensor(name)
                for part, weight in _apart(name, tensor):
                    tensors |= _convert(part, weight, written)
                read += tensor.nbytes
                progress(read, written.source_bytes, name)
        path = folder / shard.name
        save_file(tensors, path, metadata={"format": "pt"})
        path.chmod(0o644)  # save_file writes it for its owner alone
        written.bytes += path.stat().st_size
        places |= dict.fromkeys(tensors, shard.name)
    if len(shards) > 1:
        index = {"metadata": {"total_size": written.bytes}, "weight_map": dict(sorted(places.items()))}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _apart(name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the experts of a stack one by one, with gate and up apart; yield any other tensor unchanged."""
    together = _TOGETHER.match(name)
    if together is None:
        yield name, tensor
        return
    stem, kind = together.groups()
    for number, expert in enumerate(tensor):
        if kind == "down_proj":
            yield f"{stem}.{number}.down_proj.weight", expert
        else:
            gate, up = expert.chunk(2)
            yield f"{stem}.{number}.gate_proj.weight", gate
            yield f"{stem}.{number}.up_proj.weight", up


def _convert(name: str, weight: torch.Tensor, written: Written) -> dict[str, torch.Tensor]:
    if _is_converted(name, weight):
        quantised, scale = quantize(weight)
        written.converted_tensors += 1
        return {name: quantised, f"{name}_scale_inv": scale}
    if name.endswith(".weight") and weight.dim() > 1:
        written.kept_modules.append(name.removesuffix(".weight"))
    return {name: weight.contiguous()}


def _is_converted(name: str, weight: torch.Tensor) -> bool:
    whole_blocks = weight.dim() == 2 and weight.shape[0] % BLOCK == 0 and weight.shape[1] % BLOCK == 0
    return _CONVERTED.search(name) is not None and whole_blocks


def _config(source: Path) -> dict[str, object]:
    try:
        config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{source} is not a checkpoint: {error}") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{source}: config.json is not a JSON object")
    if "quantization_config" in config:
        raise ConfigError(f"{source} is quantised already; name a bfloat16 checkpoint")
    return config


def _write_rest(source: Path, folder: Path, config: dict[str, object], written: Written) -> None:
    """Write configuration, tokenizer and template, but not the model card, whose figures are of other weights."""
    for path in _copied(source):
        shutil.copyfile(path, folder / path.name)
    quantization = {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [BLOCK, BLOCK],
        "modules_to_not_convert": sorted(written.kept_modules),
    }
    text = json.dumps(config | {"quantization_config": quantization}, indent=2)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")


def _copied(source: Path) -> Iterator[Path]:
    """Yield the files that are written as they are."""
    for path in source.iterdir():
        written_here = path.suffix == ".safetensors" or path.name.endswith(".index.json") or path.name == "README.md"
        if path.is_file() and not written_here:
            yield path


def _check_space(target: Path, needed: int) -> None:
    free = free_bytes(target)
    if free is not None and free < needed:
        raise PenstockError(f"{target} cannot be written: about {size(needed)} needed, {size(free)} free")
