# The serving image: the core dependencies with CPU ONNX Runtime and the demo bundle; no torch.
#   docker build -t unmask . && docker run --rm -p 8000:8000 unmask
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm
FROM ${PYTHON_IMAGE} AS build
WORKDIR /build
RUN python -m venv /opt/unmask
ENV PATH=/opt/unmask/bin:$PATH
COPY pyproject.toml README.md LICENSE ./
COPY service service
RUN pip install --no-cache-dir '.[cpu]'

FROM python:3.11-slim-bookworm
RUN useradd --system --uid 10001 --create-home --home-dir /var/lib/unmask unmask
COPY --from=build /opt/unmask /opt/unmask
COPY models_store/demo /srv/models_store/demo
WORKDIR /var/lib/unmask
USER unmask
ENV PATH=/opt/unmask/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    MALLOC_ARENA_MAX=2 \
    NUMBA_CACHE_DIR=/var/lib/unmask/numba \
    UNMASK_HOST=0.0.0.0 \
    UNMASK_PORT=8000 \
    UNMASK_BUNDLES_DIR=/srv/models_store \
    UNMASK_HISTORY_DIR=/var/lib/unmask/history
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health/ready', timeout=2)"]
CMD ["python", "-m", "service"]
