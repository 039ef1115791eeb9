"""The page in a real browser: by keyboard, dropping a file, with its policy in force."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from served import ROWS, Running, png, wav

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")

TOKEN = "an-example-token"
_CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip

pytestmark = pytest.mark.skipif(_CHROMIUM is None, reason="needs Chromium, of the Debian package chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=_CHROMIUM, args=_FLAGS)
        yield started
        started.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page that asks no other host and whose scripts fail at nothing."""
    context = browser.new_context()
    opened = context.new_page()
    opened.set_default_timeout(15_000)
    said: list[str] = []
    hosts: set[str] = set()
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    opened.on("request", lambda request: hosts.add(request.url.partition("://")[2].partition("/")[0]))
    yield opened
    assert all(host.startswith("127.0.0.1:") for host in hosts if host)
    expected = ("Failed to load resource", "htmx:")  # answers that are errors, and a service that is gone
    assert [text for text in said if not text.startswith(expected)] == []
    context.close()


def test_an_image_is_dropped_and_answered(page: Any, shared: Running, images: np.ndarray) -> None:
    page.goto(shared.server.urls["rest"])
    file = {"name": "seven.png", "mimeType": "image/png", "buffer": png(images[0])}
    page.get_by_label("Grad-CAM").check()
    page.get_by_label("Image", exact=True).set_input_files(file)  # no button: choosing asks
    result = page.locator("#result")
    result.get_by_text("% sure").wait_for()
    assert result.get_by_role("img").count() == 2
    assert all(image.evaluate("image => image.naturalWidth") > 0 for image in result.get_by_role("img").all())
    assert "seven.png: answered in" in result.inner_text()
    wrong = {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"no image"}
    page.get_by_label("Image", exact=True).set_input_files(wrong)
    result.get_by_text("not an image").wait_for()  # errors are shown too


def test_texts_rows_and_recordings_are_asked_about(page: Any, three: Running) -> None:
    page.set_viewport_size({"width": 360, "height": 800})
    page.goto(three.server.urls["rest"])
    page.wait_for_function("() => window.htmx !== undefined")
    result = page.locator("#result")

    def choose(model: str, control: str) -> None:
        page.get_by_label("Model", exact=True).select_option(model)
        page.get_by_label(control, exact=True).wait_for()
        page.wait_for_function("() => !document.querySelector('.htmx-added')")

    choose("words", "Text")
    page.get_by_label("Grad-CAM").check()
    page.get_by_label("Text", exact=True).focus()
    page.keyboard.type("a fine <b>film</b>")
    page.get_by_role("button", name="Ask words").press("Enter")
    result.get_by_text("% sure").wait_for()
    assert result.locator(".seen .heat4").count() >= 1
    assert "what you wrote: answered in" in result.inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360

    choose("rows", "Rows")
    file = {"name": "rows.csv", "mimeType": "text/csv", "buffer": ROWS.encode()}
    page.get_by_label("Or a file", exact=True).set_input_files(file)  # no button: choosing asks
    result.get_by_role("rowheader", name="rows.csv row 3").wait_for()
    page.get_by_label("Or a file", exact=True).set_input_files([])
    page.get_by_label("Rows", exact=True).fill("amount,country\nmuch,fr\n2,fr\n")
    page.get_by_role("button", name="Ask rows").click()
    result.get_by_text("'amount' is 'much'").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360

    choose("speech", "Recording")
    page.get_by_label("Grad-CAM").check()
    file = {"name": "one.wav", "mimeType": "audio/wav", "buffer": wav()}
    page.get_by_label("Recording", exact=True).set_input_files(file)
    result.get_by_role("img").nth(1).wait_for()
    assert all(image.evaluate("image => image.naturalWidth") > 0 for image in result.get_by_role("img").all())


