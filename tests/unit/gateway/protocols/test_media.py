"""Sound and images: what may be asked, what is held for it, and what answers say of it."""

from __future__ import annotations

import base64
import contextlib
import json
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.offers import offer
from tests.support.sound import mp3

from llmbudget.api.money import Nano
from llmbudget.contract.config import ImagePrice, ModelConfig, Prices
from llmbudget.decide.bounds import Unbounded, affordable_limit, default_limit, upper_bound
from llmbudget.decide.catalogue import Offer
from llmbudget.decide.cost import MediaTokens, Units, Usage, cost, told
from llmbudget.gateway.protocols.errors import Refusal
from llmbudget.gateway.protocols.forms import File, read_form, write_form
from llmbudget.gateway.protocols.images import parse_images
from llmbudget.gateway.protocols.operation import CallRequest
from llmbudget.gateway.protocols.speech import parse_speech
from llmbudget.gateway.protocols.transcriptions import parse_transcription
from llmbudget.gateway.protocols.usages import tokens_of

ZERO = Decimal(0)
NOTHING = dict.fromkeys(("input", "output", "cached_input", "cache_write", "reasoning"), ZERO)
PLAUSIBLE = 10**6
TOKENS = {"input_tokens": 30, "output_tokens": 12, "total_tokens": 42}


def units_only(**prices: object) -> Prices:
    return Prices.model_validate(NOTHING | {"tokens": False} | prices)


def priced(prices: Prices, **fields: object) -> ModelConfig:
    return offer().model.model_copy(update={"prices": prices, **fields})


def bound(asked: CallRequest, model: ModelConfig) -> int:
    assert model.prices is not None
    limit = default_limit(asked.demand, model)
    assert affordable_limit(asked.demand, model, model.prices, None) == limit
    return upper_bound(asked.demand, model, model.prices, limit)


# Speech


def speech(**fields: object) -> CallRequest:
    body = {"model": "m", "input": "Hello", "voice": "alloy"} | fields
    return parse_speech(json.dumps(body).encode())


def test_speech_is_charged_by_the_characters_of_its_text() -> None:
    asked, model = speech(input="Grüße 🎉"), priced(units_only(character=Decimal(15_000)))
    usage = asked.usage_of(b"sound", PLAUSIBLE)
    assert usage == Usage(0, 0, units=Units(characters=8))
    assert told(usage, model.prices)  # type: ignore[arg-type]
    assert cost(usage, model.prices) == bound(asked, model) == 8 * 15_000  # type: ignore[arg-type]
    assert json.loads(asked.write(Offer(offer().provider, model), 0)) == {
        **{"model": "upstream/gpt-4o-mini", "input": "Grüße 🎉", "voice": "alloy"},
    }


def test_speech_by_tokens_needs_a_bound_and_asks_for_events() -> None:
    with pytest.raises(Unbounded, match="mediaOutputTokens"):
        bound(speech(), offer().model)
    model = priced(offer().model.prices, media_output_tokens=1000)  # type: ignore[arg-type]
    assert bound(speech(), model) > 1000
    assert json.loads(speech().write(Offer(offer().provider, model), 0))["stream_format"] == "sse"
    # What says nothing of its tokens is no measure.
    assert not told(speech().usage_of(b"sound", PLAUSIBLE), model.prices)  # type: ignore[arg-type]


def spoken(*events: dict[str, object]) -> bytes:
    return b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)


PIECES = [
    {"type": "speech.audio.delta", "audio": base64.b64encode(piece).decode()}
    for piece in (b"\xff\xfbone", b"two")
]
DONE = {"type": "speech.audio.done", "usage": TOKENS}


def test_a_caller_that_wants_sound_gets_what_the_events_carry() -> None:
    meter = speech(response_format="wav").meter(PLAUSIBLE)
    sent = spoken(*PIECES, DONE)
    got = b"".join(meter.feed(sent[at : at + 9]) for at in range(0, len(sent), 9)) + meter.finish()
    assert got + meter.ending(b": cost") == b"\xff\xfbonetwo"
    assert meter.content_type == "audio/wav"
    assert meter.done
    assert meter.usage == Usage(
        30, 12, media=MediaTokens(output_audio=12), units=Units(characters=5)
    )


