"""The whole configuration: frozen, typed, every key documented where it stands, unknown keys refused.

Sources in rising precedence: defaults, one TOML or YAML file, environment, flags. `load` remembers where each value
came from, so that `penstock config show` can say it.
"""

from __future__ import annotations

from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from penstock.config.base import Section
from penstock.config.security import AuditSettings, AuthSettings, JwtSettings, QuotaSettings, TlsSettings

DEMO_MODEL_DIR = Path(__file__).parents[1] / "demo_model"
DEMO_MODEL_FP8_DIR = Path(__file__).parents[1] / "demo_model_fp8"
"""The same, by `penstock quantize`; what runs where no model is named, unless `engine.fp8_weights` is off."""
Switch = Literal["auto", "on", "off", "required"]
"""auto: on where it works. on: on, or off with a stated reason. required: on, or the start stops. off: off."""
Tokens = Annotated[int, Field(ge=1)]
_NATIVE_WINDOW_TOKENS = 262_144
"""Of the models that this service is for: the window that bounds on bytes count with where none is configured."""
# English has 3.6 bytes a token, code and other scripts up to 6; what has more is no text that a window was meant for.
_BYTES_PER_TOKEN = 8
_MIN_PROMPT_BYTES, _MAX_PROMPT_BYTES = 2 * 1024 * 1024, 16 * 1024 * 1024
_MIN_MESSAGE_BYTES, _MESSAGE_FRAME_BYTES = 4 * 1024 * 1024, 256 * 1024


class EngineSettings(Section):
    """What runs the model, and how."""

    kind: Literal["vllm", "scripted"] = Field("vllm", description="`scripted` replays canned tokens, for client tests.")
    model: str = Field("", description="Checkpoint directory or Hugging Face name; empty is the embedded demo model.")
    revision: str = Field("", description="Of a Hugging Face name: branch, tag or, to pin every file, commit.")
    served_model_name: str = Field("", description="Name that callers see; empty takes it from `model`.")
    device: Literal["auto", "cpu", "gpu"] = Field("auto", description="auto: a GPU where there is one.")
    max_context_tokens: Tokens | None = Field(
        None, description="Context window; unset takes the checkpoint's. Beyond it YaRN stretches the positions."
    )
    max_concurrent_requests: Tokens | None = Field(
        None,
        description="Most requests in one engine step, of each replica; unset: as many of 8,192 tokens as the GPUs' "
        "memory holds beside the weights, 64 to 1,024; 64 on a CPU.",
    )
    max_batch_tokens: Tokens | None = Field(None, description="Most tokens in one engine step; unset is vLLM's own.")
    kv_cache_gib: float = Field(1.0, gt=0, description="CPU only: memory for the KV cache, GiB.")
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1, description="GPU only: share of GPU memory to use.")
    mtp: Switch = Field("auto", description="Speculative decoding by the checkpoint's multi-token prediction layer.")
    mtp_draft_tokens: Annotated[int, Field(ge=1, le=8)] = Field(2, description="Tokens drafted per step.")
    prefix_caching: Switch = Field("auto", description="Prompts that begin alike share what was computed for them.")
    fp8_weights: Switch = Field("auto", description="An FP8 checkpoint, or (GPU only) FP8 made while loading.")
    fp8_kv_cache: Switch = Field("auto", description="The cache in 8 bits: half the memory of bfloat16.")
    yarn: Switch = Field("auto", description="auto allows it where the model's makers do.")
    engine_budget: Switch = Field(
        "auto", description="The engine closes a thought at its budget itself; off, the service does, with a prefill."
    )
    tensor_parallel_size: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="Devices per replica; unset: on GPUs by memory (docs/how-to/plan.md), on a CPU one.",
    )
    data_parallel_size: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Replicas; unset: as many as the GPUs hold."
    )
    pipeline_parallel_size: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Stages of layers, one after another; unset: on GPUs as many nodes as the weights need."
    )
    nodes: Annotated[int, Field(ge=1)] = Field(
        1, description="Machines that share one engine; `penstock serve` runs on each, with the same configuration."
    )
    node_rank: Annotated[int, Field(ge=0)] = Field(0, description="Node 0 serves, the others compute for it.")
    leader_address: str = Field("", description="With several nodes: name or address of node 0, as all of them see it.")
    leader_port: Annotated[int, Field(ge=1024, le=65535)] = Field(29501, description="Where nodes meet on node 0.")
    expert_parallel: Switch = Field("auto", description="Experts are spread over all devices instead of each cut up.")
    eplb: Switch = Field("auto", description="Experts move between devices with the load.")
    routing: Switch = Field(
        "auto",
        description="Count which experts the tokens go to. auto: where it is known to cost next to nothing (CPU).",
    )
    omp_threads_bind: str = Field("auto", description="CPU only: VLLM_CPU_OMP_THREADS_BIND.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "ERROR", description="vLLM's own log level; at WARNING it speaks of what its CPU build lacks, on every start."
    )
    load_seconds: float = Field(7200.0, gt=0, description="Most time that one start may take; vLLM's own is 600.")
    constraint_seconds: float = Field(
        5.0, gt=0, description="A schema, regex or grammar that takes longer to compile and try is refused."
    )
    extra_args: dict[str, object] = Field(
        default_factory=dict, description="More AsyncEngineArgs, by vLLM's names; on your own responsibility."
    )

    @model_validator(mode="after")
    def _placed(self) -> EngineSettings:
        if self.node_rank >= self.nodes:
            raise ValueError(f"node_rank {self.node_rank} must be below nodes, {self.nodes}")
        if self.nodes > 1 and not self.leader_address:
            raise ValueError("nodes above 1 need leader_address: the name or address of node 0")
        return self


