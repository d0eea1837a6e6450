"""A real browser without a window: Chromium, driven by Selenium. Nothing is downloaded."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from axe_core_python.base import AXE_FILE_PATH
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver import ActionChains, Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from app.devservers import ServerMissing

NOTHING = "(?!)"
"""A regular expression that nothing matches."""

_FLAGS = (
    "--headless",
    "--no-sandbox",  # CI runs as root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",  # a container's /dev/shm may be too small
)
_RUN_AXE = """
const done = arguments[0];
const told = ({ id, nodes }) => [id, ...nodes.map(({ html }) => html)];
axe.run({ resultTypes: ["violations"] }).then(
  ({ violations }) => done(violations.map(told)),
  (error) => done([String(error)]),
);
"""
_LOADED = """
return ["navigation", "resource"]
  .flatMap((type) => performance.getEntriesByType(type))
  .map(({ name, transferSize }) => [name, transferSize]);
"""


def chromium_programs() -> tuple[str, str]:
    """Return the paths of Chromium and of its driver.

    Raises:
        ServerMissing: one of them is not installed.
    """
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        raise ServerMissing(
            "The tests of the page need Chromium: apt-get install chromium chromium-driver"
        )
    return browser, driver


class Browser:
    """One tab at a page of the service.

    Attributes:
        driver: Selenium's.
        expected: a regular expression for the complaints that a test expects.
    """

    def __init__(self, driver: Chrome) -> None:
        self.driver = driver
        self.expected = NOTHING

    def open(self, url: str) -> None:
        """Load the page as in a new tab: without keys, in its usual size and colours."""
        self.driver.switch_to.new_window("tab")
        (old,) = set(self.driver.window_handles) - {self.driver.current_window_handle}
        new = self.driver.current_window_handle
        self.driver.switch_to.window(old)
        self.driver.close()
        self.driver.switch_to.window(new)
        self.driver.get(url)

    def find(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        return self.find(selector).text

    def is_shown(self, selector: str) -> bool:
        return self.find(selector).is_displayed()

    def click(self, selector: str) -> None:
        self.until(lambda: self.is_shown(selector), f"{selector} is shown")
        self.find(selector).click()

    def press(self, selector: str) -> None:
        """Reach a control by the Tab key, and press Enter there."""
        self.until(lambda: self.is_shown(selector), f"{selector} is shown")
        target = self.find(selector)
        for _ in range(40):
            if self.driver.switch_to.active_element == target:
                target.send_keys(Keys.ENTER)
                return
            ActionChains(self.driver).send_keys(Keys.TAB).perform()
        raise AssertionError(f"{selector} cannot be reached by the Tab key")

    def type(self, selector: str, text: str) -> None:
        element = self.find(selector)
        element.clear()
        element.send_keys(text)

    def run(self, script: str, *arguments: object) -> Any:
        return self.driver.execute_script(script, *arguments)

    def until(self, condition: Callable[[], object], what: str) -> None:
        WebDriverWait(
            self.driver,
            60,
            poll_frequency=0.1,
            ignored_exceptions=[StaleElementReferenceException],
        ).until(lambda _: condition(), what)

    def until_text(self, selector: str, part: str) -> None:
        self.until(lambda: part in self.text(selector), f"{part!r} in {selector}")

    def prefer(self, scheme: str) -> None:
        """Choose the colour scheme, "light" or "dark"."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})

    def findings(self) -> list[list[str]]:
        """Return what axe-core finds wrong with the page as it is shown now."""
        self.run(AXE_FILE_PATH.read_text())
        found: list[list[str]] = self.driver.execute_async_script(_RUN_AXE)
        return found

    def complaints(self) -> list[str]:
        """Return what the browser has complained about since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser")]  # type: ignore[no-untyped-call]

    def loaded(self) -> dict[str, int]:
        """Return what the page has loaded: URLs, and their bytes."""
        return dict(self.run(_LOADED))


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """Run Chromium with an empty profile in the folder."""
    program, driver_program = chromium_programs()
    options = ChromeOptions()
    options.binary_location = program
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in (*_FLAGS, f"--user-data-dir={folder / 'profile'}", "--window-size=1280,1000"):
        options.add_argument(flag)
    driver = Chrome(options, Service(driver_program))
    driver.set_script_timeout(60)
    try:
        yield Browser(driver)
    finally:
        driver.quit()