def test_a_caller_that_wants_events_gets_them() -> None:
    meter = speech(stream_format="sse").meter(PLAUSIBLE)
    sent = spoken(*PIECES, DONE)
    assert meter.feed(sent) + meter.finish() + meter.ending(b"") == sent
    assert meter.content_type.startswith("text/event-stream")


def test_garbage_instead_of_sound_is_a_failure() -> None:
    meter = speech().meter(PLAUSIBLE)
    assert meter.feed(spoken({"type": "speech.audio.delta", "audio": "!"})) == b""
    assert meter.failed


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": "x" * 4097}, "input"),
        ({"input": 5}, "input"),
        ({"voice": {"id": "voice_1"}}, "voice"),
        ({"response_format": "midi"}, "response_format"),
        ({"stream_format": "ws"}, "stream_format"),
        ({"stream": True}, "stream"),
    ],
)
def test_what_speech_refuses(fields: dict[str, object], param: str) -> None:
    with pytest.raises(Refusal) as refused:
        speech(**fields)
    assert refused.value.param == param


# Images


def images(**fields: object) -> CallRequest:
    return parse_images(json.dumps({"model": "m", "prompt": "a coin", **fields}).encode())


def test_images_are_charged_by_number_size_and_quality() -> None:
    table = (
        ImagePrice(price=Decimal(40), size="1024x1024", quality="standard"),
        ImagePrice(price=Decimal(80), size="1024x1024", quality="hd"),
        ImagePrice(price=Decimal(120), size="1792x1024"),
    )
    model = priced(units_only(images=table))
    assert bound(images(n=3, size="1024x1024", quality="standard"), model) == 120
    assert bound(images(size="1024x1024"), model) == 80
    assert bound(images(size="auto", quality="auto"), model) == 120
    with pytest.raises(Unbounded, match="perImage"):
        bound(images(size="512x512"), model)
    asked = images(n=3, size="1024x1024", quality="hd")
    answer = json.dumps({"data": [{"b64_json": "AA=="}, {"url": "https://x"}]}).encode()
    usage = asked.usage_of(answer, PLAUSIBLE)
    assert cost(usage, model.prices) == 160  # type: ignore[arg-type]
    assert not told(asked.usage_of(b'{"data": []}', PLAUSIBLE), model.prices)  # type: ignore[arg-type]


def test_images_by_tokens_have_a_bound_each() -> None:
    dear = offer().model.prices.model_copy(update={"output_image": Decimal(9)})  # type: ignore[union-attr]
    model = priced(dear, media_output_tokens=500, context_bound=1000)
    one, three = bound(images(), model), bound(images(n=3), model)
    assert three - one == 2 * 500 * 9
    assert bound(images(stream=True, partial_images=2), model) - one == 200 * 9
    # A limit can't be lowered to what the balance covers.
    assert affordable_limit(images().demand, model, dear, Nano(one - 1)) is None
    details = {"input_tokens_details": {"text_tokens": 10, "image_tokens": 20}}
    answer = {"data": [{"b64_json": "A"}], "usage": TOKENS | details}
    usage = images().usage_of(json.dumps(answer).encode(), PLAUSIBLE)
    assert usage is not None
    assert usage.media == MediaTokens(input_image=20, of_output=False)
    untold = images().usage_of(json.dumps({"usage": TOKENS, "data": [{"url": "x"}]}).encode(), 99)
    assert untold is not None
    assert cost(untold, dear, images().demand.kinds) == 30 + 12 * 9


def test_what_is_told_of_one_direction_says_nothing_of_the_other() -> None:
    dear = offer().model.prices.model_copy(  # type: ignore[union-attr]
        update={"input_image": Decimal(3), "output_image": Decimal(60)}
    )
    kinds = frozenset({"input_image", "cached_image", "output_image"})
    for details, charged in (
        ({"input_tokens_details": {"image_tokens": 20}}, 10 + 20 * 3 + 12 * 60),
        ({"output_tokens_details": {"image_tokens": 2}}, 30 * 3 + 10 + 2 * 60),
        ({}, 30 * 3 + 12 * 60),
    ):
        usage = tokens_of(TOKENS | details, PLAUSIBLE)
        assert usage is not None
        assert cost(usage, dear, kinds) == charged


