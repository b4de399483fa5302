"""Each patch in `engine.vllm.compat` works, and fails here when vLLM no longer needs it: delete it then."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys

import pytest

from tests.tooling import skip_on_this_cpu

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.cpu_build]

INSPECT = """
import vllm.model_executor.models.qwen3_5
from vllm.model_executor.models.registry import ModelRegistry
print(ModelRegistry.models["Qwen3_5MoeForCausalLM"].inspect_model_cls().architecture)
"""


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", "-c", code]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=200)


@pytest.fixture(scope="module")
def patched() -> None:
    """This process as the engine's start leaves it."""
    import vllm.platforms
    from penstock.engine.vllm import compat

    assert vllm.platforms.current_platform.is_cpu()
    vllm.platforms.current_platform.import_kernels()  # those of this CPU: two sets in one process abort it
    compat.general_plugin()


def test_a_fresh_process_and_its_registry_subprocess_import_the_model(tmp_path):
    """The engine core and its workers do it in every other test of this directory."""
    done = python(INSPECT, VLLM_CACHE_ROOT=str(tmp_path))
    assert done.stdout.split()[-1:] == ["Qwen3_5MoeForCausalLM"], done.stderr[-2000:]
    assert any(tmp_path.rglob("*.json")), "the registry answered from a cache, so its subprocess was not tried"


def test_torchvision_still_needs_its_operators_declared():
    assert "torchvision::nms" in python("import torchvision").stderr
    declared = "from penstock.engine.vllm import compat; compat.platform_plugin(); import torchvision"
    assert python(declared).returncode == 0


def test_a_column_of_one_token_still_needs_its_stride(patched):
    import torch
    from vllm.model_executor.layers.mamba.ops.cpu import gdn_attention

    if not hasattr(torch.ops._C, "causal_conv1d_fwd_cpu"):
        skip_on_this_cpu("no AVX-512, and vLLM has no such kernel for others")

    def convolve(function):
        dim, width = 768, 4
        arguments = {
            "x": torch.zeros(1, 2 * dim, dtype=torch.bfloat16)[:, :dim].contiguous().transpose(0, 1),
            "weight": torch.zeros(dim, width, dtype=torch.bfloat16),
            "bias": None,
            "conv_states": torch.zeros(2, width - 1, dim, dtype=torch.bfloat16).transpose(1, 2),
            "query_start_loc": torch.tensor([0, 1], dtype=torch.int32),
            "cache_indices": torch.tensor([1], dtype=torch.int32),
            "has_initial_state": torch.tensor([False]),
            "silu_activation": True,
            "is_weight_packed": False,
        }
        return function(**arguments)

    with pytest.raises(RuntimeError, match="transposed"):
        convolve(gdn_attention._causal_conv1d_fwd_cpu.__wrapped__)
    assert convolve(gdn_attention._causal_conv1d_fwd_cpu).shape == (768, 1)


def test_a_lone_state_index_still_needs_its_stride(patched):
    import torch
    from vllm import _custom_ops

    def update(function):
        heads, dim, bf16 = 2, 128, torch.bfloat16
        block_table = torch.ones(1, 8, dtype=torch.int32)
        return function(
            A_log=torch.zeros(heads),
            dt_bias=torch.zeros(heads, dtype=bf16),
            q=torch.zeros(1, 1, heads, dim, dtype=bf16),
            k=torch.zeros(1, 1, heads, dim, dtype=bf16),
            v=torch.zeros(1, 1, heads, dim, dtype=bf16),
            a=torch.zeros(1, heads, dtype=bf16),
            b=torch.zeros(1, heads, dtype=bf16),
            initial_state_source=torch.zeros(2, heads, dim, dim),
            initial_state_indices=block_table[:, 0].contiguous(),
            cu_seqlens=torch.tensor([0, 1], dtype=torch.int32),
            use_qk_l2norm_in_kernel=True,
        )

    with pytest.raises(RuntimeError, match="contiguous"):
        update(_custom_ops.fused_sigmoid_gating_delta_rule_update_cpu.__wrapped__)
    update(_custom_ops.fused_sigmoid_gating_delta_rule_update_cpu)


