# The image of all parts: code server (what it starts by itself), webserver, daemon, Celery worker, and runs on ECS and Kubernetes.
# What is in it is decided by deploy/image.sh, by which a test builds the same without Docker.
#
#   docker build -t migration-pipeline .
#   docker build -t migration-pipeline --build-arg EXTRAS=kubernetes .
ARG PYTHON=3.12

FROM python:${PYTHON}-slim-bookworm AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends gcc libc6-dev \
 && rm -rf /var/lib/apt/lists/*
ENV PIP_NO_CACHE_DIR=1
COPY . /source
ARG EXTRAS=celery
RUN /source/deploy/image.sh /source /opt/migration "$EXTRAS"

FROM python:${PYTHON}-slim-bookworm
RUN useradd --system --uid 10001 --user-group --no-create-home migration
COPY --from=build /opt/migration /opt/migration
# A pause of the machine longer than the 30 seconds that Dagster has here would leave the code server without code, and healthy:
# findings/dagster-code-server-ends-in-a-pause.sh.
# Dagster puts temporary files of its own beside its dagster.yaml. Profiles are mounted at /opt/profiles, or copied there by an
# image that is built on this one.
RUN chown -R migration:migration /opt/migration/homes && mkdir /opt/profiles
ENV PATH=/opt/migration/bin:$PATH \
    PYTHONPATH=/opt/profiles \
    PYTHONUNBUFFERED=1 \
    DAGSTER_DISABLE_TELEMETRY=yes \
    DAGSTER_GRPC_PROXY_HEARTBEAT_TTL_SECONDS=604800 \
    DAGSTER_HOME=/opt/migration/homes/celery \
    MIGRATION_ACCELERATOR=required
USER 10001
WORKDIR /opt/profiles
EXPOSE 4000
HEALTHCHECK --interval=15s --timeout=10s --start-period=60s --retries=4 \
    CMD ["dagster", "api", "grpc-health-check", "-p", "4000"]
# A command, and no entry point: ECS and Kubernetes put a run's own command in its place.
CMD ["dagster", "code-server", "start", "-h", "0.0.0.0", "-p", "4000", "-m", "migration_pipeline.definitions"]