def test_a_large_answer_with_images_is_measured() -> None:
    answer = {"data": [{"b64_json": "A" * 2_000_000}] * 2, "usage": TOKENS}
    usage = images(n=2).usage_of(json.dumps(answer).encode(), PLAUSIBLE)
    assert usage == Usage(30, 12, units=Units(images=2))


def test_a_stream_of_pictures_is_measured_by_its_last() -> None:
    picture = {"b64_json": "A" * 3_000_000}
    partial = {"type": "image_generation.partial_image", **picture}
    last = {"type": "image_generation.completed", **picture, "usage": TOKENS}
    sent = spoken(partial, last)
    meter = images(stream=True, size="1024x1024").meter(PLAUSIBLE)
    got = b"".join(meter.feed(sent[at : at + 65_536]) for at in range(0, len(sent), 65_536))
    assert got + meter.finish() + meter.ending(b"") == sent
    assert not meter.failed
    assert meter.usage == Usage(30, 12, units=Units(images=1, size="1024x1024"))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 11}, "n"),
        ({"n": 2, "stream": True}, "n"),
        ({"partial_images": 1}, "partial_images"),
        ({"partial_images": 4, "stream": True}, "partial_images"),
        ({"size": "1024 x 1024"}, "size"),
        ({"quality": 5}, "quality"),
        ({"output_format": "gif"}, "output_format"),
        ({"svg": {}}, "svg"),
        ({"frame_count": 9}, "frame_count"),
        ({"image": "x"}, "image"),
        ({"prompt": None}, "prompt"),
    ],
)
def test_what_images_refuse(fields: dict[str, object], param: str) -> None:
    with pytest.raises(Refusal) as refused:
        images(**fields)
    assert refused.value.param == param


# Transcriptions


def form(*fields: tuple[str, str], data: bytes = b"", boundary: str = "cut") -> bytes:
    found = [("model", "m"), *fields]
    return write_form(boundary, found, File("a.wav", "audio/wav", data or mp3(96)))


MINUTES = priced(units_only(minute=Decimal(6_000_000)))


def test_a_transcript_by_the_minute_is_held_for_by_what_the_provider_takes() -> None:
    # A sound file that another decoder reads otherwise would prove any length.
    most = MINUTES.model_copy(update={"audio_seconds": 60})
    for data in (b"OggS....", mp3(96), mp3(3829)):
        asked = parse_transcription(form(data=data))
        assert bound(asked, most) == 6_000_000
        with pytest.raises(Unbounded, match="set its audioSeconds"):
            bound(asked, MINUTES)


def test_a_transcript_by_tokens_is_held_for_by_the_models_context() -> None:
    tokens = offer().model.prices.model_copy(update={"input_audio": Decimal(5)})  # type: ignore[union-attr]
    model = priced(tokens, context_bound=16_000, max_output=2000)
    assert bound(parse_transcription(form()), model) == 16_000 * 5 + 2000
    with pytest.raises(Unbounded, match="maxContext"):
        bound(parse_transcription(form()), priced(tokens))
    with pytest.raises(Unbounded, match="chunking_strategy"):
        bound(parse_transcription(form(("chunking_strategy", "auto"))), model)
    details = {"input_token_details": {"audio_tokens": 25, "text_tokens": 5}}
    answer = {"text": "x", "usage": {"type": "tokens", **TOKENS, **details}}
    usage = parse_transcription(form()).usage_of(json.dumps(answer).encode(), PLAUSIBLE)
    assert usage is not None
    assert told(usage, tokens)
    assert cost(usage, tokens) == 25 * 5 + 5 + 12


SECONDS = [
    (b"3", 300_000),
    (b"2.5", 250_000),
    (b"0.00001", 100),
    (b"1e1", 1_000_000),
    *((bad, None) for bad in (b"0", b"-1", b"1e400", b"NaN", b'"3"', b"true", b"null", b"1e9")),
]


