"""Sound files."""

from __future__ import annotations


def mp3(frames: int, kilobits: int = 128, rate: int = 44_100) -> bytes:
    """MPEG 1, layer III, constant bitrate: 1,152 samples a frame."""
    index = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320).index(kilobits)
    header = bytes([0xFF, 0xFB, index << 4 | (44_100, 48_000, 32_000).index(rate) << 2, 0])
    return (header + bytes(144 * kilobits * 1000 // rate - 4)) * frames
