"""Public traces, questions by kind, conversations, energy and aiperf's format; no service."""

from __future__ import annotations

import json
import random
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from penstock_bench.load import aiperf, energy, public_traces, question_files, trace
from penstock_bench.load.arrivals import ScheduledCall
from penstock_bench.load.calls import FAILED, OK, REFUSED, Record
from penstock_bench.load.energy import Counter, EnergyMeter
from penstock_bench.load.measure import Closed, Open, Replay
from penstock_bench.load.prompts import Prompts
from penstock_bench.load.run import LoadOptions
from penstock_bench.load.statistics import Objectives, acceptance_length, summarize
from penstock_bench.load.workload import Conversation, Lengths, Thinking, Work, Workload

# Ours, in the shape of the public ones.
MOONCAKE = """\
{"timestamp": 27482, "input_length": 1300, "output_length": 52, "hash_ids": [46, 47, 48]}
{"timestamp": 30535, "input_length": 1024, "output_length": 0, "hash_ids": [46, 47]}

{"timestamp": 27982, "input_length": 40, "output_length": 7}
"""
AZURE_2023 = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,0,109\n"
)
AZURE_2024 = "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10 00:00:00.009930+00:00,2162,5\n"


def written(folder: Path, text: str) -> Path:
    file = folder / "trace"
    file.write_text(text, encoding="utf-8")
    return file


def test_mooncakes_trace_is_read_in_order_with_its_shared_blocks(tmp_path: Path) -> None:
    found = public_traces.read(written(tmp_path, MOONCAKE))
    assert [one.at_seconds for one in found] == pytest.approx([0.0, 0.5, 3.053])
    assert [one.work.prompt_tokens for one in found] == [1300, 40, 1024]
    assert [one.work.output_tokens for one in found] == [52, 7, 1]
    assert [one.work.blocks for one in found] == [(46, 47, 48), (), (46, 47)]
    assert len(public_traces.read(written(tmp_path, MOONCAKE), 1)) == 1


def test_prompts_with_the_same_block_ids_begin_with_the_same_text() -> None:
    prompts = Prompts(dict.fromkeys(("river", "gate", "turbine", "water", "pressure", "valve", "wheel", "mill",
                                     "stone", "field", "winter", "letter"), 1.0), 4.0, 3.0)  # fmt: skip
    rng = random.Random(1)
    long = prompts.messages(Work(1300, blocks=(46, 47, 48), block_tokens=512), rng)[0][1].split()
    short = prompts.messages(Work(1028, blocks=(46, 47), block_tokens=512), rng)[0][1].split()
    other = prompts.messages(Work(1028, blocks=(46, 99), block_tokens=512), rng)[0][1].split()
    assert len(long) == pytest.approx(1296, abs=3)
    assert long[:1024] == short
    assert other[:512] == short[:512]
    assert other[512:] != short[512:]


@pytest.mark.parametrize("text", [AZURE_2023, AZURE_2024])
def test_azures_traces_are_read(tmp_path: Path, text: str) -> None:
    found = public_traces.read(written(tmp_path, text))
    assert found[0].at_seconds == 0.0
    assert found[0].work.prompt_tokens in (374, 2162)
    if len(found) > 1:
        assert found[1].at_seconds == pytest.approx(4.314579)
        assert found[1].work.prompt_tokens == 1  # a call cannot be made without a prompt


@pytest.mark.parametrize(
    "text",
    [
        "",
        "TIMESTAMP,ContextTokens,GeneratedTokens\n",
        "TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,1,2\n",
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,-1,2\n",
        "TIMESTAMP,ContextTokens\n2023-11-16 18:15:46,1\n",
        MOONCAKE + '{"timestamp": 1, "input_length": "many", "output_length": 1}\n',
        MOONCAKE + '{"timestamp": 1, "input_length": 99999999999, "output_length": 1}\n',
        MOONCAKE + '{"timestamp": 1, "input_length": 9, "output_length": 1, "hash_ids": ["a"]}\n',
        MOONCAKE + '{"timestamp": null, "input_length": 9, "output_length": 1}\n',
        MOONCAKE + "[]\n",
    ],
)
def test_a_wrong_trace_names_the_file(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match="trace"):
        public_traces.read(written(tmp_path, text))


def test_a_replayed_public_trace_can_be_saved_and_read_again(tmp_path: Path) -> None:
    found = public_traces.read(written(tmp_path, MOONCAKE))
    saved = tmp_path / "saved.jsonl"
    trace.write(saved, found)
    again = public_traces.read(saved)
    assert [one.work for one in again] == [one.work for one in found]
    assert [one.at_seconds for one in again] == pytest.approx([one.at_seconds for one in found])
    work = Work(9, 4, "auto", kind="code", turns=3, turn_tokens=5, keep_thought=True, pause_seconds=0.5)
    trace.write(saved, [trace.ScheduledCall(0.0, work)])
    assert trace.read(saved)[0].work == work


