# One image for every task: Airflow, Spark (Java 17), torchrun, the jobs. The base is an argument, so that a Debian
# with Python 3.11 from anywhere will do.
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE}

ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends openjdk-17-jre-headless procps tini \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/dig
COPY requirements.lock pyproject.toml README.md LICENSE ./
RUN python3 -m venv /opt/venv && /opt/venv/bin/pip install -r requirements.lock
COPY dags ./dags
COPY jobs ./jobs
COPY dig_models ./dig_models
COPY conf ./conf
RUN /opt/venv/bin/pip install --no-deps -e . \
    && useradd --create-home --uid 10001 dig \
    && mkdir -p /var/lib/dig && chown dig:dig /var/lib/dig

ENV PATH=/opt/venv/bin:$PATH AIRFLOW__CORE__DAGS_FOLDER=/opt/dig/dags AIRFLOW__CORE__LOAD_EXAMPLES=False DIG_PATHS__HOME=/var/lib/dig
USER dig
VOLUME /var/lib/dig
HEALTHCHECK --interval=1m --timeout=20s CMD ["dig", "config", "show", "--json"]
ENTRYPOINT ["/usr/bin/tini", "--", "dig"]
CMD ["--help"]
