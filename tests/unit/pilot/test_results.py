"""The file that a pilot writes, and what is read from elsewhere: metrics and expert load."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from penstock_bench.capacity.calibrate import read_points
from penstock_bench.pilot import experts
from penstock_bench.pilot.results import Result, read
from penstock_bench.pilot.scrape import NotSeen, Watch, parse, scrape
from penstock_client import FeatureOff, NotImplementedYet, Unavailable
from penstock_proto.v1 import routing_pb2

from tests.unit.pilot.made import result


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    file = tmp_path / "pilot.json"
    file.write_text(json.dumps(result().model_dump(mode="json")))
    assert read(file) == result()


@pytest.mark.parametrize("text", ["{}", "no", '{"format": 2}', "[]"])
def test_another_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match="must be a result of `penstock pilot`"):
        read(tmp_path / "x.json")


def test_points_are_the_closed_loops_of_both_sweeps() -> None:
    points = [point.model_dump() for point in result().points]
    assert [point["stage"] for point in points] == ["1 caller", "16 callers", "prompts of 2,048 tokens"]
    assert points[1] == {
        "stage": "16 callers",
        "concurrency": 16,
        "context_tokens": 152.0,
        "output_tokens_per_second": pytest.approx(16 / 0.02),
        "prompt_tokens_per_second": None,
    }
    assert points[2]["prompt_tokens_per_second"] == 2500.0
    assert points[2]["output_tokens_per_second"] is None


def test_a_plan_is_calibrated_by_it(tmp_path: Path) -> None:
    (tmp_path / "pilot.json").write_text(result().model_dump_json())
    points, model = read_points(tmp_path / "pilot.json")
    assert model == "made & up"
    assert [point.concurrency for point in points] == [1, 16, 4]
    assert points[2].context_tokens == 2048


METRICS = """\
# TYPE penstock_engine_kv_cache_usage_ratio gauge
penstock_engine_kv_cache_usage_ratio {usage}
# TYPE penstock_engine_preemptions counter
penstock_engine_preemptions_total {preemptions}
# TYPE penstock_engine_prefix_cache_tokens counter
penstock_engine_prefix_cache_tokens_total{{result="queried"}} 100
penstock_engine_prefix_cache_tokens_total{{result="hit"}} {hits}
# TYPE penstock_engine_drafts_accepted counter
penstock_engine_drafts_accepted_total{{position="1"}} {hits}
# TYPE vllm:spec_decode_num_drafts counter
vllm:spec_decode_num_drafts_total{{engine="0"}} 10
vllm:spec_decode_num_drafts_total{{engine="1"}} 20
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{{block_size="384",kv_cache_size_tokens="951666",num_gpu_blocks="None"}} 1.0
"""


def test_metrics_are_read_by_name_label_and_cache() -> None:
    found = parse(METRICS.format(usage=0.25, preemptions=3, hits=40))
    assert found.values["vllm:spec_decode_num_drafts_total"] == 30
    assert found.by_label["penstock_engine_prefix_cache_tokens_total", "hit"] == 40
    assert (found.whole("kv_cache_size_tokens"), found.whole("block_size")) == (951666, 384)
    assert (found.whole("num_gpu_blocks"), found.whole("nothing")) == (None, None)


async def test_a_stage_is_what_grew_while_it_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = iter([(0.1, 2, 10), (0.7, 2, 20), (0.3, 5, 60)])

    async def page(url: str) -> object:
        usage, preemptions, hits = next(pages)
        return parse(METRICS.format(usage=usage, preemptions=preemptions, hits=hits))

    monkeypatch.setattr("penstock_bench.pilot.scrape.scrape", page)
    watch = Watch("http://here/metrics")
    for _ in range(3):
        await watch.sample()
    seen = watch.seen()
    assert seen is not None
    assert (seen.kv_usage_most, seen.preemptions, seen.prefix_hit_tokens, seen.drafts) == (0.7, 3, 50, 0)
    assert seen.accepted_by_position == (50,)
    assert Watch(None).seen() is None


async def test_an_endpoint_that_is_not_there_is_said_so() -> None:
    with pytest.raises(NotSeen, match=r"127.0.0.1:1/metrics"):
        await scrape("http://127.0.0.1:1/metrics")


Ask = Callable[[routing_pb2.GetExpertLoadRequest], Awaitable[routing_pb2.GetExpertLoadResponse]]


def answering(asked: list[routing_pb2.GetExpertLoadRequest], tokens: int = 100, served: int = 1) -> Ask:
    async def ask(request: routing_pb2.GetExpertLoadRequest) -> routing_pb2.GetExpertLoadResponse:
        asked.append(routing_pb2.GetExpertLoadRequest.FromString(request.SerializeToString()))
        ranks = request.rank_count if request.HasField("rank_count") else served
        layer = routing_pb2.LayerLoad(
            layer_index=0,
            expert_token_counts=[60, 20, 20, 0],
            imbalance=2.4,
            busiest_rank_share=0.6 if ranks > 1 else 1,
        )
        made = routing_pb2.GetExpertLoadResponse(
            load=routing_pb2.ExpertLoad(token_count=tokens, layers=[layer], rank_count=ranks)
        )
        made.load.window.FromSeconds(30)
        return made

    return ask


async def test_expert_load_of_one_device_is_asked_as_it_would_be_on_several() -> None:
    asked: list[routing_pb2.GetExpertLoadRequest] = []
    found, why = await experts.observe(answering(asked), 45.0)
    assert why is None
    assert found is not None
    # Four experts can be on four ranks at most.
    assert (found.ranks, found.as_served, found.tokens, found.window_seconds) == (4, False, 100, 30.0)
    assert found.layers[0].busiest_rank_share == 0.6
    assert asked[0].window.seconds == 45
    assert [request.HasField("rank_count") for request in asked] == [False, True]


async def test_expert_load_as_served_is_asked_once() -> None:
    asked: list[routing_pb2.GetExpertLoadRequest] = []
    found, _ = await experts.observe(answering(asked, served=8), 99_999.0)
    assert found is not None
    assert (found.ranks, found.as_served, len(asked)) == (8, True, 1)
    assert asked[0].window.seconds == 3600


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (NotImplementedYet("no"), "UNIMPLEMENTED"),
        (FeatureOff("engine.routing is off"), "engine.routing is off"),
        (Unavailable("gone"), "gone"),
    ],
)
async def test_expert_load_that_is_not_observed_is_said_so(error: Exception, words: str) -> None:
    async def ask(request: routing_pb2.GetExpertLoadRequest) -> routing_pb2.GetExpertLoadResponse:
        raise error

    found, why = await experts.observe(ask, 10.0)
    assert found is None
    assert why is not None
    assert words in why


async def test_no_tokens_is_not_even_load() -> None:
    found, why = await experts.observe(answering([], tokens=0), 10.0)
    assert (found, why) == (None, "the service saw no tokens routed")


def test_the_result_is_plain() -> None:
    assert Result.model_validate_json(result().model_dump_json()) == result()
