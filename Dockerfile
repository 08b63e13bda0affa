# lmsd with its exports: docker build -t lmsd .  &&  docker run --rm -v "$PWD:/work" lmsd demo
# Runs as a user without rights, in /work, where data, outputs and exports lie; a GPU needs --gpus all and a
# torch built for it (--build-arg TORCH_INDEX=INDEX).
FROM python:3.11-slim

ARG TORCH_INDEX=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1 \
    LMSD_CACHE=/work/.cache HF_HUB_OFFLINE=1

RUN apt-get update \
 && apt-get install -y --no-install-recommends git tini \
 && rm -rf /var/lib/apt/lists/*

WORKDIR /src
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY src ./src
COPY configs ./configs
RUN if [ -n "$TORCH_INDEX" ]; then pip install --index-url "$TORCH_INDEX" torch; fi \
 && pip install -c constraints.txt ".[digits,sweep,export,serve]" \
 && rm -rf /src

RUN useradd --create-home --uid 1000 lmsd && mkdir /work && chown lmsd /work
USER lmsd
WORKDIR /work
VOLUME /work
ENTRYPOINT ["tini", "--", "lmsd"]
CMD ["--help"]