class ServerSettings(Section):
    """The listener."""

    listen: str = Field("127.0.0.1:50051", description="host:port; port 0 takes a free one.")
    insecure: bool = Field(False, description="Allow plaintext on an address that is not loopback.")
    reflection: bool = Field(True, description="Tells any known caller what the API is, for tools such as grpcurl.")
    health_listen: str = Field(
        "", description="host:port that answers health alone, in plaintext, for probes without TLS; empty is none."
    )
    reload_seconds: float = Field(
        5.0, gt=0, description="How often certificates, API keys and callers are looked at for changes."
    )
    max_message_bytes: Annotated[int, Field(ge=1024, le=256 * 1024 * 1024)] | None = Field(
        None,
        description="Most bytes of one message of a caller; unset: what a drained conversation of the window and of "
        "limits.max_prompt_bytes takes, at least 4 MiB.",
    )
    max_metadata_bytes: Annotated[int, Field(ge=4096, le=1024 * 1024)] = Field(
        16 * 1024, description="Metadata of a call, names included."
    )
    drain_seconds: float = Field(600.0, ge=0, description="Most time that streams in flight get after SIGTERM.")
    max_streams_per_connection: Annotated[int, Field(ge=1)] = Field(
        1024, description="Concurrent calls on one connection; of more, some are refused and may be sent again."
    )
    max_connections: Annotated[int, Field(ge=1)] = Field(
        1024, description="Concurrent connections; more are closed. `health_listen` has a limit of its own."
    )
    max_calls: Annotated[int, Field(ge=1)] = Field(
        4096, description="Concurrent calls over all connections; more are refused."
    )
    max_unread_streams_per_caller: Annotated[int, Field(ge=1)] = Field(
        64, description="Streams that a caller was cut off from and has not ended; with so many, new calls are refused."
    )
    max_request_memory_bytes: Annotated[int, Field(ge=1024 * 1024)] = Field(
        256 * 1024 * 1024,
        description="Bytes of requests in memory at once; more requests wait, then are refused.",
    )
    request_seconds: float = Field(
        20.0, gt=0, description="A connection that sends no settings, or a request not whole, in so long is cut off."
    )
    slow_reader_seconds: float = Field(60.0, gt=0, description="A client that takes no message for so long is cut off.")
    adaptive_flush_seconds: float = Field(
        0.1, ge=0, le=10, description="Most that deltas are gathered while the event loop lags; 0 is never."
    )
    max_connection_age_seconds: float | None = Field(None, gt=0, description="Rebalances long-lived channels.")

    @model_validator(mode="after")
    def _holds_a_message(self) -> ServerSettings:
        if self.max_message_bytes is not None and self.max_request_memory_bytes < self.max_message_bytes:
            raise ValueError(
                f"max_request_memory_bytes must be at least max_message_bytes, {self.max_message_bytes}, "
                f"got {self.max_request_memory_bytes}"
            )
        return self


