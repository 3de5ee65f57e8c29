"""Logs: one JSON object a line, whatever is in it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from llmbudget.telemetry import logs
from llmbudget.telemetry.logs import JsonFormatter

OURS = "llmbudget.gateway.test"


@pytest.fixture
def keep_logging() -> Iterator[None]:
    """Put logging back to what it was."""
    changed = [logging.getLogger(name) for name in ("", "llmbudget", "apprise", OURS)]
    before = [(each, each.level, each.propagate, each.handlers[:]) for each in changed]
    yield
    for each, level, propagate, handlers in before:
        each.setLevel(level)
        each.propagate, each.handlers[:] = propagate, handlers


def record(message: str, *arguments: object, **more: Any) -> logging.LogRecord:
    made = logging.LogRecord(OURS, logging.WARNING, __file__, 1, message, arguments, None)
    vars(made).update(more)
    return made


def written(made: logging.LogRecord) -> dict[str, Any]:
    line = JsonFormatter().format(made)
    assert len(line.splitlines()) == 1
    document: dict[str, Any] = json.loads(line)
    return document


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    out, err = capsys.readouterr()
    assert not out
    return [json.loads(line) for line in err.splitlines()]


def test_a_line_says_when_how_bad_where_and_what() -> None:
    made = record("%s of %d", "one", 2)
    document = written(made)
    when = datetime.fromisoformat(document.pop("time"))
    assert when.tzinfo == UTC
    assert abs(when.timestamp() - made.created) <= 0.001
    assert document == {"level": "warning", "logger": OURS, "message": "one of 2"}


def test_fields_stand_beside_the_message() -> None:
    document = written(record("call", fields={"entry": "call-1", "cost_nano": 42, "why": None}))
    assert document["message"] == "call"
    assert (document["entry"], document["cost_nano"], document["why"]) == ("call-1", 42, None)


@pytest.mark.parametrize(
    "text",
    [
        'quote " and backslash \\',
        'line\nfeed\r\nand {"level": "critical"}',
        "separator \u2028 and \u0085 next line",
        "null \x00 and escape \x1b[31m",
        "lone \udc80 surrogate",
        "Ünïcode 🎉",
    ],
)
def test_any_text_is_one_line_and_comes_back(text: str) -> None:
    document = written(record("%s", text, fields={"field": text, text: 1}))
    assert document["message"] == document["field"] == text
    assert document[text] == 1
    assert document["level"] == "warning"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (Path("/var/lib"), "/var/lib"),
        (datetime(2026, 11, 23, tzinfo=UTC), "2026-11-23 00:00:00+00:00"),
        ({"a": [1, (2,)]}, {"a": [1, [2]]}),
        (ValueError("x"), "x"),
        (10**30, 10**30),
    ],
)
def test_values_that_json_does_not_know_are_text(value: object, shown: object) -> None:
    assert written(record("x", fields={"value": value}))["value"] == shown


def test_an_exception_is_a_field_with_its_traceback() -> None:
    try:
        raise ValueError("boom\nand more")
    except ValueError as error:
        made = record("failed", exc_info=(type(error), error, error.__traceback__))
    document = written(made)
    assert document["message"] == "failed"
    assert document["traceback"].startswith("Traceback (most recent call last):")
    assert document["traceback"].endswith("ValueError: boom\nand more")


def test_without_an_exception_there_is_no_traceback() -> None:
    assert "traceback" not in written(record("x", exc_info=None))


@pytest.mark.usefixtures("keep_logging")
def test_everything_goes_to_stderr_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up()
    log = logging.getLogger(OURS)
    log.info("one", extra={"fields": {"n": 1}})
    try:
        raise KeyError("gone")
    except KeyError:
        log.exception("two")
    logging.getLogger("library").warning("three")
    found = lines(capsys)
    assert [line["message"] for line in found] == ["one", "two", "three"]
    assert found[0]["n"] == 1
    assert "KeyError: 'gone'" in found[1]["traceback"]
    assert found[2]["logger"] == "library"


@pytest.mark.usefixtures("keep_logging")
@pytest.mark.parametrize(
    ("level", "ours"),
    [
        ("DEBUG", ["debug", "info", "warning"]),
        ("INFO", ["info", "warning"]),
        ("WARNING", ["warning"]),
        ("ERROR", []),
    ],
)
def test_the_level_is_ours_and_libraries_speak_from_warnings_on(
    capsys: pytest.CaptureFixture[str], level: str, ours: list[str]
) -> None:
    logs.set_up(level)
    for name in (OURS, "aiohttp.client"):
        log = logging.getLogger(name)
        log.debug("x")
        log.info("x")
        log.warning("x")
    found = [(line["logger"], line["level"]) for line in lines(capsys)]
    expected = [(OURS, each) for each in ours] + [("aiohttp.client", "warning")]
    assert found == expected


@pytest.mark.usefixtures("keep_logging")
def test_an_unknown_level_is_an_error() -> None:
    with pytest.raises(ValueError, match="LOUD"):
        logs.set_up("LOUD")


@pytest.mark.usefixtures("keep_logging")
def test_set_up_twice_writes_each_line_once(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up()
    logs.set_up("DEBUG")
    logging.getLogger(OURS).debug("x")
    assert len(lines(capsys)) == 1


@pytest.mark.usefixtures("keep_logging")
@pytest.mark.parametrize("level", ["INFO", "DEBUG"])
@pytest.mark.parametrize("name", ["apprise", "apprise.plugins.slack"])
def test_apprise_is_silent(capsys: pytest.CaptureFixture[str], level: str, name: str) -> None:
    logs.set_up(level)
    logging.getLogger(name).critical("slack://token")
    assert not lines(capsys)
