# One image for every task: Airflow's processes, Spark (Java 17 or newer), torchrun, the jobs, `dig`.
#
# BASE is any Debian 12 or newer that has Python 3.11 or can install it. How this host reaches its package index is handed in, not written
# here: a pip.conf as the build secret `pip`, folders that it names as volumes. `make image-test` shows both, and tests what it built.
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE}

ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="dig-pipeline" \
      org.opencontainers.image.description="Daily training of a ranker and a semantic-ID retriever: Airflow, Spark, Torch, MLflow" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0"

ENV JAVA_HOME=/opt/java \
    PATH=/opt/venv/bin:/opt/java/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    AIRFLOW_HOME=/var/lib/dig/airflow \
    AIRFLOW__CORE__DAGS_FOLDER=/opt/dig/dags \
    AIRFLOW__CORE__LOAD_EXAMPLES=False \
    DIG_PATHS__HOME=/var/lib/dig
# Asks whatever this container was started for; a job's own health is its exit status.
HEALTHCHECK --interval=60s --timeout=45s --start-period=120s --retries=3 CMD ["python", "-m", "jobs.health"]
ENTRYPOINT ["/usr/bin/tini", "--"]
CMD ["dig", "--help"]
WORKDIR /opt/dig
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]

# What says something comes first, what weighs something last, and in it what changes least: a store that copies layers whole stays small.
# A Debian without Java 17 has a newer one, which Spark runs on as well.
RUN export DEBIAN_FRONTEND=noninteractive \
    && apt-get update \
    && java=openjdk-17-jre-headless && { [ -n "$(apt-cache madison "$java")" ] || java=default-jre-headless; } \
    && python="" && { command -v python3.11 >/dev/null || python="python3.11 python3.11-venv"; } \
    && apt-get install -y --no-install-recommends ca-certificates procps tini "$java" ${python} \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/log/apt /var/log/dpkg.log \
    && ln -s "$(dirname "$(dirname "$(readlink -f "$(command -v java)")")")" /opt/java \
    && useradd --create-home --uid 10001 --shell /usr/sbin/nologin dig \
    && install -d -o dig -g dig /var/lib/dig
VOLUME /var/lib/dig

# The locked packages before the sources: a change of code does not install them again.
COPY requirements.lock ./
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    python3.11 -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir --disable-pip-version-check -r requirements.lock

COPY . .
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    /opt/venv/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps -e . \
    && /opt/venv/bin/python -m compileall -q dags jobs dig_models

USER dig
