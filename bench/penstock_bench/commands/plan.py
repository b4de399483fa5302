"""Compute capacity and cost of a model on devices before any are bought: `penstock plan`."""

from __future__ import annotations

import json as json_module
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from penstock.cli import options as o
from penstock.cli.failures import EXIT_REFUSED

if TYPE_CHECKING:
    from penstock.config.schema import Config, EngineSettings
    from penstock.engine.sizing.shape import Shape
    from penstock.engine.vllm.checkpoint import ModelCheckpoint
    from penstock.engine.vllm.features import Resolved
    from penstock_bench.capacity.calibrate import Fit
    from penstock_bench.capacity.cost import Hosted
    from penstock_bench.capacity.devices import DeviceSpec
    from penstock_bench.capacity.memory import Memory, Setup
    from penstock_bench.capacity.plan import Decision, Wanted
    from penstock_bench.capacity.roofline import Assumptions
    from penstock_bench.capacity.speed import Mix

PICTURES = (".png", ".svg", ".pdf")
MIN_WIDTH = 150
DEFAULT_BATCH_TOKENS = 2048
"""vLLM's default, if the configuration has no value."""
DEMO_NAME = "penstock-demo"
"""Name under which the service serves the embedded model."""
_HOSTED = "pricing.tiers"


# One parameter for each option.
def plan(
    model: Annotated[
        str | None, typer.Option(help="Name of a known model, directory, or config.json. Default: the demo model.")
    ] = None,
    device: Annotated[
        str, typer.Option(help="Device: h100, h200, b200, b300, a100, l40s, mi300x, mi355x, cpu, or one of --devices.")
    ] = "h100",
    count: Annotated[int, typer.Option(min=1, help="Number of devices.")] = 1,
    tensor: Annotated[
        int | None, typer.Option(min=1, help="Devices per replica. Default: as the service chooses.")
    ] = None,
    data: Annotated[
        int | None, typer.Option(min=1, help="Number of replicas. Default: as the service chooses.")
    ] = None,
    input_tokens: Annotated[int, typer.Option("--input", min=1, help="Prompt tokens of a request.")] = 2000,
    images: Annotated[int, typer.Option(min=0, max=256, help="Images of a request; their tokens add to --input.")] = 0,
    image_pixels: Annotated[
        int | None, typer.Option(min=1, help="Pixels of each image. Default: engine.image_pixels, the most.")
    ] = None,
    thought_tokens: Annotated[int, typer.Option("--thought", min=0, help="Thought tokens of a request.")] = 1000,
    answer_tokens: Annotated[int, typer.Option("--answer", min=1, help="Answer tokens of a request.")] = 500,
    cached_share: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the prompt that comes from the prefix cache.")
    ] = 0.0,
    context: Annotated[int | None, typer.Option(min=1, help="Show how many contexts of this many tokens fit.")] = None,
    concurrency: Annotated[
        str, typer.Option(help="Concurrencies, such as 1,8,64. Default: 1, 2, 4 and so on up to the largest.")
    ] = "",
    usd_per_device_hour: Annotated[
        float | None, typer.Option(min=0, help="Price per device and hour in USD. Default: the table's.")
    ] = None,
    hosted_input: Annotated[
        float | None, typer.Option(min=0, help="Hosted price in USD per million input tokens.")
    ] = None,
    hosted_output: Annotated[
        float | None, typer.Option(min=0, help="Hosted price in USD per million output tokens.")
    ] = None,
    acceptance: Annotated[
        str,
        typer.Option(help="Shares of MTP's drafts accepted by position, 0.9,0.8; or a kind of text: code, prose, ..."),
    ] = "coding",
    interactivity: Annotated[
        float | None,
        typer.Option(min=0.1, help="Show the best layout that gives each user this many tokens per second."),
    ] = None,
    nvfp4: Annotated[
        bool, typer.Option("--nvfp4", help="Plan with the experts' weights in NVFP4 (the service does not run it).")
    ] = False,
    no_async_scheduling: Annotated[
        bool,
        typer.Option(
            "--no-async-scheduling", help="Plan for an engine whose devices wait for the host between two steps."
        ),
    ] = False,
    bandwidth_share: Annotated[
        float | None,
        typer.Option(min=0.01, max=1, help="Share of the peak bandwidth that is reached. Default: fitted."),
    ] = None,
    compute_share: Annotated[
        float | None,
        typer.Option(
            min=0.01, max=1, help="Share of the peak arithmetic that is reached on one device. Default: fitted."
        ),
    ] = None,
    step_ms: Annotated[
        float | None, typer.Option(min=0, help="Fixed milliseconds of each engine step. Default: fitted.")
    ] = None,
    fixed_gib: Annotated[float, typer.Option(min=0, help="GiB per GPU for runtime, links and graphs.")] = 2.0,
    calibrate: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="File of a pilot's result, with which the speed is calibrated."),
    ] = None,
    devices: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="TOML file with your own devices.")
    ] = None,
    png: Annotated[
        Path | None, typer.Option(dir_okay=False, help="File for a plot of speed and cost (.png, .svg or .pdf).")
    ] = None,
    config: o.ConfigFile = None,
    settings: o.Settings = None,
    json: o.Json = False,
) -> None:
    """Compute capacity: what fits, how many contexts, the speed, and the cost of a million tokens.

    It chooses layout and features as the service would, from the same configuration. Exits with 1 if it does not fit.
    """
    from penstock_bench.capacity.acceptance import read_acceptance
    from penstock_bench.capacity.devices import find_device, load_devices
    from penstock_bench.capacity.roofline import Assumptions
    from penstock_bench.capacity.speed import Mix

    _refuse_unwritable(png)
    if (hosted_input is None) != (hosted_output is None):
        raise typer.BadParameter("must be given together", param_hint="--hosted-input, --hosted-output")
    flags = {} if model is None else {"engine.model": model}
    flags |= {} if tensor is None else {"engine.tensor_parallel_size": str(tensor)}
    flags |= {} if data is None else {"engine.data_parallel_size": str(data)}
    loaded = o.configuration(config, settings, flags).config
    chosen = find_device(load_devices(devices), device)
    accepted = read_acceptance(acceptance)
    hosted = (hosted_input, hosted_output)
    numbers = _Numbers(context, _whole(concurrency), usd_per_device_hour, hosted, interactivity, accepted.source)
    given: dict[str, Any] = {
        "bandwidth_share": bandwidth_share,
        "compute_share": compute_share,
    }
    if step_ms is not None:
        given |= {"step_seconds": step_ms / 1e3, "layer_seconds": 0.0, "convert_seconds": 0.0}
    assumed = replace(
        Assumptions(acceptance=accepted.shares).on(chosen),
        **{name: value for name, value in given.items() if value is not None},
    )
    setup, decisions = _setup(loaded.engine, chosen, count, int(fixed_gib * 2**30), nvfp4)
    setup = replace(setup, async_scheduling=not no_async_scheduling)
    each = _tokens_per_image(setup, decisions, images, image_pixels)
    mix = Mix(input_tokens + images * each, thought_tokens, answer_tokens, cached_share, images, each)
    fitted = _calibration(calibrate, setup, assumed)
    _report(setup, decisions, numbers.wanted(loaded, chosen, mix, setup.model), assumed, fitted, json, png)


