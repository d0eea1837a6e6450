"""The service as a process: wrong settings, the end by a signal, and the state after a kill."""

from __future__ import annotations

import signal
import sqlite3
import tempfile
import time
from contextlib import closing
from pathlib import Path

import av
import psutil
import pytest

from tests.app.process import run, serving

SIMULATED = {
    "JOBCACHE_RENDERER": "simulated",
    "JOBCACHE_SIMULATED_SECONDS": "1",
    "JOBCACHE_SIMULATED_UPDATES": "3",
}


def refused(directory: Path, *flags: str, anew: bool = False, **environment: str) -> str:
    """Start with a wrong setting; return the output."""
    if not (directory / ".env").exists():
        environment = {"JOBCACHE_PORT": "0", **environment}  # not one that is in use
    status, said = run(directory, "serve", *flags, anew=anew, workers=False, **environment)
    assert status == 2, said
    assert said.count("\n") == 1, said
    return said


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"JOBCACHE_PORT": "http"}, "JOBCACHE_PORT=http: "),
        ({"JOBCACHE_PORT": "70000"}, "JOBCACHE_PORT=70000: "),
        ({"JOBCACHE_WORKERS": "0"}, "JOBCACHE_WORKERS=0: "),
        ({"JOBCACHE_WORKERS": "2"}, "JOBCACHE_WORKERS=2: the memory backend is right for one"),
        ({"JOBCACHE_BACKEND": "disk"}, "JOBCACHE_BACKEND=disk: one of memcached, memory, null"),
        ({"JOBCACHE_RENDERER": "magic"}, "JOBCACHE_RENDERER=magic: "),
        ({"DATABASE_URL": "mysql://u:s3cret@h/d"}, "DATABASE_URL=mysql://h: a URL"),
        ({"DATABASE_URL": "s3cret nonsense"}, "DATABASE_URL=(unreadable): a URL"),
        ({"DATABASE_URL": "sqlite://"}, "DATABASE_URL=sqlite://: a URL"),
        ({"REDIS_URL": "s3cret@host"}, "REDIS_URL=host: a URL"),
        (
            {"JOBCACHE_HOST": "0.0.0.0"},  # noqa: S104 - is refused
            "JOBCACHE_HOST=0.0.0.0: without API keys only a loopback",
        ),
    ],
)
def test_a_wrong_setting_stops_the_start_with_one_line(
    tmp_path: Path, environment: dict[str, str], words: str
) -> None:
    said = refused(tmp_path, anew=environment == {"JOBCACHE_PORT": "http"}, **environment)
    assert words in said
    assert "s3cret" not in said


