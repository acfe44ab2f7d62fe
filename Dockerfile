# The gateway with the committed models; no torch.
#   docker build -t tilesight . && docker run --rm --read-only -p 8000:8000 tilesight

FROM python:3.11-slim-bookworm AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY tilesight tilesight
COPY training training
COPY export export
COPY serving serving
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .
RUN python -m venv /opt/tilesight \
    && /opt/tilesight/bin/pip install --no-cache-dir -c constraints.txt "$(ls /wheels/*.whl)[serve]"

FROM python:3.11-slim-bookworm
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin tilesight
COPY --from=build /opt/tilesight /opt/tilesight
COPY model_repository /srv/model_repository
# Nothing is written at run time: the root file system may be read-only.
ENV PATH=/opt/tilesight/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    TILESIGHT_HOST=0.0.0.0 \
    TILESIGHT_PORT=8000 \
    TILESIGHT_MODEL_REPOSITORY=/srv/model_repository
WORKDIR /srv
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen(f'http://127.0.0.1:{os.environ[\"TILESIGHT_PORT\"]}/healthz', timeout=2)"]
# exec form: the signals of `docker stop` reach the gateway, which then finishes what it has begun.
CMD ["tilesight", "serve"]