@pytest.mark.parametrize("wrong", [{"blocks": [1]}, {"blocks": "1"}, {"kind": 1}, {"keep_thought": 1}, {"turns": 0},
                                   {"pause_seconds": -1}])  # fmt: skip
def test_wrong_keys_of_a_trace_are_named(tmp_path: Path, wrong: dict[str, object]) -> None:
    file = written(tmp_path, json.dumps({"at_seconds": 0, "prompt_tokens": 4, **wrong}))
    with pytest.raises(ValueError, match=next(iter(wrong))):
        trace.read(file)


def test_questions_are_drawn_with_their_kinds(tmp_path: Path) -> None:
    lines = [{"kind": "code", "prompt": "Sort it."}, {"kind": "prose", "question": "Who?", "answer": "Nobody."}]
    found = question_files.read(written(tmp_path, "\n".join(map(json.dumps, lines))))
    workload = Workload(Lengths.parse("8"), None, Thinking.parse("fast"), questions=found)
    rng = random.Random(0)
    drawn = {(work.kind, work.prompt) for work in (workload.draw(rng) for _ in range(50))}
    assert drawn == {("code", "Sort it."), ("prose", "Who?")}


@pytest.mark.parametrize("text", ["", "[]", '{"kind": "a"}', '{"prompt": ""}', '{"prompt": "a", "kind": 1}', "{"])
def test_wrong_questions_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match="trace"):
        question_files.read(written(tmp_path, text))


def test_too_many_kinds_are_refused(tmp_path: Path) -> None:
    lines = "\n".join(json.dumps({"prompt": "a", "kind": f"{number}"}) for number in range(101))
    with pytest.raises(ValueError, match="at most 100 kinds of question, got 101"):
        question_files.read(written(tmp_path, lines))


def test_conversations_are_drawn() -> None:
    spoken = Conversation(Lengths.parse("2-4"), Lengths.parse("7"), True, 0.5)
    workload = Workload(Lengths.parse("8"), None, Thinking.parse("fast"), conversation=spoken)
    rng = random.Random(0)
    drawn = [workload.draw(rng) for _ in range(50)]
    assert {work.turns for work in drawn} == {2, 3, 4}
    assert {(work.turn_tokens, work.keep_thought, work.pause_seconds) for work in drawn} == {(7, True, 0.5)}


def record(kind: str = "", turn: int = 0, outcome: str = OK, accepted: int = 30, turns: int = 1) -> Record:
    made = Record(Work(10, kind=kind, turns=turns), 0.0, 0.0, outcome, turn=turn)
    made.first_token, made.first_answer, made.last_token, made.ended = 0.1, 0.3, 1.0, 1.0
    made.prompt_tokens, made.cached_tokens, made.answer_tokens, made.thought_tokens = 100, 25, 30, 10
    made.drafted_tokens, made.accepted_tokens = 60, accepted
    return made


def test_acceptance_length_is_told_by_kind_of_question() -> None:
    records = [record("code", accepted=30), record("code", accepted=30), record("prose", accepted=10)]
    made = summarize(records, 10.0, 0, 120, Objectives())
    assert made.by_kind["code"].acceptance_length == pytest.approx(4.0)  # 80 tokens in 20 steps
    assert made.by_kind["prose"].acceptance_length == pytest.approx(40 / 30)
    assert made.by_kind["prose"].accepted_share == pytest.approx(1 / 6)
    assert made.by_kind["code"].first_answer_p50 == pytest.approx(0.3)
    assert made.by_turn == {}


def test_turns_are_told_apart_and_single_calls_have_no_groups() -> None:
    records = [record(turns=2), record(turn=1, turns=2), record(turn=1, turns=2, outcome=FAILED)]
    made = summarize(records, 10.0, 0, 120, Objectives())
    assert {name: (one.calls, one.ended_well) for name, one in made.by_turn.items()} == {"1": (1, 1), "2": (2, 1)}
    assert summarize([record()], 10.0, 0, 40, Objectives()).by_kind == {}


@pytest.mark.parametrize(
    ("output", "drafted", "accepted", "wanted"),
    [(100, 50, 50, 2.0), (100, 50, 0, 1.0), (100, None, None, None), (100, 0, 0, None), (10, 50, 10, None)],
)
def test_acceptance_length(output: int, drafted: int | None, accepted: int | None, wanted: float | None) -> None:
    assert acceptance_length(output, drafted, accepted) == wanted


def powercap(folder: Path, **joules: float) -> None:
    for number, (name, value) in enumerate(joules.items()):
        zone = folder / f"intel-rapl:{number}"
        zone.mkdir(exist_ok=True)
        (zone / "name").write_text(name.replace("_", "-") + "\n")
        (zone / "energy_uj").write_text(f"{value * 1e6:.0f}\n")
        (zone / "max_energy_range_uj").write_text("1000000000\n")


