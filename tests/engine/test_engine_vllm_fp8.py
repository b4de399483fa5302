"""FP8 weights: the arithmetic, the checkpoint's layout, vLLM's kernels against plain products. No engine runs here."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from penstock.config.schema import DEMO_MODEL_DIR, DEMO_MODEL_FP8_DIR
from penstock.engine.vllm.fp8 import write as writing
from penstock.engine.vllm.fp8.blocks import dequantize, quantize, refine
from penstock.engine.vllm.fp8.write import write
from penstock.errors import ConfigError, PenstockError
from safetensors.torch import load_file, save_file

from tests.tooling import skip_on_this_cpu

pytestmark = pytest.mark.filterwarnings("ignore")


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) * 0.05


@pytest.mark.parametrize("shape", [(128, 128), (256, 384), (3, 256, 128), (100, 200)])
def test_a_weight_comes_back_within_a_sixteenth(shape):
    weight = draw(*shape)
    quantised, scale = quantize(weight)
    assert quantised.dtype == torch.float8_e4m3fn
    assert scale.shape == (*shape[:-2], -(-shape[-2] // 128), -(-shape[-1] // 128))
    back = dequantize(quantised, scale, dtype=torch.float32)
    # 3 mantissa bits round by at most 1/16; below the smallest normal number the step is fixed.
    assert ((back - weight).abs() <= weight.abs() / 16 + scale.max() * 2**-10).all()
    assert (back - weight).norm() / weight.norm() < 0.03


def test_blocks_of_zeros_and_of_very_different_size():
    weight = torch.zeros(256, 256)
    weight[:128, :128], weight[128:, 128:] = draw(128, 128) * 1e-6, draw(128, 128) * 1e4
    quantised, scale = quantize(weight)
    back = dequantize(quantised, scale, dtype=torch.float32)
    assert torch.isfinite(scale).all()
    assert (back[:128, 128:] == 0).all()
    for part in (slice(0, 128), slice(128, 256)):
        assert (back[part, part] - weight[part, part]).norm() / weight[part, part].norm() < 0.03


def test_every_code_is_widened_exactly():
    codes = torch.arange(256, dtype=torch.uint8)
    codes = codes[(codes & 127) != 127].view(torch.float8_e4m3fn)[None]  # without the two NaN
    assert torch.equal(dequantize(codes, torch.ones(1, 2), dtype=torch.float32), codes.float())


def test_finer_blocks_say_the_same():
    quantised, scale = quantize(draw(256, 256))
    fine = refine(scale, (64, 32))
    assert fine.shape == (4, 8)
    assert torch.equal(dequantize(quantised, fine, (64, 32)), dequantize(quantised, scale))


@pytest.fixture
def source(tmp_path) -> Path:
    """Two layers' worth of names, over two files."""
    folder = tmp_path / "bf16"
    folder.mkdir()
    names = {
        "model.embed_tokens": (32, 128),
        "model.layers.0.linear_attn.in_proj_qkv": (384, 128),
        "model.layers.0.linear_attn.in_proj_a": (2, 128),
        "model.layers.0.linear_attn.conv1d": (384, 1, 4),
        "model.layers.0.mlp.gate": (4, 128),
        "model.layers.0.mlp.shared_expert.up_proj": (128, 128),
        "model.layers.0.mlp.shared_expert_gate": (1, 128),
        "model.visual.blocks.0.attn.proj": (128, 128),
        "mtp.fc": (128, 256),
        "mtp.layers.0.self_attn.q_proj": (256, 128),
        "lm_head": (32, 128),
    }
    tensors = {f"{name}.weight": draw(*shape).to(torch.bfloat16) for name, shape in names.items()}
    tensors["model.layers.0.input_layernorm.weight"] = torch.ones(128, dtype=torch.bfloat16)
    experts = {
        "model.layers.0.mlp.experts.gate_up_proj": draw(4, 256, 128).to(torch.bfloat16),
        "model.layers.0.mlp.experts.down_proj": draw(4, 128, 128).to(torch.bfloat16),
    }
    save_file(tensors, folder / "model-00001-of-00002.safetensors")
    save_file(experts, folder / "model-00002-of-00002.safetensors")
    (folder / "config.json").write_text('{"model_type": "qwen3_5_moe_text"}')
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors.index.json").write_text("{}")
    return folder


def test_the_layout_is_that_of_the_official_checkpoints(source, tmp_path):
    seen = []
    written = write(source, tmp_path / "fp8", lambda done, total, name: seen.append(name))
    config = json.loads((tmp_path / "fp8" / "config.json").read_text())
    assert config["model_type"] == "qwen3_5_moe_text"
    kept = config["quantization_config"].pop("modules_to_not_convert")
    assert config["quantization_config"] == {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
    }
    assert set(kept) == {
        "model.embed_tokens",
        "model.layers.0.linear_attn.in_proj_a",
        "model.layers.0.linear_attn.conv1d",
        "model.layers.0.mlp.gate",
        "model.layers.0.mlp.shared_expert_gate",
        "model.visual.blocks.0.attn.proj",
        "mtp.fc",
        "lm_head",
    }
    index = json.loads((tmp_path / "fp8" / "model.safetensors.index.json").read_text())["weight_map"]
    tensors = {}
    for file in set(index.values()):
        tensors |= load_file(tmp_path / "fp8" / file)
    assert set(index) == set(tensors)
    experts = [name for name in tensors if ".experts." in name]
    assert len(experts) == 4 * 3 * 2
    assert written.converted_tensors == 3 + 4 * 3
    up = tensors["model.layers.0.mlp.experts.2.up_proj.weight"]
    scale = tensors["model.layers.0.mlp.experts.2.up_proj.weight_scale_inv"]
    assert (up.dtype, up.shape) == (torch.float8_e4m3fn, (128, 128))
    assert (scale.dtype, scale.shape) == (torch.float32, (1, 1))
    original = load_file(source / "model-00002-of-00002.safetensors")["model.layers.0.mlp.experts.gate_up_proj"]
    assert torch.allclose(dequantize(up, scale).float(), original[2, 128:].float(), rtol=0.07, atol=1e-4)
    assert (tmp_path / "fp8" / "tokenizer.json").is_file()
    assert seen


