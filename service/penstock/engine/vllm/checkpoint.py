"""Read a checkpoint's own files before vLLM does: an error in a path shows in a second instead of after twenty."""

from __future__ import annotations

import importlib
import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from penstock.config.schema import DEMO_MODEL_DIR, DEMO_MODEL_FP8_DIR, Switch
from penstock.engine.download import DownloadFailed, HuggingFace
from penstock.engine.sizing.shape import read_shape
from penstock.engine.sizing.vision import VisionShape, read_vision
from penstock.engine.sizing.weights import weight_bytes
from penstock.engine.vllm.cards import CARDS, IMAGE_PIXELS, vision_card
from penstock.errors import ConfigError
from penstock.types import MIN_MARKER_PROBABILITY, EarlyExit, EarlyExitAdvice

ARCHITECTURES = frozenset(
    {
        "Qwen3_5MoeForCausalLM",
        "Qwen3_5MoeForConditionalGeneration",
        "Qwen3_5ForCausalLM",
        "Qwen3_5ForConditionalGeneration",
    }
)

OBJECT_STORES = ("s3://", "gs://", "az://")

PICTURE_FILE = "preprocessor_config.json"
"""Says how a picture becomes patches."""


@dataclass(frozen=True, slots=True)
class ModelCheckpoint:
    """Facts from a checkpoint's files. `model` is the name or path for vLLM.

    `generation_defaults` are the keys of generation_config.json, unchanged.
    """

    model: str
    is_local: bool
    architecture: str
    vocab_size: int
    native_context_tokens: int
    mtp_layers: int
    experts: int
    quantization: str | None
    eos_ids: frozenset[int]
    generation_defaults: dict[str, Any] = field(default_factory=dict)
    early_exit: EarlyExitAdvice | None = None
    """The checkpoint's `penstock_early_exit` in generation_config.json; None where it has none."""
    text: dict[str, Any] = field(default_factory=dict)
    """The text model's part of config.json, unchanged."""
    vision: dict[str, Any] = field(default_factory=dict)
    """The vision tower's part of config.json, unchanged; empty where the checkpoint has none."""
    reads_pictures: bool = True
    """Whether the files that say how a picture becomes patches are there; True where that is not known."""
    image_pixels: tuple[int, int] | None = None
    """Pixels to which a smaller or a larger image is scaled before it becomes patches; None where not known."""

    @property
    def rope(self) -> dict[str, Any]:
        """Return the parameters of the rotary positions; empty where config.json has none."""
        return self.text.get("rope_parameters") or self.text.get("rope_scaling") or {}

    @property
    def heads(self) -> int | None:
        """Return the number of attention heads; None where config.json has none."""
        return self.text.get("num_attention_heads")

    def tower(self, images: Switch) -> VisionShape | None:
        """Return the vision tower that `engine.images` loads; None for none, and where its size is not known."""
        if not self.vision or not self.reads_pictures or images == "off":
            return None
        try:
            return read_vision(self.vision)
        except ConfigError:
            return None

    def weight_bytes(self, fp8: bool) -> int | None:
        """Return the bytes of the text model's weights; None where config.json lacks a size."""
        try:
            return weight_bytes(read_shape(self.text), fp8 or self.quantization == "fp8")
        except ConfigError:
            return None


def read_checkpoint(model: str, fp8: bool = True, revision: str = "") -> ModelCheckpoint:
    """Read a directory, or the small files of a Hugging Face name. Raise `ConfigError`, or `DownloadFailed`.

    Empty is the embedded demo model, in FP8 where that is wanted and exists.
    """
    if not model:
        model = str(DEMO_MODEL_FP8_DIR if fp8 and DEMO_MODEL_FP8_DIR.is_dir() else DEMO_MODEL_DIR)
    folder = Path(model).expanduser()
    is_local = folder.exists() or model.startswith(("/", "./", "../", "~"))
    if is_local:
        _check_folder(folder)
        config, generation = _read(folder / "config.json"), _read(folder / "generation_config.json", optional=True)
        return _describe(str(folder), True, config, generation, _read(folder / PICTURE_FILE, optional=True))
    if model.startswith(OBJECT_STORES):
        return _describe(model, False, *_stream(model))
    files = _Published(model, revision)
    config, generation = files.read("config.json") or {}, files.read("generation_config.json", optional=True) or {}
    pictures = files.read(PICTURE_FILE, optional=True) if _vision(config) else None
    return _describe(model, False, config, generation, pictures)


def read_facts(model: str, fp8: bool = True) -> ModelCheckpoint:
    """Read enough to plan with, without weights: a directory or file with config.json, or a name in `CARDS`.

    Raise `ConfigError`, or `DownloadFailed` where the hub cannot be reached.
    """
    folder = Path(model).expanduser()
    if model and (folder.is_file() or (folder / "config.json").is_file()):
        if folder.is_file():
            return _describe(model, True, _read(folder), {})
        return _describe(model, True, _read(folder / "config.json"), {}, _read(folder / PICTURE_FILE, optional=True))
    known = {name.lower(): name for name in CARDS} | {name.lower().partition("/")[2]: name for name in CARDS}
    if name := known.get(model.lower()):
        return card_checkpoint(name)
    try:
        return read_checkpoint(model, fp8)
    except (ConfigError, DownloadFailed) as error:
        raise type(error)(f"{error.message}\nknown without a checkpoint: {', '.join(CARDS)}") from None


