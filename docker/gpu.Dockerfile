# The service on GPUs, on the official vLLM image of the pinned version:
# `docker build -f docker/gpu.Dockerfile -t penstock:0.1.0-gpu .`
# Not built by anybody yet: there was no container engine and no GPU where this was written.
# Where a FROM line has no digest, no registry could be reached when it was written. `make digests` sets it, or renews it.
FROM vllm/vllm-openai:v0.32.0 AS build
WORKDIR /src
COPY pyproject.toml README.md ./
COPY clients/python-proto/ clients/python-proto/
COPY clients/python/ clients/python/
COPY service/ service/
RUN python3 -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels ./clients/python-proto ./clients/python .
COPY requirements/gpu.lock requirements/gpu.lock
RUN sed -n 's/^\([A-Za-z0-9._-]*==[^ ;]*\).*/\1/p' requirements/gpu.lock > /wheels/constraints.txt

FROM vllm/vllm-openai:v0.32.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Penstock (GPU)" \
      org.opencontainers.image.description="gRPC service over vLLM with thinking budgets that hold" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${REVISION}"
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/*
COPY docker/health.py docker/sbom.py /usr/local/share/penstock/
# vLLM and its CUDA packages are the image's; what Penstock adds comes in the versions of the lock.
# The lock is made for Python 3.12, which vLLM's image has: another would need another lock.
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    python3 -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12) and f"gpu.lock is for Python 3.12, the base image has {sys.version}")' \
    && python3 -m pip install --no-cache-dir --constraint /wheels/constraints.txt \
        /wheels/penstock_proto-*.whl /wheels/penstock_client-*.whl "$(echo /wheels/penstock-*.whl)[redis]" \
    && python3 -m pip check \
    && python3 /usr/local/share/penstock/sbom.py penstock-gpu > /usr/local/share/penstock/sbom.cdx.json \
    && mkdir -m 0770 /cache && chown 65532:65532 /cache
WORKDIR /
ENV HOME=/cache VLLM_CACHE_ROOT=/cache/vllm HF_HOME=/cache/huggingface PYTHONUNBUFFERED=1
USER 65532:65532
VOLUME ["/cache"]
EXPOSE 50051 9464
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=10s --start-period=90m CMD ["python3", "/usr/local/share/penstock/health.py"]
# tini is process 1: it reaps what an engine that died leaves behind, and passes signals on.
ENTRYPOINT ["tini", "--", "penstock"]
CMD ["serve", "--listen", "0.0.0.0:50051", "--insecure", "--device", "gpu"]
