# OpenAI's HTTP API in front of the service, without an engine: `docker build -f docker/gateway.Dockerfile -t penstock-gateway:0.1.0 .`
# Where a FROM line has no digest, no registry could be reached when it was written. `make digests` sets it, or renews it.
FROM python:3.11-slim AS build
WORKDIR /src
COPY requirements/cpu.lock requirements/cpu.lock
COPY clients/python-proto/ clients/python-proto/
COPY clients/python/ clients/python/
COPY gateway/ gateway/
# Compiled here, because nothing can be written there.
RUN sed -n 's/^\([A-Za-z0-9._-]*==[^ ;]*\).*/\1/p' requirements/cpu.lock > /tmp/constraints.txt \
    && python -m pip install --no-cache-dir --compile --target /gateway --constraint /tmp/constraints.txt \
        ./clients/python-proto ./clients/python "./gateway[otlp]"

FROM python:3.11-slim
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Penstock gateway" \
      org.opencontainers.image.description="OpenAI's HTTP API in front of a Penstock service" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /gateway /opt/penstock-gateway
ENV PYTHONPATH=/opt/penstock-gateway PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PENSTOCK_GATEWAY_LISTEN=[::]:8080
COPY docker/sbom.py docker/gateway_health.py /usr/local/share/penstock/
RUN python3 /usr/local/share/penstock/sbom.py penstock-gateway > /usr/local/share/penstock/sbom.cdx.json
USER 65532:65532
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=10s --start-period=10s CMD ["python3", "/usr/local/share/penstock/gateway_health.py"]
# It starts no processes, so it needs no init: Python is process 1 and handles SIGTERM.
ENTRYPOINT ["python3", "-m", "penstock_gateway"]
