# The service on a CPU, with the small model inside: `docker build -f docker/cpu.Dockerfile -t penstock:0.1.0-cpu .`
# A bill of its Python packages is inside (/usr/local/share/penstock/sbom.cdx.json); with Debian's too, and provenance:
# `docker buildx build --sbom=true --provenance=true ...`
# Where a FROM line has no digest, no registry could be reached when it was written. `make digests` sets it, or renews it.
FROM python:3.11-slim AS build
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
WORKDIR /src
COPY requirements/ requirements/
# Every package by its hash. torch's CPU build is on PyTorch's own index, which is asked only where pip finds none; the hashes
# make a second index safe. What only builds and checks the project is taken out again. setuptools stays, torch imports it,
# and redis, which `quotas.redis_url` needs.
RUN sed -n '/^torch==/,/^[a-z]/{/^torch==/p;/^ /p}' requirements/cpu.lock > /tmp/torch.lock \
    && install="python -m pip install --no-cache-dir --no-deps --no-compile --require-hashes" \
    && { $install -r /tmp/torch.lock \
        || $install --extra-index-url https://download.pytorch.org/whl/cpu -r /tmp/torch.lock; } \
    && $install -r requirements/cpu.lock \
    && sed '/^#/d; /^setuptools$/d; /^redis$/d; /^[[:space:]]*$/d' requirements/dev.in requirements/docs.in \
        | xargs python -m pip uninstall --yes --quiet
COPY pyproject.toml README.md ./
COPY clients/python-proto/ clients/python-proto/
COPY clients/python/ clients/python/
COPY service/ service/
RUN python -m pip install --no-cache-dir --no-deps --no-build-isolation ./clients/python-proto ./clients/python .

FROM python:3.11-slim
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Penstock (CPU)" \
      org.opencontainers.image.description="gRPC service over vLLM with thinking budgets that hold" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${REVISION}"
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libnuma1 tini \
    && rm -rf /var/lib/apt/lists/*
# Into the interpreter's own prefix, not a virtual environment: vLLM's caches then go where VLLM_CACHE_ROOT says, which a
# read-only root file system needs.
COPY --from=build /usr/local /usr/local
COPY docker/health.py docker/sbom.py /usr/local/share/penstock/
ENV HOME=/cache VLLM_CACHE_ROOT=/cache/vllm HF_HOME=/cache/huggingface PYTHONUNBUFFERED=1
RUN python3 /usr/local/share/penstock/sbom.py penstock-cpu > /usr/local/share/penstock/sbom.cdx.json \
    && mkdir -m 0770 /cache && chown 65532:65532 /cache
USER 65532:65532
VOLUME ["/cache"]
EXPOSE 50051 9464
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=10s --start-period=10m CMD ["python3", "/usr/local/share/penstock/health.py"]
# tini is process 1: it reaps what an engine that died leaves behind, and passes signals on.
ENTRYPOINT ["tini", "--", "penstock"]
CMD ["serve", "--listen", "0.0.0.0:50051", "--insecure", "--device", "cpu"]