def test_convolution_under_speculation_still_asks_for_amx_where_bfloat16_is_enough(patched):
    import torch
    from vllm.model_executor.layers.mamba.ops.cpu import gdn_attention

    if torch.cpu._is_amx_tile_supported() or not torch.cpu._is_avx512_bf16_supported():
        skip_on_this_cpu("not one with AVX-512 BF16 and without AMX")
    assert "_is_amx_tile_supported" in inspect.getsource(gdn_attention._spec_aware_nonspec)
    assert gdn_attention.torch.cpu._is_amx_tile_supported()
    assert gdn_attention.torch.nn is torch.nn


def test_top_k_still_fails_on_a_step_without_drafts(patched):
    import torch
    from vllm.v1.sample.ops import topk_topp_sampler

    def no_rows():
        return torch.empty(0, 8), torch.empty(0, dtype=torch.int32)

    with pytest.raises(RuntimeError, match="reduction dim"):
        topk_topp_sampler.apply_top_k_only.__wrapped__(*no_rows())
    logits, k = no_rows()
    assert topk_topp_sampler.apply_top_k_top_p(logits, k, None).shape == (0, 8)
    filtered = topk_topp_sampler.apply_top_k_top_p(torch.arange(8.0)[None], torch.tensor([3], dtype=torch.int32), None)
    assert filtered.isfinite().sum() == 3


def test_sampling_parameters_still_get_lost_on_their_way_to_the_drafts(patched):
    import torch
    from vllm.utils import cpu_triton_utils

    def expand(function):
        output = torch.full((5,), -1.0)
        function(output, torch.tensor([0.5, 0.0]), torch.tensor([2, 5], dtype=torch.int32), 0, 1, MAX_NUM_TOKENS=32)
        return output.tolist()

    right = [0.5, 0.5, 1.0, 1.0, 1.0]
    assert expand(cpu_triton_utils._expand_kernel_impl) == right
    assert expand(cpu_triton_utils._expand_kernel_impl.__wrapped__) != right


class States:
    """Two requests' states in a block table of their own, laid out as vLLM's kernels are told of them."""

    def __init__(self, dim_first: bool) -> None:
        import torch

        dim, window, blocks = 6, 5, 16
        generator = torch.Generator().manual_seed(1)
        shape = (blocks, dim, window) if dim_first else (blocks, window, dim)
        self.dim_first = dim_first
        self.conv = torch.randn(shape, generator=generator).to(torch.bfloat16)
        # Pages are padded in vLLM: a block's stride is larger than its state.
        self.recurrent = torch.randn(blocks, 40, generator=generator)[:, :36].unflatten(1, (2, 3, 6))
        self.table = torch.randperm(blocks, generator=generator).view(2, 8).to(torch.int32)

    def window(self, row: int, column: int):
        """(steps, dimensions) of the convolution."""
        state = self.conv[self.table[row, column]]
        return state.t() if self.dim_first else state

    def layout(self) -> list:
        import torch

        def pair(conv: int, recurrent: int):
            return torch.tensor([conv, recurrent])

        rows = (self.conv.shape[1], self.conv.stride(1) * 2) if self.dim_first else (0, 0)
        return [
            torch.tensor([self.table.data_ptr()]),
            self.table.stride(0),
            pair(self.conv.data_ptr(), self.recurrent.data_ptr()),
            pair(self.conv.stride(0) * 2, self.recurrent.stride(0) * 4),
            pair(2, 4),
            pair(1 if self.dim_first else self.conv.stride(1), 36),
            pair(5, 0),
            pair(0, 0),
            pair(rows[0], 0),
            pair(rows[1], 0),
        ]


