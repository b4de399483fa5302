"""Lay what `penstock plan` says of a pilot's closed loops beside what was measured. No I/O.

The plan is that of the service as it runs: layout, precision and drafts come from its profile. In an open loop the
arrivals decide the throughput, so such stages are not compared.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from penstock.engine.sizing.shape import Shape
from penstock.engine.sizing.weights import ParallelLayout
from penstock.errors import ConfigError
from penstock_bench.capacity.calibrate import Measured, fit_points
from penstock_bench.capacity.devices import DeviceSpec
from penstock_bench.capacity.knee import bounds, knee
from penstock_bench.capacity.memory import Memory, Setup, plan_memory
from penstock_bench.capacity.roofline import Assumptions, Roofline
from penstock_bench.capacity.speed import Correction, Mix, Point, concurrencies, point, tokens_per_step
from penstock_bench.pilot.results import Calibration, LeftOut, PlanBeside, PlannedFigure, Result, Stage
from penstock_bench.pilot.results import Point as MeasuredPoint
from penstock_bench.pilot.sections_limits import is_on_cpu

_BATCH_TOKENS = 2048
"""vLLM's default for the tokens of a step, which the profile leaves out."""
_UTILIZATION, _FIXED_BYTES = 0.9, 2**31
"""Parts of the memory, of which the speed does not depend."""
_MIN_DECODING = 3
"""Decoding points of a calibration that leaves one out: two for the line, and the one that is left out."""


def device_of(result: Result, devices: Mapping[str, DeviceSpec]) -> str | None:
    """Return the key of the device that the service ran on; None if the result does not tell it."""
    if is_on_cpu(result):
        return "cpu"
    seen = (result.gpu_check or {}).get("cards") or result.client_machine.get("gpus") or ()
    found = {_device_named(card, devices) for card in seen}
    return found.pop() if len(found) == 1 else None


_OTHER_FORMS = frozenset({"pcie", "nvl"})
"""Words in the names of cards that share a chip's name with a device of the table, and are slower."""


def _device_named(card: Mapping[str, object], devices: Mapping[str, DeviceSpec]) -> str | None:
    """Return the device with this card's chip and its memory, within a tenth."""
    words = set(re.findall(r"[a-z0-9]+", str(card["name"]).lower()))
    memory = float(str(card["memory_gib"])) * 2**30
    if words & _OTHER_FORMS:
        return None
    return next(
        (key for key, one in devices.items() if key in words and abs(memory / one.memory_bytes - 1) < 0.1),
        None,
    )


def compare(result: Result, shape: Shape | None, device: DeviceSpec | None) -> PlanBeside:
    """Return the plan's figures for the measured stages, or why there are none."""
    key = None if device is None else device.key
    if device is None:
        return PlanBeside(device=key, not_planned="the service's device is not known; name it with `--plan-device`")
    if shape is None:
        return PlanBeside(
            device=key,
            not_planned=f"the sizes of `{result.model}` are not known; name its config.json with `--plan-model`",
        )
    try:
        planned = _Planned.of(result, shape, device)
    except ConfigError as error:
        return PlanBeside(device=key, not_planned=error.message)
    setup, layout = planned.setup, planned.setup.layout
    on_paper = device.kind == "gpu"
    calibration = _calibration(result, planned)
    return PlanBeside(
        device=key,
        devices=setup.count,
        layout=f"tensor {layout.tensor} x data {layout.data}" + (", experts over all" if layout.experts else ""),
        drafted=setup.drafted,
        tokens_per_step=tokens_per_step(setup.drafted, planned.assumed.acceptance),
        tokens_per_step_measured=measured_acceptance(result) is not None,
        not_planned=None
        if on_paper
        else f"those of the device `{key}` are assumed, for no data sheet says what vLLM gets from a CPU",
        figures=tuple(planned.figures()) if on_paper else (),
        not_calibrated=None
        if calibration
        else f"a calibration that leaves a stage out needs {_MIN_DECODING} closed loops that decode",
        calibration=calibration,
    )


