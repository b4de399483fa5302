"""Define the shape of the small model: Qwen3.5-MoE with a vision tower, in the layout of the official checkpoints.

Text: head dimensions are 128 because vLLM's CPU kernels and KV pages need that. Every width that FP8 block scales
(128 x 128) meet is a multiple of 128. Head and expert counts are even, so that two tensor-parallel ranks work.
Vision: 256 wide with 4 heads of 64, for pictures of 64 x 64 to 320 x 128 pixels, which are 4 to 40 tokens.
"""

VOCAB_SIZE = 2048
HIDDEN_SIZE = 256
LAYERS = 6
FULL_ATTENTION_INTERVAL = 3
EXPERTS = 16
EXPERTS_PER_TOKEN = 2
CONTEXT_WINDOW = 32768

PATCH_SIZE = 16
"""Edge of a patch in pixels."""
MERGE_SIZE = 2
"""A token of a picture is a square of this many patches on each side."""
TEMPORAL_PATCH_SIZE = 2
"""Frames in a patch; a picture is repeated to fill it."""
PICTURE_PIXELS = (64 * 64, 320 * 128)
"""Area in pixels to which the image processor scales what is smaller or larger; training draws nothing outside it."""
PICTURE_MEAN = PICTURE_STD = 0.5
"""Of each colour channel, in [0, 1]; pixel values become (value - mean) / std."""

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
"""Control tokens of Qwen3.5; their ids begin with 0, in this order."""
(
    END_OF_TEXT,
    IM_START,
    IM_END,
    THINK_OPEN,
    THINK_CLOSE,
    TOOL_CALL_OPEN,
    TOOL_CALL_CLOSE,
    TOOL_RESPONSE_OPEN,
    TOOL_RESPONSE_CLOSE,
    VISION_START,
    VISION_END,
    IMAGE_PAD,
    VIDEO_PAD,
) = range(len(SPECIAL_TOKENS))


def text_config() -> dict:
    """Return `text_config` of config.json (`qwen3_5_moe_text`)."""
    return {
        "model_type": "qwen3_5_moe_text",
        "dtype": "bfloat16",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": HIDDEN_SIZE,
        "num_hidden_layers": LAYERS,
        "layer_types": [
            "full_attention" if (i + 1) % FULL_ATTENTION_INTERVAL == 0 else "linear_attention" for i in range(LAYERS)
        ],
        "full_attention_interval": FULL_ATTENTION_INTERVAL,
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
        "max_position_embeddings": CONTEXT_WINDOW,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.25,
            # 16 pairs of rotated components: time, height and width take turns, and time takes the rest.
            "mrope_section": [6, 5, 5],
            "mrope_interleaved": True,
        },
        "tie_word_embeddings": False,
        "mtp_num_hidden_layers": 1,
        "mtp_use_dedicated_embeddings": False,
        "use_cache": True,
        "bos_token_id": None,
        "eos_token_id": IM_END,
        "pad_token_id": END_OF_TEXT,
    }


def vision_config() -> dict:
    """Return `vision_config` of config.json (`qwen3_5_moe_vision`)."""
    return {
        "model_type": "qwen3_5_moe_vision",
        "dtype": "bfloat16",
        "depth": 4,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_heads": 4,
        "hidden_act": "gelu_pytorch_tanh",
        "in_channels": 3,
        "patch_size": PATCH_SIZE,
        "spatial_merge_size": MERGE_SIZE,
        "temporal_patch_size": TEMPORAL_PATCH_SIZE,
        "out_hidden_size": HIDDEN_SIZE,
        "num_position_embeddings": 16 * 16,
        "deepstack_visual_indexes": [],
        "initializer_range": 0.02,
    }


def model_config() -> dict:
    """Return the content of config.json (architecture `Qwen3_5MoeForConditionalGeneration`, bfloat16)."""
    return {
        "architectures": ["Qwen3_5MoeForConditionalGeneration"],
        "model_type": "qwen3_5_moe",
        "dtype": "bfloat16",
        # vLLM's own switch, which it reads at the top level alone. In bfloat16, two logits within 1/16 of each other
        # are equal, and the choice is random.
        "head_dtype": "float32",
        "text_config": text_config(),
        "vision_config": vision_config(),
        "image_token_id": IMAGE_PAD,
        "video_token_id": VIDEO_PAD,
        "vision_start_token_id": VISION_START,
        "vision_end_token_id": VISION_END,
        "tie_word_embeddings": False,
    }


def generation_config() -> dict:
    """Return the content of generation_config.json: greedy, because the task has one right answer.

    A thought of AUTO ends where it has been worked out: a third of the training texts leaves the check out there.
    """
    return {
        "do_sample": False,
        "eos_token_id": [IM_END, END_OF_TEXT],
        "pad_token_id": END_OF_TEXT,
        "penstock_early_exit": {"sign": "marker", "marker_probability": 0.05},
    }


def preprocessor_config() -> dict:
    """Return the content of preprocessor_config.json: how a picture becomes patches."""
    smallest, largest = PICTURE_PIXELS
    return {
        "image_processor_type": "Qwen2VLImageProcessorFast",
        "processor_class": "Qwen3VLProcessor",
        "size": {"shortest_edge": smallest, "longest_edge": largest},
        "patch_size": PATCH_SIZE,
        "temporal_patch_size": TEMPORAL_PATCH_SIZE,
        "merge_size": MERGE_SIZE,
        "image_mean": [PICTURE_MEAN] * 3,
        "image_std": [PICTURE_STD] * 3,
    }


def video_preprocessor_config(pictures: dict) -> dict:
    """Return the content of video_preprocessor_config.json, without which the official processor does not load.

    `pictures` is the content of preprocessor_config.json.
    """
    return pictures | {"video_processor_type": "Qwen3VLVideoProcessor"}
