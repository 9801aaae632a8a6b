# Jobs and workers on a GPU. Built from the project's root:
#   docker build -f infra/images/cuda.Dockerfile -t everfresh:0.1.0-cuda .
# PyTorch's wheels bring CUDA's libraries along, so the base needs none: the driver comes from the host, through NVIDIA's
# container toolkit. Everything is installed by hash.
ARG BASE=docker.io/library/python:3.11.14-slim-bookworm

FROM ${BASE} AS build
ENV PIP_NO_CACHE_DIR=1 UV_NO_CACHE=1 UV_COMPILE_BYTECODE=0 UV_LINK_MODE=copy
RUN python3 -m venv /opt/uv && /opt/uv/bin/pip install --quiet uv==0.13.9 \
 && python3 -m venv --without-pip /opt/everfresh
WORKDIR /src
COPY infra/images/requirements.lock ./
RUN /opt/uv/bin/uv pip install --quiet --python /opt/everfresh/bin/python --no-deps --require-hashes -r requirements.lock
COPY pyproject.toml README.md ./
COPY tasks tasks
COPY flows flows
COPY infra/__init__.py infra/__init__.py
COPY infra/work_pools infra/work_pools
RUN /opt/uv/bin/uv pip install --quiet --python /opt/everfresh/bin/python --no-deps .

FROM ${BASE}
LABEL org.opencontainers.image.title="everfresh"
COPY --from=build /opt/everfresh /opt/everfresh
COPY infra/work_pools /opt/everfresh/work_pools
RUN useradd --uid 10001 --create-home --home-dir /home/everfresh --shell /usr/sbin/nologin everfresh \
 && install -d -o 10001 -g 10001 /home/everfresh/cache /home/everfresh/prefect
ENV PATH=/opt/everfresh/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    EVERFRESH_CACHE=/home/everfresh/cache PREFECT_HOME=/home/everfresh/prefect \
    DO_NOT_TRACK=1 PREFECT_SERVER_ANALYTICS_ENABLED=false \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
WORKDIR /home/everfresh
HEALTHCHECK --interval=30s --timeout=10s --start-period=90s --retries=3 \
  CMD ["python3", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8080/health', timeout=8)"]
CMD ["prefect", "worker", "start", "--pool", "gpu", "--type", "process", "--with-healthcheck", \
     "--base-job-template", "/opt/everfresh/work_pools/gpu-process.json"]
