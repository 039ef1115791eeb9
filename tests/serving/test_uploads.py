"""Recordings, texts and tables that are sent: answered as `reskit.predict` does, or refused in words."""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from served import RATE, ROWS, Reply, Running, wav

import reskit
from reskit.serving.platforms.environment import Platform
from reskit.serving.uploads import MOST_ROWS, Sent


def send(server: Running, model: str, body: bytes | str, kind: str = "") -> Reply:
    data = body.encode() if isinstance(body, str) else body
    return server.post(f"/v1/predict?model={model}", data, {"Content-Type": kind} if kind else {})


def form(*parts: tuple[str, str, bytes]) -> tuple[bytes, str]:
    """Return a form of fields (no file name) and files."""
    pieces = []
    for name, filename, data in parts:
        said = f'; filename="{filename}"' if filename else ""
        pieces.append(
            f'--x\r\nContent-Disposition: form-data; name="{name}"{said}\r\n\r\n'.encode() + data + b"\r\n"
        )
    return b"".join([*pieces, b"--x--\r\n"]), "multipart/form-data; boundary=x"


def same(reply: Reply, rows: Any) -> None:
    """Hold an answer against that of `reskit.predict`."""
    assert reply.status == 200, reply.body
    predictions = reply.json["predictions"]
    assert len(predictions) == len(rows)
    for found, row in zip(predictions, rows, strict=True):
        assert (found["label"], found["error"]) == (row["label"], row["error"])
        assert found["confidence"] == pytest.approx(row["confidence"], abs=1e-5)


# What is answered.


def test_a_text(three: Running, bundles: dict[str, Path]) -> None:
    expected = reskit.predict(bundles["words"], ["a fine film"])
    same(send(three, "words", "a fine film", "text/plain; charset=utf-8"), expected)
    same(send(three, "words", "a fine film"), expected)
    same(send(three, "words", *form(("text", "", b"a fine film"))), expected)
    same(send(three, "words", *form(("file", "a.txt", b"a fine film"))), expected)
    two = reskit.predict(bundles["words"], ["a fine film", "dull"])
    first, second = ("text", "", b"a fine film"), ("text", "", b"dull")
    same(send(three, "words", *form(first, second, ("model", "", b"words"))), two)
    same(send(three, "words", *form(("file", "a.txt", b"dull"), first)), two)
    written = "application/x-www-form-urlencoded"
    same(send(three, "words", "text=a+fine+film", written), expected)
    same(send(three, "words", "a fine film", written), expected)  # as curl calls what it is given by --data
    same(send(three, "words", "a fine film".encode("utf-16"), "text/plain; charset=utf-16"), expected)


def test_texts_of_a_table(three: Running, bundles: dict[str, Path]) -> None:
    expected = reskit.predict(bundles["words"], ["a fine film", "dull, dull"])
    table = 'n,text\n1,a fine film\n2,"dull, dull"\n'
    reply = send(three, "words", table, "text/csv")
    same(reply, expected)
    assert [row["input"] for row in reply.json["predictions"]] == ["body.csv row 1", "body.csv row 2"]
    same(send(three, "words", *form(("file", "a.csv", table.encode()))), expected)


