"""The page at `/`: what it says, what it refuses, and that nothing in it is a program but its own."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from served import Reply, Running, png

from reskit.serving.charts import chart
from reskit.serving.history import History
from reskit.serving.metrics import Metrics, ModelMetrics
from reskit.serving.uploads import open_image
from reskit.tasks import TASKS

TOKEN = "an-example-token"
HTMX = {"HX-Request": "true"}


class Page(HTMLParser):
    """Elements with their attributes, and the text."""

    def __init__(self, reply: Reply) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(reply.body.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def form(data: bytes, filename: str = "a.png", **fields: str) -> tuple[bytes, dict[str, str]]:
    """Return a form as a browser sends it."""
    parts = [
        f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    head = f'--x\r\nContent-Disposition: form-data; name="file"; filename="{filename}"\r\n\r\n'
    body = b"".join([*parts, head.encode(), data, b"\r\n--x--\r\n"])
    return body, {"Content-Type": "multipart/form-data; boundary=x"}


def ask(server: Running, data: bytes, filename: str = "a.png", **fields: str) -> Reply:
    body, headers = form(data, filename, **fields)
    return server.post("/page/predict", body, {**headers, **HTMX})


def test_the_page_says_what_answers(shared: Running) -> None:
    reply = shared.get("/")
    assert (reply.status, reply.headers["content-type"]) == (200, "text/html; charset=utf-8")
    page = Page(reply)
    assert page.all("html")[0]["lang"] == "en"
    for word in (
        "digits",
        "cifar_resnet8",
        "torch-fp32",
        "ready",
        "classify",
        "Requests per second",
        "Latency",
    ):
        assert word in page.text
    assert "at most 2 MiB" in page.text
    labelled = {attributes["for"] for attributes in page.all("label")}
    controls = [a for a in page.all("input") + page.all("select") if a.get("type") != "hidden"]
    assert {attributes["id"] for attributes in controls} == labelled
    assert {"aria-live": "polite"}.items() <= next(a for a in page.all("div") if a["id"] == "result").items()
    assert all(
        svg.get("aria-hidden") or svg.get("role") == "img" for svg in page.all("svg") if "viewBox" in svg
    )


def test_the_page_of_the_api_says_what_its_description_says(shared: Running) -> None:
    page, described = Page(shared.get("/docs")), shared.get("/openapi.json").json["paths"]
    said = [(method.upper(), path) for path, methods in described.items() for method in methods]
    assert len(page.all("details")) == len(said)
    for method, path in said:
        assert f"{method} {path} " in page.text
    for words in ("multipart/form-data", "enum:\n", "pictures in the query, boolean, optional", "no token,"):
        assert words in page.text


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_nothing_comes_from_elsewhere_and_no_script_is_inline(shared: Running, path: str) -> None:
    reply = shared.get(path)
    policy = dict(
        part.strip().partition(" ")[::2] for part in reply.headers["content-security-policy"].split(";")
    )
    assert policy["default-src"] == "'none'"
    assert (policy["script-src"], policy["style-src"]) == ("'self'", "'self'")
    assert policy["frame-ancestors"] == "'none'"
    assert not any("unsafe" in value or "http" in value for value in policy.values())
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["cache-control"] == "no-store"
    page = Page(reply)
    for tag, attributes in page.elements:
        assert not any(name.startswith(("on", "hx-on", "hx-vals", "style")) for name in attributes)
        assert tag != "style"
        for name in ("src", "href", "action", "hx-get", "hx-post"):
            assert (attributes.get(name) or "/").startswith(("/", "data:,"))
    for script in page.all("script"):
        assert script["src"]
    for name in re.findall(r'"(/page/static/[^"]+)"', reply.body.decode()):
        file = shared.get(name)
        assert file.status == 200
        assert file.headers["content-type"].startswith(("text/javascript", "text/css"))
        tag = {"If-None-Match": file.headers["etag"]}
        assert shared.ask("GET", name, None, tag).status == 304
    for name in ("htmx.LICENSE", "..%2fpage.py", "nothing"):
        assert shared.get(f"/page/static/{name}").status == 404


def test_an_image_is_answered(shared: Running, images: np.ndarray, expected: np.ndarray) -> None:
    reply = ask(shared, png(images[0]), model="digits")
    assert reply.status == 200
    page = Page(reply)
    assert not page.all("html")
    label, share = int(expected[0].argmax()), np.exp(expected[0]) / np.exp(expected[0]).sum()
    assert re.search(rf"<h2>{label} <small>{100 * share.max():.1f} % sure</small>", reply.body.decode())
    widths = [float(rect["width"] or -1) for rect in page.all("rect")]
    assert widths == pytest.approx(100 * np.sort(share)[::-1][:5], abs=0.02)
    assert len(page.all("img")) == 1
    assert re.search(r"answered in [\d.]+ m?s by digits version 1 \(torch-fp32\)", page.text)


def test_where_the_answer_was_found_is_shown_when_asked(shared: Running, images: np.ndarray) -> None:
    page = Page(ask(shared, png(images[0]), explain="yes"))
    seen, heat = (str(image["src"]).removeprefix("data:image/png;base64,") for image in page.all("img"))
    shown = np.asarray(open_image(base64.b64decode(seen), 1 << 20))
    assert np.array_equal(shown, images[0, 0].repeat(64, 0).repeat(64, 1))
    assert open_image(base64.b64decode(heat), 1 << 20).size == (512, 512)
    assert all(image["alt"] for image in page.all("img"))


def test_what_a_task_draws_is_shown(running: Callable[..., Running], denoiser: Path) -> None:
    server = running([denoiser], grpc_port=None)
    assert "explain" not in {attributes.get("id") for attributes in Page(server.get("/")).all("input")}
    picture = np.random.default_rng(0).integers(0, 256, (1, 20, 24), dtype=np.uint8)
    page = Page(ask(server, png(picture), filename="noisy.png", explain="yes"))  # which it has no answer to
    assert [image["alt"] for image in page.all("img")] == [
        "noisy.png, as the network sees it",
        "restored of noisy.png",
    ]
    seen = open_image(base64.b64decode(str(page.all("img")[0]["src"]).partition(",")[2]), 1 << 20)
    times = 512 // 24
    assert np.array_equal(np.asarray(seen), picture[0].repeat(times, 0).repeat(times, 1))
    assert "20 x 24" in page.text
    assert "--save" not in page.text  # words of the command line


def test_a_browser_without_scripts_gets_a_whole_page(shared: Running, images: np.ndarray) -> None:
    body, headers = form(png(images[0]), explain="yes")
    page = Page(shared.post("/page/predict", body, headers))
    assert page.all("html")
    assert "% sure" in page.text
    assert "checked" in next(a for a in page.all("input") if a.get("id") == "explain")


def test_what_cannot_be_answered_is_told_with_its_status(
    running: Callable[..., Running], bundle: Path, images: np.ndarray
) -> None:
    server = running([("digits", bundle)], max_body_mib=0.01, max_pixels=100)
    cases = [
        (b"no image", {}, 400, "not an image"),
        (b"", {}, 400, "choose one file"),
        (png(images[0]), {"model": "<b>nobody"}, 404, "unknown model &#39;&lt;b&gt;nobody&#39;"),
        (png(np.zeros((1, 20, 20), np.uint8)), {}, 413, "20 x 20 pixels"),
        (bytes(20_000), {}, 413, "larger than"),
    ]
    for data, fields, status, words in cases:
        reply = ask(server, data, **fields)
        assert (reply.status, reply.headers.get("connection")) == (status, "close" if status == 413 else None)
        assert words in reply.body.decode()
    assert "No model is loaded" not in Page(server.get("/")).text
    server.post("/v2/repository/models/digits/unload")
    page = Page(server.get("/"))
    assert "No model is loaded" in page.text
    assert "unloaded" in page.text
    assert ask(server, png(images[0])).status == 503


def test_words_from_outside_are_data(
    running: Callable[..., Running], bundle: Path, images: np.ndarray
) -> None:
    evil = "<script>alert(1)</script>"
    server = running([("digits", bundle)])
    server.model.predictor.bundle.task.labels = [f"{evil}{number}" for number in range(10)]
    answer = ask(server, png(images[0]), filename="<img src=x onerror=alert(2)>", explain="yes").body.decode()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in answer
    for text in (answer, server.get("/").body.decode(), server.get("/page/live").body.decode()):
        assert "<script>" not in text
        assert "<img src=x" not in text


def test_a_token_is_asked_for_and_kept_where_no_script_reads_it(
    running: Callable[..., Running], bundle: Path, images: np.ndarray, tmp_path: Path
) -> None:
    (tmp_path / "tokens").write_text(hashlib.sha256(TOKEN.encode()).hexdigest())
    server = running([("digits", bundle)], token_file=tmp_path / "tokens")
    reply = server.get("/")
    assert reply.status == 401
    assert "digits" not in reply.body.decode()
    assert {"type": "password"}.items() <= next(a for a in Page(reply).all("input")).items()
    assert server.get("/page/static/page.css").status == 200
    assert server.get("/page/live").status == 401
    assert b"html" not in server.ask("GET", "/page/live", None, HTMX).body
    assert ask(server, png(images[0])).status == 401
    before = server.get("/metrics").status, server.service.metrics.errors.labels("unauthorized")._value.get()
    wrong = server.post("/page/sign-in", b"token=wrong")
    assert (wrong.status, "set-cookie" in wrong.headers) == (401, False)
    assert "not known here" in wrong.body.decode()
    assert server.service.metrics.errors.labels("unauthorized")._value.get() == before[1] + 1
    good = server.post("/page/sign-in", f"token=+{TOKEN}+".encode())
    assert (good.status, good.headers["location"]) == (303, "/")
    cookie, *flags = good.headers["set-cookie"].split("; ")
    assert {flag.lower() for flag in flags} == {"httponly", "samesite=strict", "path=/"}
    shown = {"Cookie": f"theme=dark; {cookie}"}
    assert "digits" in server.ask("GET", "/", None, shown).body.decode()
    assert "multipart/form-data" in server.ask("GET", "/docs", None, shown).body.decode()
    body, headers = form(png(images[0]))
    assert server.post("/page/predict", body, {**headers, **shown}).status == 200
    for path in ("/v2", "/metrics", "/openapi.json"):  # what a browser sends by itself opens nothing else
        assert server.ask("GET", path, None, shown).status == 401
    assert server.ask("GET", "/", None, {"Authorization": f"Bearer {TOKEN}"}).status == 200
    for broken in (
        "reskit_token=%%%",
        "reskit_token=",
        "reskit_token=" + "/" * 7,
        "=; ;",
        "reskit_token=\xff",
    ):
        assert server.ask("GET", "/", None, {"Cookie": broken}).status == 401
    out = server.post("/page/sign-out", b"", shown)
    assert out.status == 303
    assert "max-age=0" in out.headers["set-cookie"].lower()


def test_over_tls_the_cookie_stays_there(bundle: Path, images: np.ndarray) -> None:
    from fastapi import FastAPI

    from reskit.serving import Settings
    from reskit.serving.rest import make_app
    from reskit.serving.service import Service

    async def cookie() -> bytes:
        settings = Settings(tls_cert=Path("c"), tls_key=Path("k"))
        service = Service([("digits", bundle)], settings)
        app: FastAPI = make_app(service)
        said: list[Any] = []
        scope = {
            "type": "http", "method": "POST", "path": "/page/sign-in", "raw_path": b"/page/sign-in",
            "query_string": b"", "headers": [], "scheme": "https", "server": ("a", 1),
        }  # fmt: skip

        async def receive() -> Any:
            return {"type": "http.request", "body": b"token=x"}

        async def send(message: Any) -> None:
            said.append(message)

        await app(scope, receive, send)
        await service.close()
        return dict(said[0]["headers"])[b"set-cookie"]

    assert b"Secure" in asyncio.run(cookie())


def test_forms_of_other_sites_are_refused(shared: Running, images: np.ndarray) -> None:
    body, headers = form(png(images[0]))
    for site, status in {"cross-site": 400, "same-site": 400, "same-origin": 200, "none": 200}.items():
        sent = {**headers, **HTMX, "Sec-Fetch-Site": site}
        assert shared.post("/page/predict", body, sent).status == status
        assert (shared.post("/page/sign-out", b"", sent).status == 303) == (status == 200)


def test_another_model_changes_the_form(
    running: Callable[..., Running], bundle: Path, images: np.ndarray
) -> None:
    server = running([("one", bundle), ("two", bundle)])
    page = Page(server.get("/page/form?model=two"))
    selected = [option["value"] for option in page.all("option") if "selected" in option]
    assert selected == ["two"]
    assert "Ask two" in page.text
    assert "by two version 1" in Page(ask(server, png(images[0]), model="two")).text
    assert ask(server, png(images[0])).status == 400  # which of them?


def test_every_kind_of_input_has_its_part_of_the_form() -> None:
    import reskit.serving

    folder = Path(reskit.serving.__file__).parent / "templates" / "takes"
    for name in TASKS:
        assert (folder / f"{TASKS.get(name).takes}.html").is_file()


def test_the_live_part_shows_what_was_done(
    running: Callable[..., Running], bundle: Path, images: np.ndarray
) -> None:
    server = running([("digits", bundle)])
    for count in (1, 2):
        assert server.infer(images[:count]).status == 200
    server.post("/v2/models/digits/infer", {"inputs": []})
    server.loop.call_soon_threadsafe(server.service.history.add)
    reply = server.get("/page/live")
    page = Page(reply)
    assert len(page.all("polyline")) == 4
    assert not page.all("html")
    titles = re.findall(r"<title[^>]*>([^<]*)</title>", reply.body.decode())
    assert re.search(r"Answered now: [\d.,]*[1-9][\d.,]*\. Errors now: [\d.,]*[1-9]", titles[0])
    assert re.search(r"\(p50\) now: [\d.]+ m?s\.", titles[1])


def test_history_is_of_the_time_between_two_looks() -> None:
    metrics = Metrics(list)
    model = ModelMetrics(metrics, "m", "1")
    history = History(metrics)
    history.add()
    assert history.points[-1].p50 is None
    assert history.points[-1].requests_per_s == 0
    for milliseconds in (4, 4, 4, 40):
        model.finished("rest", milliseconds * 1_000_000, None)
    metrics.failed("busy")
    history.add()
    point = history.points[-1]
    assert point.requests_per_s == pytest.approx(4 * point.errors_per_s)
    assert point.p50 is not None
    assert point.p95 is not None
    assert 0.002 < point.p50 < 0.005 < 0.02 < point.p95 <= 0.05
    for _ in range(400):
        history.add()
    assert len(history.points) * 2 == history.seconds == 300


def test_charts_end_at_the_right_and_leave_gaps() -> None:
    made = chart([[1.0, None, 3.0, 4.0], [None] * 4], capacity=5)
    assert (made.top, made.latest) == (5, [4.0, None])
    assert made.lines == [["75.0,64.0 75.0,64.0", "225.0,32.0 300.0,16.0"], []]
    assert chart([[]], capacity=5).lines == [[]]
    for highest, top in {0.0: 1, 0.03: 0.05, 1.0: 1, 11: 20, 1000: 1000, 1001: 2000}.items():
        assert chart([[highest]], capacity=2).top == pytest.approx(top)
