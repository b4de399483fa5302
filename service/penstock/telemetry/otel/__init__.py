"""Traces, metrics and logs: the only package that imports opentelemetry; `app` imports it where it is wanted."""
