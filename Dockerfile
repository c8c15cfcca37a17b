# The images of Unmask, built from pyproject.toml's locks in deploy/requirements (`make lock`).
#   docker build -t unmask .                        the service on CPUs, with the demo bundle
#   docker build -t unmask:gpu --target gpu .       the service on NVIDIA GPUs
#   docker build -t unmask:loadtest --target loadtest .
#   docker build -t unmask:train --target train .
# Alone:  docker run --rm --read-only --tmpfs /var/lib/unmask:uid=10001 -p 127.0.0.1:8000:8000 unmask
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm

# --- What builds: pip and setuptools stay here -----------------------------------------------------
FROM ${PYTHON_IMAGE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore \
    PYTHONDONTWRITEBYTECODE=1
WORKDIR /build
COPY deploy/requirements/build.txt requirements/
RUN pip install --require-hashes --only-binary :all: -r requirements/build.txt \
    && python -m venv --without-pip /opt/unmask

FROM build AS build-cpu
COPY deploy/requirements/cpu.txt requirements/
RUN pip --python /opt/unmask/bin/python install \
    --require-hashes --only-binary :all: -r requirements/cpu.txt \
    && find /opt/unmask -depth -type d -name tests -exec rm -r {} +
COPY pyproject.toml README.md LICENSE ./
COPY service service
RUN pip wheel --no-deps --no-build-isolation --wheel-dir wheels . \
    && pip --python /opt/unmask/bin/python install --no-deps --no-index wheels/*.whl
# The kernel's machine code, for all levels of x86-64: nothing is compiled at the start.
WORKDIR /srv
COPY models_store/demo models_store/demo
RUN NUMBA_CACHE_DIR=/opt/unmask/machine_code /opt/unmask/bin/python -m service.loading.compile_ahead \
    models_store/demo/*/

FROM build AS build-gpu
COPY deploy/requirements/gpu.txt requirements/
RUN pip --python /opt/unmask/bin/python install \
    --require-hashes --only-binary :all: -r requirements/gpu.txt \
    && find /opt/unmask -depth -type d -name tests -exec rm -r {} +
COPY --from=build-cpu /build/wheels wheels
RUN pip --python /opt/unmask/bin/python install --no-deps --no-index wheels/*.whl
WORKDIR /srv
COPY models_store/demo models_store/demo
RUN NUMBA_CACHE_DIR=/opt/unmask/machine_code /opt/unmask/bin/python -m service.loading.compile_ahead \
    models_store/demo/*/

FROM build AS build-loadtest
COPY deploy/requirements/loadtest.txt requirements/
RUN pip --python /opt/unmask/bin/python install \
    --require-hashes --only-binary :all: -r requirements/loadtest.txt

FROM build AS build-train
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY deploy/requirements/train.txt requirements/
RUN pip --python /opt/unmask/bin/python install --extra-index-url "$TORCH_INDEX" \
    --require-hashes --only-binary :all: -r requirements/train.txt
COPY pyproject.toml README.md LICENSE ./
COPY service service
COPY training training
RUN pip wheel --no-deps --no-build-isolation --wheel-dir wheels . \
    && pip --python /opt/unmask/bin/python install --no-deps --no-index wheels/*.whl

# --- What runs: not as root, and nothing but /var/lib/unmask is written to ------------------------
FROM ${PYTHON_IMAGE} AS run
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Unmask" \
    org.opencontainers.image.description="Online recommendation by masked diffusion over semantic IDs" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="$VERSION" \
    org.opencontainers.image.revision="$REVISION"
RUN useradd --system --uid 10001 --user-group --create-home --home-dir /var/lib/unmask unmask
WORKDIR /var/lib/unmask
USER 10001
# ONNX Runtime's own builds send usage data to its maker, unless told not to.
ENV PATH=/opt/unmask/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 ORT_DISABLE_TELEMETRY=1

FROM run AS loadtest
COPY --from=build-loadtest /opt/unmask /opt/unmask
COPY loadtest /srv/loadtest
ENV PYTHONPATH=/srv HOME=/tmp
EXPOSE 8089
CMD ["locust", "-f", "/srv/loadtest/locustfile.py"]

FROM run AS train
USER root
RUN install -d -o 10001 -g 10001 /runs
USER 10001
COPY --from=build-train /opt/unmask /opt/unmask
ENV HOME=/tmp NUMBA_CACHE_DIR=/tmp/numba
ENTRYPOINT ["python", "-m", "training"]
CMD ["--help"]

FROM run AS service
ENV MALLOC_ARENA_MAX=2 \
    NUMBA_CACHE_DIR=/opt/unmask/machine_code \
    UNMASK_HOST=0.0.0.0 \
    UNMASK_BUNDLES_DIR=/srv/models_store \
    UNMASK_HISTORY_DIR=/var/lib/unmask/history
COPY models_store/demo /srv/models_store/demo
EXPOSE 8000
HEALTHCHECK --interval=5s --timeout=3s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health/ready', timeout=2)"]
CMD ["python", "-m", "service"]

FROM service AS gpu
COPY --from=build-gpu /opt/unmask /opt/unmask
# Where CUDA and cuDNN are, which came as packages; libcuda itself comes from the host's driver.
ENV LD_LIBRARY_PATH=/opt/unmask/lib/python3.11/site-packages/nvidia/cu13/lib:/opt/unmask/lib/python3.11/site-packages/nvidia/cudnn/lib \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    UNMASK_PROVIDER=cuda

FROM service AS cpu
COPY --from=build-cpu /opt/unmask /opt/unmask