def card_checkpoint(name: str) -> ModelCheckpoint:
    """Return an official model as if its small files had been read."""
    text = dict(CARDS[name])
    return ModelCheckpoint(
        model=name,
        is_local=False,
        architecture="Qwen3_5MoeForConditionalGeneration"
        if "num_experts" in text
        else "Qwen3_5ForConditionalGeneration",
        vocab_size=text["vocab_size"],
        native_context_tokens=text["max_position_embeddings"],
        mtp_layers=text["mtp_num_hidden_layers"],
        experts=text.get("num_experts", 0),
        quantization="fp8" if name.endswith("-FP8") else None,
        eos_ids=frozenset({248046}),
        text=text,
        vision=vision_card(name),
        image_pixels=IMAGE_PIXELS,
    )


def _describe(
    model: str,
    is_local: bool,
    config: dict[str, Any],
    generation: dict[str, Any],
    pictures: dict[str, Any] | None = None,
) -> ModelCheckpoint:
    """Return the facts. `pictures` is the content of `PICTURE_FILE`, empty where there is none, None if not known."""
    architecture = next(iter(config.get("architectures") or []), "")
    if architecture not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise ConfigError(f"{model} is a {architecture or 'model without an architecture'}; this service runs {known}")
    text = config.get("text_config") or config
    try:
        vocab_size, positions = int(text["vocab_size"]), int(text["max_position_embeddings"])
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{model}: config.json lacks a usable {error}") from error
    eos = generation.get("eos_token_id", text.get("eos_token_id", config.get("eos_token_id")))
    quantization = config.get("quantization_config") or text.get("quantization_config") or {}
    return ModelCheckpoint(
        model=model,
        is_local=is_local,
        architecture=architecture,
        vocab_size=vocab_size,
        native_context_tokens=positions,
        mtp_layers=int(text.get("mtp_num_hidden_layers") or 0),
        experts=int(text.get("num_experts") or 0),
        quantization=quantization.get("quant_method"),
        eos_ids=frozenset([eos] if isinstance(eos, int) else eos or []),
        generation_defaults=generation,
        early_exit=_early_exit(model, generation.get("penstock_early_exit")),
        text=text,
        vision=_vision(config),
        reads_pictures=pictures != {},
        image_pixels=_image_pixels(pictures or {}),
    )


def _early_exit(model: str, advised: object) -> EarlyExitAdvice | None:
    """Return the checkpoint's advice. Raise ConfigError where it is not understood."""
    match advised:
        case None:
            return None
        case {"sign": "marker" | "probe" as sign, **rest} if rest.keys() <= {"marker_probability"}:
            probability = rest.get("marker_probability")
            if probability is None or (
                isinstance(probability, float | int)
                and not isinstance(probability, bool)
                and MIN_MARKER_PROBABILITY <= probability <= 1
            ):
                return EarlyExitAdvice(EarlyExit(sign), probability)
    raise ConfigError(
        f"{model}: penstock_early_exit in generation_config.json must be an object with sign (marker or probe) and, "
        f"if wanted, marker_probability ({MIN_MARKER_PROBABILITY} to 1), got {json.dumps(advised)}"
    )


def _vision(config: dict[str, Any]) -> dict[str, Any]:
    return config.get("vision_config") or {}


def _image_pixels(pictures: dict[str, Any]) -> tuple[int, int] | None:
    """Return the least and the most pixels of a picture; None where `PICTURE_FILE` does not say both."""
    match pictures.get("size"):
        case {"shortest_edge": int(least), "longest_edge": int(most)} if 0 < least <= most:
            return least, most
    return None


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise ConfigError(f"engine.model: there is no directory {folder}")
    for needed in ("config.json", "tokenizer.json"):
        if not (folder / needed).is_file():
            raise ConfigError(f"engine.model: {folder} is not a checkpoint, it has no {needed}")
    if not any(folder.glob("*.safetensors")):
        raise ConfigError(f"engine.model: {folder} has no weights (*.safetensors)")


def _read(path: Path, optional: bool = False) -> dict[str, Any]:
    if optional and not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"engine.model: cannot read {path}: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"engine.model: {path} is not a JSON object")
    return content


def _stream(url: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the two small files from an object store, with the package that vLLM loads such models with."""
    try:
        streamer: Any = importlib.import_module("runai_model_streamer")
    except ImportError as error:
        raise ConfigError(
            f"engine.model: {url} needs the package runai-model-streamer, which is not installed"
        ) from error
    with tempfile.TemporaryDirectory(prefix="penstock-") as folder:
        try:
            streamer.pull_files(url.rstrip("/") + "/", folder, ["config.json", "generation_config.json"], None)
        except Exception as error:
            raise ConfigError(f"engine.model: {url} cannot be read: {type(error).__name__}") from error
        generation = _read(Path(folder) / "generation_config.json", optional=True)
        return _read(Path(folder) / "config.json"), generation


class _Published:
    """Read small files of a Hugging Face model: the hub is asked once, and the cache where it cannot be reached."""

    def __init__(self, name: str, revision: str) -> None:
        """Raise ConfigError where there is no such model, DownloadFailed where there is no answer and no copy."""
        self._hub, self._name, self._revision = HuggingFace(), name, revision
        self._files: frozenset[str] | None = None
        """Names of the model's files; None where the hub cannot be reached."""
        try:
            self._revision, files = self._hub.resolve(name, revision)
        except ConfigError as error:
            raise ConfigError(f"engine.model: there is no directory {name}; {error.message}") from error
        except DownloadFailed:
            if self._hub.cached(name, "config.json", revision) is None:
                raise
        else:
            self._files = frozenset(file.name for file in files)

    def read(self, file: str, optional: bool = False) -> dict[str, Any] | None:
        """Return the content of a file; where it is optional, empty for none, and None where that is not known."""
        if self._files is None:
            path = self._hub.cached(self._name, file, self._revision)
            return None if path is None else _read(path)
        if file in self._files:
            return _read(self._hub.get(self._name, file, self._revision))
        if optional:
            return {}
        raise ConfigError(f"engine.model: {self._name} has no {file}")
