"""How long a sound file is at most, by what it proves itself.

Only MP3 does: an unbroken chain of frames of one kind, each of which says how long it lasts. Other
containers merely claim a length, PCM in WAV too: decoders look into its samples for compressed
sound, which lasts a hundred times longer in as many bytes.
"""

from __future__ import annotations

from typing import Final

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
_LAST_TAG: Final = 128
"""Bytes of a tag of version 1 at the end: less than a second of the slowest frames."""


def longest(file: bytes) -> int | None:
    """Tell the most milliseconds that a file may last, in whole seconds; None: it proves none."""
    nanoseconds = _mp3(file)
    return None if nanoseconds is None else -(-nanoseconds // _NANOSECONDS) * 1000


def _mp3(file: bytes) -> int | None:
    """Add up the frames; None: this is no MP3, or a decoder may find another chain in it.

    A decoder takes the first place where frames of one kind follow each other. So they begin
    right behind the tag, all have the same version, layer and rate, and nothing is between them.
    """
    at = _after_tag(file)
    if at is None:
        return None
    total, kind = 0, _kind(file, at)
    while at + 4 <= len(file):
        if len(file) - at == _LAST_TAG and file[at : at + 3] == b"TAG":
            return total + _NANOSECONDS if total else None
        frame = _frame(file[at : at + 4])
        if frame is None or _kind(file, at) != kind:
            return None
        size, lasts = frame
        total += lasts
        at += size
    return total or None


def _kind(file: bytes, at: int) -> tuple[int, ...]:
    """Read what all frames of a chain have in common: version, layer, rate."""
    return (file[at + 1] & 0xFE, file[at + 2] & 0x0C) if at + 4 <= len(file) else ()


def _after_tag(file: bytes) -> int | None:
    """Find where the sound begins behind an ID3 tag; None: not all decoders take it for one."""
    if file[:3] != b"ID3":
        return 0
    head = file[3:10]
    if len(head) < 7 or 0xFF in head[:2] or any(byte & 0x80 for byte in head[3:]):
        return None
    size = 0
    for byte in head[3:]:
        size = size << 7 | byte
    return 10 + size + (10 if head[2] & 0x10 else 0)


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
