"""vLLM's Triton kernels compiled for GPUs that are not here, by Triton's own ptxas.

A program of its own (`python -m tests.simulated_gpu.compile sampler 90 100`, kinds and compute capabilities). The
functions of vLLM launch the kernels: Model Runner V2's with the arguments of the checks in `kernels`, those of layers
with the shapes in `model_kernels`. What would launch compiles for each target instead.
Prints a JSON object: per kernel, the bytes of machine code by target.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from typing import Any

from tests.simulated_gpu.with_triton import pretend_triton_works

found: dict[str, dict[int, int]] = {}


def type_of(value: Any) -> str:
    """Triton's name of an argument's type."""
    import torch
    from triton.runtime.jit import mangle_type

    if isinstance(value, torch.Tensor):
        return (
            "*"
            + {
                torch.bool: "i1",
                torch.int32: "i32",
                torch.int64: "i64",
                torch.float32: "fp32",
                torch.bfloat16: "bf16",
                torch.float8_e4m3fn: "fp8e4nv",
            }[value.dtype]
        )
    return str(mangle_type(value))


def compile_instead(targets: list[int]) -> None:
    """Let a launch compile the kernel for the targets, and compute nothing."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.runtime.autotuner import Autotuner
    from triton.runtime.jit import JITFunction

    def run_first(self: Any, *args: Any, **options: Any) -> None:
        """In place of the search for the fastest."""
        self.fn.run(*args, **options, **self.configs[0].all_kwargs())

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        given = dict(zip(self.arg_names, args, strict=False)) | options
        fixed = {p.name for p in self.params if p.is_constexpr or given.get(p.name, 0) is None}
        names = [p.name for p in self.params]
        types = {name: "constexpr" if name in fixed else type_of(given[name]) for name in names}
        source = ASTSource(self, types, {name: given[name] for name in names if name in fixed})
        how = {name: options[name] for name in ("num_warps", "num_stages") if name in options}
        for target in targets:
            built = triton.compile(source, target=GPUTarget("cuda", target, 32), options=how)
            fp8 = " in FP8" if given.get("use_fp8_w8a8") else ""
            found.setdefault(self.fn.__name__ + fp8, {})[target] = len(built.asm["cubin"])

    JITFunction.run = run
    Autotuner.run = run_first


def main(kinds: list[str], targets: list[int]) -> None:
    pretend_triton_works()
    from tests.simulated_gpu import kernels, model_kernels

    checks = (kernels.check_budget, kernels.check_bad_words, kernels.check_rejection)
    launches: dict[str, Callable[[], object]] = {
        "sampler": lambda: [check(random.Random(1)) for check in checks],
        "delta-net": model_kernels.launch_delta_net,
        "experts": lambda: model_kernels.launch_experts(fp8=False),
        "experts-fp8": lambda: model_kernels.launch_experts(fp8=True),
        "fp8-linear": model_kernels.launch_fp8_linear,
    }
    compile_instead(targets)
    for kind in kinds:
        launches[kind]()
    print(json.dumps(found))


if __name__ == "__main__":
    asked = sys.argv[1:]
    main([one for one in asked if not one.isdigit()], [int(one) for one in asked if one.isdigit()])
