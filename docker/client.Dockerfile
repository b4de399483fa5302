# The Python client alone, for `helm test` and for trying: `docker build -f docker/client.Dockerfile -t penstock-client:0.1.0 .`
# Where a FROM line has no digest, no registry could be reached when it was written. `make digests` sets it, or renews it.
FROM python:3.11-slim AS build
WORKDIR /src
COPY requirements/cpu.lock requirements/cpu.lock
COPY clients/python-proto/ clients/python-proto/
COPY clients/python/ clients/python/
RUN sed -n 's/^\([A-Za-z0-9._-]*==[^ ;]*\).*/\1/p' requirements/cpu.lock > /tmp/constraints.txt \
    && python -m pip install --no-cache-dir --target /client --constraint /tmp/constraints.txt \
        ./clients/python-proto ./clients/python

FROM python:3.11-slim
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Penstock client" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /client /opt/penstock-client
ENV PYTHONPATH=/opt/penstock-client
COPY docker/sbom.py /usr/local/share/penstock/sbom.py
RUN python3 /usr/local/share/penstock/sbom.py penstock-client > /usr/local/share/penstock/sbom.cdx.json
# Runs to an end; nothing serves here.
HEALTHCHECK NONE
USER 65532:65532
ENTRYPOINT ["python3"]
