"""Forms with one file: read strictly, and written anew for the provider."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Final

from multipart import MultipartError, MultipartSegment, PushMultipartParser

from llmbudget.gateway.protocols.errors import Refusal, malformed
from llmbudget.gateway.protocols.fields import bad

MAX_FILE: Final = 25 * 1024 * 1024
"""Bytes of the largest file, as OpenAI documents it for sound."""
MAX_FORM: Final = MAX_FILE + 256 * 1024
_MOST_FIELDS: Final = 256
_MOST_FIELD: Final = 128 * 1024
_BOUNDARY: Final = re.compile(rb"--([-'()+_,./:=?0-9A-Za-z ]{0,69}[-'()+_,./:=?0-9A-Za-z])\r\n")
_TYPE: Final = re.compile(r"[a-z0-9]+/[-+.a-z0-9]+")
_NO_NAME: Final = re.compile(r"[^-\w. ]", re.ASCII)
_PLAIN_TYPE: Final = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class File:
    """A file as it was uploaded. Providers tell its format by its name and type."""

    name: str
    content_type: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Form:
    """What a form has: fields in their order, which may be repeated, and its file."""

    fields: tuple[tuple[str, str], ...]
    file: File

    def identity(self) -> bytes:
        """Write what two of the same forms have in common: each is cut by another boundary."""
        digest = hashlib.sha256(self.file.data).hexdigest()
        return repr((self.fields, self.file.name, digest)).encode()


def read_form(body: bytes) -> Form:
    """Read a form. Its boundary is its first line's: what is sent on is written anew.

    Raises:
        Refusal: 400.
    """
    boundary = _BOUNDARY.match(body)
    if boundary is None:
        raise malformed("The body is no multipart/form-data.", code="invalid_form")
    try:
        parts = _parts(body, boundary[1])
    except MultipartError as error:
        raise malformed(f"The form can't be read: {error}.", code="invalid_form") from None
    files = [(segment, data) for segment, data in parts if segment.filename is not None]
    if len(files) != 1 or files[0][0].name != "file":
        raise bad("file", "it must be there, once, and no other file")
    segment, data = files[0]
    if len(data) > MAX_FILE:
        raise Refusal(413, "request_too_large", f"The file is larger than {MAX_FILE} bytes.")
    kind = segment.content_type or ""
    file = File(
        name=_NO_NAME.sub("_", segment.filename or "")[-128:] or "file",
        content_type=kind if _TYPE.fullmatch(kind) else _PLAIN_TYPE,
        data=data,
    )
    fields = [(each.name or "", _text(each, data)) for each, data in parts if each is not segment]
    return Form(tuple(fields), file)


def _parts(body: bytes, boundary: bytes) -> list[tuple[MultipartSegment, bytes]]:
    found: list[tuple[MultipartSegment, list[bytes]]] = []
    parser = PushMultipartParser(boundary, max_segment_count=_MOST_FIELDS, strict=True)
    with parser:
        for event in parser.parse(body):
            if isinstance(event, MultipartSegment):
                found.append((event, []))
            elif event:
                found[-1][1].append(bytes(event))
    return [(segment, b"".join(chunks)) for segment, chunks in found]


def _text(segment: MultipartSegment, data: bytes) -> str:
    name = segment.name or ""
    if len(data) > _MOST_FIELD:
        raise bad(name, f"it must have {_MOST_FIELD} bytes at most")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise bad(name, "it must be UTF-8") from None


def write_form(boundary: str, fields: list[tuple[str, str]], file: File) -> bytes:
    """Write a form. The names of the fields are known ones, and the boundary is in no part."""
    lines = [
        f'--{boundary}\r\ncontent-disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in fields
    ]
    lines.append(
        f'--{boundary}\r\ncontent-disposition: form-data; name="file"; filename="{file.name}"\r\n'
        f"content-type: {file.content_type}\r\n\r\n"
    )
    return b"%b%b\r\n--%b--\r\n" % ("".join(lines).encode(), file.data, boundary.encode())
