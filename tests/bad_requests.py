"""Requests that must be refused, as data: what is sent, and the status, reason and field path that come back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import grpc
from penstock_proto.v1 import generation_pb2 as pb

INVALID = grpc.StatusCode.INVALID_ARGUMENT


@dataclass(frozen=True)
class Bad:
    """One bad request. `field` is the path of the first violation; empty where the status has none."""

    name: str
    spec: pb.GenerationSpec
    reason: str = "INVALID_FIELD"
    field: str = ""
    code: grpc.StatusCode = INVALID


def hello(text: str = "What is 1 + 2?", **fields: Any) -> pb.GenerationSpec:
    return pb.GenerationSpec(messages=turns(("user", text)), **fields)


def turns(*pairs: tuple[str, str]) -> pb.Messages:
    roles = {"user": pb.ROLE_USER, "system": pb.ROLE_SYSTEM, "assistant": pb.ROLE_ASSISTANT}
    return pb.Messages(messages=[pb.Message(role=roles[role], content=content) for role, content in pairs])


def _stop(**fields: Any) -> pb.GenerationSpec:
    return _thinking(stop_patterns=pb.StopPatterns(**fields))


def _thinking(**fields: Any) -> pb.GenerationSpec:
    output = pb.OutputConfig(max_output_tokens=100)
    return hello(thinking=pb.ThinkingConfig(**fields), output=output)


def _sampling(**fields: Any) -> pb.GenerationSpec:
    return hello(sampling=pb.SamplingConfig(**fields))


def _output(**fields: Any) -> pb.GenerationSpec:
    return hello(output=pb.OutputConfig(**fields))


def _context(**fields: Any) -> pb.GenerationSpec:
    return hello(context=pb.ContextConfig(**fields))


def bad_requests(vocab_size: int, window_tokens: int, an_id: int) -> list[Bad]:
    """`an_id` is any ordinary token id; a prompt of `window_tokens` of it fills the window exactly."""
    off, precondition = "FEATURE_OFF", grpc.StatusCode.FAILED_PRECONDITION
    budget, many = "BUDGET_DOES_NOT_FIT", "LIMIT_EXCEEDED"
    missing, clash = "MISSING_FIELD", "CONFLICTING_FIELDS"
    full = pb.TokenIds(ids=[an_id] * window_tokens)
    over = pb.TokenIds(ids=[an_id] * (window_tokens + 1))
    inf, nan = float("inf"), float("nan")
    return [
        # The input.
        Bad("no spec at all", pb.GenerationSpec(), missing, "spec.input"),
        Bad("no messages", pb.GenerationSpec(messages=pb.Messages()), missing, "spec.messages.messages"),
        Bad("empty text", pb.GenerationSpec(text=""), missing, "spec.text"),
        Bad("no token ids", pb.GenerationSpec(token_ids=pb.TokenIds()), missing, "spec.token_ids.ids"),
        Bad("empty user turn", hello(""), missing, "spec.messages.messages[0].content"),
        Bad("id out of vocabulary", _ids([an_id, vocab_size]), field="spec.token_ids.ids[1]"),
        Bad("negative id", _ids([-1]), field="spec.token_ids.ids[0]"),
        Bad("huge text", pb.GenerationSpec(text="a" * (2 * 1024 * 1024 + 1)), many, "spec.text"),
        Bad("too many messages", pb.GenerationSpec(messages=turns(*[("user", "a")] * 1025)), many, _MESSAGES),
        Bad("role unspecified", _role(pb.ROLE_UNSPECIFIED), field=f"{_MESSAGES}[0].role"),
        Bad("unknown role", _role(17), field=f"{_MESSAGES}[0].role"),
        Bad(
            "a thought before an answer that is begun",
            _turns(("user", "a"), ("assistant", "b"), thinking=pb.ThinkingConfig(mode=pb.THINKING_MODE_THINKING)),
            clash,
            "spec.thinking.mode",
        ),
        Bad("nobody but the system", _turns(("system", "a"), ("system", "b")), field=f"{_MESSAGES}[0].role"),
        Bad("empty last turn", _turns(("user", "a"), ("user", ""), ("system", "")), missing, f"{_MESSAGES}[1].content"),
        Bad("another model", hello(model="gpt-2"), "MODEL_NOT_FOUND", code=grpc.StatusCode.NOT_FOUND),
        Bad("unknown priority", hello(priority=9), field="spec.priority"),
        # Thinking.
        Bad("unknown mode", _thinking(mode=99), field="spec.thinking.mode"),
        Bad("budget below -1", _thinking(thinking_budget=-2), field="spec.thinking.thinking_budget"),
        Bad("FAST with a budget", _thinking(mode=1, thinking_budget=5), clash, "spec.thinking.thinking_budget"),
        Bad("budget above output", _thinking(thinking_budget=101), budget, "spec.thinking.thinking_budget"),
        Bad("budget equal to output", _thinking(thinking_budget=100), budget, "spec.thinking.thinking_budget"),
        Bad("budget and reserve", _thinking(thinking_budget=60, answer_reserve=41), budget, _BUDGET),
        Bad("reserve above output", _thinking(mode=2, answer_reserve=101), budget, "spec.thinking.answer_reserve"),
        Bad("reserve of nothing", _thinking(answer_reserve=0), field="spec.thinking.answer_reserve"),
        Bad("negative reserve", _thinking(answer_reserve=-5), field="spec.thinking.answer_reserve"),
        Bad("long closing message", _thinking(closing_message="a" * 1025), many, "spec.thinking.closing_message"),
        Bad("unknown early exit", _thinking(early_exit=9), field="spec.thinking.early_exit"),
        Bad("an exit at nothing", _thinking(early_exit_probability=0.0), field=_EXIT),
        Bad("an exit above one", _thinking(early_exit_probability=1.1), field=_EXIT),
        Bad("a marker of no weight", _thinking(early_exit=2, early_exit_probability=0.04), field=_EXIT),
        Bad("an exit at no number", _thinking(early_exit_probability=nan), field=_EXIT),
        Bad("an empty thought stop", _stop(strings=[""]), missing, f"{_STOP}.strings[0]"),
        Bad("a long thought stop", _stop(strings=["a" * 257]), many, f"{_STOP}.strings[0]"),
        Bad("many thought stops", _stop(strings=["a"] * 17), many, f"{_STOP}.strings"),
        Bad("a long stop regex", _stop(regex="a" * 257), many, f"{_STOP}.regex"),
        Bad("a broken stop regex", _stop(regex="(a"), field=f"{_STOP}.regex"),
        Bad("a stop regex with an anchor", _stop(regex="a$"), field=f"{_STOP}.regex"),
        Bad("a stop regex of the empty text", _stop(regex="a*"), field=f"{_STOP}.regex"),
        Bad("a stop regex of many characters", _stop(regex="(a{9}){99}"), field=f"{_STOP}.regex"),
        Bad("THINKING on closed raw ids", _raw_fast_open(), clash, "spec.thinking.mode"),
        # Context.
        Bad("window of one", _context(max_context_tokens=1), field="spec.context.max_context_tokens"),
        Bad("window too large", _context(max_context_tokens=window_tokens + 1), many, _WINDOW),
        Bad("unknown overflow", _context(overflow=42), field="spec.context.overflow"),
        Bad("truncating messages", _context(overflow=3), clash, "spec.context.overflow"),
        Bad("dropping turns of text", _drop_turns_of_text(), clash, "spec.context.overflow"),
        Bad("long cache salt", _context(cache_salt="s" * 257), many, "spec.context.cache_salt"),
        Bad("long session", _context(session_id="s" * 257), many, "spec.context.session_id"),
        Bad("prompt exactly at the window", pb.GenerationSpec(token_ids=full), "CONTEXT_OVERFLOW"),
        Bad("prompt one over the window", pb.GenerationSpec(token_ids=over), "CONTEXT_OVERFLOW"),
        Bad("small window", _context(max_context_tokens=2), "CONTEXT_OVERFLOW"),
        Bad("output larger than the window", _output(max_output_tokens=window_tokens), "CONTEXT_OVERFLOW"),
        Bad("nothing left to drop", _nothing_to_drop(), "CONTEXT_OVERFLOW"),
        # Sampling.
        Bad("negative temperature", _sampling(temperature=-0.1), field="spec.sampling.temperature"),
        Bad("hot", _sampling(temperature=2.1), field="spec.sampling.temperature"),
        Bad("temperature NaN", _sampling(temperature=nan), field="spec.sampling.temperature"),
        Bad("temperature infinite", _sampling(temperature=inf), field="spec.sampling.temperature"),
        Bad("top_p 0", _sampling(top_p=0.0), field="spec.sampling.top_p"),
        Bad("top_p above 1", _sampling(top_p=1.5), field="spec.sampling.top_p"),
        Bad("top_k -1", _sampling(top_k=-1), field="spec.sampling.top_k"),
        Bad("top_k beyond vocabulary", _sampling(top_k=vocab_size + 1), field="spec.sampling.top_k"),
        Bad("min_p above 1", _sampling(min_p=1.1), field="spec.sampling.min_p"),
        Bad("min_p beside MTP", _sampling(min_p=0.1), off, code=precondition),
        Bad("logit bias beside MTP", _sampling(logit_bias={an_id: 5.0}), off, code=precondition),
        Bad("bias out of vocabulary", _sampling(logit_bias={vocab_size: 1.0}), field=_bias(vocab_size)),
        Bad("bias too large", _sampling(logit_bias={an_id: 101.0}), field=_bias(an_id)),
        Bad("presence penalty", _sampling(presence_penalty=2.5), field="spec.sampling.presence_penalty"),
        Bad("frequency penalty", _sampling(frequency_penalty=-2.5), field="spec.sampling.frequency_penalty"),
        Bad("repetition penalty 0", _sampling(repetition_penalty=0.0), field="spec.sampling.repetition_penalty"),
        Bad("tiny repetition penalty", _sampling(repetition_penalty=1e-45), field="spec.sampling.repetition_penalty"),
        Bad("negative seed", _sampling(seed=-1), field="spec.sampling.seed"),
        # Output.
        Bad("no output", _output(max_output_tokens=0), field="spec.output.max_output_tokens"),
        Bad("negative output", _output(max_output_tokens=-5), field="spec.output.max_output_tokens"),
        Bad("negative minimum", _output(min_output_tokens=-1), field="spec.output.min_output_tokens"),
        Bad("minimum over maximum", _output(min_output_tokens=9, max_output_tokens=8), clash, _MINIMUM),
        Bad("empty stop string", _output(stop_strings=[""]), missing, "spec.output.stop_strings[0]"),
        Bad("long stop string", _output(stop_strings=["a" * 257]), many, "spec.output.stop_strings[0]"),
        Bad("many stop strings", _output(stop_strings=["a"] * 17), many, "spec.output.stop_strings"),
        Bad("stop id", _output(stop_token_ids=[vocab_size]), field="spec.output.stop_token_ids[0]"),
        Bad("no candidate", _output(candidate_count=0), field="spec.output.candidate_count"),
        Bad("many candidates", _output(candidate_count=9), many, "spec.output.candidate_count"),
        Bad("negative logprobs", _output(top_logprobs=-1), field="spec.output.top_logprobs"),
        Bad("many logprobs", _output(top_logprobs=21), many, "spec.output.top_logprobs"),
        Bad("empty schema", _output(json_schema=""), missing, "spec.output.json_schema"),
        Bad("broken schema", _output(json_schema="{"), field="spec.output.json_schema"),
        Bad("broken regex", _output(regex="(a"), field="spec.output.regex"),
        Bad("broken grammar", _output(grammar="root ::= ("), field="spec.output.grammar"),
        Bad("huge schema", _output(json_schema="1" * (64 * 1024 + 1)), many, "spec.output.json_schema"),
        Bad("no choices", _output(choices=pb.Choices()), missing, "spec.output.choices.choices"),
        Bad("an empty choice", _output(choices=pb.Choices(choices=[""])), missing, "spec.output.choices.choices[0]"),
    ]


_MESSAGES = "spec.messages.messages"
_BUDGET = "spec.thinking.thinking_budget"
_EXIT = "spec.thinking.early_exit_probability"
_STOP = "spec.thinking.stop_patterns"
_WINDOW = "spec.context.max_context_tokens"
_MINIMUM = "spec.output.min_output_tokens"


def _bias(token_id: int) -> str:
    return f"spec.sampling.logit_bias[{token_id}]"


def _ids(ids: list[int]) -> pb.GenerationSpec:
    return pb.GenerationSpec(token_ids=pb.TokenIds(ids=ids))


def _role(role: int) -> pb.GenerationSpec:
    return pb.GenerationSpec(messages=pb.Messages(messages=[pb.Message(role=role, content="a")]))  # type: ignore[arg-type]


def _turns(*pairs: tuple[str, str], **fields: Any) -> pb.GenerationSpec:
    return pb.GenerationSpec(messages=turns(*pairs), **fields)


def _raw_fast_open() -> pb.GenerationSpec:
    thinking = pb.ThinkingConfig(mode=pb.THINKING_MODE_FAST)
    return pb.GenerationSpec(text="<|im_start|>assistant\n<think>\n", thinking=thinking)


def _drop_turns_of_text() -> pb.GenerationSpec:
    context = pb.ContextConfig(overflow=pb.OVERFLOW_POLICY_DROP_OLDEST_TURNS)
    return pb.GenerationSpec(text="some text", context=context)


def _nothing_to_drop() -> pb.GenerationSpec:
    context = pb.ContextConfig(overflow=pb.OVERFLOW_POLICY_DROP_OLDEST_TURNS, max_context_tokens=8)
    return hello("a question that is a good deal longer than eight tokens of any tokenizer", context=context)