@pytest.mark.parametrize("dim_first", [False, True])
def test_states_follow_a_request_into_a_new_block(dim_first):
    import torch
    from penstock.engine.vllm.compat.recurrent_states import before_step

    states = States(dim_first)
    window = states.window(1, 2).clone()
    recurrent = states.recurrent[states.table[1, 3]].clone()
    untouched = states.conv[states.table[0].long()].clone()
    columns, sources, biases = torch.tensor([4, 5]), torch.tensor([-1, 2]), torch.tensor([0, 1])
    before_step(
        columns, sources, biases, *states.layout(), None, 2, CONV_STATE_DIM_FIRST=dim_first, HAS_IDX_MAPPING=False
    )
    assert torch.equal(states.window(1, 5)[:4], window[1:])
    assert torch.equal(states.recurrent[states.table[1, 5]], recurrent)
    assert torch.equal(states.conv[states.table[0].long()], untouched), "a fresh request has nothing to take along"


@pytest.mark.parametrize("dim_first", [False, True])
def test_states_stay_behind_at_a_boundary_that_drafts_passed(dim_first):
    import torch
    from penstock.engine.vllm.compat.recurrent_states import after_step

    states = States(dim_first)
    windows = [states.window(0, 1).clone(), states.window(1, 2).clone()]
    recurrent = [states.recurrent[states.table[0, 2]].clone(), states.recurrent[states.table[1, 3]].clone()]
    # Blocks of 4. Request 0 ran tokens 6..8 (2 drafts, both taken): the boundary at 8 lies in the block it writes.
    # Request 1 ran 7..9 likewise, writing block 2: the boundary at 8 is the block before.
    accepted, out = torch.tensor([3, 2]), torch.tensor([3, 2])
    computed, scheduled, drafted = torch.tensor([6, 6]), torch.tensor([3, 3]), torch.tensor([2, 2])
    after_step(
        accepted,
        torch.tensor([1, 2]),
        scheduled,
        computed,
        drafted,
        *states.layout(),
        out,
        None,
        2,
        block_size=4,
        CONV_STATE_DIM_FIRST=dim_first,
    )
    assert out.tolist() == [1, 2]
    for row, column in ((0, 1), (1, 1)):
        assert torch.equal(states.window(row, column)[:4], windows[row][1:])
        assert torch.equal(states.recurrent[states.table[row, column]], recurrent[row])


def test_recurrent_states_still_have_no_kernel_of_vllms_own(patched):
    import inspect

    from vllm.platforms.cpu import CpuPlatform
    from vllm.triton_utils.dispatcher import KernelOverride, _registry
    from vllm.v1.worker import mamba_utils

    for name in ("precopy_mamba_align_fused_kernel", "postprocess_mamba_fused_kernel"):
        assert name not in inspect.getsource(CpuPlatform.register_triton_kernel_overrides)
        assert isinstance(getattr(mamba_utils, name), KernelOverride)
        original, _ = _registry[f"{mamba_utils.__name__}.{name}"]
        with pytest.raises(TypeError):
            original[(1, 1)]()


def test_one_token_prompts_still_get_padded_and_their_state_is_not_cleared(patched):
    """The words are tested in test_engine_vllm_equality.py; here, that vLLM still does what makes it needed."""
    import inspect

    import torch
    from penstock.engine.vllm.compat import draft_history
    from vllm.model_executor.layers.mamba.ops.cpu import gdn_attention
    from vllm.v1.core.sched.scheduler import Scheduler

    assert "(scheduled_running_reqs or num_computed_tokens > 0)" in inspect.getsource(Scheduler.schedule)
    seen = []

    class Metadata:
        spec_state_indices_tensor = torch.tensor([[1, 2], [3, 4]])
        fresh_spec_rows = torch.tensor([1])

    def forward(layer, metadata, mixed, b, a, convolution, recurrent, width, length):
        seen.append((convolution.sum((1, 2)).tolist(), recurrent.sum((1, 2)).tolist()))

    wrapper = gdn_attention._spec_forward
    assert wrapper.__wrapped__ is draft_history._spec_forward
    cell = next(cell for cell in wrapper.__closure__ if cell.cell_contents is wrapper.__wrapped__)
    original, cell.cell_contents = cell.cell_contents, forward
    try:
        wrapper(None, Metadata(), None, None, None, torch.ones(5, 3, 2).transpose(1, 2), torch.ones(5, 2, 2), 4, 5)
    finally:
        cell.cell_contents = original
    assert seen == [([6.0, 6.0, 6.0, 0.0, 6.0], [4.0, 4.0, 4.0, 0.0, 4.0])]


