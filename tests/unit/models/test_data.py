"""The demo model's data: seeds name questions, held-out seeds are never trained on, cut thoughts are laid out right."""

import pytest

from models.demo.config import IM_END, THINK_CLOSE, THINK_OPEN
from models.demo.data import HELD_OUT_SEED, Encoder, batches, example, held_out
from models.demo.question import Question
from models.demo.questions import KINDS, MULTI_STEP, question
from models.demo.tokenizer import build_tokenizer


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(build_tokenizer())


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_names_one_question(kind: str) -> None:
    assert question(kind, 7) == question(kind, 7)
    assert len({question(kind, seed).text for seed in range(50)}) > 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_canonical_answer_is_judged_right_and_another_wrong(kind: str) -> None:
    asked = question(kind, 3)
    assert asked.is_right(asked.answer)
    assert not asked.is_right("I do not know.")


def test_the_last_number_of_an_answer_counts() -> None:
    asked = Question("story", "", "", "", "42")
    assert asked.is_right("Ann has 42 apples.")
    assert not asked.is_right("42 is not it, 142 is.")


@pytest.mark.parametrize("kind", MULTI_STEP)
def test_every_line_of_working_is_true(kind: str) -> None:
    for seed in range(200):
        asked = question(kind, seed)
        lines = asked.thought.splitlines()
        for line in lines:
            if "=" in line:
                left, right = line.split("=")
                assert eval(left) == int(right)
        assert lines[-1].endswith(f"={asked.value}")


def test_held_out_seeds_are_beyond_training(encoder: Encoder) -> None:
    assert held_out("chain", 2) == [question("chain", HELD_OUT_SEED), question("chain", HELD_OUT_SEED + 1)]
    next_seed, _ = next(iter(batches(lambda seed: example(seed, encoder), HELD_OUT_SEED - 5000, 4096)))
    assert next_seed < HELD_OUT_SEED
    assert not list(batches(lambda seed: example(seed, encoder), HELD_OUT_SEED - 2048, 4096))


def test_held_out_multi_step_questions_are_not_in_training_data() -> None:
    for kind in MULTI_STEP:
        trained = {question(kind, seed).text for seed in range(2000)}
        assert not trained & {asked.text for asked in held_out(kind, 200)}


def test_an_example_is_a_function_of_its_seed(encoder: Encoder) -> None:
    assert example(11, encoder) == example(11, encoder)


def test_prompts_and_forced_markers_are_not_learnt(encoder: Encoder) -> None:
    cuts = 0
    for seed in range(400):
        made = example(seed, encoder)
        assert len(made.ids) == len(made.weights)
        assert made.ids[-1] == IM_END
        assert made.weights[-1] == 1.0
        last_open = max(i for i, token in enumerate(made.ids) if token == THINK_OPEN)
        assert not any(made.weights[: last_open + 2])
        close = max(i for i, token in enumerate(made.ids) if token == THINK_CLOSE)
        cuts += made.weights[close] == 0.0 and made.weights[close + 1] == 1.0
        if made.weights[close] == 1.0:
            assert made.ids[close - 1 : close] == encoder.newline
    assert cuts > 40


def test_batches_resume_where_they_stopped(encoder: Encoder) -> None:
    for next_seed, group in batches(lambda seed: example(seed, encoder), 0, 6144):
        assert len(group) * max(len(item.ids) for item in group) <= 6144
        if next_seed:
            break
    assert next_seed == 2048
