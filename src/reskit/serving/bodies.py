"""Bodies of requests read into memory: no more than is allowed, no slower, no larger once decompressed."""

from __future__ import annotations

import asyncio
import re
import zlib
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import parse_qs

from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from reskit.serving.faults import BadRequestError, BusyError, SlowBodyError, TooLargeError
from reskit.serving.settings import Settings
from reskit.serving.uploads import Sent

__all__ = ["Bodies", "compress", "form_of", "uploads_of"]

_AT_ONCE = 8
"""Largest bodies that may be in memory at once."""
_PIECE = 1 << 18
_WINDOWS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
_WORTH = 1024
_CHARSET = re.compile(r"^text/[^;]+;.*\bcharset=\"?([\w.-]{1,40})", re.IGNORECASE)
_WRITTEN = "application/x-www-form-urlencoded"
"""What curl calls any body it is given by --data."""
_ENDS = {"text/csv": ".csv", "text/tab-separated-values": ".tsv"}
"""Of names of bodies, by what they are said to be."""


class Bodies:
    """Reads bodies; knows how much of them is in memory.

    Args:
        settings: of the service.
    """

    def __init__(self, settings: Settings) -> None:
        self._most = settings.max_body
        self._seconds = settings.body_timeout_s
        self._held = 0

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytes]:
        """Yield the body of a request, decompressed.

        Raises:
            TooLargeError: it is larger than allowed, or says so.
            SlowBodyError: it does not arrive in time.
            BusyError: too much is being received at once.
            BadRequestError: its encoding is unknown or broken, or it breaks off.
        """
        pieces: list[bytes] = []
        try:
            await self._receive(request, pieces)
            yield b"".join(pieces)
        finally:
            self._held -= sum(map(len, pieces))

    async def _receive(self, request: Request, pieces: list[bytes]) -> None:
        encoding = request.headers.get("content-encoding", "identity").lower()
        if encoding != "identity" and encoding not in _WINDOWS:
            raise BadRequestError(f"content-encoding {encoding[:40]!r} is not taken; known: gzip, deflate")
        claimed = request.headers.get("content-length", "0")
        if claimed.isdecimal() and int(claimed[:18]) > self._most:
            raise self._too_large()
        size = 0
        try:
            async with asyncio.timeout(self._seconds):
                async for piece in _decoded(request.stream(), encoding):
                    size += len(piece)
                    if size > self._most:
                        raise self._too_large()
                    if self._held + len(piece) > _AT_ONCE * self._most:
                        raise BusyError("too many large requests at once", 1)
                    self._held += len(piece)
                    pieces.append(piece)
        except TimeoutError:
            raise SlowBodyError(f"the body did not arrive within {self._seconds:g} s") from None
        except ClientDisconnect:
            raise BadRequestError("the body broke off") from None

    def _too_large(self) -> TooLargeError:
        return TooLargeError(f"the body is larger than {self._most:,} bytes, the most this service takes")


async def _decoded(chunks: AsyncIterable[bytes], encoding: str) -> AsyncIterator[bytes]:
    """Yield a body as it comes, decompressed in pieces that are never large.

    Raises:
        BadRequestError: it is broken, or breaks off.
    """
    if encoding == "identity":
        async for chunk in chunks:
            yield chunk
        return
    inflate = zlib.decompressobj(_WINDOWS[encoding])
    try:
        async for chunk in chunks:
            while chunk and not inflate.eof:
                yield inflate.decompress(chunk, _PIECE)
                chunk = inflate.unconsumed_tail
        yield inflate.flush()
    except zlib.error as error:
        raise BadRequestError(f"the body is not {encoding}: {error}") from None
    if not inflate.eof:
        raise BadRequestError(f"the {encoding} body breaks off")


def compress(body: bytes, accepted: str) -> tuple[bytes, str | None]:
    """Return a body compressed as the client accepts it, and how; as it is where that is not worth it."""
    words = [part.split(";")[0].strip().lower() for part in accepted.split(",") if not _refused(part)]
    encoding = next((word for word in words if word in _WINDOWS), None)
    if encoding is None or len(body) < _WORTH:
        return body, None
    deflate = zlib.compressobj(
        1, wbits=_WINDOWS[encoding]
    )  # fast: loopback and data centres are faster still
    return deflate.compress(body) + deflate.flush(), encoding


async def uploads_of(body: bytes, headers: Headers) -> list[Sent]:
    """Return the files of a form, or its texts where it has no files, or the body itself as the one file.

    Raises:
        BadRequestError: the form is malformed or holds nothing.
    """
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        if not body:
            raise BadRequestError("the body is empty: send an image, a recording, a text, a table, or a form")
        if kind == _WRITTEN and body.startswith(b"text="):
            return [Sent("text", text) for text in parse_qs(body.decode("latin-1")).get("text", [""])]
        return [Sent(f"body{_ENDS.get(kind, '')}", _decoded_text(body, headers))]
    fields, files = await form_of(body, headers)
    sent = [Sent(*field) for field in fields if field[0] == "text"] + [Sent(*file) for file in files]
    if not sent:
        raise BadRequestError("the form holds no file, and no field 'text'")
    return sent


def _decoded_text(body: bytes, headers: Headers) -> bytes | str:
    """Return a body as the text that its type says it is; bytes where that says nothing.

    Raises:
        BadRequestError: it says what it is not.
    """
    found = _CHARSET.search(headers.get("content-type", ""))
    if found is None or found[1].lower() == "utf-8":
        return body
    try:
        return body.decode(found[1])
    except (LookupError, ValueError):
        raise BadRequestError(f"the body is no text in {found[1]}") from None


async def form_of(body: bytes, headers: Headers) -> tuple[list[tuple[str, str]], list[tuple[str, bytes]]]:
    """Return the fields of a form and its files, each with its name.

    Raises:
        BadRequestError: it is malformed, or breaks off.
    """

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body
        if not parser.ended:  # raised here, the parser gives back what it holds
            raise BadRequestError("the form breaks off before its last boundary")

    parser = _InMemory(headers, stream(), max_files=64, max_fields=16)
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError) as error:
        reason = error.message if isinstance(error, MultiPartException) else "it has no boundary"
        raise BadRequestError(f"the form is malformed: {reason}") from None
    try:
        fields = [(name, value) for name, value in form.multi_items() if isinstance(value, str)]
        files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
        return fields, [(file.filename or "upload", await file.read()) for file in files]
    finally:
        await form.close()


class _InMemory(MultiPartParser):
    """Starlette's parser, which else would write large files to the disk, and not mind a missing end."""

    spool_max_size = 1 << 62
    ended = False

    def on_end(self) -> None:
        """Note that the last boundary was there."""
        super().on_end()
        self.ended = True


def _refused(part: str) -> bool:
    """Return whether a part of Accept-Encoding says that an encoding is not wanted."""
    _, _, weight = part.partition(";")
    return weight.strip().lower().replace(" ", "") in ("q=0", "q=0.0", "q=0.00", "q=0.000")
