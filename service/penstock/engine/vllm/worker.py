"""Answer the service's queries in the engine's workers, over `collective_rpc`. vLLM adds this class to its worker."""

from __future__ import annotations

from typing import Any


class WorkerReport:
    """Methods that vLLM adds to its worker class by name (`worker_extension_cls`); `model_runner` is the worker's."""

    model_runner: Any
    parallel_config: Any
    expert_tally: Any = None

    def draw_from(self, seed: int) -> None:
        """Seed the generator of requests without a seed. Data-parallel ranks get different seeds, others the same."""
        from vllm.utils.torch_utils import set_random_seed

        set_random_seed(seed, self.parallel_config.data_parallel_index)

    def drawn_from(self) -> int:
        """Return the seed of the generator."""
        import torch

        return int(torch.initial_seed())

    def end_thoughts_behind(self, line_ends: list[int]) -> bool:
        """Take the ids of the tokens that end a line. Return whether thoughts end behind them in the engine."""
        from penstock.engine.vllm import marker_exit

        return marker_exit.end_thoughts_behind(self.model_runner, line_ends)

    def count_experts(self, on: bool) -> int:
        """Start or stop counting. Return the number of counted layers.

        Ranks that share layers see the same tokens, so only the first of them counts.
        """
        from vllm.distributed import get_tensor_model_parallel_rank

        from penstock.engine.vllm.experts import RouterTally

        if get_tensor_model_parallel_rank():
            return 0
        if self.expert_tally is None:
            self.expert_tally = RouterTally(self.model_runner.model)
        if on:
            return int(self.expert_tally.start())
        self.expert_tally.stop()
        return 0

    def expert_counts(self) -> list[list[int]]:
        """Return, per counted layer, its index and then the tokens of each expert since counting began."""
        return [] if self.expert_tally is None else self.expert_tally.rows()

    def weight_bytes(self) -> dict[str, int]:
        """Return the bytes of weights by element type, with the draft layer's; shared weights count once."""
        # Model Runner V2, which GPUs get, calls it `speculator`.
        drafter = getattr(self.model_runner, "drafter", None) or getattr(self.model_runner, "speculator", None)
        models = [self.model_runner.model, getattr(drafter, "model", None)]
        sizes: dict[str, int] = {}
        seen: set[int] = set()
        for module in (module for model in models if model is not None for module in model.modules()):
            for name, tensor in module.named_parameters(recurse=False):
                key, kind, size = tensor.data_ptr(), str(tensor.dtype).removeprefix("torch."), tensor.nbytes
                if name == "weight" and not size:
                    # vLLM's CPU build hands a bfloat16 linear layer's weight to oneDNN and empties its own.
                    key, size = id(module), _linear_elements(module) * tensor.element_size()
                if key not in seen:
                    seen.add(key)
                    sizes[kind] = sizes.get(kind, 0) + size
        return sizes

    def cache_bytes(self) -> dict[str, int]:
        """Return how vLLM laid out the cache: blocks, bytes per token and per sequence's states, without padding."""
        config = self.model_runner.kv_cache_config
        specs = [(group.kv_cache_spec, len(group.layer_names)) for group in config.kv_cache_groups]
        attention = [(spec, layers) for spec, layers in specs if hasattr(spec, "head_size")]
        states = [(spec, layers) for spec, layers in specs if not hasattr(spec, "head_size")]
        return {
            "blocks": config.num_blocks,
            "block_tokens": attention[0][0].block_size,
            "block_bytes": config.kv_cache_tensors[0].size // config.num_blocks,
            "kv_bytes_per_token": sum(
                layers * spec.real_page_size_bytes // spec.block_size for spec, layers in attention
            ),
            "state_bytes": sum(layers * spec.real_page_size_bytes for spec, layers in states),
        }


def _linear_elements(layer: Any) -> int:
    rows = getattr(layer, "output_size_per_partition", None) or layer.output_size
    columns = getattr(layer, "input_size_per_partition", None) or layer.input_size
    return int(rows * columns)
