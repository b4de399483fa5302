"""Write log lines to stderr, as text or JSON, each with the fields of its call. They never contain prompt or output.

A traceback is written as its frames and the exception's type: the exception's text may contain what a caller sent.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from penstock.files import write_text
from penstock.telemetry.hooks import CURRENT_CALL

Format = Literal["text", "json"]


def call_fields(record: logging.LogRecord) -> Mapping[str, str]:
    """Return the fields of the call: trace_id, span_id, rpc, generation_id. Call it in the task that logs."""
    kept: Mapping[str, str] | None = getattr(record, "call_fields", None)
    return CURRENT_CALL.get().log_fields if kept is None else kept


def frames_of(record: logging.LogRecord) -> str:
    """Return the frames of a record's traceback; empty without one."""
    return "".join(traceback.format_tb(record.exc_info[2])) if record.exc_info else ""


class JsonFormatter(logging.Formatter):
    """Format one JSON object per line. vLLM's logging configuration names it too, for vLLM's processes."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        line: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "process": record.processName,
            **call_fields(record),
        }
        if record.exc_info and record.exc_info[0] is not None:
            line |= {"exception": record.exc_info[0].__name__, "frames": frames_of(record)}
        return json.dumps(line, ensure_ascii=False)


class TextFormatter(logging.Formatter):
    """Format one line of text per record."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record, and the frames of its exception."""
        fields = "".join(f" {key}={value}" for key, value in call_fields(record).items())
        text = f"{_time(record)} {record.levelname} {record.name}: {record.getMessage()}{fields}"
        if record.exc_info and record.exc_info[0] is not None:
            text += f"\n{record.exc_info[0].__name__}\n{frames_of(record)}"
        return text


class InChildren(logging.Filter):
    """Pass records in processes that vLLM starts; in this one the root logger writes vLLM's lines."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether this is a child process."""
        return multiprocessing.parent_process() is not None


class OncePerSecond(logging.Filter):
    """Pass at most one line per second, with the number of lines left out, so that clients cannot fill the log."""

    def __init__(self) -> None:
        super().__init__()
        self._next_at = 0.0
        self._left_out = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a second has passed since the last line."""
        now = time.monotonic()
        if now < self._next_at:
            self._left_out += 1
            return False
        if self._left_out:
            record.msg, record.args = f"{record.getMessage()} ({self._left_out} similar lines left out)", ()
        self._next_at, self._left_out = now + 1, 0
        return True


def silence_grpc() -> None:
    """Limit what gRPC's Python layer logs about misbehaving clients. For gRPC's core see `penstock.__init__`."""
    logger = logging.getLogger("grpc._cython.cygrpc")
    if not any(isinstance(one, OncePerSecond) for one in logger.filters):
        logger.addFilter(OncePerSecond())


def _time(record: logging.LogRecord) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"


def to_stderr(form: Format) -> logging.Handler:
    """Add a handler for stderr to the root logger, and return it."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logging.getLogger().addHandler(handler)
    return handler


def vllm_environment(form: Format, level: str, directory: Path) -> Mapping[str, str]:
    """Return the environment that makes vLLM log in the same format."""
    formatter = (
        "penstock.telemetry.logging.JsonFormatter" if form == "json" else "penstock.telemetry.logging.TextFormatter"
    )
    handler = {"class": "logging.StreamHandler", "formatter": "ours", "filters": ["in_children"]}
    settings = {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"ours": {"class": formatter}},
        "filters": {"in_children": {"()": "penstock.telemetry.logging.InChildren"}},
        "handlers": {"ours": handler},
        "loggers": {"vllm": {"handlers": ["ours"], "level": level, "propagate": True}},
    }
    path = directory / "vllm-logging.json"
    write_text(path, json.dumps(settings))
    return {"VLLM_LOGGING_CONFIG_PATH": str(path)}
