"""Lets vLLM's CPU build import its Triton kernels, which it replaces by nothing where Triton has no driver."""

from __future__ import annotations

import sys
import types


def pretend_triton_works() -> None:
    """Before vLLM is imported. The stand-in has the names that `vllm.triton_utils` asks this module for."""
    name = "vllm.triton_utils.importing"
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__dict__.update(HAS_TRITON=True, TritonPlaceholder=object, TritonLanguagePlaceholder=object)
