# Untried: no Docker daemon was at hand when this was written.
#
#   docker build --target cpu --build-arg TORCH_INDEX=URL --tag distil-cache:cpu .
#   docker build --target cuda --tag distil-cache:cuda .
#   docker run --rm --shm-size 2g --volume "$PWD:/work" distil-cache:cpu build photos --cache cache --dataset mine --profile small
#   docker run --rm --gpus all --shm-size 2g --volume "$PWD:/work" distil-cache:cuda …
#
# TORCH_INDEX is the index of PyTorch's wheels without CUDA, as its installation page names it. Without it the image for CPUs
# works too and holds the CUDA libraries, gigabytes that it does not use.
# The default wheels of PyTorch bring the CUDA libraries; the host needs the driver and the NVIDIA Container Toolkit.

FROM python:3.11-slim AS wheel
WORKDIR /source
COPY . .
RUN pip install --no-cache-dir build && python -m build --wheel --outdir /dist .

FROM python:3.11-slim AS base
COPY .ci/constraints.txt /constraints.txt
ENV PIP_CONSTRAINT=/constraints.txt \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONUNBUFFERED=1 \
    XDG_CACHE_HOME=/work/.cache
RUN useradd --create-home user && mkdir /work && chown user /work
WORKDIR /work

FROM base AS cpu
ARG TORCH_INDEX=
RUN --mount=type=bind,from=wheel,source=/dist,target=/dist \
    if [ -n "$TORCH_INDEX" ]; then pip install --index-url "$TORCH_INDEX" torch torchvision; fi \
    && pip install "$(echo /dist/*.whl)[demo,cluster,s3]"
USER user
ENTRYPOINT ["distil-cache"]

FROM base AS cuda
RUN --mount=type=bind,from=wheel,source=/dist,target=/dist pip install "$(echo /dist/*.whl)[demo,cluster,s3]"
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER user
ENTRYPOINT ["distil-cache"]
