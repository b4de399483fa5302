"""The small model computes what Transformers' official classes do, with pictures and without."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from penstock.config.schema import DEMO_MODEL_DIR
from penstock.engine.vllm.compat import declare_torchvision_operators

from models.small.config import IMAGE_PAD, VISION_END, VISION_START, model_config
from models.small.encoding import Encoder
from models.small.evaluate import question_row, score
from models.small.language_model import Pictures, SmallModel
from models.small.optimizer import build_optimizers
from models.small.positions import Grid, batch_positions, picture_tokens, positions
from models.small.questions import held_out
from models.small.run import Run
from models.small.tokenizer import load_tokenizer
from models.small.train import losses_of

declare_torchvision_operators()
from transformers import Qwen3_5MoeConfig, Qwen3_5MoeForConditionalGeneration  # noqa: E402

GRIDS: list[Grid] = [(4, 6), (8, 12), (4, 4)]


def tiny_config() -> dict[str, Any]:
    config = model_config()
    config["text_config"] |= {"num_hidden_layers": 3, "layer_types": config["text_config"]["layer_types"][:3]}
    config["text_config"] |= {"num_experts": 4, "hidden_size": 128}
    for part in (config, config["text_config"], config["vision_config"]):
        part["dtype"] = "float32"
    config["vision_config"] |= {"depth": 2, "hidden_size": 128, "num_heads": 2, "out_hidden_size": 128}
    return config


@pytest.fixture(scope="module")
def model() -> SmallModel:
    torch.manual_seed(0)
    built = SmallModel(tiny_config()).eval()
    with torch.no_grad():
        for parameter in built.parameters():
            # As they begin, norms and biases hide what is done with them, and the outputs are nearly equal.
            parameter.add_(torch.randn_like(parameter) * (0.2 if parameter.dim() == 1 else 0.05))
    return built


@pytest.fixture(scope="module")
def official(model: SmallModel) -> Any:
    built = Qwen3_5MoeForConditionalGeneration(Qwen3_5MoeConfig(**tiny_config())).eval()
    missing, unexpected = built.load_state_dict(model.state_dict(), strict=False)
    assert not missing
    assert all(name.startswith("mtp.") for name in unexpected)
    return built


def shown(grid: Grid) -> list[int]:
    return [VISION_START, *[IMAGE_PAD] * picture_tokens(grid), VISION_END]


def text(length: int) -> list[int]:
    return torch.randint(20, 2000, (length,)).tolist()


def pictures(grids: list[Grid]) -> Pictures:
    return Pictures(torch.randn(sum(height * width for height, width in grids), 3 * 2 * 16 * 16), grids)


def picture_row(*grids: Grid) -> list[int]:
    row = text(5)
    for grid in grids:
        row += [*shown(grid), *text(3)]
    return row


@torch.no_grad()
def test_text_alone_is_computed_as_by_transformers(model: SmallModel, official: Any) -> None:
    ids = torch.tensor([text(23), text(23)])
    expected = official(input_ids=ids).logits
    torch.testing.assert_close(model.lm_head(model(ids).hidden), expected, atol=2e-4, rtol=1e-4)
    assert batch_positions(ids.tolist(), [[], []]) is None
    counted = torch.arange(23).expand(3, 2, -1)
    assert torch.equal(model(ids).hidden, model(ids, counted).hidden)


@torch.no_grad()
def test_pictures_are_computed_as_by_transformers(model: SmallModel, official: Any) -> None:
    rows = [picture_row(GRIDS[0], GRIDS[1]), picture_row(GRIDS[2])]
    grids = [GRIDS[:2], GRIDS[2:]]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    seen = pictures(GRIDS)
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    expected = official(
        input_ids=ids,
        attention_mask=mask,
        pixel_values=seen.pixels,
        image_grid_thw=torch.tensor([(1, *grid) for grid in GRIDS]),
        mm_token_type_ids=(ids == IMAGE_PAD).int(),
    ).logits
    got = model.lm_head(model(ids, batch_positions(rows, grids), seen).hidden)
    for index, row in enumerate(rows):
        torch.testing.assert_close(got[index, : len(row)], expected[index, : len(row)], atol=2e-4, rtol=1e-4)


@torch.no_grad()
def test_the_tower_treats_each_picture_alone(model: SmallModel) -> None:
    seen, tower = pictures(GRIDS), model.model.visual
    first = GRIDS[0][0] * GRIDS[0][1]
    together = tower(seen.pixels, GRIDS)
    torch.testing.assert_close(tower(seen.pixels[:first], GRIDS[:1]), together[: first // 4])


def test_positions_are_those_of_transformers(official: Any) -> None:
    rng = random.Random(0)
    for _ in range(20):
        grids = [(2 * rng.randint(2, 4), 2 * rng.randint(2, 6)) for _ in range(rng.randint(0, 3))]
        ids = picture_row(*grids)
        kinds = (torch.tensor([ids]) == IMAGE_PAD).int()
        thw = torch.tensor([(1, *grid) for grid in grids]) if grids else None
        expected, _ = official.model.get_rope_index(torch.tensor([ids]), kinds, image_grid_thw=thw)
        assert torch.equal(positions(ids, grids), expected[:, 0])


def test_pictures_without_their_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="has 6 tokens, got 5 "):
        positions([VISION_START, *[IMAGE_PAD] * 5, VISION_END], [(4, 6)])
    with pytest.raises(ValueError, match="has 0 tokens, got 6 "):
        positions(shown((4, 6)))
    with pytest.raises(ValueError, match="1 of 2 pictures have no"):
        positions(shown((4, 6)), [(4, 6), (4, 4)])


@torch.no_grad()
def test_drafts_beside_a_picture_have_the_positions_of_their_tokens(model: SmallModel) -> None:
    row, grids = picture_row(GRIDS[0]), GRIDS[:1]
    ids, places = torch.tensor([row]), batch_positions([row], [grids])
    assert places is not None
    states = model(ids, places, pictures(grids))
    (first, second), _ = model.drafts(states, 2, places)
    # Row t of the second draft, step by step: keys before it from the first pass, its own from this one.
    at = len(row) - 2
    state = torch.cat((states.hidden[:, :at], first[:, at - 1 : at]), dim=1)
    alone, _, _ = model.mtp(states.embedded[:, 1:], state, None, places[..., :-1])
    torch.testing.assert_close(second[:, at], alone[:, at])
    assert not torch.allclose(first, model.drafts(states, 1)[0][0])


def test_embeddings_are_not_orthogonalised(model: SmallModel) -> None:
    muon, adam = build_optimizers(model, 1e-3)
    held = {id(p) for group in muon.param_groups for p in group["params"]}
    rest = {id(p) for group in adam.param_groups for p in group["params"]}
    names = dict(model.named_parameters())
    assert held | rest == {id(p) for p in names.values()}
    for name in ("pos_embed.weight", "patch_embed.proj.weight"):
        assert id(names[f"model.visual.{name}"]) in rest
    assert id(names["model.visual.merger.linear_fc1.weight"]) in held


@pytest.mark.slow
def test_training_goes_on_with_the_committed_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    run = Run(SmallModel(model_config()), losses_of, tmp_path / "run.pt", tmp_path / "log.jsonl")
    run.begin_with(DEMO_MODEL_DIR)
    encoder = Encoder(load_tokenizer())
    asked = [question_row(encoder, one, None) for kind in ("chain", "echo") for one in held_out(kind, "en", 10)]
    found = score(run.model.eval(), asked)
    assert found.share >= 0.9
