"""Define the whole configuration: frozen, typed, every key described, unknown keys refused.

Sources in rising precedence: defaults, one TOML or YAML file, environment, flags. `config.sources` remembers where each
value came from, for `penstock config show`.
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
"""The demo model in FP8; used where no model is named, unless `engine.fp8_weights` is off."""
Switch = Literal["auto", "on", "off", "required"]
"""auto: on where it works. on: on, or off with a stated reason. required: on, or the start fails. off: off."""
Tokens = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, le=1)]
_NATIVE_WINDOW_TOKENS = 262_144
"""Window of the models that this service is for; used for limits in bytes where none is configured."""
# English has 3.6 bytes per token, code and other scripts up to 6.
_BYTES_PER_TOKEN = 8
_MIN_PROMPT_BYTES, _MAX_PROMPT_BYTES = 2 * 1024 * 1024, 16 * 1024 * 1024
_MIN_MESSAGE_BYTES, _MESSAGE_FRAME_BYTES = 4 * 1024 * 1024, 256 * 1024


class EngineSettings(Section):
    """Configure the model and the engine that runs it."""

    kind: Literal["vllm", "scripted"] = Field(
        "vllm", description="`scripted` replays prepared tokens, for client tests."
    )
    model: str = Field("", description="Checkpoint directory or Hugging Face name; empty is the embedded demo model.")
    revision: str = Field(
        "", description="Revision of a Hugging Face model: branch, tag or commit. A commit pins every file."
    )
    served_model_name: str = Field("", description="Model name in the API; empty takes it from `model`.")
    device: Literal["auto", "cpu", "gpu"] = Field("auto", description="`auto` uses a GPU if there is one.")
    max_context_tokens: Tokens | None = Field(
        None, description="Context window; unset takes the checkpoint's. A larger window uses YaRN."
    )
    max_concurrent_requests: Tokens | None = Field(
        None,
        description="Maximum requests in one engine step, per replica. Unset: as many of 8,192 tokens as fit into the "
        "GPUs' memory besides the weights, 64 to 1,024; 64 on a CPU.",
    )
    max_batch_tokens: Tokens | None = Field(
        None, description="Maximum tokens in one engine step; unset is vLLM's default."
    )
    kv_cache_gib: float = Field(1.0, gt=0, description="CPU only: memory for the KV cache, in GiB.")
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1, description="GPU only: share of GPU memory to use.")
    mtp: Switch = Field("auto", description="Speculative decoding by the checkpoint's multi-token prediction layer.")
    mtp_draft_tokens: Annotated[int, Field(ge=1, le=8)] = Field(2, description="Tokens drafted per step.")
    prefix_caching: Switch = Field("auto", description="Reuse the KV cache of prompts that start with the same tokens.")
    fp8_weights: Switch = Field(
        "auto", description="Run an FP8 checkpoint, or (GPU only) quantize to FP8 while loading."
    )
    fp8_kv_cache: Switch = Field(
        "auto", description="Keep the KV cache in 8 bits, which takes half the memory of bfloat16."
    )
    yarn: Switch = Field(
        "auto", description="Extend the context window with YaRN. `auto` allows it where the model's authors do."
    )
    engine_budget: Switch = Field(
        "auto",
        description="Let the engine close a thought at its budget; `off` lets the service, with one more prefill.",
    )
    images: Switch = Field("auto", description="Read images, where the checkpoint has a vision tower.")
    image_pixels: Annotated[int, Field(ge=65_536, le=16_777_216)] = Field(
        4_194_304,
        description="An image of more pixels is scaled down to so many. Qwen3.5 reads 1,024 pixels as one token.",
    )
    max_image_pixels: Annotated[int, Field(ge=1, le=100_000_000)] = Field(
        40_000_000, description="Maximum pixels of an image, as its header says; it is not decoded above."
    )
    tensor_parallel_size: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="Devices per replica. Unset: on GPUs by their memory (docs/how-to/plan.md), one on a CPU.",
    )
    data_parallel_size: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Number of replicas; unset: as many as fit on the GPUs."
    )
    pipeline_parallel_size: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Number of pipeline stages; unset: on GPUs as many nodes as the weights need."
    )
    nodes: Annotated[int, Field(ge=1)] = Field(
        1, description="Machines that share one engine. Run `penstock serve` on each, with the same configuration."
    )
    node_rank: Annotated[int, Field(ge=0)] = Field(
        0, description="Number of this node. Node 0 serves; the others compute for it."
    )
    leader_address: str = Field(
        "", description="Name or address of node 0 as the other nodes reach it; needed with several nodes."
    )
    leader_port: Annotated[int, Field(ge=1024, le=65535)] = Field(
        29501, description="Port on node 0 at which the nodes connect."
    )
    expert_parallel: Switch = Field(
        "auto", description="Distribute whole experts over the devices instead of slicing each expert."
    )
    eplb: Switch = Field("auto", description="Move experts between devices to balance the load.")
    routing: Switch = Field(
        "auto",
        description="Count the tokens of each expert. `auto` counts where that is known to cost almost nothing (CPU).",
    )
    omp_threads_bind: str = Field(
        "auto", description="CPU only: value of VLLM_CPU_OMP_THREADS_BIND, which binds threads to cores."
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "ERROR", description="Log level of vLLM. At WARNING, its CPU build logs missing features at every start."
    )
    load_seconds: float = Field(
        7200.0, gt=0, description="Maximum seconds for one start of the engine; vLLM's default is 600."
    )
    constraint_seconds: float = Field(
        5.0, gt=0, description="Maximum seconds to compile and try a schema, regex or grammar; slower ones are refused."
    )
    extra_args: dict[str, object] = Field(
        default_factory=dict, description="Further AsyncEngineArgs, by vLLM's names. They are not checked."
    )

    @model_validator(mode="after")
    def _placed(self) -> EngineSettings:
        if self.node_rank >= self.nodes:
            raise ValueError(f"node_rank must be below nodes, {self.nodes}, got {self.node_rank}")
        if self.nodes > 1 and not self.leader_address:
            raise ValueError(f"leader_address must be set to the name or address of node 0 with nodes {self.nodes}")
        return self


class ServerSettings(Section):
    """Configure the listener."""

    listen: str = Field("127.0.0.1:50051", description="host:port to listen on; port 0 takes a free one.")
    insecure: bool = Field(False, description="Allow plaintext on addresses other than loopback.")
    reflection: bool = Field(
        True, description="Serve gRPC reflection to authenticated callers, for tools such as grpcurl."
    )
    health_listen: str = Field(
        "", description="host:port for health checks only, in plaintext, for probes without TLS; empty is none."
    )
    reload_seconds: float = Field(
        5.0, gt=0, description="Seconds between checks of certificates, API keys and callers for changes."
    )
    max_message_bytes: Annotated[int, Field(ge=1024, le=256 * 1024 * 1024)] | None = Field(
        None,
        description="Maximum bytes of one message from a caller. Unset: the size of a drained conversation with the "
        "largest window, prompt (limits.max_prompt_bytes) and images (limits.max_image_bytes), at least 4 MiB.",
    )
    max_metadata_bytes: Annotated[int, Field(ge=4096, le=1024 * 1024)] = Field(
        16 * 1024, description="Maximum bytes of a call's metadata, with the names."
    )
    drain_seconds: float = Field(600.0, ge=0, description="Maximum seconds for running streams to end after SIGTERM.")
    max_streams_per_connection: Annotated[int, Field(ge=1)] = Field(
        1024, description="Concurrent calls on one connection. Some calls above this are refused and can be retried."
    )
    max_connections: Annotated[int, Field(ge=1)] = Field(
        1024, description="Concurrent connections; further ones are closed. `health_listen` has its own limit."
    )
    max_calls: Annotated[int, Field(ge=1)] = Field(
        4096, description="Concurrent calls over all connections; further ones are refused."
    )
    max_unread_streams_per_caller: Annotated[int, Field(ge=1)] = Field(
        64, description="Streams of one caller that it neither reads nor ends. At the limit, its new calls are refused."
    )
    max_request_memory_bytes: Annotated[int, Field(ge=1024 * 1024)] = Field(
        256 * 1024 * 1024,
        description="Bytes of all requests in memory; further requests wait and are then refused.",
    )
    request_seconds: float = Field(
        20.0, gt=0, description="Seconds until a connection without a handshake, or an incomplete request, is ended."
    )
    slow_reader_seconds: float = Field(
        60.0, gt=0, description="Seconds until a stream whose client reads no message is ended."
    )
    adaptive_flush_seconds: float = Field(
        0.1, ge=0, le=10, description="Maximum seconds to hold deltas while the event loop is full or late; 0 is never."
    )
    max_connection_age_seconds: float | None = Field(
        None, gt=0, description="Seconds until clients must reconnect, to balance load; unset is never."
    )

    @model_validator(mode="after")
    def _holds_a_message(self) -> ServerSettings:
        if self.max_message_bytes is not None and self.max_request_memory_bytes < self.max_message_bytes:
            raise ValueError(
                f"max_request_memory_bytes must be at least max_message_bytes, {self.max_message_bytes}, "
                f"got {self.max_request_memory_bytes}"
            )
        return self


class AdmissionSettings(Section):
    """Configure how many calls run and how many may wait."""

    max_running_sequences: Tokens | None = Field(
        None, description="Candidates that run at once; unset is engine.max_concurrent_requests."
    )
    max_queued_calls: Annotated[int, Field(ge=0)] = Field(
        256, description="Calls that wait for capacity; further ones are refused."
    )
    max_queued_tokens: Tokens = Field(
        4_000_000, description="Prompt and output tokens of waiting calls; further calls are refused."
    )
    max_starts_per_second: float = Field(
        256.0, gt=0, description="Candidates that one caller may start per second, cancelled ones included."
    )


class SupervisionSettings(Section):
    """Configure what happens when the engine dies or hangs."""

    hang_seconds: float = Field(
        120.0, gt=0, description="Seconds without an engine step, with requests waiting, after which it counts as hung."
    )
    max_restarts: Annotated[int, Field(ge=0)] = Field(
        5, description="Restarts in the window after which the process exits. Deaths caused by a request do not count."
    )
    restart_window_seconds: float = Field(1800.0, gt=0, description="Seconds over which restarts are counted.")
    backoff_seconds: float = Field(1.0, ge=0, description="Seconds before a second attempt to start; doubles up to 60.")
    max_deaths_per_request: Annotated[int, Field(ge=1)] = Field(
        2,
        description="Engine deaths after which a request that was running at all of them, and alone at the last, is "
        "refused as poisonous. Deaths that a request is suspected of do not count for max_restarts.",
    )
    poison_seconds: float = Field(
        600.0,
        gt=0,
        description="Seconds for which, after a poisonous request, its caller's requests with the same sampling "
        "parameters and kind of constraint are refused; after three such requests, all of its requests.",
    )


class ResumeSettings(Section):
    """Configure streams that continue without their connection."""

    key_file: Path | None = Field(
        None, description="Secret of at least 32 bytes, shared by replicas, so that one can continue another's streams."
    )
    grace_seconds: float = Field(
        60.0, gt=0, description="Seconds a resumable stream keeps running after its client disconnected."
    )
    max_streams: Annotated[int, Field(ge=0)] = Field(
        1024, description="Maximum number of resumable streams; 0 is none."
    )
    max_streams_per_caller: Annotated[int, Field(ge=1)] = Field(
        256, description="Maximum number per authenticated caller."
    )
    max_stream_bytes: Annotated[int, Field(ge=4096)] = Field(
        4 * 1024 * 1024, description="Bytes of events kept per stream; older events can no longer be replayed."
    )


class ThinkingSettings(Section):
    """Configure thinking for requests that do not set it."""

    default_mode: Literal["fast", "thinking", "auto"] = Field("auto", description="Mode of requests that set none.")
    default_budget_tokens: int = Field(
        -1, ge=-1, description="Budget in tokens of THINKING without a budget; -1 is all that fits."
    )
    auto_budget_tokens: Annotated[int, Field(ge=0)] | None = Field(
        None, description="Maximum budget of AUTO, in tokens; unset: an eighth of the window, 4,096 to 81,920."
    )
    answer_reserve_tokens: Tokens | None = Field(
        None,
        description="Tokens reserved for the answer; unset: a 256th of the window, 128 to 4,096.",
    )
    effort_low_tokens: Tokens = Field(2048, description="Maximum thinking budget of effort LOW, in tokens.")
    effort_medium_tokens: Tokens = Field(8192, description="Maximum thinking budget of effort MEDIUM, in tokens.")
    effort_high_tokens: Tokens = Field(32_768, description="Maximum thinking budget of effort HIGH, in tokens.")
    effort_low_share: Share = Field(
        0.2, description="Maximum share of a call's output tokens that effort LOW thinks; the smaller bound holds."
    )
    effort_medium_share: Share = Field(0.5, description="As effort_low_share, for effort MEDIUM.")
    effort_high_share: Share = Field(0.8, description="As effort_low_share, for effort HIGH.")
    closing_message: str = Field("", description="Text that ends a thought which is closed at its budget.")
    auto_decision: Literal["words", "probe"] = Field(
        "words",
        description="How AUTO decides whether to think: by numbers and English words in the question, or by how "
        "certain the engine is of the answer without a thought.",
    )
    auto_probability: Annotated[float, Field(gt=0, le=1)] = Field(
        0.95,
        description="With auto_decision probe: probability of the answer's first tokens (early_exit_answer_tokens of "
        "them), all together, from which on AUTO does not think.",
    )
    early_exit: Literal["off", "marker", "probe"] | None = Field(
        None,
        description="What ends a thought of AUTO early where the request names nothing: nothing, the closing marker's "
        "probability, or that and probes of the answer. Unset: as the checkpoint advises (penstock_early_exit in "
        "generation_config.json), else nothing.",
    )
    early_exit_allowed: Literal["off", "marker", "probe"] = Field(
        "probe", description="The costliest early exit that a request may ask for; probes cost more than the marker."
    )
    early_exit_marker_probability: Annotated[float, Field(ge=0.05, le=1)] | None = Field(
        None,
        description="Probability of the closing marker at the end of a line from which on the thought ends there. "
        "Unset: as the checkpoint advises, else 0.3.",
    )
    early_exit_probability: Annotated[float, Field(gt=0, le=1)] = Field(
        0.95, description="Probability of a probe's tokens, all together, from which on the thought ends."
    )
    early_exit_agreements: Annotated[int, Field(ge=0, le=16)] = Field(
        0, description="Probes in a row with the same tokens that end the thought; 0 goes by the probability only."
    )
    early_exit_interval_tokens: Annotated[int, Field(ge=1, le=65_536)] = Field(
        64, description="Minimum thought tokens between two probes, and before the first."
    )
    early_exit_answer_tokens: Annotated[int, Field(ge=1, le=256)] = Field(
        16, description="Maximum tokens that a probe generates."
    )
    early_exit_share: Annotated[float, Field(ge=0, le=64)] = Field(
        2.0,
        description="Maximum tokens that the probes of a call compute, cached ones apart, as a multiple of its prompt "
        "and its thought so far.",
    )
    deadline_margin_seconds: float = Field(0.15, ge=0, description="Seconds kept free before a caller's deadline.")


class LimitSettings(Section):
    """Configure the largest values that a request may have."""

    max_output_tokens: Tokens | None = Field(
        None, description="Maximum output tokens of a call; unset: what the context window leaves."
    )
    default_max_output_tokens: Tokens = Field(
        16_384, description="Maximum output tokens of a call that sets none and whose caller has a daily cost limit."
    )
    max_messages: Annotated[int, Field(ge=1)] = Field(1024, description="Maximum messages in one conversation.")
    max_prompt_bytes: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="Maximum UTF-8 bytes of a prompt, over all messages. Unset: 8 for each token of "
        "engine.max_context_tokens (262,144 where that is unset), 2 MiB to 16 MiB.",
    )
    max_candidates: Annotated[int, Field(ge=1, le=64)] = Field(8, description="Maximum candidates of one call.")
    max_top_logprobs: Annotated[int, Field(ge=0, le=100)] = Field(
        20, description="Maximum alternatives per token; 0 allows none."
    )
    max_stop_strings: Annotated[int, Field(ge=0, le=64)] = Field(16, description="Maximum stop strings of one call.")
    max_stop_string_bytes: Annotated[int, Field(ge=1, le=4096)] = Field(
        256, description="Maximum UTF-8 bytes of one stop string."
    )
    max_schema_bytes: Annotated[int, Field(ge=1)] = Field(
        64 * 1024, description="Maximum UTF-8 bytes of a schema, regular expression, grammar or list of choices."
    )
    # vLLM's Model Runner V2, which runs on GPUs, has room for 1,024 per request: one more would end the engine.
    max_logit_biases: Annotated[int, Field(ge=0, le=1024)] = Field(
        300, description="Maximum tokens with a bias in one call."
    )
    max_tools: Annotated[int, Field(ge=0, le=1024)] = Field(
        128, description="Maximum tools of one call; 0 allows none."
    )
    max_tool_calls: Annotated[int, Field(ge=1, le=1024)] = Field(
        32, description="Maximum tool calls of one output, and of one assistant message."
    )
    max_images: Annotated[int, Field(ge=0, le=256)] = Field(
        16, description="Maximum images of one call, over all messages; 0 allows none."
    )
    max_image_bytes: Annotated[int, Field(ge=1)] = Field(
        8 * 1024 * 1024, description="Maximum bytes of the images of one call, all together, encoded as they are sent."
    )
    max_closing_message_bytes: Annotated[int, Field(ge=0)] = Field(
        1024, description="Maximum UTF-8 bytes of a request's closing message."
    )
    max_steering_messages: Annotated[int, Field(ge=1)] = Field(
        64,
        description="Maximum actions of Interact or Steer for one generation, without cancel; a changed budget costs a "
        "prefill.",
    )


class PriceTier(Section):
    """Define prices for prompts of at most `up_to_prompt_tokens`, in USD per million tokens, as exact decimals."""

    up_to_prompt_tokens: Tokens | None = Field(
        None, description="Longest prompt of this tier; unset is no limit (last tier only)."
    )
    input_usd_per_million: Decimal = Field(ge=0, description="Price of prompt tokens that are not cached.")
    output_usd_per_million: Decimal = Field(ge=0, description="Price of thought and answer tokens.")
    cached_usd_per_million: Decimal | None = Field(
        None, ge=0, description="Price of cached prompt tokens; unset is the input price."
    )

    @field_validator("input_usd_per_million", "output_usd_per_million", "cached_usd_per_million")
    @classmethod
    def _whole_ticks(cls, price: Decimal | None) -> Decimal | None:
        # 1 USD per million tokens is 10,000 ticks of 1e-10 USD per token, so four decimals are exact.
        if price is not None and (price * 10_000) % 1 != 0:
            raise ValueError(f"must be a multiple of 0.0001 USD per million tokens, got {price}")
        return price


class PricingSettings(Section):
    """Configure the price list. Without tiers no costs are reported."""

    tiers: tuple[PriceTier, ...] = Field(
        (), description="Prices by length of the prompt, shortest first; see Price tiers."
    )

    @model_validator(mode="after")
    def _rising(self) -> PricingSettings:
        limits = [tier.up_to_prompt_tokens for tier in self.tiers]
        if any(limit is None for limit in limits[:-1]):
            raise ValueError("up_to_prompt_tokens must be set in every tier but the last")
        bounded = [limit for limit in limits if limit is not None]
        if bounded != sorted(set(bounded)):
            raise ValueError(f"tiers must be ordered by up_to_prompt_tokens without repeats, got {bounded}")
        return self


# The hosted list price of the model class that the demo model represents, for realistic costs.
_DEMO_PRICES = (
    PriceTier(up_to_prompt_tokens=None, input_usd_per_million=Decimal("0.40"), output_usd_per_million=Decimal("2.40")),
)


class TelemetrySettings(Section):
    """Configure traces, metrics and logs. Nothing is exported by default; the OTEL_* environment variables apply."""

    otlp: Literal["auto", "off", "grpc", "http"] = Field(
        "auto", description="Export by OTLP. `auto` does if OTEL_EXPORTER_OTLP_ENDPOINT is set, by its protocol."
    )
    otlp_endpoint: str = Field("", description="URL of the collector; empty takes the OTEL_* variables or localhost.")
    traces: bool = Field(True, description="Export a trace per call by OTLP.")
    metrics: bool = Field(True, description="Export metrics by OTLP.")
    logs: bool = Field(True, description="Export log lines by OTLP.")
    engine_traces: bool = Field(True, description="Add vLLM's own spans to the traces.")
    sampling_ratio: float | None = Field(
        None, ge=0, le=1, description="Share of calls that are traced; unset takes OTEL_TRACES_SAMPLER, or 1."
    )
    trust_caller_sampling: bool = Field(
        False,
        description="Trace every call whose traceparent has the sampled flag, whatever sampling_ratio is. Set it if "
        "all callers are your own services. A call whose traceparent lacks the flag is never traced.",
    )
    record_content: bool = Field(
        False, description="Record prompts and outputs in traces, for everyone who can read these."
    )
    prometheus_listen: str = Field("", description="host:port of the Prometheus endpoint; empty is none.")
    log_format: Literal["text", "json"] = Field("text", description="Format of log lines on stderr.")


class RoutingSettings(Section):
    """Configure the measurement of expert load, where `engine.routing` is on."""

    window_seconds: float = Field(
        60.0, gt=0, le=3600, description="Seconds of the window of metrics, and of calls that set no window."
    )


class Config(Section):
    """Hold the whole configuration, by section."""

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
            raise ValueError("auth.certificates needs tls.client_ca_file: without it clients send no certificate")
        if not knows and (self.auth.callers_file is not None or self.quotas != QuotaSettings()):
            raise ValueError(
                "auth.callers_file and quotas need authentication: set auth.keys_file, auth.keys, auth.certificates or "
                "jwt.issuer"
            )
        if self.quotas.usd_per_day is not None and not self.quotas.keeps_days:
            raise ValueError("quotas.usd_per_day needs quotas.daily_file or quotas.redis_url to keep the counts")
        if self.quotas.keeps_days and not self.price_tiers:
            raise ValueError("quotas.daily_file and quotas.redis_url need prices: set pricing.tiers")
        return self

    @cached_property
    def resolved_limits(self) -> LimitSettings:
        """Return the limits, with `max_prompt_bytes` derived from the window where it is unset."""
        if self.limits.max_prompt_bytes is not None:
            return self.limits
        most = min(max(_BYTES_PER_TOKEN * self._window_tokens, _MIN_PROMPT_BYTES), _MAX_PROMPT_BYTES)
        return self.limits.model_copy(update={"max_prompt_bytes": most})

    @cached_property
    def max_message_bytes(self) -> int:
        """Return the largest size of a message: `server.max_message_bytes`, else that of a drained conversation.

        Its token holds the request, which grows by 40 % at most through base64, deflate and base64 again, and the ids
        of the output, of up to six bytes each.
        """
        if self.server.max_message_bytes is not None:
            return self.server.max_message_bytes
        prompt = self.resolved_limits.max_prompt_bytes or 0
        if self.engine.images != "off" and self.limits.max_images:
            prompt += self.limits.max_image_bytes
        return max(_MIN_MESSAGE_BYTES, prompt * 7 // 5 + 6 * self._window_tokens + _MESSAGE_FRAME_BYTES)

    @property
    def _window_tokens(self) -> int:
        return self.engine.max_context_tokens or _NATIVE_WINDOW_TOKENS

    @property
    def price_tiers(self) -> tuple[PriceTier, ...]:
        """Return the price list: the configured one, else the demo model's; other models have none by default."""
        return self.pricing.tiers or (() if self.engine.model else _DEMO_PRICES)
