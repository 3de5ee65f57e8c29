"""Reading fields of a request: what is not known is refused by name, never dropped.

What isn't known here may cost what nobody bounded, and a caller must not believe that it was heard.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Final

from llmbudget.gateway.protocols import strict
from llmbudget.gateway.protocols.errors import Refusal, malformed

MAX_TOKENS: Final = 10_000_000
"""Highest output limit: what a model's `maxOutput` may be at most."""
MAX_CHOICES: Final = 128
MAX_NAME: Final = 256
"""Characters of a model's name: a provider's and a model's at their longest, and a slash."""

HOSTED: Final = "tools that the provider runs charge beyond the tokens of this call"
MAX_SEARCHES: Final = 100
"""Web searches of one call."""
MAX_ID: Final = 256
STORED: Final = "the provider would add input that can't be bounded"
MEDIA: Final = "this kind of media can't be bounded yet"
CACHED: Final = "what the provider charges for the cache can't be bounded yet"
UNKNOWN: Final = "this gateway doesn't know what it costs; leave it out"

KINDS: Final = frozenset({"output_image"})
"""Rates that may apply to any answer: some models draw unasked."""
KINDS_READ: Final = KINDS | {"input_image", "cached_image"}
"""Rates that may apply where images may be read."""
KINDS_HEARD: Final = frozenset({"input_audio", "cached_audio"})
"""Rates that may apply where sound may be heard."""

Fields = Mapping[str, object]
Check = Callable[[object], None]


def read_object(body: bytes) -> dict[str, object]:
    """Read a body as a JSON object, without its null fields.

    Raises:
        Refusal: 400.
    """
    try:
        document = strict.parse(body)
    except strict.NotStrict as error:
        raise malformed(f"{error}.", code="invalid_json") from None
    if not isinstance(document, dict):
        raise malformed("The body is no JSON object.", code="invalid_json")
    return {key: value for key, value in document.items() if value is not None}


def check(
    fields: Fields,
    known: Collection[str],
    reasons: Mapping[str, str],
    checks: Mapping[str, Check],
) -> None:
    """Refuse fields that are not known, and run the checks of those that have one.

    Raises:
        Refusal: 400, naming the field and the reason.
    """
    for key, value in fields.items():
        if key not in known and key not in checks:
            raise bad(key, reasons.get(key, UNKNOWN))
        if key in checks:
            checks[key](value)


def only(value: Fields, known: Collection[str], where: str, reasons: Mapping[str, str]) -> None:
    """Refuse keys of a nested object that are not known.

    Raises:
        Refusal: 400.
    """
    for key in value:
        if key not in known:
            raise bad(f"{where}.{key}", reasons.get(key, UNKNOWN))


def model_of(fields: Fields) -> str:
    """Read the model's name.

    Raises:
        Refusal: 400.
    """
    model = fields.get("model")
    if not isinstance(model, str) or not 1 <= len(model) <= MAX_NAME or not model.isprintable():
        raise bad("model", f"it must be a string of 1 to {MAX_NAME} printable characters")
    return model


def integer(fields: Fields, name: str, most: int) -> int | None:
    """Read a whole number from 1 to `most`; None: it is not there.

    Raises:
        Refusal: 400.
    """
    value = fields.get(name)
    if value is None:
        return None
    # A bool is an int to Python, not to JSON.
    if type(value) is not int or not 1 <= value <= most:
        raise bad(name, f"it must be a whole number from 1 to {most}")
    return value


def flag(fields: Fields, name: str, where: str | None = None) -> bool:
    """Read true or false; it is false where it is not there.

    Raises:
        Refusal: 400.
    """
    value = fields.get(name, False)
    if not isinstance(value, bool):
        raise bad(where or name, "it must be true or false")
    return value


def object_at(value: object, where: str) -> dict[str, object]:
    """Expect an object.

    Raises:
        Refusal: 400.
    """
    if not isinstance(value, dict):
        raise bad(where, "it must be an object")
    return value


def list_at(value: object, where: str) -> list[object]:
    """Expect a list that is not empty.

    Raises:
        Refusal: 400.
    """
    if not isinstance(value, list) or not value:
        raise bad(where, "it must be a non-empty list")
    return value


def texts(fields: Fields, name: str) -> list[object]:
    """Read a list that was checked; empty where it is not there."""
    value = fields.get(name)
    return value if isinstance(value, list) else []


def must_be(wanted: object, field: str, reason: str) -> Check:
    """Make a check that allows one value of a field."""

    def checked(value: object) -> None:
        # Not only equal: 0 equals false.
        if type(value) is not type(wanted) or value != wanted:
            raise bad(field, reason)

    return checked


def image_bytes(url: object, where: str) -> int:
    """Check an image's URL, and count its bytes, which no model reads as text.

    Raises:
        Refusal: 400.
    """
    if not isinstance(url, str) or not url.startswith(("data:image/", "https://")):
        raise bad(where, "it must be a data:image/ or https:// URL")
    return len(url) if url.isascii() else 0


def file_bytes(value: Fields, where: str, *fields: str) -> int:
    """Check a file that comes as data or as a URL, in one of the fields; count its bytes.

    Raises:
        Refusal: 400.
    """
    given = [value[name] for name in fields if value.get(name) is not None]
    if len(given) != 1 or not isinstance(given[0], str):
        raise bad(where, f"it must have {' or '.join(fields)}, as a string")
    return len(given[0]) if given[0].isascii() else 0


def is_pdf(file: Fields) -> bool:
    """Tell whether a checked file is a PDF, as its data says; of any other nobody knows whether
    there is sound in it."""
    data = file.get("file_data")
    return isinstance(data, str) and data.startswith("data:application/pdf")


def tools_check(
    kind: str,
    otherwise: str | None,
    known: Collection[str],
    reasons: Mapping[str, str],
    hosted: Mapping[str, Collection[str]] | None = None,
) -> Check:
    """Make a check that allows tools of one kind, which run at the caller's, and those that the
    provider hosts; `otherwise` is the kind of a tool that says none."""

    def checked(tools: object) -> None:
        if not isinstance(tools, list):
            raise bad("tools", "it must be a list")
        for index, value in enumerate(tools):
            where = f"tools[{index}]"
            tool = object_at(value, where)
            found = tool.get("type", otherwise)
            if isinstance(found, str) and found in (hosted or {}):
                only(tool, (hosted or {})[found], where, reasons)
                continue
            if found != kind:
                others = "".join(f" and {name}" for name in hosted or {})
                raise bad(f"{where}.type", f"only {kind}{others} is allowed: {HOSTED}")
            only(tool, known, where, reasons)

    return checked


def serialise(value: object) -> bytes:
    """Write a part of a request.

    Raises:
        Refusal: 400, where parsers would read it differently.
    """
    try:
        return strict.serialise(value)
    except strict.NotStrict as error:
        raise malformed(f"{error}.", code="invalid_json") from None


def inside(fields: Fields) -> bytes:
    """Write fields as the inside of an object."""
    return serialise(fields)[1:-1] if fields else b""


def joined(head: Fields, *parts: bytes) -> bytes:
    """Write an object whose first fields are `head`, and whose others are written already."""
    rest = b"".join(b"," + part for part in parts if part)
    return serialise(head)[:-1] + rest + b"}"


def bad(field: str, reason: str) -> Refusal:
    """400: a field is refused, for a reason."""
    # The name may be the caller's own invention: of any length, with any characters.
    name = field if len(field) <= 120 else f"{field[:120]}…"
    name = name if name.isprintable() else ascii(name)
    return malformed(f"Field {name} is refused: {reason}.", param=name, code="unsupported_field")
