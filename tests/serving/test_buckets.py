"""Buckets are mirrored whole or not at all, nothing is written elsewhere, and their versions are deployed."""

from __future__ import annotations

import hashlib
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec.registry import _registry
from pushing import ask, states, until
from served import Running

from reskit.errors import ConfigError, MissingExtraError
from reskit.journal import history, read_journal
from reskit.serving.buckets import Bucket
from reskit.serving.folders import digest, find_models

URL = "store://bucket/digits"


class Store(fsspec.AbstractFileSystem):
    """An object store that a test fills, and makes to fail."""

    protocol = "store"
    cachable = False
    objects: dict[str, bytes]
    fetched: list[str]
    failing: Callable[[str], None]
    """Is called with each key that is fetched, and with an empty one before a listing."""

    def find(self, path: str, **_: Any) -> dict[str, dict[str, Any]]:
        self.failing("")
        return {
            key: {"name": key, "size": len(data), "ETag": hashlib.md5(data).hexdigest()}
            for key, data in self.objects.items()
            if key.startswith(path)
        }

    def get_file(self, rpath: str, lpath: str, **_: Any) -> None:
        self.fetched.append(rpath)
        Path(lpath).write_bytes(self.objects[rpath][:1])
        self.failing(rpath)
        Path(lpath).write_bytes(self.objects[rpath])


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache that the mirrors are in."""
    monkeypatch.setenv("RESKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def store() -> Iterator[type[Store]]:
    """An empty store that works."""
    Store.objects, Store.fetched, Store.failing = {}, [], staticmethod(lambda key: None)
    fsspec.register_implementation("store", Store, clobber=True)
    yield Store
    Store.failing = staticmethod(lambda key: None)


def upload(folder: Path, prefix: str, *names: str) -> None:
    """Upload the files of a bundle, or those that are named."""
    for file in folder.iterdir():
        if not names or file.name in names:
            Store.objects[f"bucket/{prefix}/{file.name}"] = file.read_bytes()


def put(*keys: str) -> None:
    """Put files that are as long as each other, each with its key in it."""
    Store.objects.update({f"bucket/{key}": f"{key:>40}".encode() for key in keys})


def mirrored(bucket: Bucket) -> dict[str, str]:
    """Return the files of a mirror."""
    files = (path for path in bucket.place.rglob("*") if path.is_file())
    return {path.relative_to(bucket.place).as_posix(): path.read_text().strip() for path in files}


def down(key: str) -> None:
    raise ConnectionError("no route to host")


@pytest.mark.parametrize("name", [None, "named"])
@pytest.mark.parametrize(
    "tree",
    [
        ["config.json", "1/config.json"],
        ["1/config.json", "10/config.json", "01/config.json", "x/config.json", "0/config.json"],
        ["a/config.json", "a/2/config.json", "b/1/config.json", "b/2/config.json", "c/d/1/config.json"],
        [".a/config.json", ".b/1/config.json", "b/new/config.json", "b/1/sub/config.json"],
        ["a/model.safetensors", "readme.md"],
    ],
)
def test_a_bucket_is_read_as_a_folder(tmp_path: Path, tree: list[str], name: str | None) -> None:
    memory = fsspec.filesystem("memory")
    for path in tree:
        memory.pipe_file(f"/{tmp_path.name}/models/{path}", b"x")
        (tmp_path / "models" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "models" / path).touch()
    bucket = Bucket(f"memory://{tmp_path.name}/models/", single=name is not None)
    try:
        expected = find_models([(name, tmp_path / "models")])
    except ConfigError:
        with pytest.raises(ConfigError, match="is not a bundle and holds none"):
            bucket.pull()
        return
    bucket.pull()
    found = find_models([(name, bucket.place)])
    assert {name: set(versions) for name, versions in found.items()} == {
        name: set(versions) for name, versions in expected.items()
    }


@pytest.mark.usefixtures("store")
def test_what_is_new_changed_or_gone_is_mirrored_and_nothing_else_is_fetched() -> None:
    put("digits/1/config.json", "digits/1/weights", "digits/2/config.json", "digits/2/engines/here/plan")
    bucket = Bucket(URL)
    bucket.pull()
    one, two = (digest(bucket.place / version) for version in "12")
    assert mirrored(bucket) == {
        f"{key}": f"digits/{key}"
        for key in ("1/config.json", "1/weights", "2/config.json", "2/engines/here/plan")
    }
    Store.fetched.clear()
    bucket.pull()
    Bucket(URL).pull()  # as a service that starts again
    assert Store.fetched == []
    Store.objects["bucket/digits/2/config.json"] = b"x" * 40  # as long as it was
    put("digits/3/config.json")
    bucket.pull()
    assert sorted({key.split("/")[2] for key in Store.fetched}) == ["2", "3"]
    assert mirrored(bucket)["2/config.json"] == "x" * 40
    assert digest(bucket.place / "1") == one
    assert digest(bucket.place / "2") != two
    for key in [key for key in Store.objects if "/2/" in key]:
        del Store.objects[key]
    bucket.pull()
    assert {path.split("/")[0] for path in mirrored(bucket)} == {"1", "3"}
    put("digits/config.json")  # a bundle itself, and versions again
    bucket.pull()
    assert list(find_models([(None, bucket.place)])["digits"]) == ["1"]
    del Store.objects["bucket/digits/config.json"]
    bucket.pull()
    assert set(find_models([(None, bucket.place)])["digits"]) == {"1", "3"}
    Store.objects.clear()
    with pytest.raises(ConfigError, match="store://bucket/digits is not a bundle and holds none"):
        bucket.pull()
    assert set(find_models([(None, bucket.place)])["digits"]) == {"1", "3"}


@pytest.mark.usefixtures("store")
def test_the_digest_is_of_the_bucket_not_of_the_mirror(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put("digits/config.json")
    first = Bucket(URL)
    first.pull()
    monkeypatch.setenv("RESKIT_CACHE", str(tmp_path / "other"))
    second = Bucket(URL)
    second.pull()
    assert first.place != second.place
    assert digest(first.place) == digest(second.place)


@pytest.mark.usefixtures("store")
def test_hostile_keys_write_nothing_elsewhere(
    cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put("digits/1/config.json", "digits/1/", "digits/", "digits-other/1/config.json")
    hostile = ["1/../../../evil", "../evil", "//etc/evil", "1//evil", "1/./evil", "..\\evil", "1/e\0vil"]
    put(*(f"digits/{key}" for key in hostile))
    put("digits/../3/config.json", "digits/..\\4/config.json")
    bucket = Bucket(URL)
    with caplog.at_level(logging.WARNING, "reskit.serving"):
        bucket.pull()
        bucket.pull()
    assert mirrored(bucket) == {"1/config.json": "digits/1/config.json"}
    assert [path for path in tmp_path.rglob("*") if "evil" in path.name] == []
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == len(hostile) + 2  # each once
    assert "store://bucket/digits: '1/e\\x00vil' is left out" in "\n".join(said)


@pytest.mark.usefixtures("store")
def test_names_that_no_model_can_have_are_left_out() -> None:
    put("digits/a b/config.json", "digits/-x/1/config.json", "digits/good/1/config.json")
    bucket = Bucket(URL)
    bucket.pull()
    assert list(find_models([(None, bucket.place)])) == ["good"]


def test_a_pull_that_fails_leaves_what_was(store: type[Store]) -> None:
    put("digits/1/config.json", "digits/1/weights")
    bucket = Bucket(URL)
    bucket.pull()
    before = mirrored(bucket)
    Store.objects = dict.fromkeys(Store.objects, b"new")
    put("digits/2/config.json")
    store.failing = staticmethod(lambda key: down(key) if key.endswith("1/weights") else None)
    with pytest.raises(ConfigError, match=r"digits cannot be read: ConnectionError.* \(1 of 2 bundles"):
        bucket.pull()
    assert mirrored(bucket) == {**before, "2/config.json": "digits/2/config.json"}
    store.failing = staticmethod(down)
    with pytest.raises(ConfigError, match="ConnectionError: no route"):
        bucket.pull()
    assert mirrored(bucket) == {**before, "2/config.json": "digits/2/config.json"}
    store.failing = staticmethod(lambda key: None)
    (bucket.place / ".1.left").mkdir()  # as by a process that was killed
    (bucket.place / ".1.left" / "weights").touch()
    (bucket.place.parent / "files.json").write_text("damaged")
    bucket.pull()
    assert mirrored(bucket) == {
        "1/config.json": "new",
        "1/weights": "new",
        "2/config.json": "digits/2/config.json",
    }


def test_one_at_a_time_mirrors(store: type[Store]) -> None:
    put("digits/1/config.json")
    going, go = threading.Event(), threading.Event()

    def wait(key: str) -> None:
        going.set()
        go.wait(30)

    store.failing = staticmethod(wait)
    threads = [threading.Thread(target=Bucket(URL).pull) for _ in range(2)]
    threads[0].start()
    going.wait(30)
    threads[1].start()
    time.sleep(0.2)
    go.set()
    for thread in threads:
        thread.join()
    assert Store.fetched == ["bucket/digits/1/config.json"]


def test_what_cannot_be_read_is_said(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    for url, package, extra in [
        ("s3://a", "s3fs", "s3"),
        ("gs://a", "gcsfs", "gcs"),
        ("abfs://a@b/c", "adlfs", "azure"),
    ]:
        monkeypatch.delitem(_registry, url.partition(":")[0], raising=False)
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(MissingExtraError, match=rf"{package} is not installed: .*reskit\[{extra}\]"):
            Bucket(url)
    monkeypatch.setitem(sys.modules, "ocifs", None)
    with pytest.raises(ConfigError, match="oci://a cannot be read: Install ocifs"):
        Bucket("oci://a")
    with pytest.raises(ConfigError, match=r"^ss3://me@a: unknown scheme 'ss3'; did you mean 's3'"):
        Bucket("ss3://me:secret@a?token=secret")
    with pytest.raises(ConfigError, match="chained"):
        Bucket("zip://x::memory://a")
    cache.joinpath("reskit", "buckets").mkdir(parents=True)
    cache.joinpath("reskit", "buckets").chmod(0o777)
    with pytest.raises(ConfigError, match="others can write to"):
        Bucket("memory://a")


def test_secrets_in_a_url_are_not_told(store: type[Store]) -> None:
    def fail(key: str) -> None:
        raise OSError("store://me:se%2Fcret@bucket/digits?token=abc: bad se/cret of se%2Fcret, token=abc")

    store.failing = staticmethod(fail)
    with pytest.raises(ConfigError) as raised:
        Bucket("store://me:se%2Fcret@bucket/digits?token=abc").pull()
    assert str(raised.value) == (
        "store://me@bucket/digits cannot be read: OSError: store://me@bucket/digits: bad *** of ***, ***"
    )
    store.failing = staticmethod(down)
    with pytest.raises(ConfigError, match=r"^store://me@bucket/x cannot be read: ConnectionError: no route"):
        Bucket("store://me:se/c?r@et@bucket/x").pull()


# Services


def test_versions_are_deployed_from_a_bucket(
    running: Callable[..., Running],
    bundle: Path,
    tmp_path: Path,
    store: type[Store],
    images: np.ndarray,
    expected: np.ndarray,
    caplog: pytest.LogCaptureFixture,
) -> None:
    journal = tmp_path / "journal"
    upload(bundle, "digits/1")
    server = running([URL], grpc_port=None, watch_s=0.05, journal=journal)
    assert ask(server, images, expected) == "1"

    def outcomes() -> list[tuple[str, str]]:
        return [(one.version, one.outcome) for one in history(read_journal(journal)).deployments]

    upload(bundle, "digits/2", "config.json")  # half of it: refused, and tried again when it is whole
    until(lambda: outcomes() == [("2", "refused")])
    assert "model.safetensors is missing" in states(server)["2"][1]
    assert ask(server, images, expected) == "1"
    upload(bundle, "digits/2")
    until(lambda: ask(server, images, expected) == "2")
    store.failing = staticmethod(down)
    until(lambda: "store://bucket/digits cannot be read: ConnectionError" in caplog.text)
    assert server.post("/v2/repository/models/digits/load").status == 200
    assert ask(server, images, expected) == "2"
    assert server.get("/v2/health/ready").status == 200
    upload(bundle, "digits/3")
    store.failing = staticmethod(lambda key: None)
    until(lambda: ask(server, images, expected) == "3")
    weights = "bucket/digits/3/model.safetensors"
    Store.objects[weights] = Store.objects[weights][:-1] + b"x"  # changed while it serves, and damaged
    until(lambda: outcomes()[-1] == ("3", "refused"))
    for key in [key for key in Store.objects if "/3/" in key]:
        del Store.objects[key]
    until(lambda: "3" not in server.service.models.found("digits"))
    assert ask(server, images, expected) == "3"  # until somebody says otherwise
    assert outcomes() == [("2", "refused"), ("2", "promoted"), ("3", "promoted"), ("3", "refused")]


def test_a_load_request_looks_into_the_bucket(
    running: Callable[..., Running],
    bundle: Path,
    store: type[Store],
    images: np.ndarray,
    expected: np.ndarray,
) -> None:
    upload(bundle, "digits")
    server = running([("a", URL), ("digits", URL), ("other", bundle)], grpc_port=None)
    assert ask(server, images, expected) == "1"
    assert server.service.models.names() == ["a", "digits", "other"]
    before = server.service.models.get("a")
    Store.objects["bucket/digits/README.md"] = b"another"
    assert server.post("/v2/repository/models/a/load").status == 200
    assert server.service.models.get("a") is not before
    (read,) = server.service.models.found("a").values()
    assert (read / "README.md").read_text() == "another"


def test_what_hangs_holds_up_neither_answers_nor_the_stop(
    running: Callable[..., Running],
    bundle: Path,
    store: type[Store],
    images: np.ndarray,
    expected: np.ndarray,
) -> None:
    upload(bundle, "digits")
    server = running([URL], grpc_port=None, watch_s=0.05)
    hangs, over = threading.Event(), threading.Event()

    def hang(key: str) -> None:
        hangs.set()
        over.wait(60)

    store.failing = staticmethod(hang)
    try:
        assert hangs.wait(30)
        assert ask(server, images, expected) == "1"
        assert server.post("/v2/repository/index").status == 200
        server.stop()
    finally:
        over.set()


def test_what_cannot_be_served_is_said_at_the_start(
    bundle: Path, tmp_path: Path, store: type[Store], cli: Callable[..., Any]
) -> None:
    with pytest.raises(ConfigError, match="store://bucket/digits is not a bundle and holds none"):
        Running([URL])
    upload(bundle, "digits/1")
    with pytest.raises(ConfigError, match="store://bucket is not a bundle and holds none"):
        Running([("one", "store://bucket")])
    with pytest.raises(ConfigError, match="two models are called 'digits'"):
        Running([URL, ("digits", bundle)])
    store.failing = staticmethod(down)
    ran = cli("serve", f"x={URL}", "--port", 0, "--no-grpc")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == "error: store://bucket/digits cannot be read: ConnectionError: no route to host\n"
