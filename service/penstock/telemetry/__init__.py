"""Traces, metrics and logs: the only package that imports opentelemetry; `app` imports it, and only where it is wanted."""
