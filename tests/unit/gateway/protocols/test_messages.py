"""Anthropic's messages: what may be asked, what is sent for it, and what an answer cost."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from tests.support.offers import offer

from llmbudget.decide.cost import Units, Usage
from llmbudget.gateway.protocols.errors import Refusal
from llmbudget.gateway.protocols.messages import check_betas, parse_count, parse_message
from llmbudget.gateway.protocols.messages_answers import MessageMeter, message_usage

HELLO = [{"role": "user", "content": "Hello"}]
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
SEARCH = {"type": "web_search_20250305", "name": "web_search", "max_uses": 3}
PLAUSIBLE = 1_000_000


def body(**fields: Any) -> bytes:
    return json.dumps({"model": "claude", "max_tokens": 50, "messages": HELLO} | fields).encode()


def sent(request: bytes, limit: int = 50, host: str = "models.example") -> dict[str, Any]:
    written = parse_message(request).write(offer("claude", host=host), limit)
    document: dict[str, Any] = json.loads(written)
    return document


def test_a_request_is_read_and_written_anew() -> None:
    request = parse_message(body(system="Be brief.", stream=True, temperature=0.5))
    assert (request.model, request.demand.limit, request.demand.messages) == ("claude", 50, 1)
    assert sent(body(system="Be brief.", stream=True, temperature=0.5), 40) == {
        "model": "upstream/claude",
        "max_tokens": 40,
        "stream": True,
        "messages": HELLO,
        "system": "Be brief.",
        "temperature": 0.5,
    }


def test_anthropic_itself_is_told_the_standard_tier() -> None:
    assert sent(body(), host="api.anthropic.com")["service_tier"] == "standard_only"
    assert "service_tier" not in sent(body())
    assert sent(body(service_tier="standard_only"))["service_tier"] == "standard_only"
    assert "service_tier" not in sent(body())


@pytest.mark.parametrize(
    "block",
    [
        {"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}},
        {"type": "text", "text": "x", "cache_control": {"type": "ephemeral", "ttl": "1h"}},
        IMAGE,
        {"type": "image", "source": {"type": "url", "url": "https://images.example/a.png"}},
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "x"}},
        {"type": "tool_use", "id": "t", "name": "f", "input": {"a": [1, 2]}},
        {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "x"}]},
        {"type": "tool_result", "tool_use_id": "t", "content": "x"},
        {"type": "thinking", "thinking": "hm", "signature": "s"},
        {"type": "redacted_thinking", "data": "d"},
    ],
)
def test_blocks_arrive_as_they_were_sent(block: dict[str, Any]) -> None:
    messages = [{"role": "user", "content": [block]}]
    assert sent(body(messages=messages))["messages"] == messages


def test_images_are_counted_wherever_they_are() -> None:
    result = {"type": "tool_result", "tool_use_id": "t", "content": [IMAGE]}
    request = parse_message(body(messages=[{"role": "user", "content": [IMAGE, result]}]))
    assert request.demand.images == 2


def test_earlier_tool_calls_count_twice() -> None:
    call = {"type": "tool_use", "id": "t", "name": "f", "input": {"a": "x" * 1000}}
    messages = [{"role": "assistant", "content": [call]}, *HELLO]
    assert parse_message(body(messages=messages)).demand.prompt_bytes > 2000


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"mcp_servers": []}, "mcp_servers"),
        ({"container": "c"}, "container"),
        ({"speed": "fast"}, "speed"),
        ({"inference_geo": "us"}, "inference_geo"),
        ({"context_management": {}}, "context_management"),
        ({"service_tier": "auto"}, "service_tier"),
        ({"unheard_of": 1}, "unheard_of"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].max_uses"),
        ({"tools": [SEARCH | {"max_uses": 101}]}, "tools[0].max_uses"),
        ({"tools": [SEARCH | {"max_uses": True}]}, "tools[0].max_uses"),
        ({"tools": [SEARCH | {"unheard_of": 1}]}, "tools[0].unheard_of"),
        ({"tools": [{"type": "code_execution_20250825"}]}, "tools[0].type"),
        ({"tools": [{"type": "web_search_20260209", "max_uses": 1}]}, "tools[0].type"),
        ({"tools": [{"name": "f", "input_schema": {}, "defer": 1}]}, "tools[0].defer"),
        (
            {"tools": [{"name": "f", "cache_control": {"type": "ephemeral", "ttl": "9h"}}]},
            "tools[0].cache_control",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "server_tool_use"}]}]},
            "messages[0].content[0].name",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "code_execution_tool_result"}]}]},
            "messages[0].content[0].type",
        ),
        (
            {"system": [{"type": "text", "text": "x", "cache_control": {"type": "forever"}}]},
            "system[0].cache_control",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "document", "source": {
                "type": "file", "file_id": "file_1"}}]}]},
            "messages[0].content[0].source.type",
        ),
    ],
)  # fmt: skip
def test_a_refusal_names_its_field(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(Refusal) as refused:
        parse_message(body(**fields))
    assert (refused.value.status, refused.value.param) == (400, param)


def test_betas_are_checked_and_written_anew() -> None:
    assert check_betas(None) == check_betas(" ,") == ""
    for between in (",", ", ", ",\t", " ,, "):
        two = f"prompt-caching-2024-07-31{between}output-128k-2025-02-19"
        assert check_betas(two) == "prompt-caching-2024-07-31,output-128k-2025-02-19"
    with pytest.raises(Refusal, match="context-1m"):
        check_betas("prompt-caching-2024-07-31,context-1m-2025-08-07")


def test_counting_holds_nothing() -> None:
    request = parse_count(json.dumps({"model": "claude", "messages": HELLO}).encode())
    assert request.demand.contexts == request.demand.choices == 0
    written = json.loads(request.write(offer("claude"), 1))
    assert written == {"model": "upstream/claude", "messages": HELLO}
    with pytest.raises(Refusal):
        parse_count(body())


USAGE = {
    "input_tokens": 10,
    "cache_read_input_tokens": 20,
    "cache_creation_input_tokens": 30,
    "cache_creation": {"ephemeral_5m_input_tokens": 25, "ephemeral_1h_input_tokens": 5},
    "output_tokens": 40,
}
READ = Usage(60, 40, cached=20, cache_write=30, cache_write_hour=5)


def test_usage_is_read() -> None:
    assert message_usage(json.dumps({"usage": USAGE}).encode(), PLAUSIBLE) == READ


@pytest.mark.parametrize("field", ["input_tokens", "output_tokens", "cache_read_input_tokens"])
@pytest.mark.parametrize("bad", [-1, 1.5, "7", True, [], PLAUSIBLE + 1])
def test_a_count_that_is_no_measure_makes_the_usage_unknown(field: str, bad: object) -> None:
    assert message_usage(json.dumps({"usage": USAGE | {field: bad}}).encode(), PLAUSIBLE) is None


def event(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()


STREAM = (
    event("message_start", message={"usage": USAGE | {"output_tokens": 1}})
    + event("content_block_delta", delta={"type": "text_delta", "text": '{"usage": 7} "error"'})
    + event("ping")
    + event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 40})
)
END = event("message_stop")


@pytest.mark.parametrize("size", [1, 7, 64, 100_000])
def test_a_stream_is_read_whatever_its_chunks(size: int) -> None:
    meter = MessageMeter(PLAUSIBLE)
    whole = STREAM + END
    passed = b"".join(meter.feed(whole[at : at + size]) for at in range(0, len(whole), size))
    assert passed + meter.finish() == STREAM
    assert (meter.usage, meter.failed, meter.done) == (READ, False, True)
    assert meter.last_event == END


def test_an_error_in_a_stream_is_seen() -> None:
    meter = MessageMeter(PLAUSIBLE)
    meter.feed(STREAM[:100] + b"\n\n" + event("error", error={"type": "overloaded_error"}))
    assert meter.failed
    assert not meter.done


def test_the_output_is_known_only_once_it_is_told() -> None:
    meter = MessageMeter(PLAUSIBLE)
    meter.feed(event("message_start", message={"usage": USAGE | {"output_tokens": 1}}) + END)
    assert meter.done
    assert meter.usage is None


@pytest.mark.parametrize("later", [0, 7, None])
def test_a_count_that_was_told_stays_where_a_later_event_tells_less(later: int | None) -> None:
    begun = {"input_tokens": 5000, "cache_creation_input_tokens": 30, "output_tokens": 1}
    begun["cache_read_input_tokens"] = 20
    hour = {"ephemeral_5m_input_tokens": 20, "ephemeral_1h_input_tokens": 10}
    delta = dict.fromkeys(begun, later) | {"output_tokens": 900}
    delta["cache_creation"] = {"ephemeral_5m_input_tokens": later}
    meter = MessageMeter(PLAUSIBLE)
    meter.feed(event("message_start", message={"usage": begun | {"cache_creation": hour}}))
    meter.feed(event("message_delta", usage=delta) + END)
    assert meter.usage == Usage(5050, 900, cached=20, cache_write=30, cache_write_hour=10)


@pytest.mark.parametrize("delta", [{}, {"usage": None}, {"usage": {"input_tokens": 10}}])
def test_the_first_event_knows_nothing_of_the_output(delta: dict[str, Any]) -> None:
    meter = MessageMeter(PLAUSIBLE)
    meter.feed(event("message_start", message={"usage": USAGE | {"output_tokens": 1}}))
    meter.feed(event("content_block_delta", delta={"type": "text_delta", "text": "x" * 3000}))
    meter.feed(event("message_delta", delta={"stop_reason": "end_turn"}, **delta) + END)
    assert meter.done
    assert meter.usage is None


@pytest.mark.parametrize(
    ("by_life", "an_hour"),
    [
        (None, 30),
        ({}, 30),
        ({"ephemeral_5m_input_tokens": 25}, 5),
        ({"ephemeral_5m_input_tokens": 30, "ephemeral_1h_input_tokens": 0}, 0),
    ],
)
def test_what_is_written_to_a_cache_for_an_hour_counts_as_that_unless_told(
    by_life: dict[str, int] | None, an_hour: int
) -> None:
    control = {"type": "ephemeral", "ttl": "1h"}
    content = [{"type": "text", "text": "x", "cache_control": control}]
    tools = [{"name": "f", "input_schema": {}, "cache_control": control}]
    usage = USAGE | {"cache_creation": by_life}
    answer = json.dumps({"usage": usage}).encode()
    stream = event("message_start", message={"usage": usage})
    stream += event("message_delta", usage={"output_tokens": 40}) + END
    for asked in {"messages": [{"role": "user", "content": content}]}, {"tools": tools}:
        request = parse_message(body(**asked))
        meter = request.meter(PLAUSIBLE)
        meter.feed(stream)
        expected = replace(READ, cache_write_hour=an_hour)
        assert request.usage_of(answer, PLAUSIBLE) == meter.usage == expected
    asked = {"type": "text", "text": '"ttl":"1h"'}
    other = parse_message(body(messages=[{"role": "user", "content": [asked]}]))
    found = other.usage_of(json.dumps({"usage": USAGE | {"cache_creation": None}}).encode(), 100)
    assert found == replace(READ, cache_write_hour=0)


@pytest.mark.parametrize("at", ["messages", "result"])
def test_images_may_be_charged_at_a_rate_of_their_own(at: str) -> None:
    result = {"type": "tool_result", "tool_use_id": "t", "content": [IMAGE]}
    content = [IMAGE if at == "messages" else result]
    demand = parse_message(body(messages=[{"role": "user", "content": content}])).demand
    assert {"input_image", "cached_image"} <= demand.kinds
    assert not {"input_image", "cached_image"} & parse_message(body()).demand.kinds


def test_what_is_to_be_cited_counts_as_a_whole_context_and_what_was_cited_as_text() -> None:
    source = {"type": "text", "media_type": "text/plain", "data": "x"}
    document = {"type": "document", "source": source, "citations": {"enabled": True}}
    demand = parse_message(body(messages=[{"role": "user", "content": [document]}])).demand
    assert demand.opaque == "messages[0].content[0].citations"
    cited = {"type": "text", "text": "x", "citations": [{"type": "char_location"}]}
    again = parse_message(body(messages=[{"role": "assistant", "content": [cited]}, *HELLO]))
    assert again.demand.opaque is None


@pytest.mark.parametrize(
    "source",
    [
        {"type": "base64", "media_type": "application/pdf", "data": "A" * 100_000},
        {"type": "url", "url": "https://papers.example/a.pdf"},
    ],
)
def test_a_pdf_counts_as_a_whole_context(source: dict[str, Any]) -> None:
    messages = [{"role": "user", "content": [{"type": "document", "source": source}]}]
    demand = parse_message(body(messages=messages)).demand
    assert demand.opaque == demand.file == "messages[0].content[0].source.type"
    assert demand.prompt_bytes < 1000
    assert sent(body(messages=messages))["messages"] == messages


def test_a_web_search_is_bounded_by_its_uses_and_the_documented_rounds() -> None:
    request = parse_message(body(tools=[SEARCH, {"name": "f", "input_schema": {}}]))
    demand = request.demand
    assert demand.units == Units(searches=3)
    assert (demand.rounds, demand.opaque) == (11, "tools")
    assert sent(body(tools=[SEARCH]))["tools"] == [SEARCH]


def test_an_earlier_search_counts_as_a_whole_context() -> None:
    found = [{"type": "web_search_result", "url": "u", "encrypted_content": "bW9uZXk="}]
    blocks = [
        {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {"query": "x"}},
        {"type": "web_search_tool_result", "tool_use_id": "s", "content": found},
    ]
    messages = [{"role": "assistant", "content": blocks}, *HELLO]
    demand = parse_message(body(messages=messages)).demand
    assert (demand.rounds, demand.opaque) == (1, "messages[0].content[1].type")
    assert sent(body(messages=messages))["messages"] == messages


RESULT = {"type": "web_search_tool_result", "tool_use_id": "s", "content": []}


@pytest.mark.parametrize(
    ("told", "searches"), [({"web_search_requests": 2}, 2), ({"web_search_requests": 0}, 0)]
)
def test_searches_are_charged_as_the_provider_tells(told: dict[str, int], searches: int) -> None:
    answer = {"usage": USAGE | {"server_tool_use": told}, "content": [RESULT]}
    usage = message_usage(json.dumps(answer).encode(), PLAUSIBLE)
    assert usage is not None
    assert usage.units == (Units(searches=searches) if searches else None)


@pytest.mark.parametrize("told", [{}, {"server_tool_use": None}, {"server_tool_use": {}}])
def test_searches_that_nobody_tells_of_are_counted_in_the_answer(told: dict[str, Any]) -> None:
    text = {"type": "text", "text": '{"type": "web_search_tool_result"}'}
    answer = {"content": [RESULT, RESULT, text], "usage": USAGE | told}
    assert message_usage(json.dumps(answer).encode(), PLAUSIBLE) == replace(
        READ, units=Units(searches=2)
    )
    meter = MessageMeter(PLAUSIBLE)
    begun = USAGE | {"output_tokens": 1, "server_tool_use": {"web_search_requests": 0}}
    meter.feed(
        event("message_start", message={"usage": begun})
        + 2 * event("content_block_start", index=1, content_block=RESULT)
        + event("message_delta", usage={"output_tokens": 40} | told)
        + END
    )
    assert meter.usage == replace(READ, units=Units(searches=2))


@pytest.mark.parametrize(
    ("geo", "services"),
    [(None, ()), ("global", ()), ("not_available", ()), ("us", ("us",)), (7, None)],
)
def test_where_a_model_ran_is_told(geo: object, services: tuple[str, ...] | None) -> None:
    counts = USAGE | {"inference_geo": geo}
    meter = MessageMeter(PLAUSIBLE)
    meter.feed(
        event("message_start", message={"usage": counts | {"output_tokens": 1}})
        + event("message_delta", usage={"output_tokens": 40})
        + END
    )
    plain = message_usage(json.dumps({"usage": counts}).encode(), PLAUSIBLE)
    assert plain == meter.usage == (None if services is None else replace(READ, services=services))


@pytest.mark.parametrize("told", [-1, 1.5, "2", PLAUSIBLE + 1])
def test_a_number_of_searches_that_is_none_makes_the_usage_unknown(told: object) -> None:
    answer = {"usage": USAGE | {"server_tool_use": {"web_search_requests": told}}}
    assert message_usage(json.dumps(answer).encode(), PLAUSIBLE) is None
