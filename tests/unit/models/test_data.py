"""The small model's data: seeds name questions, held-out ones are never trained on, cut thoughts are laid out right."""

import itertools
import random
import zlib
from collections import Counter
from pathlib import Path

import pytest
import torch
from penstock_bench.evaluation.questions import is_right, load

from models.small import question_file
from models.small.config import (
    IM_END,
    THINK_CLOSE,
    THINK_OPEN,
)
from models.small.encoding import Encoder, Example
from models.small.examples import FOUND_WEIGHT, LIST_WEIGHT, add_reply, any_example, example, weighted_parts
from models.small.languages import LANGUAGES
from models.small.languages.language import slavic
from models.small.question import Question
from models.small.questions import HELD_OUT_SEED, KINDS, MULTI_STEP, held_out, question
from models.small.tokenizer import load_tokenizer
from models.small.tools import TASKS, task
from models.small.train import Pools, training_batches

TOKENIZER = load_tokenizer()
ENCODER = Encoder(TOKENIZER)
SEEDS = 40


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_names_one_question_and_its_answer_is_right(kind: str, language: str) -> None:
    assert question(kind, language, 7) == question(kind, language, 7)
    for seed in range(SEEDS):
        asked = question(kind, language, seed)
        assert asked.is_right(asked.answer)
        assert not asked.is_right("I have no idea.")
        assert "{" not in asked.text + asked.answer
        assert len(asked.thought.split("\n")) >= asked.working_lines >= 1


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("kind", MULTI_STEP)
def test_every_step_of_working_and_checking_is_true(kind: str, language: str) -> None:
    for seed in range(SEEDS):
        asked = question(kind, language, seed)
        steps = [word for word in asked.thought.split() if "=" in word]
        assert all(eval(left) == int(right) for left, right in (step.split("=") for step in steps))
        assert steps[-1].endswith(f"={asked.value}")
        working = asked.thought.split("\n")[: asked.working_lines]
        assert working[-1].endswith(f"={asked.value}")


def test_thoughts_check_themselves_for_about_half_of_their_length() -> None:
    thoughts = [question(kind, language, seed) for kind in MULTI_STEP for language in LANGUAGES for seed in range(20)]
    lengths = [len(ENCODER.encode(asked.thought)) for asked in thoughts]
    working = [len(ENCODER.encode("\n".join(asked.thought.split("\n")[: asked.working_lines]))) for asked in thoughts]
    assert 0.35 < sum(working) / sum(lengths) < 0.55


@pytest.mark.slow
def test_held_out_questions_are_not_in_training_data() -> None:
    for language in LANGUAGES:
        for kind in MULTI_STEP:
            trained = {(asked.earlier, asked.text) for asked in (question(kind, language, seed) for seed in range(400))}
            assert not trained & {(asked.earlier, asked.text) for asked in held_out(kind, language, 100)}
    pools = Pools(lambda seed: example(seed, ENCODER), HELD_OUT_SEED - 5000, 4096)
    assert len(pools) == 2


def test_russian_counts() -> None:
    assert [slavic(count) for count in (1, 2, 4, 5, 11, 12, 14, 21, 22, 25, 111, 121)] == [
        0, 1, 1, 2, 2, 2, 2, 0, 1, 2, 2, 0,
    ]  # fmt: skip
    assert LANGUAGES["ru"].count(22, ("книга", "книги", "книг")) == "22 книги"
    assert LANGUAGES["fr"].count(0, ("pomme", "pommes")) == "0 pomme"
    assert LANGUAGES["zh"].count(3, ("个苹果",)) == "3个苹果"


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("kind", TASKS)
def test_calls_name_offered_functions_and_copy_their_arguments_from_the_question(kind: str, language: str) -> None:
    for seed in range(SEEDS):
        asked = task(kind, language, seed)
        offered = {tool["function"]["name"]: tool["function"]["parameters"] for tool in asked.tools}
        assert len(offered) == len(asked.tools)
        assert len(asked.results) == len(asked.calls)
        assert bool(asked.calls) == (kind != "no_call")
        for call in asked.calls:
            assert list(call.arguments) == list(offered[call.name]["properties"])
            assert all(f"{value}" in asked.text for value in call.arguments.values())
        assert asked.value in asked.answer


def test_held_out_functions_have_unseen_names() -> None:
    def made_up(seed: int) -> set[str]:
        found = task("attribute", "en", seed)
        names = [word for tool in found.tools for word in tool["function"]["parameters"]["properties"]]
        return {name for name in names if len(name) > 4}

    known = {
        "attribute",
        "city",
        "country",
        "product",
        "person",
        "planet",
        "order",
        "river",
        "train",
        "island",
        "limit",
    }
    seen = set().union(*(made_up(seed) for seed in range(300))) - known
    unseen = set().union(*(made_up(HELD_OUT_SEED + seed) for seed in range(300))) - known
    assert seen
    assert unseen
    assert not seen & unseen - {"user", "team", "star", "ship", "shop", "file", "book"}
    assert all(zlib.crc32(word.encode()) % 8 == 0 for word in unseen - {"shop", "file"})


