# syntax=docker/dockerfile:1
# The server with CUDA 13. For older drivers, and for machines without a GPU: BASE_IMAGE, TORCH_INDEX_URL
# and DEVICE, which belong together (docs/docker.md).
#
# The base is CUDA's smallest image, which says to the container toolkit what driver is needed. Its larger
# ones (runtime, devel) hold cuBLAS, cuDNN and NCCL, which torch's wheels bring too, in the versions that
# torch was built with: they would be there twice.
ARG BASE_IMAGE=nvidia/cuda:13.0.1-base-ubuntu24.04

FROM ${BASE_IMAGE} AS build
# Versions follow the pinned base image: Ubuntu keeps only the newest of each package, so that a pin of
# ours would break the build as soon as a security fix is published.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cu130
COPY pyproject.toml setup.py constraints.txt README.md LICENSE NOTICE ./
COPY deploy deploy
COPY adapters_store adapters_store
COPY router_engine router_engine
COPY server server
COPY adaptermix adaptermix
RUN --mount=type=cache,target=/root/.cache/pip \
    INSTALL_MODE=copy deploy/install.sh /opt/adaptermix gpu,postgres
# An index without the pinned torch leaves pip to its own, whose build may want another driver than the base.
RUN cuda=$(/opt/adaptermix/bin/python -c 'import torch; print(torch.version.cuda or "")') \
    && if [ "${cuda%%.*}" != "${CUDA_VERSION%%.*}" ]; then \
        echo "torch is built for CUDA '$cuda' and BASE_IMAGE for '$CUDA_VERSION': choose a TORCH_INDEX_URL for the same" >&2; \
        exit 1; \
    fi

FROM ${BASE_IMAGE}
# Triton, which torch's CUDA build uses, compiles a launcher for each of its kernels: hence the compiler and
# Python's headers. The CPU kernels were compiled above, for every processor.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates g++ python3 python3-dev \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --create-home adaptermix \
    && install -d -o adaptermix -g adaptermix /var/cache/adaptermix
COPY --from=build /opt/adaptermix /opt/adaptermix
COPY deploy/docker/entrypoint.sh /usr/local/bin/adaptermix-entrypoint
# Not `auto`: a card or a driver that is missing is an error here, and not a slow server. What libraries
# download and compile outlives the container, too.
ARG DEVICE=cuda
ENV PATH=/opt/adaptermix/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/var/cache/adaptermix/huggingface \
    TRITON_CACHE_DIR=/var/cache/adaptermix/triton \
    TORCHINDUCTOR_CACHE_DIR=/var/cache/adaptermix/inductor \
    ADAPTERMIX_CACHE=/var/cache/adaptermix \
    ADAPTERMIX_DEVICE=$DEVICE \
    ADAPTERMIX_HOST=0.0.0.0 \
    ADAPTERMIX_LOG_FORMAT=json
USER 10001
WORKDIR /home/adaptermix
# Models, the adapter store and its metadata: what must outlive the container.
VOLUME /var/cache/adaptermix
EXPOSE 8000
# The start brings the model the first time, and a large one takes its time; after it, three failures in a
# row mean trouble.
HEALTHCHECK --interval=15s --timeout=5s --start-period=2h --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health/ready', timeout=4)"]
ENTRYPOINT ["adaptermix-entrypoint"]
