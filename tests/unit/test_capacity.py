"""Capacity on paper: the arithmetic of steps, speed, cost and calibration, at sizes that can be checked by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from penstock.engine.sizing.shape import read_shape
from penstock.engine.sizing.weights import ParallelLayout, Part, inventory, weight_bytes
from penstock.engine.vllm.cards import CARDS
from penstock.errors import ConfigError
from penstock_bench.capacity.acceptance import load_acceptance, read_acceptance
from penstock_bench.capacity.calibrate import fit
from penstock_bench.capacity.cost import Hosted, break_even, cost
from penstock_bench.capacity.devices import find_device, load_devices
from penstock_bench.capacity.knee import bounds, knee
from penstock_bench.capacity.memory import Setup, plan_memory
from penstock_bench.capacity.pareto import Choice, at_interactivity, best
from penstock_bench.capacity.roofline import Assumptions, Roofline
from penstock_bench.capacity.speed import Correction, Mix, Point, ceiling, concurrencies, point, tokens_per_step

PAPER = Assumptions()
MIX = Mix(input_tokens=2000, thought_tokens=1000, answer_tokens=500)
IDEAL = Assumptions(
    bandwidth_share=1,
    narrow_share=1,
    narrow_compute=1,
    expert_skew=0,
    compute_share=1,
    compute_width=0,
    activation_passes=0,
    step_seconds=0,
    layer_seconds=0,
    convert_seconds=0,
    sequence_seconds=0,
    exchange_seconds=0,
    draft_seconds=0,
)


def setup(name: str = "35B-A3B", device: str = "h100", **changes: object) -> Setup:
    text = CARDS[f"Qwen/Qwen3.5-{name}"]
    plain = Setup(
        model=name,
        shape=read_shape(text),
        device=find_device(load_devices(), device),
        count=1,
        layout=ParallelLayout(),
        fp8_weights=True,
        kv_fp8=True,
        drafted=0,
        prefix_caching=True,
        window_tokens=262_144,
        max_sequences=64,
        batch_tokens=2048,
        utilization=0.9,
        fixed_bytes=2**31,
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def roofline(made: Setup, assumed: Assumptions = IDEAL) -> Roofline:
    return Roofline(made, plan_memory(made).cache, assumed)


def a_point(made: Setup, concurrency: int, assumed: Assumptions = PAPER, mix: Mix = MIX) -> Point:
    return point(made, plan_memory(made), assumed, mix, concurrency, Correction())


def test_without_async_scheduling_each_step_waits_for_the_host() -> None:
    assumed = replace(PAPER, host_seconds=0.001, host_sequence_seconds=2e-5)
    waits = roofline(setup(async_scheduling=False), assumed)
    for sequences in (1, 32):
        longer = waits.decode(sequences, 1000).seconds - roofline(setup(), assumed).decode(sequences, 1000).seconds
        assert longer == pytest.approx(0.001 + sequences * 2e-5)
    longer = waits.prefill(1000).seconds - roofline(setup(), assumed).prefill(1000).seconds
    assert longer == pytest.approx(0.001 + 2e-5)


def test_one_sequence_reads_its_own_experts_and_many_read_all() -> None:
    one, many = roofline(setup()).decode(1, 0), roofline(setup()).decode(4096, 0)
    assert one.expert_share == pytest.approx(8 / 256)
    assert many.expert_share == pytest.approx(1)
    # 3 of 35 billion are active: one token reads about what names promise, many all but the embedding.
    assert one.weight_bytes == pytest.approx(3.4e9, rel=0.05)
    assert many.weight_bytes == pytest.approx(34.5e9, rel=0.02)


def test_a_dense_model_reads_everything_for_one_token() -> None:
    few, many = roofline(setup("27B")).decode(1, 0), roofline(setup("27B")).decode(64, 0)
    assert few.weight_bytes == many.weight_bytes


def test_the_first_token_of_a_small_batch_waits_for_memory_and_large_ones_for_arithmetic() -> None:
    assert roofline(setup("27B")).decode(1, 1000).limit == "memory"
    assert roofline(setup("27B", batch_tokens=8192)).prefill(8192).limit == "compute"


def test_memory_seconds_are_bytes_over_bandwidth() -> None:
    step = roofline(setup()).decode(8, 10_000)
    assert step.memory_seconds == pytest.approx((step.weight_bytes + step.cache_bytes) / 3.35e12)
    assert step.seconds == max(step.memory_seconds, step.compute_seconds)


def test_context_costs_keys_and_values_and_states_cost_the_same_at_every_length() -> None:
    short, long = roofline(setup()).decode(8, 1000), roofline(setup()).decode(8, 101_000)
    per_token = plan_memory(setup()).cache.kv_bytes_per_token
    assert long.cache_bytes - short.cache_bytes == 8 * 100_000 * per_token


def test_operations_of_a_step_are_two_per_active_weight() -> None:
    step = roofline(setup()).decode(1, 0)
    assert step.operations == pytest.approx(2 * 2.95e9, rel=0.05)


def test_devices_that_share_a_replica_talk_and_lone_ones_do_not() -> None:
    assert roofline(setup()).decode(64, 0).exchange_seconds == 0
    assert roofline(setup(layout=ParallelLayout(4, 1, True), count=4)).decode(64, 0).exchange_seconds > 0
    assert roofline(setup(layout=ParallelLayout(1, 4, True), count=4)).decode(64, 0).exchange_seconds > 0
    assert roofline(setup(layout=ParallelLayout(1, 4, False), count=4)).decode(64, 0).exchange_seconds == 0


def test_drafts_give_their_expected_tokens_and_take_their_passes() -> None:
    assert tokens_per_step(0, (0.7,)) == 1
    assert tokens_per_step(2, (0.5,)) == 1.75
    assert tokens_per_step(3, (0.9, 0.5)) == pytest.approx(1 + 0.9 + 0.45 + 0.225)
    assert roofline(setup(drafted=2)).decode(1, 0).weight_bytes > roofline(setup()).decode(1, 0).weight_bytes
    with_drafts, without = a_point(setup(drafted=2), 1), a_point(setup(), 1)
    assert with_drafts.decode_tokens_per_second > 1.3 * without.decode_tokens_per_second


def test_more_requests_give_more_tokens_and_slower_streams() -> None:
    points = [a_point(setup(), number) for number in (1, 8, 64)]
    assert [p.decode_tokens_per_second for p in points] == sorted(p.decode_tokens_per_second for p in points)
    assert points[0].stream_tokens_per_second > points[2].stream_tokens_per_second


def test_the_mix_takes_the_time_of_its_prompts_and_of_its_output() -> None:
    made = a_point(setup(), 32)
    seconds = 2000 / made.prompt_tokens_per_second + 1500 / made.decode_tokens_per_second
    assert made.requests_per_second == pytest.approx(1 / seconds)
    cached = a_point(setup(), 32, mix=replace(MIX, cached_share=1.0))
    assert cached.requests_per_second == pytest.approx(cached.decode_tokens_per_second / 1500)


def test_the_ceiling_is_the_smaller_of_memory_and_scheduler() -> None:
    made = setup(count=1)
    assert ceiling(made, plan_memory(made), 3500) == 64
    by_memory = ceiling(made, plan_memory(made), 262_144)
    assert by_memory == int(plan_memory(made).sequences(262_144, 1)) < 64
    assert not a_point(made, 65).fits
    assert ceiling(setup("397B-A17B"), plan_memory(setup("397B-A17B")), 3500) == 0


def test_concurrencies_double_up_to_the_most() -> None:
    assert concurrencies(64) == (1, 2, 4, 8, 16, 32, 64)
    assert concurrencies(5) == (1, 2, 4, 5)
    assert concurrencies(1) == (1,)
    assert concurrencies(64, (8, 1, 8)) == (1, 8)


def test_cost_is_the_hours_price_over_what_the_hour_gives() -> None:
    made = a_point(setup(), 32)
    told = cost(made, MIX, usd_per_hour=3.6)
    assert told.output_usd == pytest.approx(1e6 * 0.001 / made.decode_tokens_per_second)
    assert told.input_usd == pytest.approx(1e6 * 0.001 / made.prompt_tokens_per_second)
    assert told.request_usd == pytest.approx((2000 * told.input_usd + 1500 * told.output_usd) / 1e6)
    assert told.thought_usd_per_request == pytest.approx(1000 * told.output_usd / 1e6)


def test_break_even_is_where_the_hosted_bill_is_the_machines() -> None:
    made = a_point(setup(), 32)
    even = break_even(made, MIX, 3.0, Hosted(0.4, 2.4, "test"))
    assert even.hosted_usd_per_request == pytest.approx((2000 * 0.4 + 1500 * 2.4) / 1e6)
    assert even.requests_per_hour * even.hosted_usd_per_request == pytest.approx(3.0)
    assert even.load == pytest.approx(even.requests_per_hour / (made.requests_per_second * 3600))
    assert not break_even(made, MIX, 1e6, Hosted(0.4, 2.4, "test")).reached


def measured(tmp_path: Path, factor: float, extra: float, numbers: tuple[int, ...]) -> Path:
    """As a machine would measure that is slower than paper by a factor and a fixed time."""
    points = []
    for number in numbers:
        seconds = roofline(setup(), Assumptions()).decode(number, 3000).seconds * factor + extra
        rate = number / seconds
        points.append({"concurrency": number, "context_tokens": 3000, "output_tokens_per_second": rate})
    file = tmp_path / "pilot.json"
    file.write_text(json.dumps({"model": "35B-A3B", "points": points}))
    return file


@pytest.mark.parametrize(("factor", "extra"), [(1.5, 0.004), (2.0, 0.0), (1.0, 0.0)])
def test_a_calibration_finds_factor_and_fixed_time(tmp_path: Path, factor: float, extra: float) -> None:
    found = fit(setup(), plan_memory(setup()), Assumptions(), measured(tmp_path, factor, extra, (1, 4, 16, 64)))
    assert found.correction.decode_factor == pytest.approx(factor, rel=1e-6)
    assert found.correction.decode_extra_seconds == pytest.approx(extra, abs=1e-9)
    assert found.error == pytest.approx(0, abs=1e-9)


def test_a_single_point_gives_the_factor_alone(tmp_path: Path) -> None:
    found = fit(setup(), plan_memory(setup()), Assumptions(), measured(tmp_path, 1.5, 0.004, (8,)))
    assert found.correction.decode_extra_seconds == 0
    assert found.correction.decode_factor > 1.5
    assert found.correction.prefill_factor == found.correction.decode_factor


def test_steps_that_do_not_grow_as_computed_still_give_prompts_a_factor(tmp_path: Path) -> None:
    """All of a step is the fixed time then, and no prompts were measured: a factor of 0 would divide by zero."""
    rates = {1: 1 / 0.051, 64: 64 / 0.049}
    points = [
        {"concurrency": number, "context_tokens": 3000, "output_tokens_per_second": rate}
        for number, rate in rates.items()
    ]
    file = tmp_path / "pilot.json"
    file.write_text(json.dumps({"points": points}))
    found = fit(setup(), plan_memory(setup()), Assumptions(), file).correction
    assert (found.decode_factor, found.decode_extra_seconds) == pytest.approx((0.0, 0.05), abs=1e-4)
    assert found.prefill_factor > 1
    assert point(setup(), plan_memory(setup()), Assumptions(), MIX, 4, found).requests_per_second > 0


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "cannot read"),
        ("{}", 'no "points"'),
        ('{"points": [{"concurrency": 0, "context_tokens": 1}]}', r"points\[0\].concurrency is 0"),
        ('{"points": [{"concurrency": 1}]}', r"points\[0\].context_tokens is None"),
        ('{"points": [{"concurrency": 1, "context_tokens": 9}]}', "nothing to calibrate with"),
    ],
)
def test_a_calibration_that_says_nothing_is_refused(tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "pilot.json"
    file.write_text(content)
    with pytest.raises(ConfigError, match=said):
        fit(setup(), plan_memory(setup()), Assumptions(), file)


def test_every_shipped_device_says_who_says_so() -> None:
    for device in load_devices().values():
        assert device.read.startswith("2026-11-")
        makers = ("https://www.nvidia.com/", "https://www.amd.com/")
        assert device.source.startswith(makers if device.kind == "gpu" else "assumed")
        assert bool(device.memory_source) == bool(device.watts) == (device.kind == "gpu")
        assert (device.usd_per_hour is None) == (not device.price_source)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[x]\nspeed = 1", "has speed, which is none of"),
        ("[x]\nname = 'X'", "lacks bandwidth_gb_per_second"),
        ("[x]\nname = 3", "lacks"),
        ("x = 1", "is no table"),
        ("[x", "cannot read"),
    ],
)
def test_own_devices_are_checked(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "devices.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=said):
        load_devices(file)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('memory_gb = "24"', "memory_gb is not a number"),
        ("memory_gb = 0", "memory_gb must be above 0"),
        ("name = 3", "name is not a text"),
        ("reads_fp8_cache = 1", "reads_fp8_cache is neither true nor false"),
        ('kind = "tpu"', "kind is neither gpu nor cpu"),
    ],
)
def test_values_of_own_devices_are_checked(tmp_path: Path, line: str, said: str) -> None:
    entry = {
        "name": '"Mine"',
        "memory_gb": 24,
        "bandwidth_gb_per_second": 900,
        "bf16_tflops": 100,
        "link_gb_per_second": 64,
        "source": '"measured"',
        "read": '"2026-01-01"',
    }
    key, _, value = line.partition(" = ")
    file = tmp_path / "devices.toml"
    file.write_text("[mine]\n" + "".join(f"{name} = {text}\n" for name, text in {**entry, key: value}.items()))
    with pytest.raises(ConfigError, match=said):
        load_devices(file)


def test_an_h100_has_the_memory_that_a_framework_sees() -> None:
    """79.1 GiB, which is more than the 80e9 bytes of its name."""
    assert find_device(load_devices(), "h100").memory_bytes / 2**30 == pytest.approx(79.1, abs=0.01)


def test_each_draft_pass_adds_its_fixed_time() -> None:
    assumed = Assumptions(draft_seconds=0.001)
    steps = [roofline(setup(drafted=drafted), assumed).decode(1, 0).fixed_seconds for drafted in (0, 1, 3)]
    assert [step - steps[0] for step in steps] == pytest.approx([0, 0.001, 0.003])


def test_fewer_experts_are_read_where_some_are_popular() -> None:
    even, uneven = (replace(IDEAL, expert_skew=skew) for skew in (0, 0.5))
    shares = [
        [roofline(setup(), assumed).decode(count, 0).expert_share for count in (1, 64)] for assumed in (even, uneven)
    ]
    assert shares[0][0] == pytest.approx(shares[1][0], rel=0.05)
    assert shares[0][1] == pytest.approx(1 - (1 - 8 / 256) ** 64)
    assert shares[1][1] == pytest.approx(1 - (1 + 0.5 * 64 * 8 / 256) ** -2)
    assert shares[1][1] < shares[0][1]


def test_a_prompt_moves_activations_and_narrow_arithmetic_reaches_less() -> None:
    plain, moved = (roofline(setup(), replace(IDEAL, activation_passes=passes)).prefill(8192) for passes in (0, 30))
    bandwidth = setup().device.bandwidth_gb_per_second * 1e9
    expected = 30 * plain.tokens * setup().shape.layers * setup().shape.hidden * 2 / bandwidth
    assert moved.seconds - plain.seconds == pytest.approx(expected)
    narrow, wide = (
        [roofline(setup(fp8_weights=fp8), replace(IDEAL, narrow_compute=share)).prefill(8192) for share in (1, 0.5)]
        for fp8 in (True, False)
    )
    assert narrow[1].compute_seconds > 1.5 * narrow[0].compute_seconds
    assert wide[1].compute_seconds == wide[0].compute_seconds


def test_the_fixed_time_of_a_step_grows_with_layers_conversions_and_sequences() -> None:
    assumed = Assumptions(step_seconds=0.002, layer_seconds=2e-5, convert_seconds=1e-5, sequence_seconds=1e-4)
    layers = setup().shape.layers
    narrow, wide = (roofline(setup(fp8_weights=fp8), assumed).decode(8, 0).fixed_seconds for fp8 in (True, False))
    assert narrow == pytest.approx(0.002 + layers * 3e-5 + 8 * 1e-4)
    assert wide == pytest.approx(0.002 + layers * 2e-5 + 8 * 1e-4)


def test_starting_an_exchange_takes_longer_on_more_devices() -> None:
    assumed = Assumptions(exchange_seconds=1e-3)
    seconds = [
        roofline(setup(layout=ParallelLayout(width), count=width), assumed).decode(1, 0).exchange_seconds
        for width in (1, 2, 8)
    ]
    each = 2 * setup().shape.layers * 1e-3
    assert seconds == pytest.approx([0, each, 3 * each], rel=0.01)


def test_prompts_reach_less_of_the_peak_on_more_devices() -> None:
    assumed = Assumptions(compute_share=0.4, compute_width=0.5)
    assert [assumed.compute_reached(width) for width in (1, 2, 4)] == pytest.approx([0.4, 0.4 / 1.5, 0.2])


def test_nvfp4_experts_take_nine_sixteenths_of_a_byte() -> None:
    shape = setup("397B-A17B").shape
    experts = sum(m.elements for m in inventory(shape, draft=False) if m.part is Part.EXPERTS)
    rest = sum(m.elements * m.bytes_each for m in inventory(shape, draft=False) if m.part is not Part.EXPERTS)
    told = weight_bytes(shape, False, draft=False, nvfp4=True)
    assert told == pytest.approx(experts * 9 / 16 + rest, rel=1e-5)


def test_nvfp4_leaves_the_draft_layer_in_bfloat16() -> None:
    """A checkpoint of 397B has 233 GiB: https://huggingface.co/lukealonso/Qwen3.5-397B-A17B-NVFP4 (with its vision)."""
    shape = setup("397B-A17B").shape
    draft = sum(m.elements * m.bytes_each for m in inventory(shape) if m.draft)
    whole = weight_bytes(shape, False, nvfp4=True)
    assert whole - weight_bytes(shape, False, draft=False, nvfp4=True) == pytest.approx(draft, rel=1e-6)
    assert whole / 2**30 == pytest.approx(233, abs=1)


