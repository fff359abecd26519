"""The page that a worker serves, in a browser: beside a run that goes on, with a token, and when the run is gone."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
from selenium.webdriver.common.keys import Keys

from engine.ask import ask
from engine.server import serve
from engine.status import pages, shell
from tests.flow.cards import data
from tests.flow.running import cards, command, environment, project, run_here
from tests.page.browser import Browser, browser

TOKEN = "0123456789abcdef0123456789abcdef"
EVIL = "<img src=x onerror=\"document.title='taken'\">"


@pytest.fixture(scope="module")
def page() -> Iterator[Browser]:
    with browser() as one:
        yield one


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = project(tmp_path / "cards")
    data.write(made / "data", 400)
    return made


@pytest.fixture
def worker(folder: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A followed run, and where its page is."""
    said = tmp_path / "said"
    with said.open("w") as log:
        line = command("run", folder, "--follow", "--port", 9489, "--log", "text")
        process = subprocess.Popen(line, cwd=tmp_path, env=environment(), stdout=log, stderr=log)
    try:
        while not (found := re.search(r"page=(\S+)", said.read_text())):
            assert process.poll() is None, said.read_text()
        yield process, found[1]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def more(folder: Path, first: int, n: int, card: str = "c1") -> None:
    """Payments that come now, each of a card of its own number."""
    at = data.START + 10_000_000 + first * 1000
    rows = [
        {"tx": 100_000 + i, "card": card, "shop": "s1", "amount": 12.5, "at": at + i} for i in range(first, first + n)
    ]
    with (folder / "data" / "payments.jsonl").open("ab") as file:
        file.write(b"".join(orjson.dumps(r) + b"\n" for r in rows))


def test_a_run_is_seen_while_it_goes_on(
    page: Browser, worker: tuple[subprocess.Popen[bytes], str], folder: Path, tmp_path: Path
) -> None:
    process, url = worker
    page.complaints()
    page.asked()
    page.set()
    page.open(url)
    page.until(lambda: page.text("#phase") == "live")
    assert page.text("h1") == "cards"
    assert page.driver.title == "cards · Freshet"
    parts = {e.get_attribute("data-id"): e.accessible_name for e in page.all(".node")}
    assert {"source payments", "table shops", "view features", "model fraud", "sink features"} <= parts.keys()
    assert len(parts) == 17
    page.until(lambda: "fresh" in page.one('[data-id="view features"]').accessible_name)
    assert all(e.aria_role == "button" for e in page.all(".node"))
    page.shot(tmp_path / "light.png")

    changes = ask(url)["changes"]
    more(folder, 0, 7)
    page.until(lambda: int(page.text(".tile .big").replace(",", "")) == changes + 7, 60)
    row = "#tables section:nth-child(1) tr:nth-child(1)"
    assert page.text(f"{row} th[scope=row]") == "payments"

    page.driver.execute_script("document.querySelector('[data-id=\"source payments\"]').focus()")
    page.press(Keys.ARROW_RIGHT)
    page.press(Keys.ARROW_DOWN)
    assert page.focused() == "view features"
    assert page.style('[data-id="view features"] .box', "stroke-width") == "3px", "the focus is seen"
    page.press(Keys.ENTER)
    assert page.focused() == "panel-title"
    assert page.one("#panel").aria_role == "dialog"
    assert page.one("#panel").accessible_name == "features"
    more(folder, 7, 1, EVIL)
    page.until(lambda: EVIL in page.texts("#panel-rows td"), 60)
    assert page.driver.title != "taken"
    assert page.all("#panel img") == []
    shown = page.text("#panel-rows tbody tr")
    assert shown.startswith(f"+ in100007{EVIL}s1")
    assert "12.5" in shown
    about = page.text("#panel")
    for told in ("immediate()", "dedupe <- payments", "spent_ever", "frontier", "taken back"):
        assert told in about
    assert len(page.texts("#panel-rows tbody tr")) == 20
    page.shot(tmp_path / "panel.png")
    page.press(Keys.ESCAPE)
    assert not page.one("#panel").is_displayed()
    assert page.focused() == "view features", "the focus goes back to where it came from"

    with (folder / "data" / "payments.jsonl").open("ab") as file:
        file.write(b'{"tx": "broken"}\n')
    page.one(f"{row} button").send_keys(Keys.ENTER)
    page.until(lambda: "broken" in page.text("#panel-rows tbody tr"), 60)
    assert page.text("#panel-title") == "payments"
    page.press(Keys.ESCAPE)
    page.one('[data-id="model fraud"]').click()
    assert "baseline" in page.text("#panel-now")
    page.one("#panel .shut").click()

    light = page.style("body", "background-color"), page.style("h1", "color")
    page.set(theme="dark")
    dark = page.style("body", "background-color"), page.style("h1", "color")
    assert [_bright(c) > 128 for c in (*light, *dark)] == [True, False, False, True]
    page.shot(tmp_path / "dark.png")
    page.set(wide=390, high=844)
    page.until(lambda: page.driver.execute_script("return document.documentElement.scrollWidth <= innerWidth"), 5)
    page.shot(tmp_path / "narrow.png")
    page.set()

    assert page.complaints() == []
    asked = [a for a in page.asked() if not a.startswith("data:")]
    assert f"{url}status.json" in asked
    assert f"{url}status/features.json" in asked
    assert {a for a in asked if not a.startswith(url)} == set()

    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    page.until(lambda: page.one("#gone").is_displayed(), 30)
    assert re.match(r"No answer since \d\d:\d\d:\d\d\. What is shown is what was last heard", page.text("#gone-text"))
    page.until(lambda: "no answer" in page.one('[data-id="view features"]').accessible_name, 10)
    assert page.text("#phase") == "no answer"
    assert "fresh" not in page.text("#drawing")
    page.shot(tmp_path / "gone.png")


