"""Patch vLLM and torchvision where they fail for this service, each patch with its reason. For vLLM 0.32.0.

vLLM runs in several processes: this one, the engine core, its workers, and a subprocess of the model registry. It calls
entry points in each of them, so that no process needs its own preparation. There each process also starts to watch for
the end of the service (`lifetime`):

- `vllm.platform_plugins`: called while vLLM detects its platform, before any model code is imported.
- `vllm.general_plugins`: called before a model is loaded; vLLM's own modules may be imported and patched there.

`strides`: arguments that the CPU kernels refuse. `speculation`: errors with MTP. `draft_history`: steps with fewer
drafts than usual. `recurrent_states`: MTP with prefix caching. `slow_grammars`: constraints that delay all requests.
`constraint_prefix`: continuations of a constrained answer. `json_features`: schemas that the service has rewritten.
`plain_text`: control tokens under a constraint.
`thought_end`: where a constraint begins. `thought_budget`: budgets that reach other requests. `seeds`: seeded prompts
that take several steps. `waiting`: processes that use a core while they wait. `fp8_cache`: keys and values that the CPU
kernel cuts off instead of rounding. `engine.vllm.marker_exit`: thoughts that end early. `engine.vllm.fp8`: FP8.

tests/engine/test_engine_vllm_compat.py fails when a patch is no longer needed.
"""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

from penstock.engine.vllm.lifetime import end_with_service

_kept: list[Any] = []  # a torch.library.Library takes its definitions back when it is collected


def platform_plugin() -> None:
    """Prepare the process before model code is imported. Entry point in `vllm.platform_plugins`; adds no platform."""
    end_with_service()
    declare_torchvision_operators()


def general_plugin() -> None:
    """Patch vLLM before a model is loaded: entry point in `vllm.general_plugins`."""
    end_with_service()
    from vllm.platforms import current_platform

    from penstock.engine.vllm import marker_exit
    from penstock.engine.vllm.compat import (
        constraint_prefix,
        json_features,
        plain_text,
        slow_grammars,
        thought_budget,
        thought_end,
    )

    slow_grammars.end_slow_requests()
    constraint_prefix.advance_over_prefix()
    json_features.accept_rewritten_schemas()
    plain_text.constrain_to_text()
    thought_end.register()
    thought_budget.forget_overwritten_rows()
    marker_exit.extend_thinking_budget()
    if not current_platform.is_cpu():
        return
    from penstock.engine.vllm.compat import (
        draft_history,
        fp8_cache,
        recurrent_states,
        seeds,
        speculation,
        strides,
        waiting,
    )
    from penstock.engine.vllm.fp8 import config

    strides.restride_single_token_prefill()
    strides.restride_single_state_index()
    speculation.expand_sampling_parameters()
    speculation.filter_no_rows()
    # In this order: the second wraps the first, and must see every row.
    draft_history.keep_short_drafts()
    speculation.start_padded_prompts_afresh()
    speculation.remember_accepted_drafts()
    speculation.convolve_natively()
    recurrent_states.register()
    seeds.rewind_discarded_draws()
    waiting.sleep_instead_of_spinning()
    fp8_cache.round_to_nearest()
    config.register()


def declare_torchvision_operators() -> None:
    """Let torchvision's CUDA build, the only one on PyPI, be imported beside torch's CPU build.

    Its C extension does not load there, so `torchvision::nms` does not exist, and torchvision's own registration of a
    fake for it raises at import. transformers and vLLM's qwen3_vl import torchvision. Nothing here calls the operators.
    Upstream: torchvision/_meta_registrations.py, torchvision 0.28.0.
    """
    import torch

    if torch.version.cuda is not None or "torchvision" in sys.modules or _kept:
        return
    if importlib.util.find_spec("torchvision") is None:
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _kept.append(library)
