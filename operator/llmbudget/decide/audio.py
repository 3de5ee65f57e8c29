"""How long a sound file is at most, by what it proves itself.

Only formats whose length follows from the bytes that are there: PCM samples in WAV, and the frames
of MP3, each of which says how long it lasts. Other containers merely claim a length.
"""

from __future__ import annotations

from typing import Final

_RIFF: Final = 12
"""Bytes before the first chunk of a WAV file."""
_PCM_FORMATS: Final = (1, 3)
"""Whole numbers and floating-point ones, neither compressed."""

_MPEG1, _MPEG2, _MPEG25 = 3, 2, 0
_BITRATES: Final = {
    # In kbit/s, by version and layer as the header writes them.
    (_MPEG1, 3): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (_MPEG1, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (_MPEG1, 1): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (_MPEG2, 3): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (_MPEG2, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (_MPEG2, 1): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES: Final = {
    _MPEG1: (44_100, 48_000, 32_000),
    _MPEG2: (22_050, 24_000, 16_000),
    _MPEG25: (11_025, 12_000, 8_000),
}
_SAMPLES: Final = {(_MPEG1, 3): 384, (_MPEG1, 2): 1152, (_MPEG1, 1): 1152}
_SAMPLES_LATER: Final = {3: 384, 2: 1152, 1: 576}
_NANOSECONDS: Final = 10**9
_MOST_SKIPPED: Final = 64 * 1024
"""Bytes that are no frame, such as a picture's, that a file may have in a row."""


def longest(file: bytes) -> int | None:
    """Tell the most milliseconds that a file may last, in whole seconds; None: it proves none."""
    nanoseconds = _wav(file) if file[:4] == b"RIFF" else _mp3(file)
    return None if nanoseconds is None else -(-nanoseconds // _NANOSECONDS) * 1000


def _wav(file: bytes) -> int | None:
    """Count all bytes of the file as samples, whatever its chunks say of their sizes."""
    if file[8:_RIFF] != b"WAVE" or file[_RIFF : _RIFF + 4] != b"fmt ":
        return None
    # A second format, hidden anywhere, might be the one that a decoder takes.
    if file.count(b"fmt ") != 1 or len(file) < _RIFF + 24:
        return None
    coding, channels = _number(file, 20, 2), _number(file, 22, 2)
    rate, bits = _number(file, 24, 4), _number(file, 34, 2)
    if coding not in _PCM_FORMATS or not (channels and rate) or bits not in (8, 16, 24, 32, 64):
        return None
    return -(-len(file) * _NANOSECONDS // (rate * channels * bits // 8))


def _number(file: bytes, at: int, size: int) -> int:
    return int.from_bytes(file[at : at + size], "little")


def _mp3(file: bytes) -> int | None:
    """Add up the frames; None: this is no MP3, or it has long parts that are none."""
    at = _after_tag(file)
    total = skipped = 0
    while at + 4 <= len(file):
        frame = _frame(file[at : at + 4])
        if frame is None:
            skipped += 1
            if skipped > _MOST_SKIPPED or not total:
                return None
            at += 1
            continue
        size, lasts = frame
        total += lasts
        at += size
    return total or None


def _after_tag(file: bytes) -> int:
    """Find where the sound begins behind an ID3 tag."""
    if file[:3] != b"ID3" or len(file) < 10:
        return 0
    size = 0
    for byte in file[6:10]:
        size = size << 7 | byte & 0x7F
    return 10 + size + (10 if file[5] & 0x10 else 0)


def _frame(header: bytes) -> tuple[int, int] | None:
    """Read a frame's header: its bytes and its nanoseconds, rounded up; None: it is none."""
    if header[0] != 0xFF or header[1] & 0xE0 != 0xE0:
        return None
    version, layer = header[1] >> 3 & 3, header[1] >> 1 & 3
    index, rate_index, padding = header[2] >> 4, header[2] >> 2 & 3, header[2] >> 1 & 1
    # A frame of a free bitrate does not say where it ends.
    if version == 1 or layer == 0 or index in (0, 15) or rate_index == 3:
        return None
    known = version if version == _MPEG1 else _MPEG2
    rate = _RATES[version][rate_index]
    samples = _SAMPLES[_MPEG1, layer] if version == _MPEG1 else _SAMPLES_LATER[layer]
    kilobits = _BITRATES[known, layer][index]
    slot = 4 if layer == 3 else 1
    size = (samples // 8 * kilobits * 1000 // slot // rate + padding) * slot
    return size, -(-samples * _NANOSECONDS // rate)
