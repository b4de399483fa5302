"""vLLM keeps its Prometheus metrics only where an endpoint shows them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from penstock.engine.vllm.load import LoadMeter, NoPrometheus
from vllm.v1.metrics.loggers import PrometheusStatLogger, StatLoggerManager
from vllm.v1.metrics.stats import IterationStats, SchedulerStats


def test_without_an_endpoint_a_step_is_recorded_for_the_service_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("vLLM's own metrics are registered, or a step is recorded in them")

    for name in ("__init__", "record", "log_engine_initialized"):
        monkeypatch.setattr(PrometheusStatLogger, name, fail)
    meter = LoadMeter()
    manager = StatLoggerManager(SimpleNamespace(), [0], [meter.logger, NoPrometheus], enable_default_loggers=False)
    manager.log_engine_initialized()
    manager.record(SchedulerStats(num_running_reqs=3), IterationStats())
    manager.record_sleep_state(1, 1)
    manager.record_admission_rejection("max_num_queued_reqs")
    manager.log()
    assert (meter.load().steps, meter.load().running_requests) == (1, 3)