def _bright(color: str) -> float:
    return sum(float(n) for n in re.findall(r"[\d.]+", color)[:3]) / 3


def test_a_worker_with_a_token_is_seen_by_those_who_have_it(page: Browser, folder: Path, tmp_path: Path) -> None:
    file = folder / "pipeline.py"
    schema = '    schema={"tx": int, "card": str, "shop": str, "amount": float, "at": pl.Datetime},\n'
    assert schema in file.read_text()
    file.write_text(file.read_text().replace(schema, schema + '    expect=[op.between("amount", 0, 50)],\n'))
    refresh = ["fraud=deferred(every='5m')"]
    run = run_here(cards(folder), folder, tmp_path / "out", tmp_path / "state", refresh)
    server = serve(0, pages(run, 1), lambda: (True, {}), "127.0.0.1", TOKEN, shell=shell())
    url = f"http://127.0.0.1:{server.server_address[1]}/"
    try:
        page.set()
        page.open(url)
        page.until(lambda: page.one("#login").is_displayed(), 60)
        assert "cards" not in page.driver.page_source
        assert page.focused() == "token"
        assert page.one("#token").get_attribute("type") == "password"
        assert page.one("#token").accessible_name == "Token"
        page.shot(tmp_path / "login.png")
        for wrong, told in (
            ("a b", "A token is letters, digits and signs without spaces."),
            ("x" * 20, "That is not its token."),
        ):
            page.one("#token").clear()
            page.one("#token").send_keys(wrong, Keys.ENTER)
            page.until(lambda told=told: page.text("#wrong") == told, 60)
        assert not page.one("#content").is_displayed()
        page.one("#token").clear()
        page.one("#token").send_keys(TOKEN, Keys.ENTER)
        page.until(lambda: page.one("#content").is_displayed(), 60)
        assert page.text("h1") == "cards"
        page.one('[data-id="model fraud"]').click()
        page.until(lambda: "serves" in page.texts("#panel-rows td"), 60)
        served = run.models["fraud"].keeper.figures()["version"]
        assert page.text("#panel-rows tbody tr:has(.in)").startswith(f"serves{served}published")
        page.shot(tmp_path / "versions.png")
        page.press(Keys.ESCAPE)
        page.one('[data-id="source payments"]').click()
        (told,) = ask(url, TOKEN)["expectations"]
        assert told["failing"] > 0
        assert f"{told['failures']:,} came, {told['failing']:,} there now (warn)" in page.text("#panel-now")
        assert f"{told['failing']:,}" in page.texts(".tile .big")
        page.press(Keys.ESCAPE)
        page.driver.refresh()
        page.until(lambda: page.one("#content").is_displayed(), 60)
        assert TOKEN not in page.driver.current_url
        assert page.driver.execute_script("return localStorage.length + document.cookie.length") == 0
        assert not any(TOKEN in a for a in page.asked())
        page.driver.execute_script("sessionStorage.clear()")
    finally:
        server.shutdown()
        server.server_close()