def test_a_cut_thought_ends_with_a_given_marker_and_a_blank_line_that_is_learned() -> None:
    asked, cut = question("chain", "en", 5), 0
    start = len(ENCODER.generation_prompt(thinking=True))
    for seed in range(200):
        out = Example()
        add_reply(random.Random(seed), out, asked, ENCODER, steps=True)
        is_thinking = out.ids[start - 1 : start] == ENCODER.newline
        closing = out.ids.index(THINK_CLOSE) if THINK_CLOSE in out.ids else 0
        if not is_thinking or not closing or out.weights[closing]:
            continue
        cut += 1
        assert out.ids[closing + 1 : closing + 2] == ENCODER.blank_line
        assert out.weights[closing + 1] == 1.0
        assert out.ids[-1] == IM_END
    assert cut > 10


def test_some_thoughts_end_without_the_check_of_their_result() -> None:
    asked = question("chain", "es", 8)
    working = "\n".join(asked.thought.split("\n")[: asked.working_lines])
    ends = Counter()
    for seed in range(400):
        out = Example()
        add_reply(random.Random(seed), out, asked, ENCODER, steps=True)
        opened, closed = (out.ids.index(marker) for marker in (THINK_OPEN, THINK_CLOSE))
        assert asked.answer in ENCODER.decode(out.ids[closed:])
        ends[ENCODER.decode(out.ids[opened + 1 : closed]).strip("\n")] += 1
    # A fifth is cut anywhere, a tenth has no thought.
    assert 0.18 < ends[working] / 400 < 0.35
    assert ends[working] < ends[asked.thought]


def test_the_last_number_of_an_answer_counts() -> None:
    asked = Question("story", "en", "", "", "", "42")
    assert asked.is_right("Ann has 42 apples.")
    assert not asked.is_right("42 is not it, 142 is.")


def test_prompts_and_forced_markers_are_not_learnt() -> None:
    cuts = 0
    for seed in range(400):
        made = example(seed, ENCODER)
        assert made == example(seed, ENCODER)
        assert len(made.ids) == len(made.weights)
        assert (made.ids[-1], made.weights[-1]) == (IM_END, 1.0)
        opened = made.ids.index(THINK_OPEN)
        assert not any(made.weights[: opened + 2])
        closed = made.ids.index(THINK_CLOSE)
        cuts += made.weights[closed] == 0.0 and made.weights[closed + 1] == 1.0
        if made.weights[closed] == 1.0:
            assert made.ids[closed - 1 : closed] == ENCODER.newline
    assert cuts > 40


@pytest.mark.parametrize("kind", TASKS)
def test_what_a_thought_reads_from_its_list_of_functions_weighs_most(kind: str) -> None:
    for seed in range(SEEDS):
        asked = task(kind, "en", seed)
        parts = list(weighted_parts(asked.thought))
        assert [i for part, _ in parts for i in ENCODER.encode(part)] == ENCODER.thought(asked.thought)
        read = [part.strip() for part, weight in parts if weight == FOUND_WEIGHT]
        if kind in ("attribute", "parallel"):
            assert read == [f"{call.name}(" for call in asked.calls]
            listed = [part.split(":")[0] for part, weight in parts if weight == LIST_WEIGHT]
            assert listed == [tool["function"]["name"] for tool in asked.tools]
        else:
            assert read == (["?"] if "=> " in asked.thought else [])


def test_the_stage_with_everything_has_all_sorts_of_examples() -> None:
    found: Counter[str] = Counter()
    for seed in range(300):
        made = any_example(seed, ENCODER)
        found["picture" if made.pictures else "tools" if "<tools>" in ENCODER.decode(made.ids) else "text"] += 1
    assert 60 < found["picture"] < 110
    assert 95 < found["tools"] < 160


def test_a_question_with_a_word_for_an_answer_is_right_only_word_for_word() -> None:
    asked = Question("echo", "en", "Repeat: stone", "stone", "stone", "stone")
    assert asked.is_right(" stone\n")
    assert not asked.is_right("a stone")


@pytest.mark.slow
def test_worker_processes_make_the_same_batches_in_the_same_order() -> None:
    pools = Pools(lambda seed: example(seed, ENCODER), 0, 65536)
    made = [list(itertools.islice(training_batches(pools, 0, workers), 12)) for workers in (0, 2)]
    assert [seed for seed, _ in made[0]] == [seed for seed, _ in made[1]]
    assert all(torch.equal(alone.ids, other.ids) for (_, alone), (_, other) in zip(*made, strict=True))
    assert made[0][-1][0] > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", question_file.FILES)
def test_evaluation_reads_the_question_files(name: str, tmp_path: Path) -> None:
    text = question_file.content(name, 2)
    (tmp_path / name).write_text(text, encoding="utf-8")
    asked = load(tmp_path / name)
    _, kinds = question_file.FILES[name]
    assert Counter((one.kind, one.language) for one in asked) == dict.fromkeys(itertools.product(kinds, LANGUAGES), 2)
    assert all(int(one.id.rsplit("-", 1)[1]) >= question_file.FIRST_SEED for one in asked)
    forms = {"text.jsonl": {"text", "follow_up"}, "tools.jsonl": {"tools"}, "pictures.jsonl": {"image"}}
    assert {one.form for one in asked} == forms[name]
    assert text == question_file.content(name, 2)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("kind", TASKS)
def test_the_right_last_answer_of_a_call_is_right_in_the_question_file(kind: str, language: str) -> None:
    for seed in range(question_file.FIRST_SEED, question_file.FIRST_SEED + SEEDS):
        expected = question_file.tools_entry(kind, language, seed)["answer"]
        assert is_right(expected, task(kind, language, seed).answer)