def test_the_space_is_known_before_anything_is_written(source, tmp_path, monkeypatch):
    (tmp_path / ".fp8.partial").mkdir()
    (tmp_path / ".fp8.partial" / "left").write_bytes(b"by a run that was killed")
    told = []
    monkeypatch.setattr(writing, "_check_space", lambda target, needed: told.append((needed, [*tmp_path.iterdir()])))
    write(source, tmp_path / "fp8")
    [(needed, there)] = told
    took = sum(path.stat().st_size for path in (tmp_path / "fp8").iterdir() if path.name != "config.json")
    assert took <= needed <= took + 40_000  # 36 headers' worth: these tensors are small
    assert there == [source]


def test_a_shard_that_cannot_be_read_is_named(source, tmp_path):
    (source / "model-00002-of-00002.safetensors").write_bytes(b"no weights")
    with pytest.raises(ConfigError, match=r"model-00002-of-00002.safetensors cannot be read"):
        write(source, tmp_path / "fp8")
    assert not (tmp_path / "fp8").exists()


def test_nothing_is_overwritten_and_nothing_half_done_is_left(source, tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    with pytest.raises(ConfigError, match="exists"):
        write(source, tmp_path / "there")
    with monkeypatch.context() as patched:
        patched.setattr(writing.shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
        with pytest.raises(PenstockError, match="10 bytes free"):
            write(source, tmp_path / "fp8")

    def broken(done: int, total: int, name: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(source, tmp_path / "fp8", broken)
    assert {path.name for path in tmp_path.iterdir()} == {"bf16", "there"}
    write(source, tmp_path / "fp8")
    with pytest.raises(ConfigError, match="already"):
        write(tmp_path / "fp8", tmp_path / "again")


def test_the_demo_model_shrinks_to_two_thirds(tmp_path):
    """The embeddings, the head and the vision tower stay in bfloat16, a fourth of this small model."""
    written = write(DEMO_MODEL_DIR, tmp_path / "fp8")
    print(f"\n{written.bytes / 1e6:.2f} MB of {written.source_bytes / 1e6:.2f} MB: {written.ratio:.3f}")
    assert written.ratio <= 0.65


def test_the_shipped_fp8_model_is_what_quantize_makes_of_the_shipped_one(tmp_path):
    """Where this fails: `make quantize`."""
    write(DEMO_MODEL_DIR, tmp_path / "fp8")
    for made in (tmp_path / "fp8").iterdir():
        assert made.read_bytes() == (DEMO_MODEL_FP8_DIR / made.name).read_bytes(), made.name


@pytest.fixture(scope="module")
def cpu():
    import vllm.platforms

    vllm.platforms.current_platform.import_kernels()  # those of this CPU: two sets in one process abort it
    from penstock.engine.vllm.fp8 import cpu

    return cpu


@pytest.mark.cpu_build
@pytest.mark.parametrize("block_rows", [32, 64, 128])
@pytest.mark.parametrize("tokens", [1, 3, 5, 70])
def test_vllms_kernels_agree_with_plain_arithmetic(cpu, tokens, block_rows):
    if not cpu.kernels_agree():
        skip_on_this_cpu("no AVX-512 BF16: weights are widened")
    pack = torch.ops._C.convert_weight_packed
    x = draw(tokens, 256).to(torch.bfloat16) * 20
    weight, scale = quantize(draw(384, 256))
    scale = refine(scale, (block_rows, 128))
    plain = torch.nn.functional.linear(x, dequantize(weight, scale, (block_rows, 128)))
    assert torch.allclose(cpu._product(x, pack(weight), scale, block_rows, None), plain, rtol=0.02, atol=0.02)

    stacks = [quantize(draw(4, 256, 256)), quantize(draw(4, 256, 128))]
    weights = tuple(weight for weight, _ in stacks)
    scales = tuple(refine(scale, (block_rows, 128)) for _, scale in stacks)
    shares, ids = torch.rand(tokens, 4, generator=torch.Generator().manual_seed(tokens)).topk(2)
    packed = tuple(pack(weight) for weight in weights)
    plain = cpu._widened_experts(x, cpu.Experts(weights, scales, block_rows), shares, ids)
    fused = cpu._packed_experts(x, cpu.Experts(packed, scales, block_rows), shares, ids)
    assert torch.allclose(fused, plain, rtol=0.02, atol=0.02)


@pytest.mark.cpu_build
def test_vllm_still_keeps_its_kernels_to_cpus_with_amx(cpu):
    """Where this fails, `fp8.cpu` has had its day on this CPU: vLLM runs FP8 checkpoints itself."""
    from vllm.model_executor.kernels.linear.scaled_mm.cpu import CPUFp8BlockScaledMMKernel
    from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUExpertsFp8

    if torch.cpu._is_amx_tile_supported():
        skip_on_this_cpu("it has AMX: vLLM's kernels are open to it")
    assert not CPUFp8BlockScaledMMKernel.is_supported()[0]
    assert not CPUExpertsFp8._supports_current_device()
