"""Test what the prefix cache finds, in tokens: at a prompt's second call, and in a chat that grows."""

from __future__ import annotations

import subprocess
import sys

import pytest
from penstock.engine.vllm.engine import VllmEngine

from bench.prefix_cache import block_tokens_of, growing_chat, second_calls

RESET = """
from penstock.config.schema import DEMO_MODEL_DIR, EngineSettings
from penstock.engine.vllm import start
import os
_, planned, _ = start.plan(EngineSettings(device="cpu"))
os.environ.update(planned.environment)
start._import()
from vllm.engine.arg_utils import AsyncEngineArgs
for given in (True, False):
    arguments = start.in_vllms_types(planned.arguments)
    arguments.pop("block_size") if not given else None
    config = AsyncEngineArgs(**arguments).create_engine_config()
    config.cache_config.block_size = 384  # as the worker works it out
    config.__post_init__()  # as the engine core does after that
    print(config.cache_config.block_size)
"""


async def test_the_second_call_finds_every_whole_block_but_mtps(engine: VllmEngine) -> None:
    size = await block_tokens_of(engine)
    lengths = [blocks * size + more for blocks in (1, 2, 4, 10) for more in (0, 1, size // 3, size - 1)]
    calls = await second_calls(engine, size, True, lengths, seed=3)
    assert [call.cached_tokens for call in calls] == [call.wanted_tokens for call in calls]
    assert all(call.cached_tokens >= (call.prompt_tokens // size - 2) * size for call in calls)
    assert calls[-1].cached_tokens == 9 * size


async def test_a_growing_chat_finds_what_its_turn_before_had(engine: VllmEngine) -> None:
    size = await block_tokens_of(engine)
    calls = await growing_chat(engine, size, True, turns=6, seed=4)
    assert len(calls) == 5
    assert all(call.cached_tokens >= call.wanted_tokens for call in calls)
    assert sum(call.wanted_tokens for call in calls) > 0


async def test_the_profile_names_block_and_rule(engine: VllmEngine) -> None:
    (feature,) = [feature for feature in engine.card.profile if feature.name == "prefix_caching"]
    assert feature.value == f"{await block_tokens_of(engine):,}-token blocks"
    assert feature.reason == "default; whole blocks, less one for MTP are found"


@pytest.mark.cpu_build
@pytest.mark.filterwarnings("ignore")
def test_vllms_cpu_build_still_forgets_a_block_size_that_was_not_asked_for() -> None:
    """Where it does not, `block_size` can go from the arguments (engine.vllm.args)."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", RESET], capture_output=True, text=True, check=False)
    assert done.stdout.split()[-2:] == ["384", "128"], done.stderr[-2000:]