def test_a_pause_still_makes_the_runner_forget_accepted_drafts(patched):
    import inspect
    from types import SimpleNamespace

    import numpy
    from vllm.v1.worker.gpu_input_batch import InputBatch
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    assert "self.num_accepted_tokens_cpu[req_index] = 1" in inspect.getsource(InputBatch.add_request)
    update = GPUModelRunner._update_states
    cell = next(cell for cell in update.__closure__ if cell.cell_contents is update.__wrapped__)

    class Batch:
        num_accepted_tokens_cpu = numpy.array([3, 2, 1])
        req_ids: tuple[str, ...] = ("a", "b")

        @property
        def req_id_to_index(self):
            return {name: index for index, name in enumerate(self.req_ids)}

    def rebuild(runner, output):
        runner.input_batch.num_accepted_tokens_cpu[:] = 1
        runner.input_batch.req_ids = tuple(output.num_scheduled_tokens)

    def step(*scheduled: str, preempted: str = "") -> list[int]:
        output = SimpleNamespace(
            num_scheduled_tokens=dict.fromkeys(scheduled, 3),
            finished_req_ids=set(),
            preempted_req_ids={preempted} - {""},
            scheduled_cached_reqs=SimpleNamespace(resumed_req_ids=set()),
        )
        update(runner, output)
        return runner.input_batch.num_accepted_tokens_cpu.tolist()

    runner = SimpleNamespace(input_batch=Batch())
    original, cell.cell_contents = cell.cell_contents, rebuild
    try:
        assert step("b") == [1, 1, 1]  # a, with 3 accepted, is left out
        assert step("b", "a") == [1, 3, 1]
        assert step("b") == [1, 1, 1]
        assert step("b", preempted="a") == [1, 1, 1]
        assert step("b", "a") == [1, 1, 1]
    finally:
        cell.cell_contents = original


def test_who_waits_still_spins(patched, monkeypatch):
    import time

    from vllm.distributed.device_communicators import shm_broadcast

    slept = []
    monkeypatch.setattr(time, "sleep", slept.append)

    def naps(pause):
        """Return how long each of three looks at what is shared sleeps, in seconds."""
        slept.clear()
        monkeypatch.setattr(shm_broadcast, "sched_yield", pause)
        condition = object.__new__(shm_broadcast.SpinCondition)  # without its sockets, which it does not wait on yet
        condition.is_reader, condition.last_read, condition.busy_loop_s = True, time.monotonic(), 1000
        for _ in range(3):
            condition.wait(timeout_ms=0)
        return list(slept)

    ours = shm_broadcast.sched_yield
    assert not any(naps(ours.__wrapped__)), "vLLM's own way burns a core"
    assert naps(ours) == [50e-6] * 3


def test_an_fp8_cache_still_cuts_off_what_does_not_fit(patched):
    from types import SimpleNamespace

    import torch
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl

    if not torch.cpu._is_avx512_supported():
        skip_on_this_cpu("no AVX-512, and vLLM has no FP8 cache for others")
    torch.manual_seed(0)
    tokens, heads, width, block = 32, 2, 128, 32
    keys, values = torch.randn(2, tokens, heads, width, dtype=torch.bfloat16).unbind()
    values[0, 0, :2] = torch.tensor([-3e4, 3e4])

    def stored(update) -> list[torch.Tensor]:
        layer = SimpleNamespace(isa="vec", _k_scale_float=1.0, _v_scale_float=1.0)
        backend = SimpleNamespace(attn_type="decoder", is_fp8_kv_cache=True, kv_cache_dtype="fp8_e4m3")
        cache = torch.zeros(1, heads, block, 2 * width, dtype=torch.uint8)
        update(backend, layer, keys, values, cache, torch.arange(tokens))
        held = cache.view(1, heads, 2 * block, width).view(torch.float8_e4m3fn).float()
        return [part[0].sum((0, 1)) for part in (held[:, :, block:], held[:, :, block:].abs())]

    nearest = values.clamp(-448, 448).to(torch.float8_e4m3fn).float()
    _, size = stored(CPUAttentionBackendImpl.do_kv_cache_update.__wrapped__)
    assert size.sum() < 0.97 * nearest.abs().sum(), "vLLM's own way makes values smaller"
    total, size = stored(CPUAttentionBackendImpl.do_kv_cache_update)
    torch.testing.assert_close(total, nearest.sum((0, 1)))
    torch.testing.assert_close(size, nearest.abs().sum((0, 1)))


