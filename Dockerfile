# The service. Build: docker build -t jobcache .
# `--target loadtest` builds the load generator instead. For the renderer `celery`, the service and its workers need one
# extra more: --build-arg EXTRAS=celery,memcached,redis,service,tracing

FROM python:3.13-slim AS build
WORKDIR /build
RUN python -m venv /venv
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY jobcache ./jobcache
ARG EXTRAS=memcached,redis,service,tracing
RUN /venv/bin/python -m pip install --no-cache-dir --disable-pip-version-check --constraint constraints.txt ".[$EXTRAS]"

FROM build AS build-loadtest
RUN /venv/bin/python -m pip install --no-cache-dir --disable-pip-version-check --constraint constraints.txt '.[client]' jinja2 locust matplotlib psutil rich tqdm

FROM python:3.13-slim AS base
RUN useradd --system --uid 10001 --home-dir /srv jobcache && mkdir -p /var/lib/jobcache/videos && chown -R jobcache /var/lib/jobcache
WORKDIR /srv
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1

FROM base AS loadtest
COPY --from=build-loadtest /venv /venv
COPY app ./app
COPY loadtests ./loadtests
USER jobcache
EXPOSE 8089
ENTRYPOINT ["locust", "-f", "loadtests/locustfile.py"]

FROM base AS service
COPY --from=build /venv /venv
COPY app ./app
RUN python -m compileall -q app
USER jobcache
ENV JOBCACHE_VAR_DIR=/var/lib/jobcache JOBCACHE_LOG_FORMAT=json
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
ENTRYPOINT ["python", "-m", "app"]
# Without API keys the service refuses to start on this address, unless JOBCACHE_INSECURE is set.
CMD ["serve", "--host", "0.0.0.0"]
