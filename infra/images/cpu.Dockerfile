# Server, workers and jobs without a GPU. Built from the project's root:
#   docker build -f infra/images/cpu.Dockerfile -t everfresh:0.1.0-cpu .
# All is installed by hash from infra/images/requirements.lock, but for torch and torchvision: their builds without CUDA,
# a quarter in size, come in the lock's versions from PyTorch's own index. TORCH_INDEX= takes the lock's instead.
ARG BASE=docker.io/library/python:3.11.14-slim-bookworm

FROM ${BASE} AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 UV_NO_CACHE=1 UV_COMPILE_BYTECODE=0 UV_LINK_MODE=copy
RUN python3 -m venv /opt/uv && /opt/uv/bin/pip install --quiet uv==0.13.9 \
 && python3 -m venv --without-pip /opt/everfresh
WORKDIR /src
COPY infra/images/requirements.lock ./
# The lock's logical lines, each a package with its hashes; awk leaves out what the other build of torch does not need.
RUN install() { /opt/uv/bin/uv pip install --quiet --python /opt/everfresh/bin/python --no-deps "$@"; } \
 && if [ -z "${TORCH_INDEX}" ]; then install --require-hashes -r requirements.lock; else \
      awk '/^[a-z]/ { keep = !/^((torch|torchvision|triton)==|nvidia-|cuda-)/ } keep' requirements.lock > without-torch.lock \
   && install --require-hashes -r without-torch.lock \
   && awk '/^torch(vision)?==/ { print $1 }' requirements.lock > torch.txt \
   && install --index-url "${TORCH_INDEX}" -r torch.txt; fi
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
# The same folder is home on every machine, so that a worker's user needs no name there.
RUN useradd --uid 10001 --create-home --home-dir /home/everfresh --shell /usr/sbin/nologin everfresh \
 && install -d -o 10001 -g 10001 /home/everfresh/cache /home/everfresh/prefect
ENV PATH=/opt/everfresh/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    EVERFRESH_CACHE=/home/everfresh/cache PREFECT_HOME=/home/everfresh/prefect \
    DO_NOT_TRACK=1 PREFECT_SERVER_ANALYTICS_ENABLED=false
USER 10001:10001
WORKDIR /home/everfresh
# Of a worker; a server is asked by what runs it, and a job ends by itself.
HEALTHCHECK --interval=30s --timeout=10s --start-period=90s --retries=3 \
  CMD ["python3", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8080/health', timeout=8)"]
CMD ["prefect", "worker", "start", "--pool", "cpu", "--type", "process", "--with-healthcheck", \
     "--base-job-template", "/opt/everfresh/work_pools/cpu-process.json"]
