"""The small model's folder: the official processor and configuration read it, and FP8 makes it small enough."""

import json
from pathlib import Path

import pytest
import torch
from penstock.engine.sizing.vision import vision_weight_bytes
from penstock.engine.vllm.checkpoint import read_checkpoint
from penstock.engine.vllm.compat import declare_torchvision_operators
from penstock.engine.vllm.fp8.write import write
from PIL import Image
from safetensors import safe_open
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from models.small import pictures
from models.small.config import (
    IM_END,
    IMAGE_PAD,
    PICTURE_PIXELS,
    SPECIAL_TOKENS,
    VISION_END,
    VISION_START,
    VOCAB_SIZE,
    model_config,
)
from models.small.encoding import Encoder
from models.small.export import export
from models.small.language_model import Pictures, SmallModel
from models.small.positions import batch_positions, picture_tokens
from models.small.verify import OnTransformers, Prompt

MAX_FP8_BYTES = 32_000_000


def stand_in_tokenizer() -> Tokenizer:
    """Return a tokenizer of bytes with the same control tokens: training the real one takes seconds."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(t, special=t.startswith("<|"), normalized=False) for t in SPECIAL_TOKENS]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["assistant\n"] * 9, trainer)
    return tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("small") / "model"
    export(SmallModel(model_config()), path, stand_in_tokenizer())
    return path


def test_the_service_reads_the_folder(folder: Path) -> None:
    found = read_checkpoint(str(folder))
    assert found.architecture == "Qwen3_5MoeForConditionalGeneration"
    assert (found.vocab_size, found.native_context_tokens, found.mtp_layers, found.experts) == (
        VOCAB_SIZE,
        32768,
        1,
        16,
    )
    assert IM_END in found.eos_ids
    with safe_open(folder / "model.safetensors", "pt") as file:
        stored = {name: file.get_tensor(name).nbytes for name in file.keys()}  # noqa: SIM118
    vision = sum(size for name, size in stored.items() if "visual" in name)
    assert found.weight_bytes(fp8=False) == pytest.approx(sum(stored.values()) - vision, rel=0.01)
    tower = found.tower("auto")
    assert tower is not None
    assert vision_weight_bytes(tower) == vision
    assert found.image_pixels == PICTURE_PIXELS
    assert found.tower("off") is None


def test_the_official_processor_makes_the_same_ids_and_patches(folder: Path) -> None:
    declare_torchvision_operators()
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(folder)
    seen = [Image.new("RGB", (96, 64), "#aa3300"), Image.new("RGB", (64, 128), "#0033aa")]
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "37+48?"}]}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    made = processor(text=[text], images=seen, return_tensors="pt")
    ours = [pictures.to_patches(one) for one in seen]
    encoder = Encoder(stand_in_tokenizer())
    shown = [[VISION_START, *[IMAGE_PAD] * picture_tokens(grid), VISION_END] for _, grid in ours]
    content = [*shown[0], *shown[1], *encoder.encode("37+48?")]
    assert made["input_ids"][0].tolist() == [*encoder.turn("user", content), *encoder.generation_prompt(True)]
    assert torch.equal(made["pixel_values"], torch.cat([patches for patches, _ in ours]))
    assert made["image_grid_thw"].tolist() == [[1, *grid] for _, grid in ours]


def test_fp8_is_small_enough_and_leaves_the_tower_as_it_is(folder: Path) -> None:
    target = folder.with_name("fp8")
    written = write(folder, target)
    assert written.bytes <= MAX_FP8_BYTES
    with safe_open(target / "model.safetensors", "pt") as file:
        kinds = {name: file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118
    converted = {name for name, kind in kinds.items() if kind == torch.float8_e4m3fn}
    layers = model_config()["text_config"]["num_hidden_layers"]
    assert {f"model.language_model.layers.{n}.mlp.experts.15.down_proj.weight" for n in range(layers)} <= converted
    assert "mtp.layers.0.self_attn.q_proj.weight" in converted
    assert all(kind == torch.bfloat16 for name, kind in kinds.items() if "visual" in name)
    kept = json.loads((target / "config.json").read_text())["quantization_config"]["modules_to_not_convert"]
    assert {"model.visual.blocks.0.attn.qkv", "model.visual.merger.linear_fc1", "lm_head"} <= set(kept)
    assert (target / "preprocessor_config.json").exists()


@torch.no_grad()
def test_greedy_decoding_by_the_reference_is_that_of_the_training_model(folder: Path) -> None:
    torch.manual_seed(0)
    model, encoder = SmallModel(model_config()).eval(), Encoder(stand_in_tokenizer())
    model.load_state_dict({name: value.bfloat16().float() for name, value in model.state_dict().items()})
    seen = [Image.effect_noise((96, 64), 60).convert("RGB"), Image.effect_noise((64, 64), 60).convert("RGB")]
    shown = [pictures.to_patches(one) for one in seen]
    ids = [[*encoder.user("2+3?", picture_tokens(grid)), *encoder.generation_prompt(True)] for _, grid in shown]
    prompts = [Prompt(row, (one,)) for row, one in zip(ids, seen, strict=True)]
    found, gaps = OnTransformers(folder).generate([*prompts, Prompt(encoder.user("2+3?"))], max_tokens=2)
    assert len(gaps) == 3  # prompts
    for prompt, tokens in zip(prompts, found[:2], strict=True):
        row = list(prompt.ids)
        for token in tokens:
            patches, grid = pictures.to_patches(prompt.pictures[0])
            states = model(torch.tensor([row]), batch_positions([row], [[grid]]), Pictures(patches, [grid]))
            assert model.lm_head(states.hidden[0, -1]).argmax().item() == token
            row.append(token)
    short = prompts[0].for_vllm()["prompt_token_ids"]
    assert short.count(IMAGE_PAD) == 1
    assert [i for i in short if i != IMAGE_PAD] == [i for i in prompts[0].ids if i != IMAGE_PAD]
