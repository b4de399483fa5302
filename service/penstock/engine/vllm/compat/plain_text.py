"""Write a constrained answer with tokens of text only, without control tokens.

For vLLM 0.32.0 and xgrammar 0.2.8, which treat every token of the vocabulary as its text: `</think>` may then be
sampled as one control token wherever a constraint allows these eight characters. A control token is not part of the
answer's text, so the answer breaks its constraint, and the model reads it as the end of a thought.

The markers of tool calls are control tokens that are text: the model writes calls with them.
"""

from __future__ import annotations

from typing import Any

_KEPT = ("<tool_call>", "</tool_call>")


def constrain_to_text() -> None:
    """Give vLLM's compiler a vocabulary in which control tokens have no text.

    Upstream: vllm/v1/structured_output/backend_xgrammar.py `XgrammarBackend.__post_init__`.
    """
    from vllm.v1.structured_output.backend_xgrammar import XgrammarBackend

    post_init = XgrammarBackend.__post_init__
    if hasattr(post_init, "__wrapped__"):
        return

    def with_text_only(self: Any) -> None:
        """Set up the backend, then replace its compiler by one with the changed vocabulary."""
        import vllm.envs
        import xgrammar

        post_init(self)
        self.compiler = xgrammar.GrammarCompiler(
            text_tokens(self.tokenizer, self.vocab_size),
            max_threads=8,
            cache_enabled=True,
            cache_limit_bytes=vllm.envs.VLLM_XGRAMMAR_CACHE_MB * 1024 * 1024,
        )

    with_text_only.__wrapped__ = post_init  # type: ignore[attr-defined]
    XgrammarBackend.__post_init__ = with_text_only


def text_tokens(tokenizer: Any, vocab_size: int) -> Any:
    """Return xgrammar's `TokenizerInfo` of a Hugging Face tokenizer, its added tokens without text.

    Every control token is an added token. Tokens for the markers of tool calls keep their text, unless the tokenizer
    calls them special: such a token is never text (`engine.tokenizer`). xgrammar never allows a token that has no text,
    except for stop tokens where the text may end.
    """
    from xgrammar import TokenizerInfo, VocabType

    seen = TokenizerInfo.from_huggingface(tokenizer, vocab_size=vocab_size)
    texts = seen.decoded_vocab
    for token_id, added in tokenizer.added_tokens_decoder.items():
        if token_id < len(texts) and (added.special or added.content not in _KEPT):
            texts[token_id] = b""
    return TokenizerInfo(
        texts,
        VocabType.RAW,
        vocab_size=vocab_size,
        stop_token_ids=seen.stop_token_ids,
        add_prefix_space=seen.add_prefix_space,
    )
