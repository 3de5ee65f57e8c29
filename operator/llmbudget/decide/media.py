"""What images and audio cost at most, and what models do unasked, as their providers document it.

OpenAI scales an image down to a 2048 pixels' square and then to 768 pixels on its shorter side,
and counts tiles of 512 pixels, so eight at most, beside a base; or it counts patches of 32 pixels,
1,536 at most, times a factor of the model. Anthropic scales to 1,568 pixels on the longer side and
about 1,600 tokens, newer models to 2,576 pixels, which are 92 × 92 patches of 28 pixels at most.
Each figure below is the documented maximum, rounded up. A model that is not listed has no maximum
here: its images count as the whole context.

Where the figures stand: of images that are read in OpenAI's guide "Images and vision" (base and
tile tokens, factors of patches) and Anthropic's "Vision" (image sizes); of images that are made in
OpenAI's guide "Image generation" (6,240 tokens: 1024 × 1536 at high quality); the length of
audio in the error of OpenAI's transcription API for a longer file ("longer than 1400 seconds", and
1500 for earlier snapshots); the block of tokens for a search on OpenAI's page of prices; the models
that run where a workspace says in Anthropic's "Data residency".
"""

from __future__ import annotations

import re
from typing import Final

_VENDOR: Final = re.compile(r"^(openai|anthropic)/")
_DATE: Final = re.compile(r"(-latest|-\d{8}|-\d{4}-\d{2}-\d{2})$")
_TILES: Final = 8

_MOST: Final[dict[str, int]] = {
    **dict.fromkeys(("gpt-4o", "gpt-4.1", "chatgpt-4o", "gpt-4-turbo"), 1600),
    "gpt-4o-mini": 2833 + 5667 * _TILES,
    "gpt-4.1-mini": 2500,
    "gpt-4.1-nano": 3800,
    "o4-mini": 2700,
    "gpt-5": 70 + 140 * _TILES,
    "gpt-5-chat": 70 + 140 * _TILES,
    "gpt-5-mini": 2500,
    "gpt-5-nano": 3800,
    **dict.fromkeys(("o1", "o3"), 75 + 150 * _TILES),
}
_CLAUDE: Final = re.compile(r"^claude-(3|(opus|sonnet|haiku)-4(-[0-6])?$)")
_CLAUDE_MOST: Final = 1700
_LATER_CLAUDE_MOST: Final = 92 * 92


_MADE: Final = {"gpt-image-1": 6240, "gpt-image-1-mini": 6240}
"""The largest image at the highest quality."""
_SECONDS: Final = dict.fromkeys(
    ("gpt-4o-transcribe", "gpt-4o-mini-transcribe", "gpt-4o-transcribe-diarize"), 1500
)
_SEARCH_BLOCKS: Final = ("gpt-4o-mini", "gpt-4.1-mini")
_SEARCHING: Final = re.compile(r"search-(preview|api)|deep-research|^(.*/)?sonar|:online$")
_GROK_PROMPT: Final = 2048
"""xAI documents that it adds tokens to each prompt, not how many; some 690 were seen."""
_PLACELESS: Final = re.compile(r"^claude-(\d|instant|(opus|sonnet|haiku)-4(-[0-5])?$)")
"""Models before Claude Opus 4.6, which know no `inference_geo`."""


def has_search_block(*names: str) -> bool:
    """Tell whether a web search is charged a fixed number of input tokens, beside what is told, by
    any of a model's names: a deployment at Azure is called anything, a fine-tuned model more."""
    return any(block in name.lower() for name in names for block in _SEARCH_BLOCKS)


def searches_by_itself(*names: str) -> bool:
    """Tell whether a model searches the web unasked, by any of its names: each search is charged,
    and no answer tells how many there were."""
    return any(_SEARCHING.search(name.lower()) for name in names)


def hidden_prompt_tokens(*names: str) -> int:
    """Tell the most tokens that a provider puts before each prompt for a model, by any of its
    names, beside what others put there."""
    return _GROK_PROMPT if any("grok" in name.lower() for name in names) else 0


def has_place(upstream_name: str) -> bool:
    """Tell whether a workspace of Anthropic's may choose where a model runs, which has a price."""
    name = _plain(upstream_name)
    return name.startswith("claude-") and not _PLACELESS.match(name)


def media_output_tokens(upstream_name: str) -> int | None:
    """Tell the most tokens of one image or one speech that a model makes; None: nobody documents
    it here."""
    return _MADE.get(_plain(upstream_name))


def audio_seconds(upstream_name: str) -> int | None:
    """Tell the most seconds of audio that a model reads; None: nobody documents it here."""
    return _SECONDS.get(_plain(upstream_name))


def image_tokens(upstream_name: str) -> int | None:
    """Tell the most tokens of one image; None: nobody documents it here."""
    name = _plain(upstream_name)
    if name.startswith("claude-"):
        return _CLAUDE_MOST if _CLAUDE.match(name) else _LATER_CLAUDE_MOST
    return _MOST.get(name)


def _plain(upstream_name: str) -> str:
    return _DATE.sub("", _VENDOR.sub("", upstream_name.lower()))
