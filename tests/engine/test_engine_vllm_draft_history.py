"""Steps with fewer drafts than the state has room for: right with our patch, wrong or dead without it."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
import torch
import torch.nn.functional as F
from penstock.engine.vllm.compat import draft_history, general_plugin
from penstock.engine.vllm.compat.speculation import _View
from penstock_proto.v1 import generation_pb2 as pb
from penstock_proto.v1 import generation_pb2_grpc

from tests.bad_requests import hello
from tests.tooling import skip_on_this_cpu

pytestmark = pytest.mark.cpu_build

WIDTH, DRAFTS, DIM = 4, 1, 8
COLUMNS = WIDTH - 1 + DRAFTS


class Halt(Exception):
    """Raised by the layer after its convolution: the rest is not what is tested."""


def layer() -> Any:
    def rearrange(convolved: torch.Tensor) -> None:
        raise Halt(convolved)

    torch.manual_seed(3)
    conv = torch.nn.Conv1d(DIM, DIM, WIDTH, groups=DIM, bias=False)
    return SimpleNamespace(conv1d=conv, activation="silu", rearrange_mixed_qkv=rearrange)


def steps_with(forward: Any, monkeypatch: pytest.MonkeyPatch, steps: list[tuple[int, int]]) -> torch.Tensor:
    """Outputs of the tokens that count, over steps of (tokens in it, how many of the step before were accepted)."""
    from vllm.model_executor.layers.mamba.ops.cpu import gdn_attention

    one = layer()
    # The kernels take bfloat16 in their own layout; the path in plain torch is the one that is compared exactly.
    plain = _View(torch, cpu=_View(torch.cpu, _is_amx_tile_supported=lambda: False))
    monkeypatch.setattr(gdn_attention, "torch", plain)
    monkeypatch.setattr(gdn_attention, "_unpacked_conv_weight", lambda owner: owner.conv1d.weight[:, 0])
    inputs = torch.randn(20, DIM, generator=torch.Generator().manual_seed(4))
    history, kept, at = torch.zeros(1, DIM, COLUMNS), [], 0
    with torch.inference_mode():
        for number, (tokens, accepted) in enumerate(steps):
            meta = SimpleNamespace(
                num_spec_decodes=1,
                spec_state_indices_tensor=torch.zeros(1, DRAFTS + 1, dtype=torch.int32),
                spec_query_start_loc=torch.tensor([0, tokens]),
                num_accepted_tokens=torch.tensor([accepted]),
            )
            count = steps[number + 1][1] if number + 1 < len(steps) else tokens
            x = inputs[at : at + tokens].clone()
            x[count:] = 9.0  # drafts that will be rejected
            with pytest.raises(Halt) as halt:
                forward(one, meta, x, None, None, history, None, WIDTH, COLUMNS)
            kept.append(halt.value.args[0][:count])
            at += count
        whole = F.pad(inputs[:at].T, (WIDTH - 1, 0)).unsqueeze(0)
        expected = F.silu(F.conv1d(whole, one.conv1d.weight, groups=DIM))[0].T
    return (torch.cat(kept) - expected).abs().max()


STEPS = [(2, 1), (2, 2), (1, 2), (2, 1), (1, 1), (1, 1), (2, 1), (1, 2), (2, 1)]


def test_the_history_is_right_whatever_the_number_of_drafts(monkeypatch: pytest.MonkeyPatch) -> None:
    general_plugin()
    assert steps_with(draft_history._spec_forward, monkeypatch, STEPS) < 1e-6


def test_upstream_still_needs_the_patch(monkeypatch: pytest.MonkeyPatch) -> None:
    general_plugin()
    upstream = draft_history._spec_forward.__wrapped__  # type: ignore[attr-defined]
    assert steps_with(upstream, monkeypatch, [(2, 1), (2, 1), (2, 2)]) < 1e-6
    with pytest.raises(RuntimeError, match="must match the size"):
        steps_with(upstream, monkeypatch, [(2, 1), (1, 2), (2, 1)])
    assert steps_with(upstream, monkeypatch, [(2, 1), (1, 1), (2, 1)]) > 1e-3


async def test_constrained_answers_side_by_side_leave_the_engine_alive(channel: grpc.aio.Channel) -> None:
    stub = generation_pb2_grpc.GenerationServiceStub(channel)

    async def one(number: int) -> str:
        constraint = {"regex": f"[0-9]{{{2 + number % 5}}} [a-z]+ [0-9]+"}
        thinking = pb.ThinkingConfig(mode=pb.THINKING_MODE_THINKING, thinking_budget=number)
        output = pb.OutputConfig(max_output_tokens=60, **constraint)
        spec = hello(f"What is {number} + 17 + 20?", thinking=thinking, output=output)
        return (await stub.Generate(pb.GenerateRequest(spec=spec))).candidates[0].answer

    answers = await asyncio.gather(*(one(number) for number in range(16)))
    assert all(answer[: 2 + n % 5].isdigit() for n, answer in enumerate(answers))


def test_the_native_convolution_leaves_the_same_history() -> None:
    """Full steps run on the kernel where the CPU has bfloat16 products, short ones here: one history for both."""
    from vllm import _custom_ops as ops
    from vllm.model_executor.layers.mamba.ops.cpu import gdn_attention

    general_plugin()
    if not torch.cpu._is_avx512_bf16_supported():
        skip_on_this_cpu("no AVX-512 BF16")
    dim = 768
    torch.manual_seed(3)
    weight = torch.randn(dim, WIDTH).mul(0.3).bfloat16()
    packed = ops.causal_conv1d_weight_pack(weight.clone())
    owner = SimpleNamespace(
        conv1d=SimpleNamespace(weight=packed, bias=None, _cpu_unpacked_conv_weight=weight), activation="silu"
    )
    inputs = torch.randn(40, dim).bfloat16()
    history = torch.zeros(2, COLUMNS, dim, dtype=torch.bfloat16).transpose(1, 2)  # as the engine lays it out
    kept, at = [], 0
    for number, (tokens, accepted) in enumerate(STEPS):
        count = STEPS[number + 1][1] if number + 1 < len(STEPS) else tokens
        x = inputs[at : at + tokens].clone()
        x[count:] = 9.0
        if tokens == DRAFTS + 1:
            out = gdn_attention._causal_conv1d_update_cpu(
                x=x.unsqueeze(0),
                conv_states=history,
                weight=packed,
                bias=None,
                silu_activation=True,
                conv_state_indices=torch.tensor([1], dtype=torch.int32),
                is_weight_packed=True,
                num_accepted_tokens=torch.tensor([accepted], dtype=torch.int32),
            )[0]
        else:
            earlier = draft_history.ConvolutionHistory(history, [1], [accepted], WIDTH)
            out = draft_history.convolve(owner, x, earlier, [tokens])
        kept.append(out[:count])
        at += count
    whole = F.pad(inputs[:at].T.float(), (WIDTH - 1, 0)).unsqueeze(0)
    expected = F.silu(F.conv1d(whole, weight.float().unsqueeze(1), groups=dim))[0].T
    assert (torch.cat(kept).float() - expected).abs().max() < 0.05