def test_all_is_done_by_keyboard_and_the_charts_go_on(
    page: Any, running: Callable[..., Running], bundle: Path, images: np.ndarray, tmp_path: Path
) -> None:
    (tmp_path / "tokens").write_text(hashlib.sha256(TOKEN.encode()).hexdigest())
    labels = [f"<img src=x onerror=alert({number})>" for number in range(10)]
    server = running([("one", bundle), ("two", bundle)], token_file=tmp_path / "tokens")
    for model in server.service.models.models:
        model.predictor.bundle.task.labels = labels
    page.on("dialog", lambda dialog: pytest.fail(f"a label ran: {dialog.message}"))
    page.goto(server.server.urls["rest"])
    field = "document.activeElement.type === 'password'"  # it has the focus, once the page is drawn
    page.wait_for_function(field)
    page.keyboard.type("wrong")
    page.keyboard.press("Enter")
    page.get_by_role("alert").wait_for()
    page.wait_for_function(field)
    page.keyboard.type(TOKEN)
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Ask a model").wait_for()
    assert page.evaluate("document.cookie") == ""
    page.get_by_label("Model", exact=True).focus()
    page.keyboard.press("ArrowDown")
    page.get_by_role("button", name="Ask two").wait_for()
    # htmx listens to what it has put there
    page.wait_for_function("() => !document.querySelector('.htmx-added')")
    file = {"name": "a.png", "mimeType": "image/png", "buffer": png(images[0])}
    page.get_by_label("Image", exact=True).set_input_files(file)
    heading = page.locator("#result h2")
    heading.wait_for()
    assert "<img src=x" in heading.inner_text()
    first = page.locator("#live .hint").inner_text()
    page.wait_for_function("first => document.querySelector('#live .hint').innerText !== first", arg=first)
    reached = set()
    page.locator("body").click(position={"x": 1, "y": 1})
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.innerText"))
    assert {"model", "file", "explain", "Ask two", "Sign out"} <= reached
    page.get_by_role("button", name="Sign out").click()
    page.get_by_label("Token").wait_for()


def test_a_service_that_is_gone_is_told(
    page: Any, running: Callable[..., Running], bundle: Path, images: np.ndarray
) -> None:
    server = running([("digits", bundle)])
    page.goto(server.server.urls["rest"])
    page.wait_for_function("() => window.htmx !== undefined")
    server.stop()
    file = {"name": "a.png", "mimeType": "image/png", "buffer": png(images[0])}
    page.get_by_label("Image", exact=True).set_input_files(file)
    page.locator("#result").get_by_text("cannot be reached").wait_for()
    page.get_by_text("this is what it last said").wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_of_the_api_shows_what_may_be_asked(page: Any, shared: Running, scheme: str) -> None:
    open_small(page, shared, scheme, "/docs")
    page.get_by_text("POST /v1/predict").click()
    page.get_by_text("multipart/form-data").wait_for()
    assert page.get_by_role("link", name="/openapi.json").is_visible()
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    check_small(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_are_legible_and_fit_a_telephone(
    page: Any, shared: Running, images: np.ndarray, scheme: str
) -> None:
    open_small(page, shared, scheme, "/")
    file = {"name": "a.png", "mimeType": "image/png", "buffer": png(images[0])}
    page.get_by_label("Image", exact=True).set_input_files(file)
    page.locator("#result h2").wait_for()
    check_small(page)


def open_small(page: Any, server: Running, scheme: str, path: str) -> None:
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 360, "height": 700})
    page.goto(server.server.urls["rest"] + path)


def check_small(page: Any) -> None:
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.evaluate(_LEAST_CONTRAST) >= 4.5  # WCAG 2.2, 1.4.3


_LEAST_CONTRAST = """() => {
  const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
  const light = colour => {
    const linear = v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
    const [r, g, b] = numbers(colour).map(v => linear(v / 255));
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const ground = element => {
    for (; element; element = element.parentElement) {
      const colour = getComputedStyle(element).backgroundColor;
      if ((numbers(colour)[3] ?? 1) > 0) return colour;
    }
  };
  const ratios = [...document.querySelectorAll('body *')]
    .filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()) && e.checkVisibility())
    .map(e => {
      const [a, b] = [light(getComputedStyle(e).color), light(ground(e))].sort((x, y) => y - x);
      return (a + .05) / (b + .05);
    });
  return Math.min(...ratios);
}"""
