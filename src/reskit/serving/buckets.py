"""Bundles in buckets, and in what else fsspec reads, mirrored into a folder of this machine.

What lies in a bucket is taken for hostile: keys become paths below the mirror or are left out, and files are
only copied. Whether a bundle is whole is found out where it is loaded, as of one in a folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import textwrap
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import fsspec
from filelock import FileLock

from reskit.background import in_background
from reskit.errors import ConfigError, MissingExtraError, ReskitError, did_you_mean
from reskit.files import ANOTHER_CACHE, atomic_folder, own_cache, write_text, writing
from reskit.serving.folders import CONFIG, NAME, bundle_folders

__all__ = ["Bucket", "is_url"]

_LOG = logging.getLogger("reskit.serving")
_S3, _GCS, _AZURE = ("s3fs", "s3"), ("gcsfs", "gcs"), ("adlfs", "azure")
_STORES = {"s3": _S3, "s3a": _S3, "gs": _GCS, "gcs": _GCS, "az": _AZURE, "abfs": _AZURE, "abfss": _AZURE}
"""Schemes of object stores, with the package that reads each and our extra that brings it."""
_TAGS = ("ETag", "etag", "LastModified", "last_modified", "mtime", "modificationTime", "updated", "created")
"""What packages call that by which a changed file is told, best first."""


def is_url(place: str | Path) -> bool:
    """Return whether a place is a URL and not a folder."""
    return isinstance(place, str) and "://" in place


class Bucket:
    """A place that a URL names, and the folder that mirrors the bundles in it; used from any thread.

    Args:
        url: of fsspec, as ``s3://bucket/models``. Credentials are found by the package that reads it.
        single: it is one model, though others may lie below it.

    Attributes:
        place: the folder, which `folders.find_models` reads as it would the bucket.

    Raises:
        ConfigError: nothing can read such a URL.
        MissingExtraError: what reads it is not installed.
    """

    def __init__(self, url: str, *, single: bool = False) -> None:
        self._url, self._single = url, single
        self._name, self._secrets = _without_secrets(url)
        self._scheme = url.partition("://")[0]
        if "::" in url:
            raise ConfigError(f"{self._name}: chained URLs are not taken")
        try:
            fsspec.get_filesystem_class(self._scheme)
        except ValueError:
            near = did_you_mean(self._scheme, fsspec.available_protocols())
            raise ConfigError(f"{self._name}: unknown scheme {self._scheme!r}{near}") from None
        except ImportError as error:
            if self._scheme in _STORES:
                raise MissingExtraError(*_STORES[self._scheme]) from None
            raise ConfigError(f"{self._name} cannot be read: {error}") from None
        self._home = own_cache("buckets") / hashlib.sha256(url.encode()).hexdigest()[:32]
        self._marker, self._lock = self._home / "files.json", self._home / "lock"
        last = self._name.rstrip("/").rpartition("/")[2]
        self.place = self._home / (last if NAME.fullmatch(last) else "bucket")
        self._source: tuple[Any, str] | None = None
        self._refused: set[str] = set()

    def pull(self) -> None:
        """Fetch the bundles that are new or changed, and drop those that are gone.

        Each is replaced whole; what cannot be fetched stays as it was. Others who pull into the same folder
        wait meanwhile, also those in other processes.

        Raises:
            ConfigError: the bucket cannot be read, or holds no bundle.
            OutputError: the folder cannot be written.
        """
        with writing(self._home, instead=ANOTHER_CACHE):
            self._home.mkdir(parents=True, exist_ok=True, mode=0o700)
            with FileLock(self._lock):  # the system lets go when the process ends, however it ends
                self._mirror(self._list())

    async def pulled(self) -> None:
        """Do as `pull` in a thread that holds up neither the event loop nor the end of the process."""
        await asyncio.wrap_future(in_background(self.pull, name="reskit-bucket"))

    def _list(self) -> dict[str, str]:
        """Return every file by its path below the URL, with what changes when it does."""
        with self._reading():
            if self._source is None:
                self._source = fsspec.url_to_fs(self._url)
            system, root = self._source
            system.invalidate_cache()
            # Stores list all keys at once. Others are walked, and would leave out what they cannot read.
            how = {} if self._scheme in _STORES else {"on_error": "raise"}
            found = system.find(root, detail=True, **how)
            start = root.rstrip("/") + "/"
            below = {key[len(start) :]: info for key, info in found.items() if key.startswith(start)}
            paths = [path for path in below if not f"/{path}".endswith("/")]  # which stands for a folder
            return {path: _tag(below[path]) for path in paths if self._accept(path, _is_below(path))}

    def _mirror(self, files: Mapping[str, str]) -> None:
        folders = {path[: -len(CONFIG)].rstrip("/") for path in files if f"/{path}".endswith(f"/{CONFIG}")}
        bundles = sorted(
            folder
            for folder in bundle_folders(folders, single=self._single)
            if not folder or self._accept(folder, _is_named(folder))
        )
        if not bundles:
            raise ConfigError(f"{self._name} is not a bundle and holds none that could be served")
        known, failed = self._known(), []
        for bundle in bundles:
            start = f"{bundle}/" if bundle else ""
            inside = {path: tag for path, tag in files.items() if path.startswith(start)}
            if known.get(bundle) == inside and (self.place / start / CONFIG).is_file():
                continue
            try:
                self._fetch(self.place / bundle, start, inside)
            except ReskitError as error:
                failed.append(str(error))
                continue
            known[bundle] = inside
            write_text(self._marker, json.dumps({name: known[name] for name in bundles if name in known}))
        if failed:
            raise ConfigError(f"{failed[0]} ({len(failed)} of {len(bundles)} bundles were not fetched)")
        _prune(self._home, {self._lock, self._marker, *(self.place / bundle for bundle in bundles)})

    def _fetch(self, bundle: Path, start: str, files: Mapping[str, str]) -> None:
        """Copy the files of a bundle into its folder."""
        assert self._source is not None
        system, root = self._source
        with atomic_folder(bundle, instead=ANOTHER_CACHE) as staging:
            for path, tag in files.items():
                file = staging / path.removeprefix(start)
                file.parent.mkdir(parents=True, exist_ok=True)
                with self._reading():
                    system.get_file(f"{root.rstrip('/')}/{path}", str(file))
                # The time is made of the tag, and so is the digest: a bundle that was judged stays judged
                # when it is fetched again.
                os.utime(file, (int(tag[:7], 16),) * 2)

    def _known(self) -> dict[str, dict[str, str]]:
        """Return the files of the bundles in the folder, as the bucket had them."""
        try:
            return dict(json.loads(self._marker.read_bytes()))
        except (OSError, ValueError, TypeError):  # none yet, or damaged: all is fetched
            return {}

    def _accept(self, path: str, good: bool) -> bool:
        """Return `good`; say in the log, once, that a path is left out because it is not."""
        if not good and path not in self._refused:
            self._refused.add(path)
            _LOG.warning("%s: %.200r is left out: it cannot be the name of a file or model", self._name, path)
        return good

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """Turn what a package raises into a `ConfigError` without secrets."""
        try:
            yield
        except ReskitError:
            raise
        except Exception as error:  # each package has errors of its own
            reason = f"{type(error).__name__}: {error}".replace(self._url, self._name)
            for secret in self._secrets:
                reason = reason.replace(secret, "***")
            reason = textwrap.shorten(reason, width=300, placeholder=" ...")
            raise ConfigError(f"{self._name} cannot be read: {reason}") from None


def _without_secrets(url: str) -> tuple[str, list[str]]:
    """Return a URL without password and query, and these."""
    shown, _, query = url.partition("?")
    password = r"([^:]+://[^:/@]*):(.*)@"
    found = re.match(password, shown) or re.match(password, url)  # it may have a ? in it
    if found is None:
        return shown, [query] if query else []
    shown, _, query = url[found.end() :].partition("?")
    secrets = [found[2], unquote(found[2]), query]
    return f"{found[1]}@{shown}", [secret for secret in secrets if secret]


def _tag(info: Mapping[str, Any]) -> str:
    """Return what changes when a file does, as hexadecimal digits."""
    told = next((info[name] for name in _TAGS if info.get(name)), info)
    return hashlib.sha256(f"{info.get('size')} {told}".encode()).hexdigest()


def _is_below(path: str) -> bool:
    """Return whether a relative path stays below its folder, on any system."""
    return not {"", ".", ".."} & set(path.split("/")) and not {"\\", "\0"} & set(path)


def _is_named(folder: str) -> bool:
    """Return whether the folder of a model has a name that a model can have."""
    return NAME.fullmatch(folder.partition("/")[0]) is not None


def _prune(path: Path, keep: Collection[Path]) -> None:
    """Remove a file or folder, but for what is to be kept in it."""
    if path in keep:
        return
    if any(path in kept.parents for kept in keep):
        for inside in path.iterdir():
            _prune(inside, keep)
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
