"""Steps with fewer drafts than the state has room for: right with our patch, wrong or dead without it."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
import torch
import torch.nn.functional as F
from penstock.engine_vllm.compat import draft_history, general_plugin
from penstock_client.v1 import generation_pb2 as pb
from penstock_client.v1 import generation_pb2_grpc

from tests.bad_requests import hello

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