def no_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)


def test_rapls_counters_are_read_also_where_they_wrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_nvml(monkeypatch)
    powercap(tmp_path, package_0=990.0, package_1=5.0, core=1.0, psys=7.0)
    meter = energy.find(tmp_path)
    assert "penstock-bench[energy]" in meter.missing["NVML"]
    meter.begin()
    powercap(tmp_path, package_0=10.0, package_1=11.0, core=900.0, psys=80.0)
    meter.sample()
    assert meter.joules["package-0 (intel-rapl:0)"] == pytest.approx(20.0)
    # psys is the whole machine: it would count the packages twice.
    assert meter.total_joules == pytest.approx(26.0)
    assert set(meter.joules) == {"package-0 (intel-rapl:0)", "package-1 (intel-rapl:1)", "psys (intel-rapl:3)"}


def test_energy_that_nothing_tells_is_absent_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_nvml(monkeypatch)
    meter = energy.find(tmp_path / "nowhere")
    meter.begin()
    assert meter.total_joules is None
    assert meter.missing["RAPL"] == "there is no device with an energy counter"


def test_gpus_are_read_by_nvml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used = {0: 5_000, 1: 9_000}

    def advance(handle: int) -> int:
        used[handle] += 1_000
        return used[handle]

    nvml = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetTotalEnergyConsumption=advance,
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    meter = energy.find(tmp_path)
    meter.begin()
    meter.sample()
    assert meter.joules == {"GPU 0": pytest.approx(1.0), "GPU 1": pytest.approx(1.0)}


def test_a_counter_that_fails_later_is_told_as_missing() -> None:
    def fails() -> float:
        raise OSError

    meter = EnergyMeter([Counter("GPU 0", fails)], {})
    meter.begin()
    assert (meter.total_joules, meter.missing) == (None, {"GPU 0": "OSError while it was read"})


def aiperf_load(**changes: Any) -> tuple[Any, aiperf.RunFacts]:
    records = [record(), record(), record(outcome=REFUSED)]
    summary = summarize(records, 10.0, 20, 60, Objectives(first_token=1.0))
    load = SimpleNamespace(
        records=records,
        interrupted=False,
        summary=lambda objectives: summary,
        pattern=Closed(4),
        options=LoadOptions(seconds=10.0),
    )
    told = aiperf.RunFacts(datetime(2026, 1, 2, tzinfo=UTC), "penstock bench", "Qwen3.5-35B-A3B", "127.0.0.1:50051")
    return SimpleNamespace(**{**vars(load), **changes}), told


def test_aiperfs_format_has_its_names_and_units() -> None:
    load, told = aiperf_load()
    made = aiperf.export(load, Objectives(first_token=1.0), told)
    assert made["time_to_first_token"]["unit"] == "ms"
    assert made["time_to_first_token"]["p50"] == pytest.approx(100.0)
    assert made["time_to_first_output_token"]["avg"] == pytest.approx(300.0)
    assert made["request_latency"]["max"] == pytest.approx(1000.0)
    assert made["output_sequence_length"]["avg"] == 40
    assert made["request_throughput"] == {"unit": "requests/sec", "avg": 0.2}
    assert made["error_summary"] == [{"error_details": {"code": 429, "type": "refused", "message": ""}, "count": 1}]
    assert made["end_time"] == "2026-01-02T00:00:10+00:00"
    assert made["input_config"]["phases"] == [
        {"name": "profiling", "duration": 10.0, "type": "concurrency", "concurrency": 4}
    ]
    json.dumps(made, allow_nan=False)


def test_aiperfs_calls_have_their_times_and_their_errors() -> None:
    load, told = aiperf_load()
    first, second, refused = [json.loads(line) for line in aiperf.lines(load, told)]
    assert first["metadata"]["request_end_ns"] - first["metadata"]["request_start_ns"] == pytest.approx(1e9)
    assert second["metadata"]["session_num"] in (0, 1)
    assert first["metrics"]["time_to_first_token"] == {"value": pytest.approx(100.0), "unit": "ms"}
    assert refused["metrics"] == {}
    assert refused["error"]["code"] == 429


@pytest.mark.parametrize(
    ("pattern", "phase"),
    [
        (Open(3.0), {"type": "poisson", "rate": 3.0}),
        (Open(3.0, burst_calls=8), None),
        (Replay((ScheduledCall(0.0, Work(1)),)), None),
    ],
)
def test_aiperf_is_told_the_load_that_it_can_state(pattern: Any, phase: dict[str, Any] | None) -> None:
    load, told = aiperf_load(pattern=pattern)
    made = aiperf.export(load, Objectives(), told)
    if phase is None:
        assert "input_config" not in made
    else:
        assert made["input_config"]["phases"][0].items() >= phase.items()
