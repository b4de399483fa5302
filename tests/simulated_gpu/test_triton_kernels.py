"""Test what a GPU runs in place of the CPU build's code: Model Runner V2's kernels, interpreted and compiled.

Run by Triton's interpreter they do what our rules say; for Hopper, Blackwell and Ampere they compile, as do the kernels
of the models' layers. No kernel has run on a card: decision 21 says what is proven how.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.tooling import ROOT, TOOLS

pytestmark = [pytest.mark.slow, pytest.mark.needs("triton"), pytest.mark.timeout(600)]

CASES = int(os.environ.get("KERNEL_CASES", "60"))


def program(module: str, *arguments: str, **environment: str) -> dict[str, Any]:
    paths = {"PYTHONPATH": str(TOOLS / "triton"), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", f"tests.simulated_gpu.{module}", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | paths | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_interpreted_they_do_what_our_rules_say() -> None:
    """Budgets hold at each row of drafts, banned words are banned in drafts, and no draft is taken that the model would
    not have said."""
    found = program("kernels", "7", str(CASES), TRITON_INTERPRET="1")
    assert {name: check["wrong"] for name, check in found.items()} == {name: [] for name in found}
    assert found["budget"]["rows"] > 20 * CASES
    assert found["bad_words"]["rows"] > 2 * CASES
    assert found["rejection"]["rows"] > 2 * CASES
    assert found["spread"]["rows"] == 400


SAMPLER = {
    "_update_committed_marker_cache_kernel",
    "_thinking_budget_kernel",
    "_bad_words_kernel",
    "_compute_local_logits_stats_kernel",
    "_rejection_kernel",
    "_resample_kernel",
    "_insert_resampled_kernel",
}
DELTA_NET = {
    "_causal_conv1d_fwd_kernel",
    "_causal_conv1d_update_kernel",
    "_fused_post_conv_kernel",
    "chunk_local_cumsum_scalar_kernel",
    "chunk_scaled_dot_kkt_fwd_kernel",
    "merge_16x16_to_64x64_inverse_kernel",
    "recompute_w_u_fwd_kernel",
    "chunk_gated_delta_rule_fwd_kernel_h_blockdim64",
    "chunk_fwd_kernel_o",
    "fused_sigmoid_gating_delta_rule_update_kernel",
    "fused_recurrent_gated_delta_rule_packed_decode_kernel",
}
EXPERTS = {"fused_moe_kernel"}
FP8 = {"fused_moe_kernel in FP8", "_per_token_group_quant_fp8", "_w8a8_triton_block_scaled_mm"}


@pytest.mark.parametrize(
    ("kinds", "kernels", "cards"),
    [
        pytest.param(("sampler",), SAMPLER, ["100", "80", "90"], id="sampler"),
        pytest.param(("delta-net",), DELTA_NET, ["100", "80", "90"], id="delta-net", marks=pytest.mark.full),
        pytest.param(("experts",), EXPERTS, ["100", "80", "90"], id="experts", marks=pytest.mark.full),
        pytest.param(("experts-fp8", "fp8-linear"), FP8, ["100", "89", "90"], id="fp8", marks=pytest.mark.full),
    ],
)
def test_they_compile_for_cards_that_are_not_here(
    kinds: tuple[str, ...], kernels: set[str], cards: list[str], tmp_path: Path
) -> None:
    """Triton has a type for FP8 from compute capability 8.9 on."""
    found = program("compile", *kinds, *cards, TRITON_CACHE_DIR=str(tmp_path))
    assert set(found) == kernels
    for name, sizes in found.items():
        assert sorted(sizes) == cards, name
        assert all(size > 1000 for size in sizes.values()), name