class AdmissionSettings(Section):
    """How much work is let in, and how much may wait."""

    max_running_sequences: Tokens | None = Field(
        None, description="Candidates that run side by side; unset is engine.max_concurrent_requests."
    )
    max_queued_calls: Annotated[int, Field(ge=0)] = Field(256, description="Calls that wait for room; more are shed.")
    max_queued_tokens: Tokens = Field(4_000_000, description="Prompt and output tokens that wait for room.")
    max_starts_per_second: float = Field(
        256.0, gt=0, description="Candidates that one caller may start in a second, also where it cancels them."
    )


class SupervisionSettings(Section):
    """What happens when the engine dies or hangs."""

    hang_seconds: float = Field(120.0, gt=0, description="No engine step for so long, with work pending: it hangs.")
    max_restarts: Annotated[int, Field(ge=0)] = Field(
        5, description="More in the window that no request is suspected of, and the process exits."
    )
    restart_window_seconds: float = Field(1800.0, gt=0, description="In which engine starts are counted.")
    backoff_seconds: float = Field(1.0, ge=0, description="Before the second start in a row; doubles, up to a minute.")
    max_deaths_per_request: Annotated[int, Field(ge=1)] = Field(
        2,
        description="A request that was in flight at so many engine deaths, at the last one alone, is refused as "
        "poisonous. Deaths that somebody is suspected of do not count to max_restarts.",
    )
    poison_seconds: float = Field(
        600.0,
        gt=0,
        description="After a poisonous request, its caller's requests with the same sampling parameters and kind of "
        "constraint are refused for so long; after three such, all of its requests.",
    )


class ResumeSettings(Section):
    """Streams that outlive their connection."""

    key_file: Path | None = Field(
        None, description="Secret of at least 32 bytes, shared by replicas: lets one go on with what another drained."
    )
    grace_seconds: float = Field(
        60.0, gt=0, description="A stream that no client reads goes on, and is kept, so long; then it ends."
    )
    max_streams: Annotated[int, Field(ge=0)] = Field(1024, description="Resumable streams at once; 0 is none.")
    max_streams_per_caller: Annotated[int, Field(ge=1)] = Field(256, description="The same, of one known caller.")
    max_stream_bytes: Annotated[int, Field(ge=4096)] = Field(
        4 * 1024 * 1024, description="Events kept per stream; beyond it the oldest can no longer be replayed."
    )


class ThinkingSettings(Section):
    """Defaults of thinking, where the caller says nothing."""

    default_mode: Literal["fast", "thinking", "auto"] = Field("auto", description="For requests that name no mode.")
    default_budget_tokens: int = Field(-1, ge=-1, description="For THINKING without a budget; -1 is as far as fits.")
    auto_budget_tokens: Annotated[int, Field(ge=0)] | None = Field(
        None, description="Most that AUTO plans where nothing presses; unset: an eighth of the window, 4,096 to 81,920."
    )
    answer_reserve_tokens: Tokens | None = Field(
        None,
        description="Kept back so that an answer always fits; unset: a 256th part of the window, 128 to 4,096 tokens.",
    )
    closing_message: str = Field("", description="Written into the thought before it is closed at the budget.")
    deadline_margin_seconds: float = Field(0.15, ge=0, description="Kept free before a caller's deadline.")


