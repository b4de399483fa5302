"""Define the shape of the demo model: Qwen3.5-MoE, text only, a few million parameters.

Head dimensions are 128 because vLLM's CPU kernels and KV pages need that. Hidden and expert widths are multiples of
128, so that FP8 block scales (128 x 128) fit. Head and expert counts are even, so that two tensor-parallel ranks work.
There is no `mrope_section`: with it, a text-only draft layer would get three position rows.
"""

VOCAB_SIZE = 512
HIDDEN_SIZE = 256
LAYERS = 4
EXPERTS = 8
EXPERTS_PER_TOKEN = 2

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
"""Special tokens; their ids begin with 0, in this order."""
END_OF_TEXT, IM_START, IM_END, THINK_OPEN, THINK_CLOSE = range(len(SPECIAL_TOKENS))


def text_config() -> dict:
    """Return the content of config.json (architecture `Qwen3_5MoeForCausalLM`, bfloat16)."""
    return {
        "architectures": ["Qwen3_5MoeForCausalLM"],
        "model_type": "qwen3_5_moe_text",
        "dtype": "bfloat16",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": HIDDEN_SIZE,
        "num_hidden_layers": LAYERS,
        "layer_types": ["full_attention" if (i + 1) % 4 == 0 else "linear_attention" for i in range(LAYERS)],
        "full_attention_interval": 4,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "attn_output_gate": True,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "linear_conv_kernel_dim": 4,
        "mamba_ssm_dtype": "float32",
        "num_experts": EXPERTS,
        "num_experts_per_tok": EXPERTS_PER_TOKEN,
        "moe_intermediate_size": 128,
        "shared_expert_intermediate_size": 128,
        "norm_topk_prob": True,
        "router_aux_loss_coef": 0.01,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "initializer_range": 0.02,
        "max_position_embeddings": 32768,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25},
        "tie_word_embeddings": False,
        # vLLM's own switch: in bfloat16, two logits within 1/16 of each other are equal, and the choice is random.
        "head_dtype": "float32",
        "mtp_num_hidden_layers": 1,
        "mtp_use_dedicated_embeddings": False,
        "use_cache": True,
        "bos_token_id": None,
        "eos_token_id": IM_END,
        "pad_token_id": END_OF_TEXT,
    }


def generation_config() -> dict:
    """Return the content of generation_config.json: greedy, because the task has one right answer."""
    return {"do_sample": False, "eos_token_id": [IM_END, END_OF_TEXT], "pad_token_id": END_OF_TEXT}