@dataclass(frozen=True)
class _Numbers:
    """Prices and other values that are given as options, or None."""

    context: int | None
    concurrency: tuple[int, ...]
    usd_per_device_hour: float | None
    hosted: tuple[float | None, float | None]
    interactivity: float | None
    acceptance_source: str

    def wanted(self, config: Config, device: DeviceSpec, mix: Mix, model: str) -> Wanted:
        """Return what to plan for: the given values, else those of the configuration and of the tables."""
        from penstock_bench.capacity.plan import Wanted

        price, said = device.usd_per_hour, device.price_source
        if self.usd_per_device_hour is not None:
            price, said = self.usd_per_device_hour, "--usd-per-device-hour"
        context = self.context or mix.total_tokens
        hosted = self._hosted(config, mix, model)
        return Wanted(
            mix,
            context,
            self.concurrency,
            price,
            said,
            hosted,
            self.acceptance_source,
            interactivity=self.interactivity,
        )

    def _hosted(self, config: Config, mix: Mix, model: str) -> Hosted | None:
        """Return the given price, else the configured one, else the shipped list price of this model."""
        from penstock_bench.capacity.cost import Hosted, hosted_price

        given_input, given_output = self.hosted
        if given_input is not None and given_output is not None:
            return Hosted(given_input, given_output, "--hosted-input, --hosted-output")
        tiers = config.price_tiers
        if not tiers:
            return hosted_price(model)
        up_to = [tier for tier in tiers if (tier.up_to_prompt_tokens or mix.input_tokens) >= mix.input_tokens]
        tier = (up_to or tiers)[0]
        return Hosted(float(tier.input_usd_per_million), float(tier.output_usd_per_million), _HOSTED)


