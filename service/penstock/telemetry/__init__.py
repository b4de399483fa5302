"""Traces, metrics and logs: the only room that imports opentelemetry, entered by `app` alone and only where wanted."""
