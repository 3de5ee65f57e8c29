"""Notices to their channels: each once, none in another's way, and no URL told to anyone."""

from __future__ import annotations

import base64
import json
import logging
import traceback
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager

import pytest

from llmbudget.local.http1 import Answer, Request, port_of, serve
from llmbudget.notify.channels import NotDelivered, deliver, urls_of
from llmbudget.notify.notice import Notice
from llmbudget.telemetry import logs

SECRET = "hunter2-canary"
HERE = {"127.0.0.1"}
"""Private hosts that this installation lets notices go to."""
LEVELS = ["INFO", "DEBUG"]
NOTICE = Notice("80 % spent", "Budget ns/team has spent 80.00 USD.", ("admin", "onCall"))


class Sink:
    """Addresses that notices are sent to; those in `refusing` take none."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, dict[str, str]]] = []
        self.tried: list[str] = []
        self.refusing: set[str] = set()
        self.raw: bytes | None = None
        self.port = 0

    async def take(self, request: Request, answer: Answer) -> None:
        self.tried.append(request.path)
        if self.raw is not None:
            answer.raw(self.raw)
            answer.close()
        elif request.path.startswith(tuple(self.refusing)):
            answer.send(503, b"{}")
        else:
            self.taken.append((request.path, json.loads(request.body)))
            answer.send(200, b"{}")

    def url(self, path: str) -> str:
        return f"json://127.0.0.1:{self.port}{path}"


@pytest.fixture
async def sink() -> AsyncIterator[Sink]:
    made = Sink()
    async with await serve(made.take, 0) as server:
        made.port = port_of(server)
        yield made


@contextmanager
def logging_as_in_production(level: str, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Log to stderr as the product does, and to `caplog` whatever reaches stderr."""
    changed = [logging.getLogger(name) for name in ("", "llmbudget", "apprise")]
    before = [(each, each.level, each.propagate, each.handlers[:]) for each in changed]
    logs.set_up(level)
    logging.getLogger().addHandler(caplog.handler)
    try:
        yield
    finally:
        for each, old_level, propagate, handlers in before:
            each.setLevel(old_level)
            each.propagate, each.handlers[:] = propagate, handlers


def in_secret(**values: bytes) -> dict[str, object]:
    return {"data": {key: base64.b64encode(value).decode() for key, value in values.items()}}


def one(url: str) -> dict[str, list[str]]:
    return {"admin": [url]}


async def fails(urls: Mapping[str, list[str]], done: set[str]) -> NotDelivered:
    with pytest.raises(NotDelivered) as raised:
        await deliver(NOTICE, urls, done, HERE)
    return raised.value


def told(error: BaseException) -> str:
    """Everything that a log or a status may show of an exception."""
    return "".join([*traceback.format_exception(error), repr(error), str(vars(error))])


def test_urls_are_lines_and_remarks_are_none() -> None:
    text = b"# the admins\r\n  json://a/x \n\n#json://b\njson://c/#part\n"
    found = urls_of(in_secret(admin=text, executives=b"json://boss"), ("admin", "onCall"))
    assert found == {"admin": ["json://a/x", "json://c/#part"], "onCall": []}


@pytest.mark.parametrize("secret", [{}, {"data": None}, {"data": {}}, {"data": {"admin": ""}}])
def test_a_secret_without_the_key_has_no_urls(secret: dict[str, object]) -> None:
    assert urls_of(secret, ("admin",)) == {"admin": []}


@pytest.mark.parametrize(
    "data", [base64.b64encode(SECRET.encode() + b"\xff").decode(), f"{SECRET}!", "YQ"]
)
def test_a_key_that_is_no_text_is_named_and_not_shown(data: str) -> None:
    with pytest.raises(NotDelivered, match="the key admin") as refused:
        urls_of({"data": {"admin": data}}, ("admin",))
    shown = told(refused.value)
    assert SECRET not in shown
    assert data not in shown


async def test_everyone_gets_the_title_and_the_body(sink: Sink) -> None:
    urls = {"admin": [sink.url("/a"), sink.url("/b")], "onCall": [sink.url("/c")]}
    done: set[str] = set()
    assert await deliver(NOTICE, urls, done, HERE) == 3
    assert sorted(path for path, _ in sink.taken) == ["/a", "/b", "/c"]
    for _, message in sink.taken:
        assert (message["title"], message["message"]) == (NOTICE.title, NOTICE.body)
    assert await deliver(NOTICE, urls, done, HERE) == 0
    assert len(sink.taken) == 3


@pytest.mark.parametrize("urls", [{}, {"admin": []}])
async def test_nobody_to_tell_is_no_failure(urls: dict[str, list[str]]) -> None:
    assert await deliver(NOTICE, urls, set(), HERE) == 0


