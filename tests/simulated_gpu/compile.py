"""Model Runner V2's Triton kernels compiled for GPUs that are not here, by Triton's own ptxas.

A program of its own (`python -m tests.simulated_gpu.compile 90 100`, compute capabilities). The kernels are launched by
vLLM's own functions with the arguments of the checks in `kernels`; what would launch compiles for each target instead.
Prints a JSON object: per kernel, the bytes of machine code by target.
"""

from __future__ import annotations

import json
import random
import sys
from typing import Any

from tests.simulated_gpu.with_triton import pretend_triton_works

found: dict[str, dict[int, int]] = {}


def type_of(value: Any) -> str:
    """Triton's name of an argument's type."""
    import torch
    from triton.runtime.jit import mangle_type

    if isinstance(value, torch.Tensor):
        return "*" + {torch.int32: "i32", torch.int64: "i64", torch.float32: "fp32"}[value.dtype]
    return str(mangle_type(value))


def compile_instead(targets: list[int]) -> None:
    """Let a launch compile the kernel for the targets, and compute nothing."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.runtime.jit import JITFunction

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        given = dict(zip(self.arg_names, args, strict=False)) | options
        fixed = {p.name for p in self.params if p.is_constexpr or given.get(p.name, 0) is None}
        names = [p.name for p in self.params]
        types = {name: "constexpr" if name in fixed else type_of(given[name]) for name in names}
        source = ASTSource(self, types, {name: given[name] for name in names if name in fixed})
        for target in targets:
            built = triton.compile(source, target=GPUTarget("cuda", target, 32))
            found.setdefault(self.fn.__name__, {})[target] = len(built.asm["cubin"])

    JITFunction.run = run


def main(targets: list[int]) -> None:
    pretend_triton_works()
    from tests.simulated_gpu import kernels

    compile_instead(targets)
    for check in (kernels.check_budget, kernels.check_bad_words, kernels.check_rejection):
        check(random.Random(1))
    print(json.dumps(found))


if __name__ == "__main__":
    main([int(target) for target in sys.argv[1:]])