def test_rows(three: Running, bundles: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(ROWS)
    expected = reskit.predict(bundles["rows"], tmp_path / "rows.csv")
    same(send(three, "rows", ROWS, "text/csv"), expected)
    same(send(three, "rows", ROWS), expected)
    same(send(three, "rows", ROWS.replace(",", "\t"), "text/tab-separated-values"), expected)
    same(send(three, "rows", *form(("file", "rows.csv", ROWS.encode()))), expected)


def test_more_rows_than_a_batch_has(three: Running, bundles: dict[str, Path]) -> None:
    rows = [{"amount": number, "country": "fr"} for number in range(MOST_ROWS)]
    lines = "amount,country\n" + "".join(f"{row['amount']},fr\n" for row in rows)
    same(send(three, "rows", lines, "text/csv"), reskit.predict(bundles["rows"], rows))
    reply = send(three, "rows", lines + "1,fr\n", "text/csv")
    assert (reply.status, "more than 1,000 rows" in reply.json["error"]) == (413, True)


@pytest.mark.parametrize("how", [{}, {"format": "FLAC"}, {"format": "OGG"}])
def test_a_recording(three: Running, bundles: dict[str, Path], how: dict[str, str]) -> None:
    expected = reskit.predict(bundles["speech"], wav(**how))
    same(send(three, "speech", wav(**how), "audio/wav"), expected)
    same(
        send(three, "speech", *form(("file", "a.wav", wav(**how)), ("file", "b.wav", wav(**how)))),
        [*expected, *expected],
    )


def test_instances_in_json(three: Running, bundles: dict[str, Path]) -> None:
    rows = [{"amount": 1, "country": "fr"}, {"amount": 250, "country": None}]
    speech = {"b64": base64.b64encode(wav()).decode()}
    for model, instances, items in (
        ("words", ["a fine film", {"text": "dull"}], ["a fine film", "dull"]),
        ("rows", rows, rows),
        ("speech", [speech, {"image_bytes": speech}], [wav(), wav()]),
    ):
        body = json.dumps({"instances": instances})
        same(send(three, model, body, "application/json"), reskit.predict(bundles[model], items))


def test_platforms_take_them_too(running: Callable[..., Running], bundles: dict[str, Path]) -> None:
    server = running([("rows", bundles["rows"])], platform=Platform(name="sagemaker"))
    reply = server.post("/invocations", ROWS.encode(), {"Content-Type": "text/csv"})
    assert (reply.status, len(reply.json["predictions"])) == (200, 3)
    server = running([("speech", bundles["speech"])], platform=Platform(name="sagemaker"))
    assert server.post("/invocations", wav(), {"Content-Type": "audio/wav"}).status == 200


def test_a_row_that_cannot_be_read_stands_beside_the_others(three: Running) -> None:
    reply = send(three, "rows", "amount,country\n1,fr\nmuch,fr\n2,\n", "text/csv")
    good, bad, gap = reply.json["predictions"]
    assert (reply.status, good["error"], gap["error"]) == (200, None, None)
    assert (bad["input"], bad["label"]) == ("body.csv row 2", None)
    assert "'amount' is 'much'" in bad["error"]


def test_the_protocol_takes_tokens_and_rows(three: Running) -> None:
    metadata = three.get("/v2/models/words").json["inputs"]
    assert metadata == [{"name": "tokens", "datatype": "INT32", "shape": [-1, 8]}]
    tokens = {
        "name": "tokens",
        "shape": [1, 8],
        "datatype": "INT32",
        "data": [2**31 - 1, -5, 2, 0, 0, 0, 0, 0],
    }
    assert three.post("/v2/models/words/infer", {"inputs": [tokens]}).status == 200
    row = {"name": "row", "shape": [1, 2], "datatype": "FP32", "data": [1e38, 7e8]}
    reply = three.post("/v2/models/rows/infer", {"inputs": [row]})
    assert np.isfinite(reply.json["outputs"][0]["data"]).all()


def test_what_is_no_number_is_nobody_elses_trouble(three: Running) -> None:
    rows = np.array([[1, np.nan], [np.nan, 1], [1, 1]], np.float32)
    head = {
        "inputs": [
            {
                "name": "row",
                "shape": [3, 2],
                "datatype": "FP32",
                "parameters": {"binary_data_size": rows.nbytes},
            }
        ]
    }
    head["outputs"] = [{"name": "output", "parameters": {"binary_data": True}}]  # type: ignore[list-item]
    text = json.dumps(head).encode()
    reply = three.post(
        "/v2/models/rows/infer", text + rows.tobytes(), {"Inference-Header-Content-Length": str(len(text))}
    )
    assert reply.status == 200
    start = int(reply.headers["inference-header-content-length"])
    outputs = np.frombuffer(reply.body[start:], np.float32).reshape(3, -1)
    assert np.isfinite(outputs).all(1).tolist() == [True, False, True]


# What is refused.


@pytest.mark.parametrize(
    ("model", "body", "kind", "status", "said"),
    [
        ("words", b"", "text/plain", 400, "empty"),
        ("words", b"   ", "text/plain", 400, "the text is empty"),
        ("words", b"\xff\xfe", "text/plain", 400, "not UTF-8"),
        ("words", b"n,m\n1,2\n", "text/csv", 400, "body.csv has no column of texts"),
        ("rows", b"amount\n1\n", "text/csv", 400, "no column 'country'"),
        ("rows", b"amount,country\n1\n", "text/csv", 400, "line 2"),
        ("rows", b"amount,country\n", "text/csv", 400, "no rows"),
        ("rows", b'amount,country\n"1,fr\n', "text/csv", 400, "body.csv"),
        ("rows", wav(), "text/csv", 400, "not UTF-8"),
        ("rows", b"PAR1...", "", 400, "Parquet is not taken here"),
        ("words", b"a", "text/plain; charset=nothing", 400, "no text in nothing"),
        ("speech", b"RIFF", "audio/wav", 400, "not a sound file"),
        ("speech", wav()[:44], "audio/wav", 400, "cannot read the recording"),
        ("speech", b"a text", "text/plain", 400, "not a sound file"),
        ("speech", b'{"instances": ["a text"]}', "application/json", 400, "takes a recording"),
        ("words", b'{"instances": [{"amount": 1}]}', "application/json", 400, "no column of texts"),
        ("words", b'{"instances": [[1, 2]]}', "application/json", 400, "instances.0 is not understood"),
        ("words", b'{"instances": []}', "application/json", 400, "not empty"),
        ("words", b'{"text": "x"}', "application/json", 400, "instances"),
        ("words", json.dumps({"instances": ["x"] * 65}).encode(), "application/json", 400, "64 is the most"),
        ("rows", b'{"instances": ["/etc/passwd"]}', "application/json", 400, "no rows"),
        ("speech", b'{"instances": [{"path": "/etc/passwd"}]}', "application/json", 400, "takes a recording"),
        ("speech", b'{"instances": [{"b64": "!"}]}', "application/json", 400, "not base64"),
    ],
)
def test_what_cannot_be_answered(
    three: Running, model: str, body: bytes, kind: str, status: int, said: str
) -> None:
    reply = send(three, model, body, kind)
    assert reply.status == status
    assert said in reply.json["error"]
    assert len(reply.body) < 600


def test_a_table_of_few_bytes_takes_no_memory(three: Running) -> None:
    wide = ",".join(f"c{number}" for number in range(20_000)) + "\n" + "1\n" * 100_000
    assert send(three, "rows", wide, "text/csv").status == 400
    long = "amount,country\n" + "1,fr\n" * 300_000
    began = time.perf_counter()
    assert send(three, "rows", long, "text/csv").status == 413
    assert time.perf_counter() - began < 3


def test_a_recording_that_claims_hours_takes_no_memory(three: Running) -> None:
    held = io.BytesIO()
    soundfile.write(held, np.zeros(RATE * 3600, np.int16), RATE, format="FLAC")  # an hour of silence
    assert len(held.getvalue()) < 200_000
    assert send(three, "speech", held.getvalue(), "audio/flac").status == 200
    data = wav()
    claimed = data[:40] + (2**31).to_bytes(4, "little") + data[44:]
    assert send(three, "speech", claimed, "audio/wav").status == 200


def test_a_name_in_a_request_is_never_opened(three: Running, tmp_path: Path) -> None:
    (tmp_path / "secret.csv").write_text("text\nsecret\n")
    reply = send(three, "words", str(tmp_path / "secret.csv"), "text/plain")
    assert [row["input"] for row in reply.json["predictions"]] == ["body"]
    assert Sent("a", "b").content == "b"


def test_the_extra_must_be_installed_to_load_it(
    running: Callable[..., Running], bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = __import__("importlib.util").util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *rest: None if name == "soundfile" else find(name, *rest)
    )
    with pytest.raises(reskit.errors.ReskitError, match=r"reskit\[audio\]"):
        running([bundles["speech"]])


# The page.


def page(server: Running, model: str, *parts: tuple[str, str, bytes]) -> Reply:
    body, kind = form(("model", "", model.encode()), *parts)
    return server.post("/page/predict", body, {"Content-Type": kind, "HX-Request": "true"})


def test_the_page_colours_words(three: Running) -> None:
    reply = page(three, "words", ("text", "", b"a fine film <b>"), ("explain", "", b"yes"), ("file", "", b""))
    text = reply.body.decode()
    assert reply.status == 200
    assert 'class="heat4"' in text
    assert ">fine</span>" in text
    assert "<b>" not in text
    assert "answered in" in text
    plain = page(three, "words", ("text", "", b"a fine film")).body.decode()
    assert "heat" not in plain


def test_the_page_shows_the_answers_for_rows(three: Running) -> None:
    written = page(three, "rows", ("text", "", ROWS.encode()), ("file", "", b""))
    dropped = page(three, "rows", ("file", "rows.csv", ROWS.encode()))
    for reply, name in ((written, "what you wrote.csv"), (dropped, "rows.csv")):
        assert reply.status == 200
        assert "3 answers" in reply.body.decode()
        assert f"{name} row 3" in reply.body.decode()
    bad = page(three, "rows", ("file", "rows.csv", b"amount,country\n1,fr\nx,fr\n")).body.decode()
    assert 'class="bad"' in bad


def test_the_page_shows_what_the_network_hears(three: Running) -> None:
    reply = page(three, "speech", ("file", "a.wav", wav()), ("explain", "", b"yes"))
    assert reply.body.decode().count("<img") == 2


@pytest.mark.parametrize("model", ["words", "rows", "speech"])
def test_the_page_asks_for_what_the_model_takes(three: Running, model: str) -> None:
    text = three.get(f"/page/form?model={model}").body.decode()
    assert ('name="text"' in text) == (model != "speech")
    assert ("Grad-CAM" in text) == (model != "rows")
    assert ("amount, country" in text) == (model == "rows")
    refused = page(three, model, ("file", "", b""))
    assert (refused.status, "choose one file" in refused.body.decode()) == (400, True)