def test_the_busiest_rank_holds_more_than_an_even_share_of_the_experts() -> None:
    even = roofline(setup("397B-A17B", layout=ParallelLayout(8), count=8)).decode(16, 0).expert_share
    busiest = roofline(setup("397B-A17B", layout=ParallelLayout(8, 1, True), count=8)).decode(16, 0).expert_share
    assert 1.2 * even < busiest < 1.6 * even


@pytest.mark.parametrize("service", [1.0, 7.5])
def test_the_knee_is_where_throughput_over_response_time_is_greatest(service: float) -> None:
    """A machine that serves n requests in service x (1 + n / 32) seconds has it at 32."""
    assert knee((n, n / (service * (1 + n / 32))) for n in range(1, 400)) == 32
    assert knee([]) is None


def test_the_range_past_the_knee_spans_a_factor_of_two_and_less_below_it() -> None:
    low, high = bounds(100, True, setup().device)
    assert high / low == pytest.approx(2)
    assert bounds(100, False, setup().device)[1] / bounds(100, False, setup().device)[0] < 2


def choice(user: float, device: float) -> Choice:
    return Choice(1, 1, 0, 1, user, device, None)


def test_only_what_nothing_beats_is_on_the_frontier() -> None:
    fast, good, beaten, full = choice(100, 10), choice(50, 40), choice(40, 30), choice(10, 80)
    assert best([beaten, full, good, fast, choice(100, 9)]) == (fast, good, full)
    assert at_interactivity((fast, good, full), 45) is good
    assert at_interactivity((fast, good, full), 101) is None