async def test_one_address_of_two_recipients_is_told_once(sink: Sink) -> None:
    urls = {"admin": [sink.url("/a")], "onCall": [sink.url("/a")]}
    assert await deliver(NOTICE, urls, set(), HERE) == 1
    assert len(sink.taken) == 1


async def test_what_one_channel_did_not_take_is_tried_again_alone(sink: Sink) -> None:
    urls = {"admin": [sink.url("/a"), sink.url("/b")], "onCall": [sink.url("/c")]}
    sink.refusing = {"/a"}
    done: set[str] = set()
    assert str(await fails(urls, done)) == "not delivered to admin (line 1)"
    assert sorted(path for path, _ in sink.taken) == ["/b", "/c"]
    sink.refusing, sink.tried = set(), []
    assert await deliver(NOTICE, urls, done, HERE) == 1
    assert sink.tried == ["/a"]


async def test_all_that_failed_are_named(sink: Sink) -> None:
    sink.refusing = {"/a", "/c"}
    urls = {"admin": [sink.url("/b"), sink.url("/a")], "onCall": [sink.url("/c")]}
    assert str(await fails(urls, set())) == "not delivered to admin (line 2), onCall (line 1)"


MALFORMED = [
    SECRET,
    f"nonsense://{SECRET}",
    f"://{SECRET}",
    f"json:{SECRET}",
    f"json://[{SECRET}",
    f"json://user:{SECRET}@",
    f"json://user:{SECRET}@[::1",
    f"json://user:{SECRET}@127.0.0.1:99999999/",
    f"slack://{SECRET}",
    f"slack://{SECRET}/{SECRET}",
    f"tgram://{SECRET}/",
    f"pagerduty://{SECRET}",
    f"mailto://user:{SECRET}",
    f"mailtos://user:{SECRET}@[bad",
    f"discord://{SECRET}",
    f"https://hooks.slack.com/services/{SECRET}",
]


@pytest.mark.parametrize("url", MALFORMED)
@pytest.mark.parametrize("level", LEVELS)
async def test_a_url_that_is_not_understood_is_told_to_nobody(
    url: str,
    level: str,
    sink: Sink,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    urls = {"admin": [sink.url("/a"), url], "onCall": [sink.url("/c")]}
    with logging_as_in_production(level, caplog):
        error = await fails(urls, set())
    assert str(error) == "not delivered to admin (line 2)"
    assert [path for path, _ in sink.taken] == ["/a", "/c"], "it is in nobody's way"
    assert SECRET not in told(error) + caplog.text + "".join(capfd.readouterr())


@pytest.mark.parametrize("fails_by", ["refusing", "away", "breaking off"])
@pytest.mark.parametrize("level", LEVELS)
async def test_a_url_that_does_not_take_a_notice_is_told_to_nobody(
    fails_by: str,
    level: str,
    sink: Sink,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    sink.refusing = {f"/{SECRET}"}
    sink.raw = b"HTTP/1.1 2" if fails_by == "breaking off" else None
    port = 1 if fails_by == "away" else sink.port
    url = f"json://user:{SECRET}@127.0.0.1:{port}/{SECRET}?-token={SECRET}&+x-key={SECRET}"
    with logging_as_in_production(level, caplog):
        error = await fails(one(url), set())
    assert SECRET not in told(error) + caplog.text + "".join(capfd.readouterr())


async def test_a_url_is_told_to_nobody_when_its_answer_has_broken_headers(
    sink: Sink, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    sink.raw = b"HTTP/1.1 200 OK\r\nno colon in this line\r\ncontent-length: 0\r\n\r\n"
    with logging_as_in_production("INFO", caplog):
        await deliver(NOTICE, one(sink.url(f"/services/{SECRET}")), set(), HERE)
    assert SECRET not in caplog.text + "".join(capfd.readouterr())


async def test_a_url_that_apprise_chokes_on_is_in_nobodys_way(sink: Sink) -> None:
    urls = {"admin": [f"gio://[{SECRET}", sink.url("/a")]}
    assert str(await fails(urls, set())) == "not delivered to admin (line 1)"
    assert [path for path, _ in sink.taken] == ["/a"]


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "169.254.169.254", "10.96.0.1", "[::1]", "0.0.0.0"]
)
async def test_no_notice_goes_to_a_private_address_that_nobody_allowed(
    sink: Sink, host: str
) -> None:
    """A tenant who writes channels must not reach through the operator what is not theirs."""
    address = sink.url("/probed").replace("127.0.0.1", host)
    with pytest.raises(NotDelivered) as refused:
        await deliver(NOTICE, one(address), set(), {"notices.example", "127.0.0.1:1"})
    assert sink.tried == []
    assert "probed" not in told(refused.value)


async def test_a_private_address_with_its_port_may_be_allowed(sink: Sink) -> None:
    allowed = {f"127.0.0.1:{sink.port}"}
    assert await deliver(NOTICE, one(sink.url("/a")), set(), allowed) == 1