class LimitSettings(Section):
    """What a caller may ask at most."""

    max_output_tokens: Tokens | None = Field(None, description="Unset: what the context window leaves.")
    default_max_output_tokens: Tokens = Field(
        16_384, description="Of a call that names none, where its caller has a daily cost limit: so much is reserved."
    )
    max_messages: Annotated[int, Field(ge=1)] = Field(1024, description="Messages of one conversation.")
    max_prompt_bytes: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="UTF-8 bytes of a prompt, all messages together; unset: 8 for each token of "
        "engine.max_context_tokens (262,144 where that is unset), 2 MiB to 16 MiB.",
    )
    max_candidates: Annotated[int, Field(ge=1, le=64)] = Field(8, description="Outputs of one call.")
    max_top_logprobs: Annotated[int, Field(ge=0, le=100)] = Field(
        20, description="Alternatives told with each token; 0 allows none."
    )
    max_stop_strings: Annotated[int, Field(ge=0, le=64)] = Field(16, description="Stop strings of one call.")
    max_stop_string_bytes: Annotated[int, Field(ge=1, le=4096)] = Field(
        256, description="UTF-8 bytes of one stop string."
    )
    max_schema_bytes: Annotated[int, Field(ge=1)] = Field(
        64 * 1024, description="UTF-8 bytes of a schema, regular expression, grammar or list of choices."
    )
    # vLLM's Model Runner V2, which runs on GPUs, holds 1,024 a request: one more would end the engine.
    max_logit_biases: Annotated[int, Field(ge=0, le=1024)] = Field(300, description="Tokens with a bias in one call.")
    max_closing_message_bytes: Annotated[int, Field(ge=0)] = Field(
        1024, description="UTF-8 bytes of a caller's own closing message."
    )
    max_steering_messages: Annotated[int, Field(ge=1)] = Field(
        64, description="Messages of one Interact after the first; a changed budget costs the engine a prefill."
    )


class PriceTier(Section):
    """Prices of calls whose prompt has at most `up_to_prompt_tokens`; USD per million tokens, exact decimals."""

    up_to_prompt_tokens: Tokens | None = Field(None, description="Inclusive; unset is no limit (last tier only).")
    input_usd_per_million: Decimal = Field(ge=0, description="Prompt tokens, but for cached ones.")
    output_usd_per_million: Decimal = Field(ge=0, description="Thought and answer tokens alike.")
    cached_usd_per_million: Decimal | None = Field(None, ge=0, description="Unset: cached tokens cost as input.")

    @field_validator("input_usd_per_million", "output_usd_per_million", "cached_usd_per_million")
    @classmethod
    def _whole_ticks(cls, price: Decimal | None) -> Decimal | None:
        # 1 USD per million tokens is 10,000 ticks of 1e-10 USD per token: four decimals are exact, a fifth is not.
        if price is not None and (price * 10_000) % 1 != 0:
            raise ValueError("prices are exact to 0.0001 USD per million tokens")
        return price


class PricingSettings(Section):
    """The price list. Empty: the service names no cost."""

    tiers: tuple[PriceTier, ...] = Field((), description="By length of the prompt, rising; see Price tiers.")

    @model_validator(mode="after")
    def _rising(self) -> PricingSettings:
        limits = [tier.up_to_prompt_tokens for tier in self.tiers]
        if any(limit is None for limit in limits[:-1]):
            raise ValueError("only the last tier may have no up_to_prompt_tokens")
        bounded = [limit for limit in limits if limit is not None]
        if bounded != sorted(set(bounded)):
            raise ValueError("tiers must rise by up_to_prompt_tokens")
        return self


# The hosted list price of the model class that the demo model stands for, so that its costs have a familiar size.
_DEMO_PRICES = (
    PriceTier(up_to_prompt_tokens=None, input_usd_per_million=Decimal("0.40"), output_usd_per_million=Decimal("2.40")),
)


