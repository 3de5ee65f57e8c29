"""OpenAI's responses: kept nowhere unless asked for, and metered by their last event."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from tests.support.offers import offer

from llmbudget.decide.cost import Units, Usage
from llmbudget.gateway.protocols.errors import Refusal
from llmbudget.gateway.protocols.responses import ResponseMeter, parse_response, response_usage

PLAUSIBLE = 1_000_000


def body(**fields: Any) -> bytes:
    return json.dumps({"model": "small", "input": "Hello"} | fields).encode()


def sent(request: bytes, limit: int = 50, host: str = "models.example") -> dict[str, Any]:
    document: dict[str, Any] = json.loads(
        parse_response(request).write(offer("small", host=host), limit)
    )
    return document


def test_nothing_is_stored_unless_the_caller_asks() -> None:
    assert sent(body()) == {
        "model": "upstream/small",
        "max_output_tokens": 50,
        "store": False,
        "stream": False,
        "input": "Hello",
    }
    assert sent(body(store=False))["store"] is False
    for host in ("api.openai.com", "eu.api.openai.com"):
        assert sent(body(), host=host)["service_tier"] == "default"


@pytest.mark.parametrize(
    "item",
    [
        {"role": "user", "content": "Hello"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "x"}]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "x"},
        {"type": "reasoning", "id": "r", "summary": [], "encrypted_content": "e"},
        {
            "type": "message",
            "role": "user",
            "content": [{"type": "input_image", "image_url": "data:image/png;base64,AAAA"}],
        },
    ],
)
def test_items_arrive_as_they_were_sent(item: dict[str, Any]) -> None:
    assert sent(body(input=[item]))["input"] == [item]


def test_the_demand() -> None:
    image = {"type": "input_image", "image_url": "data:image/png;base64," + "A" * 100_000}
    item = {"type": "message", "role": "user", "content": [image]}
    demand = parse_response(body(input=[item], max_output_tokens=7)).demand
    assert (demand.images, demand.limit, demand.messages) == (1, 7, 1)
    assert demand.prompt_bytes < 1000
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "x" * 1000}
    assert parse_response(body(input=[call])).demand.prompt_bytes > 2000


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"store": "yes"}, "store"),
        ({"background": True}, "background"),
        ({"previous_response_id": ""}, "previous_response_id"),
        ({"previous_response_id": 7}, "previous_response_id"),
        ({"conversation": "c"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"service_tier": "scale"}, "service_tier"),
        ({"tools": [{"type": "web_search"}]}, "max_tool_calls"),
        ({"tools": [{"type": "web_search"}], "max_tool_calls": 101}, "max_tool_calls"),
        ({"tools": [{"type": "web_search", "unheard_of": 1}]}, "tools[0].unheard_of"),
        ({"tools": [{"type": "web_search_preview"}]}, "tools[0].type"),
        ({"tools": [{"type": "file_search"}]}, "tools[0].type"),
        ({"include": ["file_search_call.results"]}, "include"),
        ({"input": [{"type": "item_reference", "id": "i"}]}, "input[0].type"),
        ({"input": [{"type": "file_search_call", "id": "i"}]}, "input[0].type"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file"}]}]},
            "input[0].content[0]",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]},
            "input[0].content[0].file_id",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_video"}]}]},
            "input[0].content[0].input_video",
        ),
        ({"input": [{"id": "msg_1"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": {"type": "input_file"}}]}, "input[0].content"),
        ({"instructions": [{"id": "msg_1"}]}, "instructions"),
        ({"reasoning": {"mode": "pro"}}, "reasoning.mode"),
        ({"input": []}, "input"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"unheard_of": 1}, "unheard_of"),
    ],
)
def test_a_refusal_names_its_field(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(Refusal) as refused:
        parse_response(body(**fields))
    assert (refused.value.status, refused.value.param) == (400, param)


def test_what_is_stored_has_the_size_that_the_provider_knows() -> None:
    first = parse_response(body(store=True)).demand
    assert (first.stored, first.opaque) == ("store", None)
    assert sent(body(store=True))["store"] is True
    later = parse_response(body(previous_response_id="resp_1")).demand
    assert later.stored == later.opaque == "previous_response_id"
    assert sent(body(previous_response_id="resp_1"))["previous_response_id"] == "resp_1"


@pytest.mark.parametrize("source", [{"file_data": "A" * 9000}, {"file_url": "https://a.example"}])
def test_a_file_counts_as_a_whole_context(source: dict[str, str]) -> None:
    file = {"type": "input_file", "filename": "a.pdf", **source}
    demand = parse_response(body(input=[{"role": "user", "content": [file]}])).demand
    assert demand.opaque == demand.file == "input[0].content[0].input_file"
    assert demand.prompt_bytes < 1000
    assert "input_audio" in demand.kinds, "nobody says that it is no sound"


def test_images_are_read_at_details_whose_cost_is_bounded() -> None:
    def asked(detail: object) -> bytes:
        image = {"type": "input_image", "image_url": "https://images.example/a.png"}
        return body(input=[{"role": "user", "content": [image | {"detail": detail}]}])

    demand = parse_response(asked("high")).demand
    assert demand.images == 1
    assert {"input_image", "cached_image"} <= demand.kinds, "they may have a rate of their own"
    for detail in ("original", {"x": 1}, 7):
        with pytest.raises(Refusal, match="detail is refused: it must be low, high or auto"):
            parse_response(asked(detail))


SEARCHING = {"tools": [{"type": "web_search"}], "max_tool_calls": 3}


def test_web_searches_are_bounded_by_the_calls_of_tools() -> None:
    demand = parse_response(body(**SEARCHING)).demand
    assert demand.units == Units(searches=3)
    assert (demand.rounds, demand.opaque) == (5, "tools")
    assert sent(body(**SEARCHING)).items() >= SEARCHING.items()
    function = {"type": "function", "name": "f", "parameters": {}}
    assert parse_response(body(tools=[function], max_tool_calls=3)).demand.units is None
    earlier = {"type": "web_search_call", "id": "w", "action": {"type": "search", "query": "x"}}
    assert parse_response(body(input=[earlier])).demand.opaque == "input[0].type"


FOUND = [{"type": "web_search_call"}, {"type": "message"}, {"type": "web_search_call"}]


@pytest.mark.parametrize(
    ("fields", "searches"),
    [
        ({"tool_usage": {"web_search": {"num_requests": 1}}, "output": FOUND}, 1),
        ({"output": FOUND}, 2),
        ({"output": []}, 0),
        ({}, None),
        ({"tool_usage": {"web_search": {"num_requests": -1}}, "output": []}, None),
    ],
)
def test_searches_are_charged_as_told_or_else_as_shown(
    fields: dict[str, Any], searches: int | None
) -> None:
    answer = {"usage": USAGE, **fields}
    wanted = replace(READ, units=Units(searches=searches))
    request = parse_response(body(**SEARCHING))
    assert request.usage_of(json.dumps(answer).encode(), PLAUSIBLE) == wanted
    meter = request.meter(PLAUSIBLE)
    meter.feed(event("response.completed", response=answer))
    assert meter.usage == wanted


USAGE = {
    "input_tokens": 10,
    "input_tokens_details": {"cached_tokens": 4},
    "output_tokens": 20,
    "output_tokens_details": {"reasoning_tokens": 5},
    "total_tokens": 30,
}
READ = Usage(10, 20, cached=4, reasoning=5)


def test_usage_is_read() -> None:
    assert response_usage(json.dumps({"usage": USAGE}).encode(), PLAUSIBLE) == READ


@pytest.mark.parametrize("bad", [-1, None, 1.5, "7", True, PLAUSIBLE + 1])
def test_a_count_that_is_no_measure_makes_the_usage_unknown(bad: object) -> None:
    usage = USAGE | {"output_tokens": bad}
    assert response_usage(json.dumps({"usage": usage}).encode(), PLAUSIBLE) is None


def event(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()


@pytest.mark.parametrize("end", ["response.completed", "response.incomplete", "response.failed"])
@pytest.mark.parametrize("size", [1, 13, 100_000])
def test_the_last_event_carries_the_usage(end: str, size: int) -> None:
    before = event("response.created", response={"usage": None})
    before += event("response.output_text.delta", delta='"response.completed" "error"')
    last = event(end, response={"usage": USAGE})
    meter = ResponseMeter(PLAUSIBLE)
    whole = before + last + b"garbage"
    passed = b"".join(meter.feed(whole[at : at + size]) for at in range(0, len(whole), size))
    assert passed == before
    assert (meter.usage, meter.done, meter.last_event) == (READ, True, last)


def test_a_service_tier_is_held_and_charged_for() -> None:
    request = parse_response(body(service_tier="flex"))
    assert request.demand.service == "flex"
    assert json.loads(request.write(offer(host="api.openai.com"), 50))["service_tier"] == "flex"
    assert sent(body(service_tier="default"))["service_tier"] == "default"
    assert "service_tier" not in sent(body())
    for told, services in (("flex", ("flex",)), ("default", ("",)), (None, ("", "flex"))):
        answer = {"usage": USAGE, "service_tier": told}
        wanted = replace(READ, services=services)
        assert request.usage_of(json.dumps(answer).encode(), PLAUSIBLE) == wanted
        meter = request.meter(PLAUSIBLE)
        meter.feed(event("response.completed", response=answer))
        assert meter.usage == wanted


def test_an_error_ends_in_doubt() -> None:
    meter = ResponseMeter(PLAUSIBLE)
    meter.feed(event("error", code="server_error"))
    assert meter.failed
