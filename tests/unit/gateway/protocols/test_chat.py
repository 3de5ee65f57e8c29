"""What OpenAI's callers may ask, what is sent for it, and what is refused by name."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.offers import offer

from llmbudget.api.provider import LimitField, Protocol
from llmbudget.contract.config import Prices, RatesByLength
from llmbudget.decide.bounds import Demand
from llmbudget.decide.catalogue import Offer
from llmbudget.decide.cost import Usage, cost
from llmbudget.decide.cost import told as says_all
from llmbudget.gateway.protocols import strict
from llmbudget.gateway.protocols.chat import CHAT, parse_chat
from llmbudget.gateway.protocols.completions import parse_completion
from llmbudget.gateway.protocols.embeddings import parse_embedding
from llmbudget.gateway.protocols.errors import Refusal
from llmbudget.gateway.protocols.messages import parse_message
from llmbudget.gateway.protocols.models import models_body
from llmbudget.gateway.protocols.responses import RESPONSES, parse_response

HELLO = [{"role": "user", "content": "Hello"}]


def body(**fields: object) -> bytes:
    return json.dumps({"model": "gpt-4o-mini", "messages": HELLO} | fields).encode()


def sent(request: bytes, limit: int = 99, host: str = "router.example") -> dict[str, object]:
    document = strict.parse(parse_chat(request).write(offer(host=host), limit))
    assert isinstance(document, dict)
    return document


def test_a_plain_request_is_read() -> None:
    request = parse_chat(body())
    assert request.model == "gpt-4o-mini"
    assert request.demand.limit is None
    assert (request.demand.choices, request.demand.messages) == (1, 1)
    assert request.demand.schema_bytes == 0


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("host", ["api.openai.com", "team-a.openai.azure.com"])
def test_the_callers_limit_stays_in_its_field_where_both_are_heeded(field: str, host: str) -> None:
    request = body(**{field: 7})
    assert parse_chat(request).demand.limit == 7
    upstream = sent(request, limit=7, host=host)
    assert upstream[field] == 7
    assert len({"max_tokens", "max_completion_tokens"} & set(upstream)) == 1


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("host", ["api.deepseek.com", "openrouter.ai", "router.example"])
def test_the_limit_goes_where_every_compatible_server_heeds_it(field: str, host: str) -> None:
    upstream = sent(body(**{field: 7}), limit=7, host=host)
    assert upstream["max_tokens"] == 7
    assert "max_completion_tokens" not in upstream


@pytest.mark.parametrize("field", LimitField)
@pytest.mark.parametrize("asked", [{}, {"max_tokens": 7}, {"max_completion_tokens": 7}])
def test_a_provider_may_say_in_which_field_it_wants_the_limit(
    field: LimitField, asked: dict[str, object]
) -> None:
    found = offer()
    proxy = Offer(found.provider.model_copy(update={"limit_field": field}), found.model)
    upstream = json.loads(parse_chat(body(**asked)).write(proxy, 7))
    assert upstream[field.value] == 7
    assert len({"max_tokens", "max_completion_tokens"} & set(upstream)) == 1
    older = json.loads(parse_completion(b'{"model": "m", "prompt": "x"}').write(proxy, 7))
    assert older == {"model": "upstream/gpt-4o-mini", "max_tokens": 7, "prompt": "x"}


def test_an_omitted_limit_is_set() -> None:
    assert sent(body(), limit=4096) == {
        "model": "upstream/gpt-4o-mini",
        "max_tokens": 4096,
        "messages": HELLO,
    }


@pytest.mark.parametrize("host", ["api.openai.com", "eu.api.openai.com"])
def test_openai_gets_the_field_its_reasoning_models_take_and_the_standard_tier(host: str) -> None:
    upstream = sent(body(), limit=5, host=host)
    assert upstream["max_completion_tokens"] == 5
    assert "max_tokens" not in upstream
    assert upstream["service_tier"] == "default"


@pytest.mark.parametrize("host", ["api.openai.com", "models.example"])
@pytest.mark.parametrize("service", ["flex", "priority"])
def test_a_service_tier_is_held_and_charged_for(host: str, service: str) -> None:
    request = parse_chat(body(service_tier=service))
    assert request.demand.service == service
    written = json.loads(request.write(offer(host=host), 50))
    assert written["service_tier"] == service
    usage = {"prompt_tokens": 10, "completion_tokens": 20}
    for told, services in (
        (service, (service,)),
        ("default", ("",)),
        (None, ("", service)),
        ("auto", ("", service)),
        ("scale", ("scale",)),
    ):
        answer = {"usage": usage, "service_tier": told}
        assert request.usage_of(json.dumps(answer).encode(), 1000) == Usage(
            10, 20, services=services
        )
    assert parse_chat(body(service_tier="default")).demand.service is None


def test_a_service_tier_that_nobody_asked_for_is_charged_as_the_answer_tells() -> None:
    request = parse_chat(body())
    one, two = Decimal(1), Decimal(2)
    rates = {"cached_input": one, "cache_write": one, "reasoning": one}
    dear = RatesByLength(input=two, output=two, **rates)
    prices = Prices(input=one, output=one, **rates, services={"priority": dear})
    for told, charged in (
        *((usual, 30) for usual in (None, "auto", "default", "standard", "on_demand")),
        *(("priority", 60), ("scale", None), (7, None)),
    ):
        counts = {"prompt_tokens": 10, "completion_tokens": 20}
        answer = {"choices": [], "usage": counts, "service_tier": told}
        meter = request.meter(1000)
        meter.feed(b"data: " + json.dumps(answer).encode() + b"\n\n")
        for usage in (request.usage_of(json.dumps(answer).encode(), 1000), meter.usage):
            known = usage if usage is not None and says_all(usage, prices) else None
            assert (None if known is None else cost(known, prices)) == charged


@pytest.mark.parametrize("version", [None, "2025-10-01-preview", "2025-12-01", "preview"])
def test_azure_is_told_to_serve_in_the_usual_tier(version: str | None) -> None:
    found = offer(host="team-a.openai.azure.com")
    azure = Offer(found.provider.model_copy(update={"api_version": version}), found.model)
    for asked, service in ({}, "default"), ({"service_tier": "priority"}, "priority"):
        assert json.loads(parse_chat(body(**asked)).write(azure, 77))["service_tier"] == service
    response = parse_response(b'{"model": "m", "input": "x"}').write(azure, 77)
    assert json.loads(response)["service_tier"] == "default"


@pytest.mark.parametrize(
    ("host", "azure"),
    [
        ("team-a.openai.azure.us", True),
        ("team-a.cognitiveservices.azure.com", True),
        ("team-a.services.ai.azure.com", True),
        ("openai.azure.com.example", False),
        ("team-a.blob.azure.com", False),
    ],
)
def test_azure_is_known_by_each_of_its_hosts(host: str, azure: bool) -> None:
    sent = json.loads(parse_chat(body()).write(offer(host=host), 77))
    assert ("max_completion_tokens" in sent, "service_tier" in sent) == (azure, azure)


@pytest.mark.parametrize("version", [None, "2024-10-21"])
def test_azure_gets_its_paths_and_the_field_its_reasoning_models_take(version: str | None) -> None:
    found = offer(host="team-a.openai.azure.com")
    provider = found.provider.model_copy(update={"api_version": version})
    azure = Offer(provider, found.model)
    sent = json.loads(parse_chat(body()).write(azure, 77))
    assert sent["max_completion_tokens"] == 77
    assert "max_tokens" not in sent
    assert ("service_tier" in sent) is (version is None), "earlier versions don't know it"
    query = "?api-version=2024-10-21"
    name = "upstream%2Fgpt-4o-mini"
    paths = [CHAT.path_at(azure), RESPONSES.path_at(azure)]
    assert paths == (
        ["/chat/completions", "/responses"]
        if version is None
        else [f"/openai/deployments/{name}/chat/completions{query}", f"/openai/responses{query}"]
    )


def test_openrouter_is_told_how_dear_a_provider_may_be() -> None:
    found = offer(host="openrouter.ai")
    tier = RatesByLength(
        **dict.fromkeys(("input", "cached_input", "cache_write"), Decimal("75.5")),
        **dict.fromkeys(("output", "reasoning"), Decimal("1E+5")),
    )
    prices = found.model.prices.model_copy(update={"services": {"flex": tier}})  # type: ignore[union-attr]
    routed = Offer(found.provider, found.model.model_copy(update={"prices": prices}))
    message = b'{"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "x"}]}'
    for request in (
        parse_chat(body()),
        parse_response(b'{"model": "m", "input": "x"}'),
        parse_completion(b'{"model": "m", "prompt": "x"}'),
        parse_embedding(b'{"model": "m", "input": "x"}'),
        parse_message(message),
    ):
        for at, most in (
            (found, {"prompt": "0.001", "completion": "0.001"}),
            (routed, {"prompt": "0.0755", "completion": "100"}),
            (offer(host="openrouter.ai.example"), None),
        ):
            wanted = None if most is None else {"max_price": most}
            assert json.loads(request.write(at, 7)).get("provider") == wanted


def test_a_stream_always_sends_its_usage() -> None:
    request = body(stream=True, stream_options={"include_obfuscation": False})
    assert sent(request)["stream_options"] == {"include_obfuscation": False, "include_usage": True}


FIELDS = {
    "n": 3,
    "temperature": 0.1,
    "top_p": 0.9,
    "stop": ["\n", "é"],
    "seed": -1,
    "presence_penalty": 1,
    "frequency_penalty": -2,
    "logit_bias": {"50256": -100},
    "logprobs": True,
    "top_logprobs": 5,
    "user": "u",
    "metadata": {"k": "v"},
    "reasoning_effort": "low",
    "verbosity": "low",
    "safety_identifier": "s",
    "prompt_cache_key": "k",
    "store": False,
    "service_tier": "default",
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    "tool_choice": "auto",
    "parallel_tool_calls": False,
    "functions": [{"name": "g"}],
    "function_call": "none",
    "response_format": {"type": "json_object"},
}


@pytest.mark.parametrize(
    ("host", "field"),
    [("router.example", "max_tokens"), ("api.openai.com", "max_completion_tokens")],
)
def test_allowed_fields_arrive_as_they_were_sent(host: str, field: str) -> None:
    assert sent(body(**FIELDS), host=host) == FIELDS | {
        "model": "upstream/gpt-4o-mini",
        field: 99,
        "messages": HELLO,
    }


def test_null_means_unset() -> None:
    assert sent(body(n=None, store=None, tools=None, audio=None)) == sent(body())


CONVERSATION = [
    {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
    {"role": "user", "content": "東京の天気は?", "name": "n"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        ],
    },
    {"role": "tool", "tool_call_id": "1", "content": "☀"},
    {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}], "refusal": "No."},
]


def test_all_text_messages_arrive_as_they_were_sent() -> None:
    assert sent(body(messages=CONVERSATION))["messages"] == CONVERSATION


texts = st.text(st.characters(exclude_categories=["Cs"]))


@given(st.lists(texts, min_size=1), st.booleans(), texts)
def test_the_demand_counts_every_byte_that_the_model_may_read(
    contents: list[str], escaped: bool, described: str
) -> None:
    messages = [{"role": "user", "content": content} for content in contents]
    tools = [{"type": "function", "function": {"name": "f", "description": described}}]
    document = {"model": "m", "messages": messages, "tools": tools}
    demand = parse_chat(json.dumps(document, ensure_ascii=escaped).encode()).demand
    assert demand.prompt_bytes >= sum(len(content.encode()) for content in contents)
    assert demand.schema_bytes >= len(described.encode())
    assert demand.messages == len(contents)


def test_earlier_tool_calls_count_twice() -> None:
    arguments = "[" + "1," * 1000 + "1]"
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    message = {"role": "assistant", "tool_calls": [call]}
    assert parse_chat(body(messages=[message])).demand.prompt_bytes > 2 * len(arguments)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": ""}, "model"),
        ({"model": 5}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": "Hello"}, "messages"),
        ({"messages": ["Hello"]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": {}}]}, "messages[0].content"),
        ({"messages": [{"role": "assistant", "audio": {"id": "a"}}]}, "messages[0].audio"),
        ({"messages": [{"role": "user", "cache_control": {}}]}, "messages[0].cache_control"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"n": True}, "n"),
        ({"n": 1.0}, "n"),
        ({"n": "1"}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": False}, "max_tokens"),
        ({"max_tokens": 10**30}, "max_tokens"),
        ({"max_completion_tokens": "9"}, "max_completion_tokens"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
        ({"stream": 1}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": []}, "stream_options"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
        (
            {"stream": True, "stream_options": {"include_usage": 1}},
            "stream_options.include_usage",
        ),
        ({"service_tier": "auto"}, "service_tier"),
        ({"service_tier": "scale"}, "service_tier"),
        ({"service_tier": ["default"]}, "service_tier"),
        ({"store": True}, "store"),
        ({"store": 0}, "store"),
        ({"tools": {}}, "tools"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "cache_control": {}}]}, "tools[0].cache_control"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"prediction": {}}, "prediction"),
        ({"modalities": ["video"]}, "modalities"),
        ({"audio": {"voice": "alloy"}}, "audio"),
        ({"modalities": ["text", "audio"]}, "audio"),
        ({"previous_response_id": "r"}, "previous_response_id"),
        ({"plugins": []}, "plugins"),
        ({"provider": {}}, "provider"),
        ({"models": []}, "models"),
        ({"route": "fallback"}, "route"),
        ({"transforms": []}, "transforms"),
        ({"no_such_field": 1}, "no_such_field"),
    ],
)
def test_a_refusal_names_its_field(fields: dict[str, object], param: str) -> None:
    with pytest.raises(Refusal) as refused:
        parse_chat(body(**fields))
    assert (refused.value.status, refused.value.param) == (400, param)
    assert param in refused.value.message


@pytest.mark.parametrize("kind", ["video_url", "input_image"])
def test_other_media_are_refused(kind: str) -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": kind}]}]
    with pytest.raises(Refusal, match="can't be bounded yet") as refused:
        parse_chat(body(messages=messages))
    assert refused.value.param == f"messages[0].content[1].{kind}"


def test_images_are_counted_and_their_data_is_no_text() -> None:
    def asked(url: str, **fields: object) -> bytes:
        image = {"type": "image_url", "image_url": {"url": url, **fields}}
        return body(messages=[{"role": "user", "content": [image, image]}])

    small = parse_chat(asked("data:image/png;base64,AAAA")).demand
    large = parse_chat(asked("data:image/png;base64," + "A" * 100_000, detail="high")).demand
    assert small.images == large.images == 2
    assert large.prompt_bytes - small.prompt_bytes < 100
    assert parse_chat(asked("https://images.example/a.png")).demand.images == 2
    for url in ("http://images.example/a.png", "file:///etc/passwd", ""):
        with pytest.raises(Refusal):
            parse_chat(asked(url))
    with pytest.raises(Refusal):
        parse_chat(asked("data:image/png;base64,AAAA", detail="original"))


def test_a_file_counts_as_a_whole_context() -> None:
    file = {"type": "file", "file": {"filename": "a.pdf", "file_data": "A" * 100_000}}
    messages = [{"role": "user", "content": [{"type": "text", "text": "x"}, file]}]
    demand = parse_chat(body(messages=messages)).demand
    assert demand.opaque == demand.file == "messages[0].content[1].file"
    assert "input_audio" in demand.kinds, "nobody says that it is no sound"
    assert demand.prompt_bytes < 1000
    assert sent(body(messages=messages))["messages"] == messages


def test_a_pdf_has_no_sound() -> None:
    for kind, heard in (("application/pdf", False), ("audio/wav", True), ("text/plain", True)):
        file = {"type": "file", "file": {"file_data": f"data:{kind};base64,AAAA"}}
        messages = [{"role": "user", "content": [file]}]
        assert ("input_audio" in parse_chat(body(messages=messages)).demand.kinds) is heard


@pytest.mark.parametrize(
    ("file", "param"),
    [
        ({"file_id": "file-1"}, "messages[0].content[0].file.file_id"),
        ({"filename": "a.pdf"}, "messages[0].content[0].file"),
        ({"file_data": 7}, "messages[0].content[0].file"),
    ],
)
def test_a_file_comes_with_its_data(file: dict[str, object], param: str) -> None:
    messages = [{"role": "user", "content": [{"type": "file", "file": file}]}]
    with pytest.raises(Refusal) as refused:
        parse_chat(body(messages=messages))
    assert refused.value.param == param


def test_sound_is_heard_as_a_whole_context_and_spoken_within_the_limit() -> None:
    def asked(data: object, **fields: object) -> Demand:
        sound = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
        content = [{"type": "text", "text": "what is it?"}, sound]
        return parse_chat(body(messages=[{"role": "user", "content": content}], **fields)).demand

    small, large = asked("AAAA"), asked("A" * 100_000)
    assert small.audio
    assert small.prompt_bytes == large.prompt_bytes
    assert small.kinds == {"output_image", "input_audio", "cached_audio"}
    voice = {"voice": "alloy", "format": "mp3"}
    spoken = asked("AAAA", modalities=["text", "audio"], audio=voice)
    assert spoken.kinds == small.kinds | {"output_audio"}
    with pytest.raises(Refusal, match="base64"):
        asked(5)
    with pytest.raises(Refusal, match="name of a voice"):
        asked("AAAA", modalities=["text", "audio"], audio={"voice": {"id": "voice_1"}})


@pytest.mark.parametrize("part", [5, None, [], {}, {"type": []}, {"type": "text", "url": "x"}])
def test_other_parts_are_refused(part: object) -> None:
    with pytest.raises(Refusal):
        parse_chat(body(messages=[{"role": "user", "content": [part]}]))


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"[]",
        b"null",
        b'"x"',
        b"{}",
        b'{"model": "m"}',
        b'{"model":"a","model":"b","messages":[{"role":"user","content":"x"}]}',
        b'{"model":"m","messages":[{"role":"user","content":"\\ud800"}]}',
        b'{"model":"\\ud800","messages":[{"role":"user","content":"x"}]}',
        b'{"model":"m","\\ud800":1,"messages":[{"role":"user","content":"x"}]}',
        b'{"model":"m","temperature":1e999,"messages":[{"role":"user","content":"x"}]}',
        b'{"model":"m","messages":' + b"[" * 10_000 + b"]" * 10_000 + b"}",
        b'{"model":"m","messages":[{"role":"user","content":"x"}],"n":NaN}',
    ],
)
def test_what_is_no_request_is_refused(document: bytes) -> None:
    with pytest.raises(Refusal) as refused:
        parse_chat(document)
    assert refused.value.status == 400


def test_a_refusal_never_quotes_the_prompt() -> None:
    with pytest.raises(Refusal) as refused:
        parse_chat(b'{"messages": [{"content": "my secret" oops')
    assert "secret" not in refused.value.message


def test_a_long_field_name_is_cut() -> None:
    with pytest.raises(Refusal) as refused:
        parse_chat(body(**{"x" * 100_000: 1}))
    assert len(refused.value.message) < 300


names = st.sampled_from(
    ["model", "messages", "n", "stream", "stream_options", "max_tokens", "tools", "store", "x"]
)
parts = st.sampled_from(["role", "content", "type", "text", "x"])
plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
nested = st.lists(plain, max_size=3) | st.dictionaries(parts, plain, max_size=3)
anything = plain | nested | st.lists(st.dictionaries(parts, plain | nested, max_size=3), max_size=3)


@given(st.binary() | st.dictionaries(names, anything).map(lambda v: json.dumps(v).encode()))
def test_arbitrary_bytes_are_read_or_refused(document: bytes) -> None:
    try:
        request = parse_chat(document)
    except Refusal:
        return
    strict.parse(request.write(offer(), 1))


def test_the_list_of_models_names_each_once_and_providers_where_two_offer_it() -> None:
    offers = [offer("a", "p"), offer("b", "p"), offer("a", "q")]
    document = json.loads(models_body(offers, Protocol.OPENAI))
    assert document["object"] == "list"
    listed = {entry["id"]: entry["owned_by"] for entry in document["data"]}
    assert listed == {"a": "p", "b": "p", "p/a": "p", "q/a": "q"}
    assert {entry["object"] for entry in document["data"]} == {"model"}