def test_a_grammar_still_knows_only_what_it_sampled(patched):
    """`constraint_prefix`: the grammar starts after the tokens that the prompt holds, as vLLM cannot be told."""
    from types import SimpleNamespace

    from penstock.engine.vllm.compat.constraint_prefix import PREFIX_TOKENS, PrefixRejectedError
    from vllm.v1.structured_output import StructuredOutputManager

    class Grammar:
        def __init__(self) -> None:
            self.accepted: list[int] = []

        def accept_tokens(self, request_id: str, tokens: list[int]) -> bool:
            self.accepted += tokens
            return tokens != [9]

    def asked(prompt: list[int], count: int) -> SimpleNamespace:
        return SimpleNamespace(
            request_id="r",
            prompt_token_ids=prompt,
            sampling_params=SimpleNamespace(extra_args={PREFIX_TOKENS: count}, all_stop_token_ids=set()),
            structured_output_request=SimpleNamespace(structured_output_key=("json", "{}")),
        )

    backend = SimpleNamespace(compile_grammar=lambda *_, **__: Grammar())
    manager = SimpleNamespace(backend=backend)
    create = StructuredOutputManager._create_grammar
    assert create(manager, asked([5, 6, 7], 2)).accepted == [6, 7]
    assert create.__wrapped__(manager, asked([5, 6, 7], 2)).accepted == [], "vLLM does it itself: delete the patch"
    with pytest.raises(PrefixRejectedError):
        create(manager, asked([5, 9], 1))


def test_the_compiler_still_takes_control_tokens_for_text(patched):
    from penstock.config.schema import DEMO_MODEL_DIR
    from penstock.engine.vllm.compat.plain_text import text_tokens
    from transformers import AutoTokenizer
    from xgrammar import TokenizerInfo

    tokenizer = AutoTokenizer.from_pretrained(str(DEMO_MODEL_DIR))
    size = len(tokenizer)
    marker = tokenizer.convert_tokens_to_ids("</think>")
    assert TokenizerInfo.from_huggingface(tokenizer, vocab_size=size).decoded_vocab[marker] == b"</think>"
    info = text_tokens(tokenizer, size)
    assert marker in info.special_token_ids
    assert info.stop_token_ids == [tokenizer.eos_token_id]


def test_a_tool_call_in_a_thought_still_ends_it_for_a_constraint(patched):
    from types import SimpleNamespace

    from penstock.config.schema import DEMO_MODEL_DIR
    from penstock.engine.vllm.compat.thought_end import NAME
    from transformers import AutoTokenizer
    from vllm.reasoning import ReasoningParserManager
    from vllm.v1.structured_output import StructuredOutputManager

    tokenizer = AutoTokenizer.from_pretrained(str(DEMO_MODEL_DIR))
    tokenizer.add_tokens(["<tool_call>", "</tool_call>"])
    call, close, text = tokenizer.convert_tokens_to_ids(["<tool_call>", "</think>", "1"])

    def begins_at(parser: str, tokens: list[int]) -> int:
        """Where vLLM's gate lets a constraint begin in the tokens of a step; behind them where it does not."""
        reasoner = ReasoningParserManager.get_reasoning_parser(parser)(tokenizer)
        asked = SimpleNamespace(reasoning_ended=False, reasoner=reasoner, reasoning_parser_kwargs=None)
        manager = SimpleNamespace(
            enable_in_reasoning=False, reasoner_cls=type(reasoner), _get_reasoner=lambda request: reasoner
        )
        request = SimpleNamespace(structured_output_request=asked, all_token_ids=tokens, prompt_token_ids=[])
        return StructuredOutputManager._get_constraint_bounds(manager, request, tokens).constraint_start

    assert begins_at("qwen3", [text, call, text]) == 2, "vLLM's parser does it: use it"
    assert begins_at(NAME, [text, call, text]) == 4
    for parser in ("qwen3", NAME):
        assert begins_at(parser, [text, close, text]) == 2
    ours = ReasoningParserManager.get_reasoning_parser(NAME)(tokenizer)
    assert (ours.reasoning_start_str, ours.reasoning_end_str) == ("<think>", "</think>")


