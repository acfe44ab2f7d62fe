# The gateway with the committed models; no torch.
#
#   docker build -t tilesight .                     # for CPUs: the last stage
#   docker build -t tilesight:gpu --target gpu .    # for NVIDIA GPUs, driver 580 or later
#   docker run --rm --read-only --tmpfs /tmp --cap-drop ALL -p 8000:8000 tilesight
#
# A tag can be moved, a digest cannot. The digest of this tag is not written here because it was
# not at hand when this was written: whoever builds for production looks it up once and gives it,
#   --build-arg PYTHON_IMAGE=python:3.11.16-slim-bookworm@sha256:...
ARG PYTHON_IMAGE=python:3.11.16-slim-bookworm

FROM ${PYTHON_IMAGE} AS source
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY tilesight tilesight
COPY training training
COPY export export
COPY serving serving

FROM source AS build-cpu
# For more than the gateway needs: --build-arg EXTRAS=serve,openvino
ARG EXTRAS=serve
# The same release of ONNX Runtime without CUDA is a fifth of its size. The name is changed
# before anything is built, so that what is installed and what the metadata asks for agree.
RUN sed -i 's/onnxruntime-gpu/onnxruntime/' pyproject.toml constraints.txt \
    && python -m venv --without-pip /opt/tilesight \
    && pip --python /opt/tilesight/bin/python install --no-cache-dir -c constraints.txt ".[${EXTRAS}]" \
    && pip --python /opt/tilesight/bin/python check

FROM source AS build-gpu
ARG EXTRAS=serve
# The wheel names the CUDA libraries that it was built for: pinned like everything else, in the
# bill of materials like everything else, and a fraction of a CUDA base image.
RUN python -m venv --without-pip /opt/tilesight \
    && pip --python /opt/tilesight/bin/python install --no-cache-dir -c constraints.txt \
        ".[${EXTRAS}]" "onnxruntime-gpu[cuda,cudnn]" \
    && pip --python /opt/tilesight/bin/python check

FROM ${PYTHON_IMAGE} AS runtime
ARG VERSION=unreleased
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Tilesight" \
    org.opencontainers.image.description="Aerial and satellite tiles into words: labels, captions, answers" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}"
RUN useradd --system --uid 10001 --no-create-home --home-dir /nonexistent \
    --shell /usr/sbin/nologin tilesight \
    && install --directory --owner 10001 --group 10001 /var/cache/tilesight
COPY model_repository /srv/model_repository
# Two places are written to: /tmp, which must be writable (spooled bodies, counts of workers), and
# the cache, which had better last (what the autotune found). The rest may be read-only.
ENV PATH=/opt/tilesight/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    ORT_DISABLE_TELEMETRY=1 \
    TILESIGHT_HOST=0.0.0.0 \
    TILESIGHT_PORT=8000 \
    TILESIGHT_CACHE_DIR=/var/cache/tilesight \
    TILESIGHT_MODEL_REPOSITORY=/srv/model_repository
WORKDIR /srv
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen(f'http://127.0.0.1:{os.environ[\"TILESIGHT_PORT\"]}/healthz', timeout=2)"]
# exec form: the signals of `docker stop` reach the gateway, which then finishes what it has begun.
CMD ["tilesight", "serve"]

FROM runtime AS gpu
# What the container runtime brings from the host; it refuses to start where the driver is older.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    NVIDIA_REQUIRE_CUDA="cuda>=13.0"
COPY --from=build-gpu /opt/tilesight /opt/tilesight

FROM runtime AS cpu
COPY --from=build-cpu /opt/tilesight /opt/tilesight