def _setup(
    engine: EngineSettings, device: DeviceSpec, count: int, fixed: int, nvfp4: bool
) -> tuple[Setup, tuple[Decision, ...]]:
    """Return the setup that the service would choose. Raises ConfigError."""
    from penstock.engine.sizing.shape import read_shape
    from penstock.engine.sizing.weights import ParallelLayout
    from penstock.engine.vllm.cards import IMAGE_PIXELS as OFFICIAL_IMAGE_PIXELS
    from penstock.engine.vllm.checkpoint import read_facts
    from penstock_bench.capacity.memory import Setup
    from penstock_bench.capacity.plan import Decision

    checkpoint = read_facts(engine.model, engine.fp8_weights != "off")
    resolved = _resolved(engine, checkpoint, device, count)
    spread, cpu = resolved.parallel, device.kind == "cpu"
    setup = Setup(
        model=_name(engine, checkpoint),
        shape=read_shape(checkpoint.text),
        device=device,
        count=count,
        layout=ParallelLayout(spread.tensor, spread.data, spread.experts),
        fp8_weights=resolved.fp8_weights.enabled,
        kv_fp8=resolved.fp8_kv_cache.enabled,
        drafted=engine.mtp_draft_tokens if resolved.mtp.enabled else 0,
        prefix_caching=resolved.prefix_caching.enabled,
        window_tokens=resolved.window_tokens,
        max_sequences=resolved.max_sequences,
        batch_tokens=engine.max_batch_tokens or DEFAULT_BATCH_TOKENS,
        utilization=engine.gpu_memory_utilization,
        fixed_bytes=fixed,
        cache_bytes=int(engine.kv_cache_gib * 2**30) if cpu else None,
        nvfp4_weights=nvfp4,
        tower=checkpoint.tower(engine.images) if resolved.images.enabled else None,
        image_pixels=min(engine.image_pixels, (checkpoint.image_pixels or OFFICIAL_IMAGE_PIXELS)[1]),
    )
    named = tuple(Decision(one.name, one.value if one.enabled else "off", one.reason) for one in resolved.profile)
    return setup, named


def shape_of(model: str) -> Shape:
    """Return the sizes of a model: a known name, a directory or a config.json. Raises ConfigError."""
    from penstock.engine.sizing.shape import read_shape
    from penstock.engine.vllm.checkpoint import read_facts

    return read_shape(read_facts(model).text)


def known_shape(served: str) -> Shape | None:
    """Return the sizes of a served model by its name, without a look at any other machine; None if it is not known."""
    from penstock.engine.vllm.cards import CARDS

    if served == DEMO_NAME:
        return shape_of("")
    names = {name.lower() for name in CARDS}
    known = names | {name.partition("/")[2] for name in names}
    return shape_of(served) if served.lower() in known else None


