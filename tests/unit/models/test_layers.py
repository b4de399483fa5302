"""The layers for training: one chunk equals the recurrence, drafts see what the engine's drafts see."""

import pytest
import torch

from models.small.config import model_config
from models.small.export import checkpoint_tensors
from models.small.gated_delta import gated_delta_rule
from models.small.language_model import SmallModel
from models.small.layers import Experts, ShiftedProducts
from models.small.optimizer import build_optimizers, orthogonalise


def small_model() -> SmallModel:
    torch.manual_seed(0)
    config = model_config()
    config["text_config"] |= {"hidden_size": 128}
    return SmallModel(config).eval()


@pytest.mark.parametrize("chunk", [1, 2, 4, 5, 9, 160])
def test_chunks_equal_the_recurrence(chunk: int) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 2, 9, 8).unbind()
    log_decay, beta = -torch.rand(2, 2, 9), torch.rand(2, 2, 9)
    unit_q, unit_k = (torch.nn.functional.normalize(x, dim=-1) for x in (q, k))
    state, expected = torch.zeros(2, 2, 8, 8), []
    for t in range(9):
        state = state * log_decay[..., t, None, None].exp()
        found = torch.einsum("bhk,bhkv->bhv", unit_k[:, :, t], state)
        change = (v[:, :, t] - found) * beta[..., t, None]
        state = state + unit_k[:, :, t, :, None] * change[:, :, None]
        expected.append(torch.einsum("bhk,bhkv->bhv", unit_q[:, :, t] * 8**-0.5, state))
    found = gated_delta_rule(q, k, v, log_decay, beta, chunk)
    torch.testing.assert_close(found, torch.stack(expected, 2), atol=1e-4, rtol=0)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 9])
def test_shifted_products_are_a_causal_depthwise_convolution(length: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, length, 5, dtype=torch.float64, requires_grad=True)
    taps = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    padded = torch.nn.functional.pad(x.transpose(1, 2), (3, 0))
    expected = torch.nn.functional.conv1d(padded, taps[:, None], groups=5).transpose(1, 2)
    torch.testing.assert_close(ShiftedProducts.apply(x, taps), expected)
    assert torch.autograd.gradcheck(ShiftedProducts.apply, (x, taps))


@torch.no_grad()
def test_nothing_looks_ahead() -> None:
    model, ids = small_model(), torch.randint(5, 500, (1, 12))
    changed = ids.clone()
    changed[0, 8] = (changed[0, 8] + 1) % 500
    outs = []
    for tokens in (ids, changed):
        states = model(tokens)
        outs.append((states.hidden[:, :8], *(draft[:, :7] for draft in model.drafts(states, 2)[0])))
    for left, right in zip(*outs, strict=True):
        torch.testing.assert_close(left, right)


@torch.no_grad()
def test_second_draft_is_the_layer_applied_to_the_first_drafts_state() -> None:
    model, ids = small_model(), torch.randint(5, 500, (1, 6))
    states = model(ids)
    (first, second), _ = model.drafts(states, 2)
    # Row 4 of the second draft, step by step: keys of rows 0 to 3 from the first pass, its own from this one.
    embedded = model.model.embed(ids[:, 1:])
    state = torch.cat((states.hidden[:, :4], first[:, 3:4]), dim=1)
    alone, _, _ = model.mtp(embedded, state)
    torch.testing.assert_close(second[:, 4], alone[:, 4])


def test_names_are_those_of_the_official_checkpoints() -> None:
    names = set(checkpoint_tensors(small_model()))
    assert {
        "model.language_model.embed_tokens.weight",
        "model.language_model.layers.0.linear_attn.in_proj_qkv.weight",
        "model.language_model.layers.2.self_attn.q_norm.weight",
        "model.language_model.layers.0.mlp.experts.gate_up_proj",
        "model.language_model.layers.0.mlp.shared_expert_gate.weight",
        "mtp.fc.weight",
        "mtp.layers.0.self_attn.q_proj.weight",
        "mtp.pre_fc_norm_embedding.weight",
        "mtp.pre_fc_norm_hidden.weight",
        "model.visual.merger.linear_fc2.weight",
        "lm_head.weight",
    } <= names


def test_every_parameter_has_one_optimizer() -> None:
    model = small_model()
    held = [id(p) for o in build_optimizers(model, 1e-3) for group in o.param_groups for p in group["params"]]
    assert sorted(held) == sorted(map(id, model.parameters()))


def test_orthogonalised_singular_values_are_near_one() -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalise(torch.randn(2, 32, 16)))
    assert values.min() > 0.5
    assert values.max() < 1.5


def test_a_gpu_computes_the_experts_as_a_cpu_does() -> None:
    torch.manual_seed(0)
    experts = Experts(8, 32, 16)
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(40, 32)
    weights, chosen = torch.rand(40, 8).topk(2)
    expected = experts.by_expert(x, chosen, weights)
    torch.testing.assert_close(experts.all_experts(x, chosen, weights), expected, rtol=1e-5, atol=1e-5)
