"""How long a file may last is proved by its bytes, or not claimed at all."""

from __future__ import annotations

import io
import wave

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmbudget.decide.audio import longest


def mp3(frames: int, kilobits: int = 128, rate: int = 44_100) -> bytes:
    """MPEG 1, layer III, constant bitrate: 1,152 samples a frame."""
    index = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320).index(kilobits)
    header = bytes([0xFF, 0xFB, index << 4 | (44_100, 48_000, 32_000).index(rate) << 2, 0])
    return (header + bytes(144 * kilobits * 1000 // rate - 4)) * frames


def wav(data: bytes) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(2)
        sound.setsampwidth(2)
        sound.setframerate(44_100)
        sound.writeframes(data)
    return file.getvalue()


SLOW = bytes([0xFF, 0xE3, 1 << 4 | 2 << 2, 0]) + bytes(68)
"""MPEG 2.5, layer III, 8 kbit/s at 8 kHz: 72 ms in 72 bytes."""


@pytest.mark.parametrize(
    "file",
    [
        b"",
        b"OggS" + mp3(10),
        b"\xff\xf1\x50\x80" + mp3(10),  # AAC
        wav(bytes(44_100)),
        wav(SLOW * 1000),  # decoders look for compressed sound in a WAV file
        b"ID3\x04\x00\x00\x80\x00\x01\x00" + bytes(128) + mp3(10),  # no tag to all decoders
        b"ID3\xff\x00\x00\x00\x00\x01\x00" + bytes(128) + mp3(10),
        b"ID3\x04\x00",
        mp3(10) + mp3(10, rate=48_000),  # a chain of two kinds
        mp3(10) + b"junk" + mp3(10),  # what is between them may be another chain
        mp3(10) + b"TAG" + bytes(200),
        bytes(10) + mp3(10),
        b"TAG" + bytes(125),
    ],
)
def test_what_proves_nothing_has_no_length(file: bytes) -> None:
    assert longest(file) is None


def test_a_chain_that_hides_another_of_another_kind_proves_nothing() -> None:
    # Headers of layer I, alone, at the top of what they claim; in what they skip, slow frames.
    loud = bytes([0xFF, 0xFF, 14 << 4, 0])
    size = (384 // 8 * 448_000 // 4 // 44_100) * 4
    body = (SLOW * 8)[: size - 4]
    assert longest((loud + body + bytes([0xFF, 0xFF, 14 << 4 | 1 << 2, 0]) + body) * 50) is None


def test_a_tag_at_the_end_counts_as_a_second() -> None:
    assert longest(mp3(100) + b"TAG" + bytes(125)) == 4000


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


@given(
    st.binary(max_size=500),
    st.sampled_from([b"", b"RIFF0000WAVEfmt ", b"\xff\xfb\x90\x00", b"ID3"]),
)
def test_any_bytes_are_read(rest: bytes, start: bytes) -> None:
    proved = longest(start + rest)
    assert proved is None or proved >= 0