@dataclass(frozen=True, slots=True)
class _Planned:
    """The plan of one service, and the stages to which it is applied."""

    setup: Setup
    memory: Memory
    assumed: Assumptions
    stages: Sequence[Stage]

    @classmethod
    def of(cls, result: Result, shape: Shape, device: DeviceSpec) -> _Planned:
        """Return the plan of the service as it runs. Raises ConfigError for what a plan does not describe."""
        setup = setup_of(result, shape, device)
        memory = plan_memory(setup)
        acceptance = measured_acceptance(result)
        assumed = Assumptions() if acceptance is None else Assumptions(acceptance=(acceptance,))
        stages = [stage for stage in closed_loops(result) if stage.mean_prompt_tokens and stage.mean_output_tokens]
        if not stages:
            raise ConfigError("no closed loop was measured")
        return cls(setup, memory, assumed.on(device), stages)

    def at(self, stage: Stage, correction: Correction | None = None) -> Point:
        """Return the plan's speed for the load of a stage."""
        streams = stage.concurrency or 1
        return self._point(_mix(stage), streams, correction or Correction())

    def _point(self, mix: Mix, streams: int, correction: Correction) -> Point:
        return point(self.setup, self.memory, self.assumed, mix, streams, correction)

    def _past_knee(self, stage: Stage) -> bool:
        """Return whether the load of a stage is above the plan's knee for such calls."""
        streams, mix = stage.concurrency or 1, _mix(stage)
        curve = [(one, self._point(mix, one, Correction()).requests_per_second) for one in concurrencies(streams)]
        return streams > (knee(curve) or streams)

    def figures(self) -> Iterator[PlannedFigure]:
        """Return each stage's rate, time per token and time to the first token."""
        for stage in self.stages:
            streams, mix, made = stage.concurrency or 1, _mix(stage), self.at(stage)
            past = self._past_knee(stage)
            yield _rate(stage, mix, made, past, self.setup.device)
            # All that a caller's call takes, without its own prompt: its steps, and those that read others' prompts.
            own = mix.read_tokens * min(streams, self.setup.layout.data) / made.prompt_tokens_per_second
            each = (streams / made.requests_per_second - own) / mix.output_tokens
            if stage.per_token.mean:
                low, high = bounds(each, past, self.setup.device)
                yield PlannedFigure(
                    stage=stage.name,
                    figure="seconds_per_token",
                    measured=stage.per_token.mean,
                    planned=each,
                    low=low,
                    high=high,
                    past_knee=past,
                )
            if stage.first_token.p50:
                alone = self._prompt_alone(mix)
                low, high = bounds(alone, False, self.setup.device)
                yield PlannedFigure(
                    stage=stage.name,
                    figure="first_token_seconds",
                    measured=stage.first_token.p50,
                    planned=alone,
                    low=low,
                    high=high if streams == 1 else None,
                    past_knee=past,
                )

    def _prompt_alone(self, mix: Mix) -> float:
        """Return the seconds of the steps that read one prompt on an idle machine."""
        batch = self.setup.batch_tokens
        tokens = max(1, min(batch, math.ceil(mix.read_tokens)))
        step = Roofline(replace(self.setup, batch_tokens=tokens), self.memory.cache, self.assumed).prefill(
            mix.input_tokens
        )
        return step.seconds * max(1.0, mix.read_tokens / batch)


def setup_of(result: Result, shape: Shape, device: DeviceSpec) -> Setup:
    """Return the setup that the service's profile names. Raises ConfigError for one that a plan does not describe."""

    def on(name: str) -> bool:
        """Return whether the profile has the feature, switched on."""
        return bool(_feature(result, name).get("enabled"))

    def number(name: str, default: int) -> int:
        """Return the number of a feature; the default where it has none."""
        found = _number(result, name)
        return default if found is None else found

    if on("pipeline_parallel"):
        raise ConfigError("`penstock plan` has no formulas for a model that is spread over pipeline stages")
    layout = ParallelLayout(number("tensor_parallel", 1), number("data_parallel", 1), on("expert_parallel"))
    cpu = device.kind == "cpu"
    return Setup(
        model=result.model,
        shape=shape,
        device=device,
        count=layout.ranks,
        layout=layout,
        fp8_weights=on("fp8_weights"),
        kv_fp8=on("fp8_kv_cache"),
        drafted=number("mtp", 1) if on("mtp") else 0,
        prefix_caching=on("prefix_caching"),
        window_tokens=int(result.served["context_window_tokens"]),
        max_sequences=max((stage.concurrency or 1 for stage in closed_loops(result)), default=1),
        batch_tokens=number("chunked_prefill", _BATCH_TOKENS),
        utilization=_UTILIZATION,
        fixed_bytes=_FIXED_BYTES,
        cache_bytes=0 if cpu else None,
    )