def test_a_flag_outranks_the_environment_which_outranks_the_file(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("JOBCACHE_PORT=from-file\nJOBCACHE_BACKEND=null\n")
    assert "JOBCACHE_PORT=from-file" in refused(tmp_path)
    assert "JOBCACHE_PORT=from-env" in refused(tmp_path, JOBCACHE_PORT="from-env")
    flagged = refused(tmp_path, "--port", "from-flag", JOBCACHE_PORT="from-env")
    assert "JOBCACHE_PORT=from-flag" in flagged


def test_a_video_is_made_and_served_by_ranges(tmp_path: Path) -> None:
    with serving(tmp_path) as service:
        job_id = service.rendering(seconds_per_scene=0.5)
        done = service.until(job_id, "completed")
        url = str(done["video_url"])
        whole = service.http.get(url)
        assert (whole.status_code, whole.headers["content-type"]) == (200, "video/mp4")
        assert whole.headers["accept-ranges"] == "bytes"
        middle = service.http.get(url, headers={"Range": "bytes=100-199"})
        assert (middle.status_code, middle.content) == (206, whole.content[100:200])
        assert middle.headers["content-range"] == f"bytes 100-199/{len(whole.content)}"
        beyond = service.http.get(url, headers={"Range": f"bytes={len(whole.content)}-"})
        assert beyond.status_code == 416
        (tmp_path / "video.mp4").write_bytes(whole.content)
        with av.open(str(tmp_path / "video.mp4")) as video:
            stream = video.streams.video[0]
            assert stream.codec_context.name == "h264"
            assert sum(1 for _ in video.decode(stream)) > 10
        (tmp_path / "var" / "videos" / f"{job_id}.mp4").unlink()
        lost = service.http.get(url)
        assert lost.status_code == 404
        assert lost.headers["content-type"] == "application/problem+json"


def test_a_cancelled_render_stops_and_leaves_no_file(tmp_path: Path) -> None:
    with serving(tmp_path) as service:
        job_id = service.rendering(seconds_per_scene=10, scenes=12)
        encoders = []
        while not encoders:
            encoders = psutil.Process(service.child.pid).children()
        service.http.post(f"/api/v2/jobs/{job_id}/cancel").raise_for_status()
        _, alive = psutil.wait_procs(encoders, timeout=60)
        assert not alive
        assert service.until(job_id, "cancelled")["terminal"]
        assert service.http.get(f"/api/v2/jobs/{job_id}/video").status_code == 409
    assert list((tmp_path / "var" / "videos").iterdir()) == []


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_what_a_dead_process_left_half_done_is_taken_up_again(
    tmp_path: Path, how: signal.Signals
) -> None:
    with serving(tmp_path) as first:
        job_id = first.rendering(seconds_per_scene=1, scenes=5)
        while first.http.get(f"/api/v2/jobs/{job_id}").json()["progress"]["percent"] < 2:
            time.sleep(0.02)
        unfinished = first.http.post(
            "/api/v2/jobs", json={"client_id": "acme", "prompt": "Just begun."}
        ).json()["id"]
        family = psutil.Process(first.child.pid).children(recursive=True)
        first.stop(how)
        _, alive = psutil.wait_procs(family, timeout=60)
        assert not alive, "the encoder ends with its service"
        assert not (tmp_path / "var" / "videos" / f"{job_id}.mp4").exists(), "it is half done"
    with serving(tmp_path) as second:
        second.until(unfinished, "storyboard_ready")
        done = second.until(job_id, "completed")
        assert second.http.get(str(done["video_url"])).status_code == 200
    left = [path.name for path in (tmp_path / "var" / "videos").iterdir()]
    assert left == [f"{job_id}.mp4"]


def test_a_job_that_keeps_killing_its_process_is_failed(tmp_path: Path) -> None:
    environment = SIMULATED | {"JOBCACHE_SIMULATED_SECONDS": "600"}
    with serving(tmp_path, **environment) as service:
        job_id = service.rendering()
        service.stop(signal.SIGKILL)
    # Its claim may have been on its way, so it has been taken up once, or never.
    for _ in range(5 - attempts(tmp_path)):
        before = attempts(tmp_path)
        with serving(tmp_path, **environment) as service:
            # A new attempt shows in the database, and not in the job.
            deadline = time.monotonic() + 60
            while attempts(tmp_path) == before:
                assert time.monotonic() < deadline, "nobody takes the job up"
                time.sleep(0.02)
            service.stop(signal.SIGKILL)
    with serving(tmp_path, **environment) as service:
        job = service.until(job_id, "failed")
        assert job["error"] == "Given up: 5 attempts were cut short."


def attempts(directory: Path) -> int:
    """How often the job was taken up; 0 if nobody has it."""
    with closing(sqlite3.connect(directory / "var" / "jobcache.db")) as database:
        found = database.execute("SELECT attempts FROM claims").fetchone()
        return 0 if found is None else int(found[0])


def test_two_processes_share_the_work_and_the_truth(tmp_path: Path, redis_url: str) -> None:
    environment = SIMULATED | {
        "JOBCACHE_BACKEND": "redis",
        "REDIS_URL": redis_url,
        "JOBCACHE_PREFIX": f"{tmp_path.name}:",
    }
    with serving(tmp_path, **environment) as one, serving(tmp_path, **environment) as other:
        job_id = one.rendering()
        assert other.until(job_id, "completed") == one.until(job_id, "completed")
        created = other.http.post(
            "/api/v2/jobs", json={"client_id": "acme", "prompt": "x", "renderer": "external"}
        ).json()["id"]
        one.until(created, "storyboard_ready")
        other.http.post(f"/api/v2/jobs/{created}/approve").raise_for_status()
        one.http.post(f"/api/v2/jobs/{created}/render").raise_for_status()
        for percent in range(50):
            writer, reader = (one, other) if percent % 2 else (other, one)
            reported = writer.http.post(
                f"/api/v2/jobs/{created}/progress", json={"percent": percent}
            ).json()
            assert reader.http.get(f"/api/v2/jobs/{created}").json() == reported
        listed = [
            [item["id"] for item in each.http.get("/api/v2/jobs?client_id=acme").json()["items"]]
            for each in (one, other)
        ]
        assert listed == [[created, job_id]] * 2


def test_several_workers_serve_one_port(tmp_path: Path, redis_url: str) -> None:
    environment = SIMULATED | {
        "JOBCACHE_WORKERS": "2",
        "JOBCACHE_BACKEND": "redis",
        "REDIS_URL": redis_url,
        "JOBCACHE_PREFIX": f"{tmp_path.name}:",
    }
    with serving(tmp_path, **environment) as service:
        job_id = service.rendering()
        assert service.until(job_id, "completed")["status"] == "completed"
        family = psutil.Process(service.child.pid).children(recursive=True)
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive


@pytest.mark.parametrize("backend", ["redis", "postgres"])
def test_dev_starts_the_servers_that_are_missing_and_ends_them(
    backend: str, tmp_path: Path
) -> None:
    arguments = ("dev", "--backend", backend, "--database", "postgres")
    # PostgreSQL does not run as root, nor in a directory that only root may enter.
    with tempfile.TemporaryDirectory() as var:
        Path(var).chmod(0o755)
        with serving(
            tmp_path, *arguments, JOBCACHE_VAR_DIR=var, TMPDIR=var, **SIMULATED
        ) as service:
            job_id = service.rendering()
            service.until(job_id, "completed")
            log = service.log.read_text()
            started = "started a Redis-compatible server at redis://127.0.0.1:" in log
            assert started == (backend == "redis")
            assert "started PostgreSQL on" in log
            stats = service.http.get("/api/v2/cache/stats").json()
            assert stats["statistics"]["backend"] == backend
            assert stats["statistics"]["redis_available"] is started
            family = psutil.Process(service.child.pid).children(recursive=True)
            assert len(family) >= 1 + started
        _, alive = psutil.wait_procs(family, timeout=60)
        assert not alive
        left = {path.name for path in Path(var).iterdir()}
        assert left == {"videos", "postgres", "processes"}, (
            "no directory of the servers' own is left"
        )