def _tokens_per_image(setup: Setup, decisions: tuple[Decision, ...], images: int, pixels: int | None) -> int:
    """Return the tokens of each image of a request, 0 where it has none. Raise ConfigError where none are read."""
    from penstock.errors import ConfigError

    if not images:
        return 0
    if setup.tower is None:
        why = next(one.reason for one in decisions if one.name == "images")
        raise ConfigError(f"--images must be 0, got {images}: images are not read ({why})")
    return setup.tower.tokens(pixels or setup.image_pixels, setup.image_pixels)


def _name(engine: EngineSettings, checkpoint: ModelCheckpoint) -> str:
    """Return the model's name as the service would; official models have their whole name."""
    if engine.served_model_name or not checkpoint.is_local:
        return engine.served_model_name or checkpoint.model
    return Path(engine.model).name if engine.model else DEMO_NAME


def _resolved(engine: EngineSettings, checkpoint: ModelCheckpoint, device: DeviceSpec, count: int) -> Resolved:
    """Return a layout of all devices for a model that does not fit, so that the plan shows the memory it lacks."""
    from penstock.engine.vllm.features import Devices, resolve
    from penstock.errors import ConfigError

    there = Devices(device.kind, count, device.memory_bytes, device.reads_fp8_cache)
    try:
        return resolve(engine, checkpoint, there)
    except ConfigError as error:
        if engine.tensor_parallel_size is not None or "does not fit" not in error.message:
            raise
        return resolve(engine.model_copy(update={"tensor_parallel_size": count}), checkpoint, there)


def _calibration(file: Path | None, setup: Setup, assumed: Assumptions) -> Callable[[Memory], Fit] | None:
    from penstock_bench.capacity.calibrate import fit

    return None if file is None else lambda memory: fit(setup, memory, assumed, file)


# The parts of a plan, and the two options for its output.
def _report(
    setup: Setup,
    decisions: tuple[Decision, ...],
    wanted: Wanted,
    assumed: Assumptions,
    fitted: Callable[[Memory], Fit] | None,
    json: bool,
    png: Path | None,
) -> None:
    from penstock_bench.capacity import report
    from penstock_bench.capacity.notes import notes
    from penstock_bench.capacity.plan import make_plan
    from rich.console import Console

    made = make_plan(setup, decisions, wanted, assumed, fitted)
    minded = notes(made)
    if json:
        typer.echo(json_module.dumps(report.as_json(made, minded)))
    else:
        console = Console()
        # In a narrower terminal lines wrap, but no figure is cut.
        console.width = max(console.width, MIN_WIDTH)
        report.show(console, made, minded)
    if png is not None:
        from penstock.files import replacing
        from penstock_bench.capacity.plot import draw

        with replacing(png) as partial:
            draw(made, partial)
    if not made.memory.fits:
        raise typer.Exit(EXIT_REFUSED)


def _whole(text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(one) for one in text.split(",") if one.strip())
    except ValueError:
        raise typer.BadParameter(
            f"must be whole numbers separated by commas, got {text!r}", param_hint="--concurrency"
        ) from None
    if any(not 1 <= one <= 1_000_000 for one in numbers):
        raise typer.BadParameter("numbers from 1 to 1,000,000", param_hint="--concurrency")
    return numbers


def _refuse_unwritable(png: Path | None) -> None:
    """Check the plot's format and matplotlib before the work, not after it."""
    if png is None:
        return
    if find_spec("matplotlib") is None:
        raise typer.BadParameter("needs matplotlib: pip install 'penstock-bench[plots]'", param_hint="--png")
    if png.suffix not in PICTURES:
        raise typer.BadParameter(f"must end in one of {', '.join(PICTURES)}, got {png}", param_hint="--png")
    o.refuse_unwritable(("--png", png))