def _feature(result: Result, name: str) -> Mapping[str, object]:
    """Return a row of the service's profile; empty where it has none of that name."""
    return next((one for one in result.served["profile"] if one["name"] == name), {})


def _number(result: Result, name: str) -> int | None:
    """Return the first number in the value of a feature; None where it has none."""
    found = re.search(r"\d+", str(_feature(result, name).get("value", "")))
    return int(found.group()) if found else None


def closed_loops(result: Result) -> list[Stage]:
    """Return the stages that a plan describes: a number of streams that always run."""
    stages = (*result.of("concurrency"), *result.of("context"), *result.of("prefix"))
    return [stage for stage in stages if stage.concurrency and not stage.interrupted]


def measured_acceptance(result: Result) -> float | None:
    """Return the share of drafts accepted at each position, if it is the same at all; None if not observed.

    It gives the tokens per step that were measured in the loads with short prompts.
    """
    stages = [stage for stage in result.of("concurrency") if stage.drafted_tokens and stage.accepted_tokens is not None]
    number = _number(result, "mtp")
    if not stages or number is None:
        return None
    accepted = sum(stage.accepted_tokens or 0 for stage in stages) / sum(stage.drafted_tokens or 0 for stage in stages)
    low, high = 0.0, 1.0
    for _ in range(50):
        share = (low + high) / 2
        low, high = (share, high) if tokens_per_step(number, (share,)) < 1 + number * accepted else (low, share)
    return (low + high) / 2


def _mix(stage: Stage) -> Mix:
    prompt, output = round(stage.mean_prompt_tokens or 0), max(1, round(stage.mean_output_tokens or 0))
    return Mix(max(1, prompt), 0, output, min(1.0, stage.cached_share or 0.0))


def _rate(stage: Stage, mix: Mix, made: Point, past: bool, device: DeviceSpec) -> PlannedFigure:
    """Return the rate that a stage is for: prompt tokens in those of prompt lengths, output tokens in all others."""
    reads = stage.kind == "context"
    planned = made.requests_per_second * (mix.read_tokens if reads else mix.output_tokens)
    low, high = bounds(planned, past, device)
    return PlannedFigure(
        stage=stage.name,
        figure="prompt_tokens_per_second" if reads else "output_tokens_per_second",
        measured=stage.prompt_tokens_per_second if reads else stage.output_tokens_per_second,
        planned=planned,
        low=low,
        high=high,
        past_knee=past,
    )


def _calibration(result: Result, planned: _Planned) -> Calibration | None:
    """Return the fit to all points, and to all but one; None with too few points."""
    if sum(one.output_tokens_per_second is not None for one in result.points) < _MIN_DECODING:
        return None
    whole = fit_points(planned.setup, planned.memory, planned.assumed, _measured(result.points), "")
    if whole is None:
        return None
    return Calibration(
        decode_factor=whole.correction.decode_factor,
        decode_extra_seconds=whole.correction.decode_extra_seconds,
        prefill_factor=whole.correction.prefill_factor,
        error=whole.error,
        left_out=tuple(_left_out(result, planned)),
    )


def _left_out(result: Result, planned: _Planned) -> Iterator[LeftOut]:
    """Predict each point's stage from all other points."""
    stages = {stage.name: stage for stage in planned.stages}
    for left in result.points:
        others = _measured([one for one in result.points if one is not left])
        fitted = fit_points(planned.setup, planned.memory, planned.assumed, others, "")
        stage = stages.get(left.stage)
        if fitted is None or stage is None:
            continue
        made = planned.at(stage, fitted.correction)
        rate = _rate(stage, _mix(stage), made, False, planned.setup.device)
        yield LeftOut(stage=stage.name, figure=rate.figure, measured=rate.measured, predicted=rate.planned)
        if left.output_tokens_per_second:
            streams = stage.concurrency or 1
            yield LeftOut(
                stage=stage.name,
                figure="seconds_per_token",
                measured=streams / left.output_tokens_per_second,
                predicted=streams / made.decode_tokens_per_second,
            )


def _measured(points: Sequence[MeasuredPoint]) -> list[Measured]:
    return [
        Measured(
            one.concurrency,
            max(1, round(one.context_tokens)),
            one.output_tokens_per_second,
            one.prompt_tokens_per_second,
        )
        for one in points
    ]
