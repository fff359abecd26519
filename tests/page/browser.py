"""A browser without a window for the tests of the page; what is done on a machine that lacks one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

_FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
    "--force-color-profile=srgb",
)


class Browser:
    """A page that is looked at, and what it asked for and complained of."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, url: str) -> None:
        self.driver.get(url)

    def set(self, wide: int = 1440, high: int = 1000, theme: str = "light") -> None:
        """Size and colours."""
        size = {"width": wide, "height": high, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        wanted = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", wanted)

    def one(self, css: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, css)

    def all(self, css: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def text(self, css: str) -> str:
        """The text of an element, shown or not."""
        return self.driver.execute_script("return document.querySelector(arguments[0])?.textContent ?? ''", css)

    def texts(self, css: str) -> list[str]:
        """The texts of all such elements at one moment."""
        script = "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)"
        return self.driver.execute_script(script, css)

    def style(self, css: str, name: str) -> str:
        return self.one(css).value_of_css_property(name)

    def until(self, reached: object, seconds: float = 180) -> None:
        """Wait until a function without arguments gives something true."""
        WebDriverWait(self.driver, seconds, 0.1).until(lambda _: reached())  # type: ignore[operator]

    def press(self, key: str) -> None:
        """A key, wherever the focus is."""
        webdriver.ActionChains(self.driver).send_keys(key).perform()

    def focused(self) -> str:
        """What has the focus: its id, or the part of the drawing that it is."""
        script = "const e = document.activeElement; return e.dataset?.id || e.id"
        return self.driver.execute_script(script)

    def complaints(self) -> list[str]:
        """What the console said since it was asked last."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def asked(self) -> list[str]:
        """The addresses of all requests since it was asked last."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]

    def shot(self, path: Path) -> None:
        self.driver.save_screenshot(str(path))


@contextmanager
def browser() -> Iterator[Browser]:
    """A browser with nothing in it. Skips the test where there is none, which is said at the end of the run; in CI it
    is a failure."""
    chromium, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        told = "there is no chromium with chromedriver (Debian: apt install chromium chromium-driver)"
        if os.environ.get("CI"):
            pytest.fail(told, pytrace=False)
        pytest.skip(f"a browser: {told}")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in _FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    made = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield Browser(made)
    finally:
        made.quit()
