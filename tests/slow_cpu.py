"""CPUs without AVX-512, for which vLLM has no fast kernels: there an engine is a tenth as fast, and the longest tests
ask less of it, so that all of them end in the time that CI has."""

from __future__ import annotations

from penstock.engine_vllm.devices import find_devices

IS_SLOW = not find_devices("cpu").reads_fp8_cache