class TelemetrySettings(Section):
    """Traces, metrics and logs. Nothing is recorded by default; the standard OTEL_* environment variables hold."""

    otlp: Literal["auto", "off", "grpc", "http"] = Field(
        "auto", description="Send by OTLP. auto: where OTEL_EXPORTER_OTLP_ENDPOINT is set, by its protocol."
    )
    otlp_endpoint: str = Field("", description="URL of the collector; empty takes the OTEL_* variables or localhost.")
    traces: bool = Field(True, description="With OTLP: a trace per call.")
    metrics: bool = Field(True, description="With OTLP: counts and durations.")
    logs: bool = Field(True, description="With OTLP: log lines.")
    engine_traces: bool = Field(True, description="With traces: vLLM's own spans join them.")
    sampling_ratio: float | None = Field(
        None, ge=0, le=1, description="Share of calls that are traced. Unset takes OTEL_TRACES_SAMPLER, or 1."
    )
    trust_caller_sampling: bool = Field(
        False,
        description="A call whose traceparent has the sampled flag is traced, whatever sampling_ratio is. Set it where "
        "all callers are services of yours. A call whose traceparent lacks the flag is never traced.",
    )
    record_content: bool = Field(False, description="Prompts and outputs go into traces. Mind who may read those.")
    prometheus_listen: str = Field("", description="host:port of the Prometheus endpoint; empty is none.")
    log_format: Literal["text", "json"] = Field("text", description="Log lines on stderr.")


class RoutingSettings(Section):
    """Expert load, where `engine.routing` counts it."""

    window_seconds: float = Field(60.0, gt=0, le=3600, description="Of metrics, and of calls that name no window.")


class Config(Section):
    engine: EngineSettings = EngineSettings()
    server: ServerSettings = ServerSettings()
    tls: TlsSettings = TlsSettings()
    auth: AuthSettings = AuthSettings()
    jwt: JwtSettings = JwtSettings()
    quotas: QuotaSettings = QuotaSettings()
    audit: AuditSettings = AuditSettings()
    admission: AdmissionSettings = AdmissionSettings()
    supervision: SupervisionSettings = SupervisionSettings()
    resume: ResumeSettings = ResumeSettings()
    thinking: ThinkingSettings = ThinkingSettings()
    limits: LimitSettings = LimitSettings()
    pricing: PricingSettings = PricingSettings()
    telemetry: TelemetrySettings = TelemetrySettings()
    routing: RoutingSettings = RoutingSettings()

    @model_validator(mode="after")
    def _callers_hold_together(self) -> Config:
        knows = self.auth.is_on or bool(self.jwt.issuer)
        if self.auth.certificates and self.tls.client_ca_file is None:
            raise ValueError("auth.certificates needs tls.client_ca_file: without it clients show no certificate")
        if not knows and (self.auth.callers_file is not None or self.quotas != QuotaSettings()):
            raise ValueError("auth.callers_file and quotas are about callers, and nothing says how they are known")
        if self.quotas.usd_per_day is not None and not self.quotas.keeps_days:
            raise ValueError("quotas.usd_per_day needs quotas.daily_file or quotas.redis_url to count in")
        if self.quotas.keeps_days and not self.price_tiers:
            raise ValueError("quotas.daily_file and quotas.redis_url count costs: pricing.tiers must name them")
        return self

    @cached_property
    def resolved_limits(self) -> LimitSettings:
        """The limits, with `max_prompt_bytes` by the window where it is unset."""
        if self.limits.max_prompt_bytes is not None:
            return self.limits
        most = min(max(_BYTES_PER_TOKEN * self._window_tokens, _MIN_PROMPT_BYTES), _MAX_PROMPT_BYTES)
        return self.limits.model_copy(update={"max_prompt_bytes": most})

    @cached_property
    def max_message_bytes(self) -> int:
        """Bytes of a message: `server.max_message_bytes`, else what a drained conversation takes.

        Its token holds the request, which grows by 40 % at most on its way through base64, deflate and base64 again,
        and the ids of the output, up to six bytes each.
        """
        if self.server.max_message_bytes is not None:
            return self.server.max_message_bytes
        prompt = self.resolved_limits.max_prompt_bytes or 0
        return max(_MIN_MESSAGE_BYTES, prompt * 7 // 5 + 6 * self._window_tokens + _MESSAGE_FRAME_BYTES)

    @property
    def _window_tokens(self) -> int:
        return self.engine.max_context_tokens or _NATIVE_WINDOW_TOKENS

    @property
    def price_tiers(self) -> tuple[PriceTier, ...]:
        """The price list in force: the configured one, else the demo model's; another model has none by default."""
        return self.pricing.tiers or (() if self.engine.model else _DEMO_PRICES)
