"""Sound and images through the official client, plain and streamed, charged to the nano."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import httpx
import openai
import pytest
from tests.support.gateway_process import (
    USD,
    GatewayProcess,
    Simulator,
    account,
    config,
    media_models,
    provider,
    rows,
)
from tests.support.sound import mp3

from llmbudget.ledger.interface import Entry

pytestmark = pytest.mark.cluster
TEXT = "canary prompt: say 12 words"
SOUND = ("a.mp3", mp3(96), "audio/mpeg")


@dataclass
class Media:
    client: openai.AsyncOpenAI
    gateway: GatewayProcess
    simulator: Simulator

    async def agree(self, calls: int) -> list[Entry]:
        """The provider's bill and the ledger's rows are the same, each call metered."""
        found = await rows(self.gateway)
        bill = await self.simulator.bill()
        assert [row.outcome for row in found] == ["metered"] * calls
        assert sum(row.cost for row in found) == bill["nano"]
        assert all(row.cost <= row.held for row in found)
        return found

    def sync(self) -> openai.OpenAI:
        return openai.OpenAI(
            base_url=self.client.base_url, api_key=self.client.api_key, max_retries=0
        )


@pytest.fixture
async def media(
    gateway: GatewayProcess, namespace: str, simulator: Simulator
) -> AsyncIterator[Media]:
    upstream = provider("sim", simulator.port, models=media_models(), idle_timeout_ms=500)
    mine = account(namespace, USD, ladder=())
    await gateway.configure(config(namespace, (mine,), (upstream,), generation=2))
    token = await gateway.token()
    async with openai.AsyncOpenAI(
        base_url=f"{gateway.url}/v1", api_key=token, max_retries=0
    ) as client:
        for _ in range(100):
            # The configuration takes a moment to come.
            if "whisper" in [listed.id async for listed in client.models.list()]:
                break
        yield Media(client, gateway, simulator)


async def test_transcriptions(media: Media) -> None:
    create = media.client.audio.transcriptions.create
    raw = await media.client.audio.transcriptions.with_raw_response.create(
        model="whisper", file=SOUND
    )
    assert raw.headers["x-llmbudget-cost-usd"] == "0.0003"
    assert "x-llmbudget-remaining-usd" in raw.headers
    assert raw.parse().text.startswith("money")
    words = await create(
        model="whisper",
        file=SOUND,
        response_format="verbose_json",
        timestamp_granularities=["word"],
        prompt=TEXT,
    )
    assert words.text
    heard = await create(model="hear", file=SOUND, prompt=TEXT, language="de")
    assert heard.usage is not None
    assert heard.usage.type == "tokens"
    stream = await create(model="hear", file=SOUND, prompt=TEXT, stream=True)
    assert [event.type async for event in stream][-1] == "transcript.text.done"
    await asyncio.to_thread(
        media.sync().audio.transcriptions.create, model="hear", file=SOUND, prompt=TEXT
    )
    found = await media.agree(5)
    assert [row.cost for row in found[:2]] == [300_000, 300_000]
    assert [row.tokens_out for row in found] == [0, 0, 12, 12, 12]


async def test_a_repeated_upload_is_the_same_call_however_it_is_cut(media: Media) -> None:
    headers = {"Idempotency-Key": "once"}
    create = media.client.audio.transcriptions.create
    await create(model="whisper", file=SOUND, extra_headers=headers)
    with pytest.raises(openai.ConflictError):
        await create(model="whisper", file=SOUND, extra_headers=headers)
    with pytest.raises(openai.UnprocessableEntityError):
        await create(model="whisper", file=SOUND, language="de", extra_headers=headers)
    await media.agree(1)


async def test_speech(media: Media) -> None:
    speech = media.client.audio.speech
    whole = await speech.create(model="tts", input=TEXT, voice="alloy")
    assert whole.response.headers["content-type"] == "audio/mpeg"
    assert whole.content.startswith(b"money")
    async with speech.with_streaming_response.create(
        model="speak", input=TEXT, voice="alloy", response_format="wav"
    ) as answer:
        assert answer.headers["content-type"] == "audio/wav"
        assert "x-llmbudget-remaining-tokens" in answer.headers
        sound = b"".join([piece async for piece in answer.iter_bytes()])
    assert sound.startswith(b"money is counted")
    assert b"speech.audio" not in sound
    async with speech.with_streaming_response.create(
        model="speak", input=TEXT, voice="alloy", stream_format="sse"
    ) as answer:
        lines = [line async for line in answer.iter_lines() if line]
    assert "speech.audio.done" in lines[-1]
    assert any(line.startswith(": llmbudget cost_usd=") for line in lines)
    await asyncio.to_thread(media.sync().audio.speech.create, model="tts", input="x", voice="a")
    found = await media.agree(4)
    assert [row.cost for row in found] == [len(TEXT) * 15_000, found[2].cost, found[2].cost, 15_000]


async def test_images(media: Media) -> None:
    images = media.client.images
    painted = await images.generate(model="paint", prompt=TEXT, n=2, size="1024x1024")
    assert painted.data is not None
    assert len(painted.data) == 2
    drawn = await images.generate(model="draw", prompt=TEXT, n=2, quality="high")
    assert drawn.usage is not None
    stream = await images.generate(model="draw", prompt=TEXT, stream=True, partial_images=2)
    kinds = [event.type async for event in stream]
    assert kinds[0] == "image_generation.partial_image"
    assert kinds[-1] == "image_generation.completed"
    await asyncio.to_thread(media.sync().images.generate, model="paint", prompt=TEXT)
    found = await media.agree(4)
    assert [row.cost for row in (found[0], found[3])] == [80_000_000, 40_000_000]


BROKEN = ("no-usage", "negative-usage", "absurd-usage", "cut", "garbage", "hang", "reset")


@pytest.mark.parametrize("mode", BROKEN)
async def test_what_is_in_doubt_is_charged_at_the_hold(media: Media, mode: str) -> None:
    client, told = media.client, list[str]()

    async def call(work: object) -> None:
        try:
            answer = await work  # type: ignore[misc]
            if hasattr(answer, "__aiter__"):
                async for _ in answer:
                    pass
            told.append("answered")
        except (openai.OpenAIError, httpx.HTTPError, ValueError) as error:
            told.append(repr(error))

    audio, images = client.audio, client.images
    await call(audio.transcriptions.create(model=f"hear@{mode}", file=SOUND, stream=True))
    await call(audio.transcriptions.create(model=f"hear@{mode}", file=SOUND))
    await call(audio.speech.create(model=f"speak@{mode}", input=TEXT, voice="alloy"))
    await call(images.generate(model=f"draw@{mode}", prompt=TEXT, stream=True))
    await call(images.generate(model=f"draw@{mode}", prompt=TEXT))
    found = await rows(media.gateway)
    assert len(found) == len(told), told
    assert {row.outcome for row in found} == {"unknown"}
    assert all(row.cost == row.held > 0 for row in found)
    bill = await media.simulator.bill()
    assert sum(row.cost for row in found) >= bill["nano"]


async def test_a_caller_that_leaves_is_charged_what_the_rest_tells(media: Media) -> None:
    async with media.client.audio.speech.with_streaming_response.create(
        model="speak", input=TEXT, voice="alloy"
    ) as answer:
        assert answer.status_code == 200
    stream = await media.client.images.generate(model="draw", prompt=TEXT, stream=True)
    await stream.close()
    await media.agree(2)


async def test_what_has_no_bound_or_price_is_refused(media: Media) -> None:
    audio, images = media.client.audio, media.client.images
    with pytest.raises(openai.BadRequestError, match="no price by the image or token"):
        await images.generate(model="whisper", prompt=TEXT)
    with pytest.raises(openai.BadRequestError, match="no price by the token"):
        await media.client.chat.completions.create(
            model="whisper", messages=[{"role": "user", "content": TEXT}]
        )
    with pytest.raises(openai.BadRequestError, match="svg"):
        await images.generate(model="draw", prompt=TEXT, extra_body={"svg": {}})
    for _ in range(2):
        await images.generate(model="paint", prompt=TEXT, n=10)
    with pytest.raises(openai.APIStatusError) as spent:
        await images.generate(model="paint", prompt=TEXT, n=10)
    assert spent.value.status_code == 402
    with pytest.raises(openai.APIStatusError) as large:
        await audio.transcriptions.create(model="whisper", file=("a.wav", bytes(26 << 20)))
    assert large.value.status_code == 413
    assert (await media.simulator.bill())["calls"] == 2


@pytest.mark.parametrize(
    "path",
    [
        *("audio/translations", "images/edits", "images/variations", "audio/voices"),
        *("files", "batches", "responses/r_1", "realtime/sessions", "fine_tuning/jobs"),
    ],
)
async def test_any_other_path_leads_nowhere(media: Media, path: str) -> None:
    with pytest.raises(openai.NotFoundError, match="There is nothing at"):
        await media.client.post(f"/{path}", body={"model": "small"}, cast_to=object)
    assert (await media.simulator.bill())["calls"] == 0
