# One image for API, worker, dashboard and commands; compose.yaml runs them together.
FROM python:3.11-slim-bookworm AS build
# The user of the running image can store no bytecode, so it is compiled here.
ENV UV_PYTHON_DOWNLOADS=never UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1
RUN pip install --no-cache-dir uv==0.9.5 && uv venv /opt/venv
WORKDIR /source
COPY pyproject.toml requirements.lock README.md LICENSE ./
COPY experiment_service experiment_service
COPY policies policies
COPY recommenders recommenders
COPY dashboard dashboard
COPY migrations migrations
# Such as [mlflow].
ARG EXTRAS=
# The lock file chooses the versions; without the groups for demo and development.
RUN uv pip install --no-cache --python /opt/venv --constraint requirements.lock ".$EXTRAS"

FROM python:3.11-slim-bookworm
RUN groupadd --system --gid 10001 service \
    && useradd --system --uid 10001 --gid service --no-log-init \
        --create-home --home-dir /var/lib/experiment-service service
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    EXPERIMENT_SERVICE_DATA_DIR=/var/lib/experiment-service \
    EXPERIMENT_SERVICE_HOST=0.0.0.0 \
    EXPERIMENT_SERVICE_LOG_FORMAT=json
USER 10001:10001
WORKDIR /var/lib/experiment-service
VOLUME /var/lib/experiment-service
EXPOSE 8000 8501
ENTRYPOINT ["experiment-service"]
CMD ["serve"]
