"""Usage is read from answers whatever their chunks, and believed only where it is a measure."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmbudget.api.money import Nano
from llmbudget.decide.cost import Usage
from llmbudget.gateway.protocols.chat_answers import ChatMeter, usage_of
from llmbudget.gateway.protocols.sse import MAX_EVENT, cost_comment

PLAUSIBLE = 1_000_000


def answer(**usage: object) -> bytes:
    return json.dumps({"id": "x", "choices": [{}], "usage": usage}).encode()


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"prompt_tokens": 10, "completion_tokens": 20}, Usage(10, 20)),
        ({"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 30}, Usage(10, 20)),
        ({"prompt_tokens": 10, "completion_tokens": 0}, Usage(10, 0)),
        (
            {
                "prompt_tokens": 10,
                "completion_tokens": 20,
                "total_tokens": None,
                "prompt_tokens_details": None,
                "completion_tokens_details": {"reasoning_tokens": None, "audio_tokens": 0},
            },
            Usage(10, 20),
        ),
        (
            {
                "prompt_tokens": 10,
                "completion_tokens": 20,
                "prompt_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 5},
                "completion_tokens_details": {"reasoning_tokens": 6},
            },
            Usage(10, 20, 4, 5, 6),
        ),
        (
            {"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 100},
            Usage(10, 90),
        ),
        ({"prompt_tokens": 10, "total_tokens": 100}, Usage(10, 90)),
        (
            {
                "prompt_tokens": 10,
                "completion_tokens": 20,
                "completion_tokens_details": {"reasoning_tokens": 50},
            },
            Usage(10, 70, reasoning=50),
        ),
        (
            {
                "prompt_tokens": 10,
                "completion_tokens": 20,
                "prompt_tokens_details": {"cached_tokens": 50},
            },
            Usage(60, 20, cached=50),
        ),
    ],
    ids=[
        "two counts",
        "with total",
        "no output",
        "null details",
        "details",
        "hidden output",
        "output left out",
        "reasoning beside the output",
        "cache beside the prompt",
    ],
)
def test_usage_is_read(usage: dict[str, object], expected: Usage) -> None:
    assert usage_of(answer(**usage), PLAUSIBLE) == expected


BAD_COUNTS = [None, -1, 1.5, 10.0, True, "10", [], {}, PLAUSIBLE + 1, 10**40, float("nan")]


@pytest.mark.parametrize("bad", BAD_COUNTS, ids=repr)
@pytest.mark.parametrize("field", ["prompt_tokens", "completion_tokens"])
def test_a_count_that_is_no_measure_makes_the_usage_unknown(field: str, bad: object) -> None:
    assert (
        usage_of(answer(**{"prompt_tokens": 1, "completion_tokens": 1, field: bad}), 10**6) is None
    )


@pytest.mark.parametrize("bad", BAD_COUNTS[1:], ids=repr)
def test_a_detail_that_is_no_measure_makes_the_usage_unknown(bad: object) -> None:
    usage = {"prompt_tokens": 1, "completion_tokens": 1}
    assert usage_of(answer(**usage, total_tokens=bad), PLAUSIBLE) is None
    assert usage_of(answer(**usage, prompt_tokens_details={"cached_tokens": bad}), 10**6) is None
    details = {"reasoning_tokens": bad}
    assert usage_of(answer(**usage, completion_tokens_details=details), PLAUSIBLE) is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no json",
        b"[]",
        b"null",
        b"{}",
        b'{"usage": null}',
        b'{"usage": []}',
        b'{"usage": {}}',
        b'{"usage": {"prompt_tokens": 0, "completion_tokens": 0}}',
        b'{"usage": {"prompt_tokens": 5}}',
        b'{"usage": {"prompt_tokens": 1e999, "completion_tokens": 1}}',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"usage": ' + b"9" * 10_000 + b"}",
    ],
)
def test_an_answer_without_usage_is_unknown(body: bytes) -> None:
    assert usage_of(body, PLAUSIBLE) is None


@given(st.binary())
def test_arbitrary_answers_never_raise(body: bytes) -> None:
    assert usage_of(body, PLAUSIBLE) is None


def event(document: object, end: str = "\n") -> bytes:
    return f"data: {json.dumps(document)}{end}{end}".encode()


def text(content: str) -> dict[str, object]:
    return {"choices": [{"index": 0, "delta": {"content": content}}], "usage": None}


COUNTS = {"prompt_tokens": 10, "completion_tokens": 20}
USAGE = {"choices": [], "usage": COUNTS}
DONE = b"data: [DONE]\n\n"
STREAM = event(text("Hel")) + b": keep-alive\n\n" + event(text("lo"))


def run(
    stream: bytes, *, include_usage: bool = False, cuts: tuple[int, ...] = ()
) -> tuple[bytes, ChatMeter]:
    meter = ChatMeter(PLAUSIBLE, include_usage=include_usage)
    borders = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    pieces = [stream[a:b] for a, b in pairwise(borders)]
    passed = b"".join(meter.feed(piece) for piece in pieces)
    return passed + meter.finish(), meter


def test_the_injected_usage_is_read_and_kept_from_who_did_not_ask() -> None:
    passed, meter = run(STREAM + event(USAGE) + DONE)
    assert passed == STREAM
    assert meter.usage == Usage(10, 20)
    assert (meter.done, meter.failed, meter.last_event) == (True, False, DONE)


def test_who_asked_gets_the_usage() -> None:
    passed, meter = run(STREAM + event(USAGE) + DONE, include_usage=True)
    assert passed == STREAM + event(USAGE)
    assert meter.usage == Usage(10, 20)


def test_usage_in_a_chunk_with_content_is_read_and_passed_on() -> None:
    last = event(text("!") | {"usage": COUNTS})
    passed, meter = run(STREAM + last + DONE)
    assert passed == STREAM + last
    assert meter.usage == Usage(10, 20)


def test_the_last_usage_counts() -> None:
    growing = [event(text("x") | {"usage": COUNTS | {"completion_tokens": n}}) for n in (1, 2, 3)]
    assert run(b"".join(growing) + DONE)[1].usage == Usage(10, 3)
    assert run(growing[0] + event({"choices": [], "usage": {"prompt_tokens": -1}}))[1].usage is None


def test_a_stream_without_usage_is_unknown() -> None:
    passed, meter = run(STREAM + DONE)
    assert (passed, meter.usage, meter.done) == (STREAM, None, True)


def test_a_stream_that_is_cut_is_not_done() -> None:
    passed, meter = run(STREAM + b'data: {"choices": [{"del')
    assert passed == STREAM + b'data: {"choices": [{"del'
    assert (meter.usage, meter.done) == (None, False)


def test_what_follows_the_end_is_dropped() -> None:
    passed, meter = run(STREAM + DONE + b"data: more\n\n")
    assert (passed, meter.last_event) == (STREAM, DONE)


@pytest.mark.parametrize("ending", [b"", b"\n", b"\r\n"])
def test_an_end_without_a_blank_line_is_seen(ending: bytes) -> None:
    passed, meter = run(STREAM + event(USAGE) + b"data: [DONE]" + ending)
    assert (passed, meter.done, meter.usage) == (STREAM, True, Usage(10, 20))


def test_an_error_is_seen_and_passed_on() -> None:
    error = event({"error": {"message": "overloaded"}})
    passed, meter = run(STREAM + error)
    assert (passed, meter.failed, meter.done) == (STREAM + error, True, False)


def test_a_model_that_speaks_of_usage_and_errors_is_not_mistaken() -> None:
    talk = event(text('{"choices": [], "usage": {"prompt_tokens": 1}, "error": {"a": 1}}'))
    nested = event({"choices": [{"delta": {"usage": {"prompt_tokens": 1}, "error": {"a": 1}}}]})
    passed, meter = run(talk + nested + DONE)
    assert (passed, meter.usage, meter.failed) == (talk + nested, None, False)


def test_data_on_several_lines_is_one_document() -> None:
    stream = b'data: {"choices": [],\ndata:"usage":\ndata: {"prompt_tokens": 1,\n'
    stream += b'data: "completion_tokens": 2}}\n\n'
    passed, meter = run(stream + DONE)
    assert (passed, meter.usage) == (b"", Usage(1, 2))


def test_a_byte_order_mark_hides_nothing() -> None:
    _, meter = run(b"\xef\xbb\xbf" + event(USAGE) + DONE)
    assert (meter.usage, meter.done) == (Usage(10, 20), True)


@pytest.mark.parametrize("size", [MAX_EVENT + 10, 5 * MAX_EVENT])
def test_an_endless_event_is_passed_on_unread_in_bounded_memory(size: int) -> None:
    garbage = b"data: " + b"x" * size
    meter = ChatMeter(PLAUSIBLE, include_usage=False)
    passed = bytearray(meter.feed(event(USAGE)))
    kept = 0
    for start in range(0, len(garbage), 65_536):
        passed += meter.feed(garbage[start : start + 65_536])
        kept = max(kept, start + 65_536 - len(passed))
    passed += meter.feed(b"\n\n" + event(USAGE) + DONE) + meter.finish()
    assert passed == garbage + b"\n\n" + event(USAGE) + DONE
    assert kept <= MAX_EVENT + 2 * 65_536
    assert (meter.usage, meter.failed, meter.done) == (None, True, False)


lines = st.sampled_from(["\n", "\r\n", "\r"])
pieces = st.one_of(
    st.builds(event, st.just(USAGE), lines),
    st.builds(event, st.builds(text, st.text(max_size=5)), lines),
    st.builds(event, st.just({"error": {"message": "x"}}), lines),
    st.just(b": comment\n\n"),
    st.just(b"event: x\r\nid: 1\r\n"),
    st.just(b'data: {"choices": [],\ndata: "usage": {"prompt_tokens": 3, '),
    st.just(b'"completion_tokens": 4}}\r\n\r\n'),
    st.just(DONE),
    st.just(b"data: [DONE]\r\r"),
    st.sampled_from([b"\n", b"\r", b"\r\n", b"\xef\xbb\xbf", b"data:", b"\n\r\n", b"\r\n\r"]),
    st.binary(max_size=8),
)


@given(st.lists(pieces).map(b"".join), st.booleans(), st.lists(st.integers(0, 10**6)).map(tuple))
def test_chunk_borders_change_nothing(
    stream: bytes, include_usage: bool, cuts: tuple[int, ...]
) -> None:
    whole, meter = run(stream, include_usage=include_usage)
    cut, same = run(stream, include_usage=include_usage, cuts=cuts)
    bytewise, again = run(stream, include_usage=include_usage, cuts=tuple(range(len(stream))))
    assert whole == cut == bytewise
    for other in (same, again):
        assert (other.usage, other.failed, other.last_event) == (
            meter.usage,
            meter.failed,
            meter.last_event,
        )


@given(st.lists(pieces).map(b"".join), st.lists(st.integers(0, 10**6)).map(tuple))
def test_who_asked_for_usage_gets_every_byte_up_to_the_end(
    stream: bytes, cuts: tuple[int, ...]
) -> None:
    passed, meter = run(stream, include_usage=True, cuts=cuts)
    if meter.done:
        assert stream.startswith(passed + meter.last_event)
    else:
        assert passed == stream


def test_the_cost_travels_in_a_comment() -> None:
    comment = cost_comment("01J", "0.0012")
    assert comment == b": llmbudget cost_usd=0.0012 entry_id=01J\n\n"
    assert run(STREAM + comment + DONE)[0] == STREAM + comment


def test_a_text_that_a_limit_cut_within_a_character_hides_no_usage() -> None:
    usage = b'"usage": {"prompt_tokens": 10, "completion_tokens": 20}'
    body = b'{"choices": [{"message": {"content": "\\ud83d"}}], %b}' % usage
    assert usage_of(body, PLAUSIBLE) == Usage(10, 20)


@pytest.mark.parametrize(
    ("told", "nano"),
    [
        ({}, 0),
        ({"cost": 0}, 0),
        ({"cost": 0.95}, 950_000_000),
        ({"cost": 1.05e-06}, 1_050),
        ({"cost": 1e-10}, 1),
        ({"cost": None, "is_byok": False}, 0),
        ({"cost": 0.05, "cost_details": {"upstream_inference_cost": 1}}, 50_000_000),
        (
            {"cost": 0.05, "is_byok": True, "cost_details": {"upstream_inference_cost": 1}},
            1_050_000_000,
        ),
        ({"cost_in_usd_ticks": 37_756_000}, 3_775_600),
        ({"cost_in_usd_ticks": 1}, 1),
        *(({"cost": bad}, None) for bad in (-1, "1", True, {"total": 1}, 1e300)),
        *(({"cost_in_usd_ticks": bad}, None) for bad in (-1, "1", True, 10**30, 10**17)),
    ],
)
def test_what_an_answer_says_that_it_costs(told: dict[str, object], nano: int | None) -> None:
    counts = {"prompt_tokens": 10, "completion_tokens": 20} | told
    assert usage_of(answer(**counts), PLAUSIBLE) == Usage(10, 20, reported=nano and Nano(nano))
    for infinite in ("NaN", "Infinity"):
        body = answer(prompt_tokens=10, completion_tokens=2, cost=7).replace(
            b"7", infinite.encode()
        )
        assert usage_of(body, PLAUSIBLE) in (None, Usage(10, 2, reported=None))
