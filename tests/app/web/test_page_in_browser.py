"""The page in a real browser: from the prompt to the video, with keys, and when things go wrong."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from app.devservers import free_port
from tests.app.keyed import write_keys
from tests.app.process import Process, launch, serving
from tests.app.web.browser import NOTHING, Browser, browser, chromium_programs
from tests.installed import require_program

MOST_BYTES = 150_000
PLAYING = "const v = document.querySelector('video'); return v.currentTime > 0.1 && v.videoWidth"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    require_program(chromium_programs)
    with browser(tmp_path_factory.mktemp("browser")) as running:
        yield running


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with serving(tmp_path_factory.mktemp("service"), measured=False) as running:
        yield running


@pytest.fixture
def tab(shared: Browser) -> Iterator[Browser]:
    """The browser. It must complain of nothing that a test does not expect."""
    shared.expected = NOTHING
    yield shared
    shared.driver.get("about:blank")  # so that the page sends no more requests
    for complaint in shared.complaints():
        assert re.search(shared.expected, complaint), complaint


def request_video(tab: Browser, prompt: str) -> None:
    """Fill in the form by keyboard, for a video that is made fast."""
    tab.type("#prompt", prompt)
    if not tab.is_shown("#seconds"):
        tab.press("#request summary")
    tab.type("#seconds", "0.5")
    tab.press("#request .primary")


def play(tab: Browser) -> None:
    tab.until(lambda: tab.is_shown("video"), "there is a video")
    tab.run("const v = document.querySelector('video'); v.muted = true; v.loop = true; v.play()")
    tab.until(lambda: tab.run(PLAYING) == 640, "the video plays")
    tab.run("document.querySelector('video').pause()")


def start_pollers(tab: Browser) -> None:
    """Let a hundred pollers poll, and stop them."""
    tab.click("#pollers-button")
    tab.until(lambda: int(tab.text("#pollers-polls").replace(",", "") or 0) >= 100, "100 polls")
    tab.click("#pollers-button")


def test_from_the_prompt_to_the_video_by_keyboard(tab: Browser, service: Process) -> None:
    tab.open(service.url)
    tab.until_text("#live-message", "working normally")
    loaded = tab.loaded()
    assert {url[: len(service.url)] for url in loaded} == {service.url}, "nothing of other hosts"
    assert f"{service.url}/assets/page.css" in loaded
    assert 0 < sum(loaded.values()) < MOST_BYTES

    request_video(tab, "A boat finds the harbour. Dawn.")
    tab.until_text("#job-status", "needs your approval")
    tab.until(lambda: tab.is_shown("#storyboard"), "the storyboard is shown")
    scenes = tab.driver.find_elements(By.CSS_SELECTOR, "#storyboard li")
    assert [scene.text.splitlines()[-1] for scene in scenes] == [
        "1. A boat finds the harbour. (0.5 s)",
        "2. Dawn. (0.5 s)",
    ]
    assert tab.findings() == []
    tab.press("[data-action=approve]")
    tab.until_text("#steps [aria-current=step]", "Approved")
    focused = tab.driver.switch_to.active_element
    assert focused == tab.find("#job-heading"), "the focus is kept when its button is hidden"
    tab.press("[data-action=render]")
    play(tab)
    assert tab.text("#job-status") == "The video is ready."
    assert not tab.is_shown("[data-action=cancel]")
    assert service.http.get(tab.find("#download").get_dom_attribute("href") or "").is_success

    tab.prefer("dark")
    narrow = {"width": 360, "height": 700, "deviceScaleFactor": 1, "mobile": True}
    tab.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", narrow)
    assert tab.run("return document.documentElement.scrollWidth") <= 360, "of a phone"
    assert tab.findings() == []
    tab.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_job_is_found_again_polled_and_cancelled(tab: Browser, service: Process) -> None:
    tab.expected = "404"  # the browser reports each answer that is an error
    body = {"client_id": "acme", "prompt": "<b>Not</b> a tag."}
    job_id = service.http.post("/api/v2/jobs", json=body).json()["id"]
    service.until(job_id, "storyboard_ready")
    tab.open(service.url)
    tab.until(lambda: tab.is_shown("#recent a"), "jobs are listed")
    tab.click("#recent a")
    tab.until_text("#job-prompt", "<b>Not</b> a tag.")
    start_pollers(tab)
    tab.until_text("#pollers-result", "on memory: 0 loads per poll")
    assert tab.text("#pollers-hits") == "100 %"
    assert tab.text("#pollers-button") == "Start 100 pollers"
    tab.click("[data-action=cancel]")
    tab.until_text("#job-status", "was cancelled")
    assert service.http.get(f"/api/v2/jobs/{job_id}").json()["status"] == "cancelled"
    tab.run("location.hash = '#999999'")
    tab.until_text("#problem", "no job 999999")
    assert not tab.is_shown("#job")


def test_an_option_that_is_missing_is_shown(tab: Browser, service: Process) -> None:
    tab.open(service.url)
    tab.click("#request summary")
    tab.find("#seconds").clear()
    tab.click("#request summary")
    assert not tab.is_shown("#seconds")
    tab.press("#request .primary")
    tab.until(lambda: tab.is_shown("#seconds"), "the options are opened")
    assert tab.driver.switch_to.active_element == tab.find("#seconds")


def test_the_plots_are_of_what_has_happened_since_the_last_sample(
    tab: Browser, service: Process
) -> None:
    body = {"client_id": "acme", "prompt": "A storm."}
    service.until(service.http.post("/api/v2/jobs", json=body).json()["id"], "storyboard_ready")
    tab.open(service.url)
    tab.until(lambda: tab.is_shown("#recent a"), "there is a job to poll")
    start_pollers(tab)
    latency = "#plots figure:nth-child(3)"
    tab.until(lambda: re.search(r"mean: [\d.,]+ µs", tab.text(latency)), "there were hits")
    tab.until_text(latency, "mean: \u2013")


def test_a_lost_connection_is_shown_and_made_again(tab: Browser, tmp_path: Path) -> None:
    tab.expected = "ERR_|404"
    port, log = free_port(), tmp_path / "log.txt"

    def start() -> Process:
        null = {"JOBCACHE_BACKEND": "null"}
        running = Process(launch(tmp_path, port, log, measured=False, **null), port, log)
        running.wait_until_ready()
        return running

    service = start()
    try:
        tab.open(service.url)
        request_video(tab, "A storm.")
        tab.until_text("#job-status", "needs your approval")
        start_pollers(tab)
        tab.until_text("#pollers-result", "loads per poll")
        found = re.search(r"on null: ([\d.]+) loads", tab.text("#pollers-result"))
        assert found is not None
        assert 0 < float(found[1]) <= 1, "concurrent polls share a load"

        service.stop(signal.SIGKILL)
        tab.until_text("#connection", "Connection lost (job, statistics)")
        tab.find("[data-action=approve]").click()
        tab.until_text("#problem", "cannot be reached")
        service = start()
        tab.until(lambda: not tab.is_shown("#connection"), "the connection is back")
        job_id = tab.text("#job-heading").split()[1]
        service.http.post(f"/api/v2/jobs/{job_id}/approve")
        tab.until_text("#steps [aria-current=step]", "Approved")

        service.stop(signal.SIGKILL)
        tab.run("location.hash = '#999999'")
        tab.until(lambda: not tab.is_shown("#job"), "the other job is not shown any more")
        tab.run("document.querySelector('[data-action=cancel]').click()")
        service = start()
        tab.until_text("#problem", "no job 999999")
        assert not any("/null/" in url for url in tab.loaded())
        assert service.http.get(f"/api/v2/jobs/{job_id}").json()["status"] == "approved"
    finally:
        service.stop()


def test_a_key_is_asked_for_and_kept_for_the_tab(tab: Browser, tmp_path: Path) -> None:
    tab.expected = "401|403|ERR_"
    tokens = write_keys(tmp_path / "keys")
    environment = {
        "JOBCACHE_API_KEYS": str(tmp_path / "keys"),
        "JOBCACHE_ROOT_PATH": "/video",  # the page is the same under a path
    }
    with serving(tmp_path, measured=False, **environment) as service:
        tab.open(f"{service.url}/video/")
        tab.until_text("#key-reason", "needs a key")
        assert tab.driver.switch_to.active_element == tab.find("#key")
        assert tab.findings() == []
        tab.find("#key").send_keys(Keys.ESCAPE)
        tab.until_text("#live-message", "need a key")
        tab.press("#key-button")
        tab.find("#key").send_keys("jc_wrong", Keys.ENTER)
        tab.until_text("#key-reason", "not one that this service knows")

        tab.find("#key").send_keys(tokens["own"], Keys.ENTER)
        tab.until_text("#live-message", "operator's key")
        request_video(tab, "A storm.")  # for the client "demo"
        tab.until_text("#problem", "a key of client demo")
        tab.type("#client", "acme")
        tab.press("#request .primary")
        tab.press("[data-action=approve]")
        tab.press("[data-action=render]")
        play(tab)
        base = f"{service.url}/video/"
        loaded = {url.removeprefix("blob:") for url in tab.loaded()}
        outside = {url for url in loaded if not url.startswith(base)}
        assert all(re.fullmatch(rf"{service.url}/[0-9a-f-]{{36}}", url) for url in outside), (
            "a blob"
        )

        tab.driver.refresh()
        tab.until_text("#live-message", "operator's key")
        tab.until_text("#job-status", "The video is ready.")
        tab.click("#key-button")
        tab.find("#key").send_keys(tokens["operator"], Keys.ENTER)
        tab.until_text("#live-message", "working normally")
        page = tab.driver.current_url
        tab.open(page)
        tab.until_text("#key-reason", "needs a key")
        tab.find("#key").send_keys(tokens["operator"], Keys.ENTER)
        tab.until_text("#live-message", "working normally")
        tab.click("#key-button")
        tab.click("#key-forget")
        tab.until_text("#key-reason", "needs a key")


@pytest.mark.parametrize(
    ("page", "part"),
    [
        ("docs", ".opblock"),
        pytest.param("redoc", "[data-section-id] h2", marks=pytest.mark.long),
    ],
)
def test_the_api_is_documented_without_other_hosts(
    tab: Browser, service: Process, page: str, part: str
) -> None:
    tab.expected = "logo-mini.svg"  # Redoc's would come from another host: the policy forbids it
    tab.open(f"{service.url}/{page}")
    found = tab.driver.find_elements
    tab.until(lambda: len(found(By.CSS_SELECTOR, part)) > 3, "operations are shown")
    loaded = {url.removeprefix("blob:") for url, size in tab.loaded().items() if size > 0}
    assert {url[: len(service.url)] for url in loaded} == {service.url}
