"""The image, compose.yaml and deploy/: what they name exists, and nginx passes polls on.

`make deployment` compares the files with the schemas of Compose and Kubernetes, which are large.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import yaml

from app import __main__ as command_line
from app import settings
from app.devservers import RedisServer, free_port
from app.main import create_app
from benchmarks.nginx import nginx_program
from tests.app.process import serving

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
LIMIT = 60


def documents(path: Path) -> list[dict[str, Any]]:
    return [each for each in yaml.safe_load_all(path.read_text()) if each is not None]


COMPOSE = documents(ROOT / "compose.yaml")[0]
KUBERNETES = documents(DEPLOY / "kubernetes.yaml")
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def instructions(word: str) -> list[str]:
    return re.findall(rf"^{word} (.*)$", DOCKERFILE, re.MULTILINE)


def pods() -> list[dict[str, Any]]:
    return [
        each["spec"]["template"]["spec"]
        for each in KUBERNETES
        if "template" in each.get("spec", {})
    ]


def containers() -> list[dict[str, Any]]:
    return [container for pod in pods() for container in pod["containers"]]


def kind(name: str) -> dict[str, Any]:
    (found,) = [each for each in KUBERNETES if each["kind"] == name]
    return found


def unit() -> list[tuple[str, str]]:
    lines = (DEPLOY / "jobcache.service").read_text().splitlines()
    return [(name, value) for name, _, value in (line.partition("=") for line in lines) if value]


def composed(service: str, **given: str) -> dict[str, str]:
    """Return the environment of a service, with the variables that the user of Compose gives."""
    return {
        name: re.sub(r"\$\{(\w+):-([^}]*)\}", lambda it: given.get(it[1], it[2]), value)
        for name, value in COMPOSE["services"][service]["environment"].items()
    }


def environments() -> Iterator[tuple[str, dict[str, str]]]:
    yield "compose.yaml", composed("service-1")
    yield "compose.yaml, celery", composed("service-1", JOBCACHE_RENDERER="celery")
    yield "kubernetes.yaml", kind("ConfigMap")["data"]
    (in_unit,) = [value for name, value in unit() if name == "Environment"]
    yield "jobcache.service", dict(part.split("=", 1) for part in in_unit.split())
    in_image = dict(part.split("=", 1) for line in instructions("ENV") for part in line.split())
    yield "Dockerfile", {name: it for name, it in in_image.items() if name.startswith("JOBCACHE_")}


@pytest.mark.parametrize("environment", [pytest.param(it, id=file) for file, it in environments()])
def test_every_variable_is_a_setting_and_its_value_is_allowed(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert environment
    assert environment.keys() <= {each.variable for each in settings.listed()}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("JOBCACHE_VAR_DIR", str(tmp_path))
    settings.load()


def arguments() -> Iterator[list[str]]:
    (entry_point,) = [json.loads(line) for line in instructions("ENTRYPOINT") if "-m" in line]
    assert entry_point == ["python", "-m", "app"]
    yield from (json.loads(line) for line in instructions("CMD"))
    yield from (
        service["command"]
        for service in COMPOSE["services"].values()
        if service["image"] == "jobcache" and "command" in service and "entrypoint" not in service
    )
    yield from (each["args"] for each in containers() if "args" in each)
    start = shlex.split(dict(unit())["ExecStart"])
    assert start[1:3] == ["-m", "app"]
    yield start[3:]


@pytest.mark.parametrize("words", list(arguments()), ids=" ".join)
def test_the_service_understands_every_command(words: list[str]) -> None:
    command_line._parser().parse_args(words)


def test_the_image_copies_what_exists_and_does_not_run_as_root() -> None:
    allowed = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    }
    stages = {line.split()[-1] for line in instructions("FROM")}
    for line in instructions("FROM"):
        assert line.split()[0] in stages or line.startswith("python:3.13-slim ")
    for line in instructions("COPY"):
        *sources, _ = line.split()
        if sources[0].startswith("--from="):
            assert sources[0].removeprefix("--from=") in stages
            continue
        for source in sources:
            assert source in allowed, "else .dockerignore hides it"
            assert (ROOT / source).exists()
    final = DOCKERFILE.rpartition("FROM ")[2]
    assert final.startswith("base AS service")
    assert "\nUSER jobcache\n" in final
    targets = {each["build"]["target"] for each in COMPOSE["services"].values() if "build" in each}
    assert targets <= stages


def test_every_probe_asks_a_path_that_needs_no_key(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("JOBCACHE_VAR_DIR", str(tmp_path))
    routes = {getattr(route, "path", "") for route in create_app(settings.load()).routes}
    probed = re.findall(r"http://127\.0\.0\.1:8000(/\w+)", DOCKERFILE)
    for container in containers():
        probed += [
            it["httpGet"]["path"] for name, it in container.items() if name.endswith("Probe")
        ]
    assert probed == ["/healthz", "/readyz", "/healthz", "/healthz"]
    assert set(probed) <= routes
    check = json.loads(instructions("HEALTHCHECK")[0].partition("CMD ")[2])
    compile(check[2], "HEALTHCHECK", "exec")


def test_compose_names_files_services_and_volumes_that_exist() -> None:
    services = COMPOSE["services"]
    assert services["service-1"] == services["service-2"]
    for service in services.values():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert source in COMPOSE["volumes"] or (ROOT / source).is_file(), source
        assert set(service.get("depends_on", ())) <= services.keys()
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), "there are no keys"
    environment = services["service-1"]["environment"]
    hosts = set(environment["JOBCACHE_ALLOWED_HOSTS"].split(","))
    scraped = documents(DEPLOY / "prometheus.yml")[0]["scrape_configs"][0]["static_configs"][0]
    for target in scraped["targets"]:
        assert target.partition(":")[0] in services.keys() & hosts
        assert f"server {target} " in (DEPLOY / "nginx.conf").read_text()
    assert "http://proxy:8080" in services["locust"]["command"]
    assert {"proxy"} <= hosts
    (rules,) = documents(DEPLOY / "prometheus.yml")[0]["rule_files"]
    assert (DEPLOY / rules).exists()
    for name in ("datasource", "dashboards"):
        assert documents(DEPLOY / "grafana" / f"{name}.yaml")[0]["apiVersion"] == 1


def test_images_have_extras_that_exist_and_those_of_compose_have_celery() -> None:
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (by_default,) = [line.removeprefix("EXTRAS=").split(",") for line in instructions("ARG")]
    assert '".[$EXTRAS]"' in DOCKERFILE
    built = {
        service["image"]: service["build"]["args"]["EXTRAS"].split(",")
        for service in COMPOSE["services"].values()
        if "build" in service
    }
    for extras in (by_default, *built.values()):
        assert {"service"} < set(extras) <= known.keys()
    assert set(built["jobcache"]) == {*by_default, "celery"}
    (named,) = re.findall(r"--build-arg EXTRAS=(\S+)", DOCKERFILE)
    assert named.split(",") == built["jobcache"]


def test_the_workers_of_compose_share_all_but_the_broker_with_the_cache() -> None:
    services = COMPOSE["services"]
    worker, broker = services["worker"], services["broker"]
    assert worker["profiles"] == broker["profiles"]
    for shared in ("image", "environment", "volumes"):
        assert worker[shared] == services["service-1"][shared]
    assert worker["healthcheck"] == {"disable": True}, "that of the image asks for a response"
    urls = {name: worker["environment"][name] for name in ("CELERY_BROKER_URL", "REDIS_URL")}
    hosts = {name: urlsplit(url).hostname for name, url in urls.items()}
    assert hosts == {"CELERY_BROKER_URL": "broker", "REDIS_URL": "valkey"}
    policies = {
        name: services[name]["command"][services[name]["command"].index("--maxmemory-policy") + 1]
        for name in hosts.values()
    }
    assert policies == {"broker": "noeviction", "valkey": "allkeys-lru"}


@contextmanager
def working(directory: Path, variables: dict[str, str]) -> Iterator[None]:
    """Run the worker of compose.yaml, with these variables and no others."""
    worker = COMPOSE["services"]["worker"]
    command = [*worker["entrypoint"], *worker["command"]]
    program = Path(sys.executable).with_name(command[0])
    log = directory / "worker.txt"
    with log.open("wb") as output:
        child = subprocess.Popen(
            [program, *command[1:]],
            cwd=directory,
            env=variables,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # to be killed with its children
        )
    try:
        yield
        child.terminate()
        assert child.wait(LIMIT) == 0
    except BaseException:
        print(log.read_text())  # noqa: T201 - pytest shows it with the failure
        raise
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def test_the_worker_of_compose_renders_what_the_service_accepts(tmp_path: Path) -> None:
    """Their files and servers are of this test; all else is as compose.yaml says."""
    (tmp_path / "app").symlink_to(ROOT / "app")
    with RedisServer() as cache, RedisServer() as broker:
        variables = composed("worker", JOBCACHE_RENDERER="celery") | {
            "REDIS_URL": cache.url,
            "CELERY_BROKER_URL": broker.url,
            "DATABASE_URL": f"sqlite:///{tmp_path}/jobs.db",
            "JOBCACHE_VAR_DIR": str(tmp_path / "var"),
        }
        with serving(tmp_path, **variables) as service, working(tmp_path, variables):
            job = service.rendering(prompt="A cat.")
            service.until(job, "completed")
            assert service.http.get(f"/api/v2/jobs/{job}/video").status_code == 200


def test_the_objects_of_kubernetes_belong_together() -> None:
    deployment = kind("Deployment")["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    for selector in (
        deployment["selector"]["matchLabels"],
        kind("Service")["spec"]["selector"],
        kind("PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()
    assert kind("Job")["spec"]["template"]["metadata"]["labels"]["app"] != labels["app"]
    assert kind("PodDisruptionBudget")["spec"]["minAvailable"] < deployment["replicas"]
    pod = deployment["template"]["spec"]
    (container,) = pod["containers"]
    assert {each["name"] for each in container["volumeMounts"]} == {
        each["name"] for each in pod["volumes"]
    }
    assert container["ports"][0]["name"] == kind("Service")["spec"]["ports"][0]["targetPort"]
    for each in containers():
        assert each["securityContext"]["readOnlyRootFilesystem"] is True
    # The links of the Service would be variables of every pod.
    links = {f"{kind('Service')['metadata']['name']}_PORT".upper()}
    assert links <= {each.variable for each in settings.listed()}
    assert len(pods()) == 2
    assert all(each["enableServiceLinks"] is False for each in pods())
    grace = pod["terminationGracePeriodSeconds"]
    # uvicorn gives requests ten seconds.
    assert container["lifecycle"]["preStop"]["sleep"]["seconds"] + 10 < grace


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    text = (DEPLOY / "jobcache.service").read_text()
    installed = "/opt/jobcache/.venv/bin/python"
    assert installed in text
    copy = tmp_path / "jobcache.service"
    copy.write_text(
        text.replace(installed, sys.executable).replace("WorkingDirectory=/opt/jobcache", "")
    )
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", copy],
        check=False,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert (done.returncode, done.stderr) == (0, "")


@contextmanager
def proxied(directory: Path, service: int) -> Iterator[str]:
    """Run nginx with our configuration: one server is the service, the other one is dead."""
    program = nginx_program()
    assert program is not None
    port = free_port()
    text = (DEPLOY / "nginx.conf").read_text()
    for before, after in (
        ("service-1:8000", f"127.0.0.1:{free_port()}"),
        ("service-2:8000", f"127.0.0.1:{service}"),
        ("listen 8080;", f"listen 127.0.0.1:{port};"),
        ("worker_processes auto;\n", "worker_processes 1;\ndaemon off;\n"),
        ("worker_rlimit_nofile 65536;\n", ""),
        ("worker_connections 16384;", "worker_connections 256;"),
        ("/tmp/nginx.pid", f"{directory}/pid"),  # noqa: S108 - in its image
        (
            "    access_log off;\n",
            "    access_log off;\n"
            + "".join(
                f"    {each}_temp_path {directory}/{each};\n"
                for each in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
            ),
        ),
    ):
        assert text.count(before) == 1, before
        text = text.replace(before, after)
    configuration = directory / "nginx.conf"
    configuration.write_text(text)
    command = [program, "-p", str(directory), "-e", "stderr", "-c", str(configuration)]
    subprocess.run([*command, "-t"], check=True, capture_output=True, timeout=LIMIT)
    with subprocess.Popen(command, stderr=subprocess.PIPE) as nginx:
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            nginx.terminate()


async def connected(http: httpx.AsyncClient) -> None:
    async with asyncio.timeout(LIMIT):
        while True:
            try:
                first = await http.get("/healthz")
            except httpx.TransportError:
                await asyncio.sleep(0.02)
            else:
                assert first.status_code == 200, "the dead server is passed over"
                return


@pytest.mark.skipif(nginx_program() is None, reason="nginx is not installed")
async def test_polls_held_requests_and_streams_pass_through_nginx(tmp_path: Path) -> None:
    with (
        serving(tmp_path, JOBCACHE_RENDERER="simulated") as service,
        proxied(tmp_path, service.port) as url,
    ):
        async with httpx.AsyncClient(base_url=url, timeout=LIMIT) as http:
            await connected(http)
            body = {"client_id": "acme", "prompt": "A cat sits.", "renderer": "external"}
            job = (await http.post("/api/v2/jobs", json=body)).raise_for_status().json()
            path = f"/api/v2/jobs/{job['id']}"
            async with asyncio.timeout(LIMIT):
                while (job := (await http.get(path)).json())["status"] != "storyboard_ready":
                    await asyncio.sleep(0.01)
            polled = [await http.get(path) for _ in range(8)]
            assert {each.status_code for each in polled} == {200}
            assert all("hit" in each.headers["cache-status"] for each in polled[1:])
            made = {each.headers["x-request-id"] for each in polled}
            assert len(made) == 8, "nginx gives each request an id"
            named = await http.get(path, headers={"X-Request-Id": "mine"})
            assert named.headers["x-request-id"] == "mine"
            assert (await http.get("/metrics")).status_code == 404
            prefixed = {"X-Forwarded-Prefix": "/x"}
            assert (await http.get("/x/metrics", headers=prefixed)).status_code == 404

            wait = {"Prefer": "wait=50", "If-None-Match": named.headers["etag"]}
            waiting = asyncio.create_task(http.get(path, headers=wait))
            async with http.stream("GET", f"{path}/events") as stream, asyncio.timeout(LIMIT):
                events = stream.aiter_lines()
                async for line in events:
                    if line.startswith("data:"):
                        break  # the state as it is comes at once
                while (await http.get("/api/v2/cache/stats")).json()["held"]["waits"] == 0:
                    await asyncio.sleep(0.01)
                (await http.post(f"{path}/approve")).raise_for_status()
                async for line in events:
                    if line.startswith("data:"):
                        assert '"version"' in line
                        break
                answered = await waiting
            assert answered.status_code == 200
            assert answered.json()["version"] > job["version"]
