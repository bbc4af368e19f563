"""As much of HTTP/1.1 as a witness and its client speak, over asyncio's streams.

Owns reading and writing of messages, with a limit on everything. It must never read on after a message that it did not
understand: whoever sent it is answered once, and the connection ends.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

HEAD_BYTES_MAX: Final = 16 * 1024
HEADERS_MAX: Final = 64
_CHUNK_LINE_BYTES_MAX: Final = 256
_REQUEST_LINE: Final = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([!-~]+) (HTTP/1\.[01])")
_STATUS_LINE: Final = re.compile(r"HTTP/1\.[01] ([1-5][0-9]{2})(?: .*)?")
_HEADER: Final = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*(.*?)[ \t]*")
_LENGTH: Final = re.compile(r"[0-9]{1,18}")
_CHUNK: Final = re.compile(r"([0-9A-Fa-f]{1,8})[ \t]*(?:;.*)?")


class BadMessage(Exception):
    """Bytes that are no message within the limits. `status` is how a server answers them."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status


@dataclass(frozen=True, slots=True)
class Head:
    """The first line and the headers, whose names are in lower case. `stays` is whether the connection does."""

    line: tuple[str, ...]
    headers: Mapping[str, str]
    stays: bool


def stream_limit() -> int:
    """The `limit` that the streams have to be made with."""
    return HEAD_BYTES_MAX


async def read_request_head(reader: asyncio.StreamReader) -> Head | None:
    """Method, target, version. None when the other side has ended. Raises BadMessage."""
    lines = await _head_lines(reader)
    if lines is None:
        return None
    match = _REQUEST_LINE.fullmatch(lines[0])
    if match is None:
        raise BadMessage(400, "not a request line of HTTP/1.1")
    return _head(match.groups(), lines[1:], is_old=match[3] == "HTTP/1.0")


async def read_response_head(reader: asyncio.StreamReader) -> Head:
    """The status. Interim answers are passed over. Raises BadMessage."""
    while True:
        lines = await _head_lines(reader)
        match = _STATUS_LINE.fullmatch(lines[0]) if lines else None
        if lines is None or match is None:
            raise BadMessage(502, "not an answer of HTTP/1.1")
        if not match[1].startswith("1"):
            return _head(match.groups(), lines[1:], is_old=False)


async def read_body(reader: asyncio.StreamReader, head: Head, bytes_max: int, *, to_end: bool = False) -> bytes:
    """The body; of a message without a length nothing, or with `to_end` what comes until the end. Raises BadMessage."""
    encoding, length = head.headers.get("transfer-encoding"), head.headers.get("content-length")
    if encoding is not None:
        if length is not None or encoding.lower() != "chunked":
            raise BadMessage(400, "a body with two lengths, or in an unknown encoding")
        return await _chunked(reader, bytes_max)
    if length is None:
        body = await _until_end(reader, bytes_max + 1) if to_end else b""
    elif not _LENGTH.fullmatch(length):
        raise BadMessage(400, "a Content-Length that is no number")
    elif int(length) > bytes_max:
        raise BadMessage(413, f"a body is at most {bytes_max} bytes")
    else:
        body = await _exactly(reader, int(length))
    if len(body) > bytes_max:
        raise BadMessage(413, f"a body is at most {bytes_max} bytes")
    return body


def write_message(first_line: str, headers: Mapping[str, str], body: bytes, *, with_body: bool = True) -> bytes:
    """A message with its Content-Length."""
    lines = [first_line, *(f"{name}: {value}" for name, value in headers.items()), f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode("ascii") + (body if with_body else b"")


def status_line(status: int) -> str:
    """The first line of an answer."""
    return f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"


async def _head_lines(reader: asyncio.StreamReader) -> list[str] | None:
    try:
        data = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as ended:
        if ended.partial:
            raise BadMessage(400, "the other side ended within the headers") from None
        return None
    except asyncio.LimitOverrunError:
        raise BadMessage(431, f"headers are at most {HEAD_BYTES_MAX} bytes") from None
    try:
        return data[:-4].decode("ascii").split("\r\n")
    except UnicodeDecodeError:
        raise BadMessage(400, "headers are ASCII") from None


def _head(line: tuple[str, ...], lines: list[str], *, is_old: bool) -> Head:
    if len(lines) > HEADERS_MAX:
        raise BadMessage(431, f"more than {HEADERS_MAX} headers")
    headers: dict[str, str] = {}
    for name, value in _headers(lines):
        if name in headers and name in ("content-length", "transfer-encoding", "host"):
            raise BadMessage(400, f"{name} stands twice")
        headers[name] = value
    wish = headers.get("connection", "").lower()
    return Head(line, headers, wish != "close" and not is_old)


def _headers(lines: list[str]) -> Iterator[tuple[str, str]]:
    for line in lines:
        match = _HEADER.fullmatch(line)
        if match is None:
            raise BadMessage(400, "a line that is no header")
        yield match[1].lower(), match[2]


async def _exactly(reader: asyncio.StreamReader, size: int) -> bytes:
    try:
        return await reader.readexactly(size)
    except asyncio.IncompleteReadError:
        raise BadMessage(400, "the other side ended within the body") from None


async def _until_end(reader: asyncio.StreamReader, bytes_max: int) -> bytes:
    parts: list[bytes] = []
    while bytes_max > 0 and (part := await reader.read(bytes_max)):
        parts.append(part)
        bytes_max -= len(part)
    return b"".join(parts)


async def _chunked(reader: asyncio.StreamReader, bytes_max: int) -> bytes:
    body = bytearray()
    while size := await _chunk_size(reader):
        if len(body) + size > bytes_max:
            raise BadMessage(413, f"a body is at most {bytes_max} bytes")
        body += await _exactly(reader, size)
        if await _exactly(reader, 2) != b"\r\n":
            raise BadMessage(400, "a chunk without its end")
    for _ in range(HEADERS_MAX):
        if await _line(reader) == "":
            return bytes(body)
    raise BadMessage(431, f"more than {HEADERS_MAX} trailers")


async def _chunk_size(reader: asyncio.StreamReader) -> int:
    match = _CHUNK.fullmatch(await _line(reader))
    if match is None:
        raise BadMessage(400, "a chunk without its size")
    return int(match[1], 16)


async def _line(reader: asyncio.StreamReader) -> str:
    try:
        data = await reader.readuntil(b"\r\n")
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        raise BadMessage(400, "a line without its end") from None
    if len(data) > _CHUNK_LINE_BYTES_MAX:
        raise BadMessage(400, "a line that is too long")
    return data[:-2].decode("latin-1")
