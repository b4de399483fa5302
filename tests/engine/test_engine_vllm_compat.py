"""Each patch in `engine_vllm.compat` works, and fails here when vLLM no longer needs it: delete it then."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.filterwarnings("ignore")

INSPECT = """
import vllm.model_executor.models.qwen3_5
from vllm.model_executor.models.registry import ModelRegistry
print(ModelRegistry.models["Qwen3_5MoeForCausalLM"].inspect_model_cls().architecture)
"""


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", "-c", code]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=200)


@pytest.fixture(scope="module")
def patched() -> None:
    """This process as the engine's start leaves it."""
    import vllm.platforms
    from penstock.engine_vllm import compat

    assert vllm.platforms.current_platform.is_cpu()
    import vllm._C

    assert vllm._C
    compat.general_plugin()


def test_a_fresh_process_and_its_registry_subprocess_import_the_model(tmp_path):
    """The engine core and its workers do it in every other test of this directory."""
    done = python(INSPECT, VLLM_CACHE_ROOT=str(tmp_path))
    assert done.stdout.split()[-1:] == ["Qwen3_5MoeForCausalLM"], done.stderr[-2000:]
    assert any(tmp_path.rglob("*.json")), "the registry answered from a cache, so its subprocess was not tried"


def test_torchvision_still_needs_its_operators_declared():
    assert "torchvision::nms" in python("import torchvision").stderr
    declared = "from penstock.engine_vllm import compat; compat.platform_plugin(); import torchvision"
    assert python(declared).returncode == 0


def test_a_column_of_one_token_still_needs_its_stride(patched):
    import torch
    from vllm.model_executor.layers.mamba.ops.cpu import gdn_attention

    def convolve(function):
        dim, width = 768, 4
        arguments = {
            "x": torch.zeros(1, 2 * dim, dtype=torch.bfloat16)[:, :dim].contiguous().transpose(0, 1),
            "weight": torch.zeros(dim, width, dtype=torch.bfloat16),
            "bias": None,
            "conv_states": torch.zeros(2, width - 1, dim, dtype=torch.bfloat16).transpose(1, 2),
            "query_start_loc": torch.tensor([0, 1], dtype=torch.int32),
            "cache_indices": torch.tensor([1], dtype=torch.int32),
            "has_initial_state": torch.tensor([False]),
            "silu_activation": True,
            "is_weight_packed": False,
        }
        return function(**arguments)

    with pytest.raises(RuntimeError, match="transposed"):
        convolve(gdn_attention._causal_conv1d_fwd_cpu.__wrapped__)
    assert convolve(gdn_attention._causal_conv1d_fwd_cpu).shape == (768, 1)


def test_a_lone_state_index_still_needs_its_stride(patched):
    import torch
    from vllm import _custom_ops

    def update(function):
        heads, dim, bf16 = 2, 128, torch.bfloat16
        block_table = torch.ones(1, 8, dtype=torch.int32)
        return function(
            A_log=torch.zeros(heads),
            dt_bias=torch.zeros(heads, dtype=bf16),
            q=torch.zeros(1, 1, heads, dim, dtype=bf16),
            k=torch.zeros(1, 1, heads, dim, dtype=bf16),
            v=torch.zeros(1, 1, heads, dim, dtype=bf16),
            a=torch.zeros(1, heads, dtype=bf16),
            b=torch.zeros(1, heads, dtype=bf16),
            initial_state_source=torch.zeros(2, heads, dim, dim),
            initial_state_indices=block_table[:, 0].contiguous(),
            cu_seqlens=torch.tensor([0, 1], dtype=torch.int32),
            use_qk_l2norm_in_kernel=True,
        )

    with pytest.raises(RuntimeError, match="contiguous"):
        update(_custom_ops.fused_sigmoid_gating_delta_rule_update_cpu.__wrapped__)
    update(_custom_ops.fused_sigmoid_gating_delta_rule_update_cpu)


def test_sampling_parameters_still_get_lost_on_their_way_to_the_drafts(patched):
    import torch
    from vllm.utils import cpu_triton_utils

    def expand(function):
        output = torch.full((5,), -1.0)
        function(output, torch.tensor([0.5, 0.0]), torch.tensor([2, 5], dtype=torch.int32), 0, 1, MAX_NUM_TOKENS=32)
        return output.tolist()

    right = [0.5, 0.5, 1.0, 1.0, 1.0]
    assert expand(cpu_triton_utils._expand_kernel_impl) == right
    assert expand(cpu_triton_utils._expand_kernel_impl.__wrapped__) != right
