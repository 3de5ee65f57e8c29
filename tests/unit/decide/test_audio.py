"""How long a file may last is proved by its bytes, or not claimed at all."""

from __future__ import annotations

import io
import wave

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmbudget.decide.audio import longest


def wav(seconds: float, rate: int = 8000, channels: int = 1, width: int = 2) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(channels)
        sound.setsampwidth(width)
        sound.setframerate(rate)
        sound.writeframes(bytes(int(seconds * rate) * channels * width))
    return file.getvalue()


def mp3(frames: int, kilobits: int = 128, rate: int = 44_100) -> bytes:
    """MPEG 1, layer III, constant bitrate: 1,152 samples a frame."""
    index = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320).index(kilobits)
    header = bytes([0xFF, 0xFB, index << 4 | (44_100, 48_000, 32_000).index(rate) << 2, 0])
    return (header + bytes(144 * kilobits * 1000 // rate - 4)) * frames


@given(
    st.floats(0.01, 20),
    st.sampled_from([8000, 16_000, 44_100]),
    st.integers(1, 2),
    st.integers(1, 4),
)
def test_a_wav_file_never_lasts_longer_than_it_proves(
    seconds: float, rate: int, channels: int, width: int
) -> None:
    file = wav(seconds, rate, channels, width)
    proved = longest(file)
    assert proved is not None
    lasts = int(seconds * rate) / rate * 1000
    assert lasts <= proved <= lasts + 2000
    assert proved % 1000 == 0


def test_a_wav_file_that_claims_to_be_short_is_measured_by_its_bytes() -> None:
    file = bytearray(wav(60))
    file[40:44] = (16).to_bytes(4, "little")
    assert longest(bytes(file)) == 61_000


@pytest.mark.parametrize(
    "change",
    [
        lambda file: file[:20] + b"\x31\x00" + file[22:],  # GSM, compressed
        lambda file: file[:24] + bytes(4) + file[28:],  # no rate
        lambda file: file + b"fmt " + bytes(20),  # a second format
        lambda file: file[:12] + b"LIST" + bytes(4) + file[12:],  # another chunk first
        lambda file: file[:30],
        lambda file: b"",
        lambda file: b"OggS" + file,
        lambda file: b"\xff\xf1\x50\x80" + file,  # AAC
    ],
)
def test_what_proves_nothing_has_no_length(change) -> None:  # type: ignore[no-untyped-def]
    assert longest(change(wav(1))) is None


@pytest.mark.parametrize("kilobits", [32, 128, 320])
@pytest.mark.parametrize("rate", [44_100, 48_000, 32_000])
def test_the_frames_of_an_mp3_file_add_up(kilobits: int, rate: int) -> None:
    exact = 500 * 1152 * 1000 / rate
    tag = b"ID3\x04\x00\x00\x00\x00\x01\x00" + bytes(128)
    for file in (mp3(500, kilobits, rate), tag + mp3(500, kilobits, rate)):
        proved = longest(file)
        assert proved is not None
        assert exact <= proved <= exact + 1000


def test_an_mp3_file_of_a_lower_version_has_shorter_frames() -> None:
    # MPEG 2, layer III, 64 kbit/s at 24 kHz: 576 samples in 192 bytes.
    frame = bytes([0xFF, 0xF3, 8 << 4 | 1 << 2, 0]) + bytes(188)
    assert longest(frame * 1000) == 24_000


def test_what_is_hidden_between_frames_is_skipped_and_counted() -> None:
    assert longest(mp3(100) + b"junk" + mp3(100)) == longest(mp3(200))
    assert longest(mp3(100) + bytes(70_000) + mp3(100)) is None


@given(
    st.binary(max_size=500),
    st.sampled_from([b"", b"RIFF0000WAVEfmt ", b"\xff\xfb\x90\x00", b"ID3"]),
)
def test_any_bytes_are_read(rest: bytes, start: bytes) -> None:
    proved = longest(start + rest)
    assert proved is None or proved >= 0