def test_a_seed_still_cannot_be_rewound_on_a_cpu(patched):
    """`seeds`: a row whose token is discarded draws nothing; vLLM's own way to take it back ends the worker."""
    from types import SimpleNamespace

    import numpy
    import torch
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    with pytest.raises(RuntimeError, match="offset"):
        torch.Generator("cpu").get_offset()
    assert "get_offset" in inspect.getsource(GPUModelRunner._bookkeeping_sync.__wrapped__), "vLLM has another way"

    generators = {row: torch.Generator("cpu").manual_seed(row) for row in (0, 1)}
    before = {row: generator.get_state() for row, generator in generators.items()}
    batch = SimpleNamespace(
        generators=generators, sampling_metadata=None, update_async_output_token_ids=lambda: None, num_reqs=2
    )
    runner = SimpleNamespace(
        input_batch=batch,
        discard_request_mask=SimpleNamespace(np=numpy.array([True, False, True])),
        sampler=lambda **_: [torch.rand(9, generator=generator) for generator in generators.values()],
    )
    GPUModelRunner._sample(runner, logits=None, spec_decode_metadata=None)
    assert torch.equal(generators[0].get_state(), before[0])
    assert not torch.equal(generators[1].get_state(), before[1])


def test_a_row_still_keeps_the_thought_budget_of_the_request_that_ended_there(patched):
    """`thought_budget`: the answer that moves into the row has no thought, so no budget."""
    from types import SimpleNamespace

    from vllm.v1.sample.logits_processor.interface import BatchUpdate, MoveDirectionality
    from vllm.v1.sample.thinking_budget_state import ThinkingBudgetStateHolder as Holder

    opening, closing = 1, 2

    def added(row: int, budget: int | None) -> tuple:
        return row, SimpleNamespace(thinking_token_budget=budget, extra_args=None), [opening], []

    def budgets(sync, *, other: int | None) -> dict[int, int]:
        """Return the budgets by row after a thought in row 0 ended and the request in row 1 moved there."""
        tokens = SimpleNamespace(reasoning_start_token_ids=[opening], reasoning_end_token_ids=[closing])
        holder = Holder(tokens, max_num_seqs=4, num_spec_tokens=2, device=None, is_pin_memory=False)
        sync(holder, BatchUpdate(batch_size=2, removed=[], added=[added(0, 8), added(1, other)], moved=[]))
        sync(holder, None)
        move = (1, 0, MoveDirectionality.UNIDIRECTIONAL)
        sync(holder, BatchUpdate(batch_size=1, removed=[], added=[], moved=[move]))
        swap = (0, 1, MoveDirectionality.SWAP)
        sync(holder, BatchUpdate(batch_size=2, removed=[], added=[added(1, None)], moved=[swap]))
        return {row: state["thinking_token_budget"] for row, state in holder._state.items()}

    assert budgets(Holder.sync_batch, other=None) == {}
    assert budgets(Holder.sync_batch, other=5) == {1: 5}
    assert budgets(inspect.unwrap(Holder.sync_batch), other=None) == {1: 8}, "vLLM forgets it itself: delete the patch"


def test_a_rewritten_schema_still_needs_vllms_list_of_features_left_out(patched):
    from penstock.engine.vllm.constraints.json_schema import rewritten
    from vllm.v1.structured_output import backend_xgrammar

    schema = {"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": {"type": "integer"}}
    written = json.loads(rewritten(json.dumps(schema)))
    ours = backend_xgrammar.has_xgrammar_unsupported_json_features
    assert ours.__wrapped__(written)
    assert not ours(written)