@pytest.mark.parametrize(("seconds", "charged"), SECONDS)
def test_seconds_are_believed_only_where_they_are_a_measure(
    seconds: bytes, charged: int | None
) -> None:
    answer = b'{"text": "x", "usage": {"type": "duration", "seconds": %b}}' % seconds
    usage = parse_transcription(form()).usage_of(answer, PLAUSIBLE)
    assert usage is not None
    assert MINUTES.prices is not None
    assert told(usage, MINUTES.prices) is (charged is not None)
    if charged is not None:
        assert cost(usage, MINUTES.prices) == charged


def test_an_answer_without_figures_is_no_measure() -> None:
    for answer in (b"just text", b"1\n00:00:00,000 --> 00:00:02,000\nhi\n", b"{}"):
        assert parse_transcription(form()).usage_of(answer, PLAUSIBLE) is None


def test_a_transcript_in_events_is_measured_by_its_last() -> None:
    delta, done = {"type": "transcript.text.delta", "delta": "a"}, {"type": "transcript.text.done"}
    meter = parse_transcription(form(("stream", "true"))).meter(PLAUSIBLE)
    sent = spoken(delta, done | {"usage": {"type": "tokens", **TOKENS}})
    assert meter.feed(sent) + meter.ending(b"") == sent
    assert meter.usage == Usage(30, 12, units=Units(milliseconds=None))


def test_the_form_is_written_anew_and_its_fields_arrive() -> None:
    body = form(("language", "de"), ("timestamp_granularities[]", "word"), ("prompt", "Grüße"))
    asked = parse_transcription(body)
    written = asked.write(offer(), 0)
    boundary = asked.content_type.partition("boundary=")[2]
    assert written.startswith(f"--{boundary}\r\n".encode())
    again = read_form(written)
    assert again.file == read_form(body).file
    assert again.fields[0] == ("model", "upstream/gpt-4o-mini")
    assert again.fields[1:] == read_form(body).fields[1:]


def test_the_same_form_is_the_same_call_however_it_is_cut() -> None:
    one, two = (parse_transcription(form(boundary=each)) for each in ("one", "two"))
    assert one.identity is not None
    assert two.identity is not None
    assert one.identity() == two.identity()
    for other in (form(("language", "de")), form(data=mp3(120))):
        identity = parse_transcription(other).identity
        assert identity is not None
        assert identity() != one.identity()


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (form(("known_speaker_references[]", "data:")), "known_speaker_references"),
        (form(("no_such", "x")), "no_such"),
        (form(("language", "de"), ("language", "en")), "language"),
        (form(("stream", "yes")), "stream"),
        (form(("model", "other")), "model"),
        (form().replace(b'name="file"', b'name="sound"'), "file"),
        (form()[:-6], "form"),
        (b"{}", "multipart"),
        (b"--x\r\n\r\n--x--\r\n", "form"),
        (form(("prompt", "x")).replace(b"\r\nx\r\n", b"\r\n\xff\r\n"), "prompt"),
    ],
)
def test_what_transcriptions_refuse(body: bytes, told: str) -> None:
    with pytest.raises(Refusal, match=told) as refused:
        parse_transcription(body)
    assert refused.value.status == 400


@given(st.binary(max_size=300), st.integers(0, 400))
def test_any_form_is_read_or_refused(noise: bytes, at: int) -> None:
    body = form(data=b"RIFF" + bytes(60))
    with contextlib.suppress(Refusal):
        parse_transcription(body[:at] + noise + body[at + len(noise) :])


def test_a_files_name_and_type_are_no_way_into_the_head() -> None:
    body = form().replace(b'filename="a.wav"', b'filename="a%22%0D%0A.wav"')
    body = body.replace(b"content-type: audio/wav", b"content-type: audio/wav; x=\x01")
    file = read_form(body).file
    assert not set('"\r\n%') & set(file.name)
    assert file.content_type in ("audio/wav", "application/octet-stream")
