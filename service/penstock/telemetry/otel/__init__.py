"""Export traces, metrics and logs. The only package that imports opentelemetry."""