def test_acceptance_is_a_list_by_kind_of_text_or_given() -> None:
    assert read_acceptance("0.9, 0.5").shares == (0.9, 0.5)
    # The accepted lengths that the source gives, for 1 to 8 drafts.
    lengths = (1.93, 2.73, 3.39, 3.97, 4.41, 4.80, 5.04, 5.21)
    told = [tokens_per_step(number, read_acceptance("coding").shares) for number in range(1, 9)]
    assert told == pytest.approx(lengths, abs=0.03)
    assert Assumptions().acceptance == read_acceptance("coding").shares
    for one in load_acceptance().values():
        assert one.source
        assert all(0 <= share <= 1 for share in one.shares)
    for wrong in ("poetry", "1.1", "", "0.9;0.8"):
        with pytest.raises(ConfigError, match="allowed are shares from 0 to 1, such as"):
            read_acceptance(wrong)


def test_own_devices_join_the_shipped_ones(tmp_path: Path) -> None:
    file = tmp_path / "devices.toml"
    file.write_text(
        '[Mine]\nname = "Mine"\nmemory_gb = 24\nbandwidth_gb_per_second = 900\nbf16_tflops = 100\n'
        'link_gb_per_second = 64\nsource = "measured"\nread = "2026-01-01"\n'
    )
    assert find_device(load_devices(file), "mine").memory_bytes == 24 * 10**9
    with pytest.raises(ConfigError, match="no device 'x'; there are h100, h200"):
        find_device(load_devices(), "x")
