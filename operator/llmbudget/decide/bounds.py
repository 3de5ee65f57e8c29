"""How much a call may cost at most: the amount of its hold.

Input. A tokeniser makes at most one token of a byte, so the prompt's UTF-8 bytes bound its tokens,
counted in the longest of the Unicode forms that tokenisers convert to before they cut. The model's
context bounds them too, where someone has said how long it is: a longer prompt is refused by the
provider. An image counts as its provider documents at most, or as a whole context.
Audio counts as a whole context too, since its tokens are its provider's affair.
What the provider adds counts as well: markers around each message and a preamble, and for tools
and output schemas their rendering, which may be indented or turned into another notation. All of
these are counted at several times what known templates need.

Output. A model stops at the request's limit, `n` times. The caller's own limit is taken as it is,
even above the model's `maxOutput`: the provider may know better than the configuration, and the
hold must still bound what it sends. A limit that the caller left out becomes the model's default,
or what the balance still covers. Images and speech that a model makes have no limit in any request:
they count as what the provider or the configuration says is the most.

What only the provider can measure, such as a file that it fetches or a conversation that it keeps,
counts as a whole context. Where it runs a tool and reads the result, it reads everything anew, as
often as it documents at most: so many contexts, and outputs.

Service tiers. A tier that is asked for is held at the dearer of its own rates and the usual ones,
since the provider may serve the call in either.

Other units. Characters and images are counted from the request; a sound file counts as the longest
that the provider takes.

Rates. Which tokens are read from or written to a cache, and which are spent on reasoning, is the
provider's affair, so all of them are taken at the dearest rate, and at the dearest of any length
where long inputs have prices of their own. Rates of audio and images apply where the request has
some, or asks for some.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from decimal import Decimal
from functools import lru_cache
from typing import Final
from unicodedata import normalize

from llmbudget.api.money import Nano, round_up
from llmbudget.api.values import value
from llmbudget.contract.config import TOKENS, ModelConfig, Prices, Rates, Unit
from llmbudget.decide.cost import NoImagePrice, Units, with_units
from llmbudget.decide.media import has_search_block, hidden_prompt_tokens
from llmbudget.decide.rates import EXACT

REQUEST_OVERHEAD: Final = 128
"""Tokens that a provider may put before any prompt."""
MESSAGE_OVERHEAD: Final = 16
"""Tokens around one message: role, name, markers. Known templates use 3 to 8."""
SCHEMA_OVERHEAD: Final = 1024
"""Tokens of the instructions that come with tools or an output schema. Known: up to 530."""
SCHEMA_FACTOR: Final = 3
"""Tokens for one byte of a schema: `[1,1]` indented is a token each for space, 1 and comma."""

_INPUT_KINDS: Final = frozenset({"input_audio", "cached_audio", "input_image", "cached_image"})
_AUDIO: Final = "What audio costs {} at most is not known: set its maxContext"
_SECONDS: Final = "Nobody says how long audio for {} may be: set its audioSeconds"
_OPAQUE: Final = "What {0} makes {1} read at most is not known: set its maxContext"
_STORED: Final = (
    "Field {0} is refused: the provider of {1} may keep nothing. Leave it out, or set"
    " hosted.storedResponses of the provider"
)
_SERVICE: Final = (
    "Field service_tier is refused: {1} has no price for {0}. Leave it out, or set"
    " cost.serviceTiers of the model"
)
_FILE: Final = (
    "Field {0} is refused: what the provider of {1} charges for a file beside tokens is not known."
    " Where it is nothing, set hosted.files of the provider"
)
_UNPRICED_SOUND: Final = (
    "What sound costs {0} is not known: the list of prices has those of text alone. Write its cost,"
    " with inputAudioPer1K and outputAudioPer1K where sound costs other than text"
)
_UNPRICED_FILE: Final = (
    "What a file costs {0} is not known, which may be sound unless it is a PDF that comes with the"
    " request: the list of prices has those of text alone. Write its cost, with inputAudioPer1K"
    " where sound costs other than text"
)
_UNPRICED_SEARCH: Final = (
    "Field tools is refused: what a web search by {0} costs is not known. Leave web_search out, or"
    " set hosted.webSearchPer1K of its provider"
)
_SEARCH_BLOCK: Final = (
    "Field tools is refused: {0} is charged a block of tokens for each web search, which no answer"
    " tells of. Leave web_search out, or use another model"
)
_PIECES: Final = (
    "What audio costs at most that is cut into pieces is not known: leave out chunking_strategy, or"
    " use a model that is charged by the minute"
)
_ABSURD: Final = 10
_BYTES_PER_TOKEN: Final = 3


@value
class Demand:
    """What a request may make a model read and write."""

    prompt_bytes: int
    """`longest_form` of everything that reaches the model but schemas."""
    messages: int
    schema_bytes: int = 0
    """`longest_form` of the tools and of the output's schema."""
    choices: int = 1
    """Answers that are asked for (`n`)."""
    limit: int | None = None
    """Output limit of the request, tokens for each answer; None: the request sets none."""
    images: int = 0
    contexts: int = 1
    """Inputs that are read each by itself; 0: nothing that is charged is read."""
    audio: bool = False
    """Whether there is audio to read."""
    opaque: str | None = None
    """Field whose content only the provider can measure; None: there is none."""
    rounds: int = 1
    """How often the provider may read the whole and write, since it runs tools in between."""
    stored: str | None = None
    """Field by which the provider keeps, or uses, what it keeps beyond the call; None: none."""
    service: str | None = None
    """Service tier that is asked for; None: the usual one."""
    file: str | None = None
    """Field with a file that the provider reads; None: there is none."""
    pieces: bool = False
    """Whether the provider may cut what it reads, and read each piece by itself."""
    limited: bool = True
    """Whether the API takes an output limit; otherwise the model's `maxOutput` is the most."""
    makes: str | None = None
    """What is made that no request can limit: "An image" or "Speech", for messages."""
    beside: int = 0
    """Tokens of each answer beside those of what is made."""
    kinds: frozenset[str] = frozenset({"output_image"})
    """Rates that may apply beside those of text. Some models draw unasked."""
    units: Units | None = None
    """Most of what is not counted in tokens."""
    charged_by: frozenset[Unit] = TOKENS
    """What a model must have a price for to answer."""

    @property
    def outputs(self) -> int:
        """How often as much as the limit may be written."""
        return self.choices * self.rounds

    @property
    def adjustable(self) -> bool:
        """Whether an output limit may be chosen for the request."""
        return self.limit is None and self.limited and self.makes is None


class Unbounded(Exception):
    """Nothing bounds what a call may cost; the message says what to set."""


def longest_form(text: bytes) -> int:
    """Bound the bytes of valid UTF-8 in any form that a tokeniser may give it.

    Each character is taken in its own longest form. Composing never adds bytes, and normalising a
    whole text takes time that grows with the square of its combining marks.
    """
    if text.isascii():
        return len(text)
    return sum(times * _longest(each) for each, times in Counter(text.decode()).items())


@lru_cache(maxsize=65_536)
def _longest(character: str) -> int:
    forms = (character, normalize("NFD", character), normalize("NFKD", character))
    return max(len(form.encode()) for form in forms)


def input_bound(demand: Demand, model: ModelConfig) -> int:
    """Bound the input in tokens.

    Raises:
        Unbounded: it has what nobody knows how much it costs at most.
    """
    text = _text_bound(demand, model)
    each = model.image_tokens or model.context_bound
    if demand.images and each is None:
        raise Unbounded(f"What an image costs {model.name} at most is not known: set imageTokens")
    if demand.audio and (model.context_bound is None or demand.pieces):
        raise Unbounded(_PIECES if demand.pieces else _AUDIO.format(model.name))
    if model.context_bound is None:
        if demand.opaque is not None:
            raise Unbounded(_OPAQUE.format(demand.opaque, model.name))
        return text + demand.images * (each or 0) if demand.contexts else 0
    most = model.context_bound * demand.contexts * demand.rounds
    if demand.audio or demand.opaque is not None:
        return most
    return min(text + demand.images * (each or 0), most)


def _text_bound(demand: Demand, model: ModelConfig) -> int:
    """Bound the text in tokens, however long the context is."""
    schema = SCHEMA_OVERHEAD + SCHEMA_FACTOR * demand.schema_bytes if demand.schema_bytes else 0
    hidden = hidden_prompt_tokens(model.upstream_name, model.name) * demand.contexts
    wrapping = REQUEST_OVERHEAD + hidden + MESSAGE_OVERHEAD * demand.messages
    return demand.prompt_bytes + wrapping + schema


def default_limit(demand: Demand, model: ModelConfig) -> int:
    """Tell the output limit for each answer: the request's, else the model's default, or what the
    things cost at most that it makes.

    Raises:
        Unbounded: nobody knows that.
    """
    if demand.makes is not None:
        if model.prices is None or not model.prices.tokens:
            return 0
        if model.media_output_tokens is None:
            message = "{} by {} costs nobody knows how many tokens: set its mediaOutputTokens"
            raise Unbounded(message.format(demand.makes, model.name))
        return model.media_output_tokens + demand.beside
    if demand.limit is not None:
        return demand.limit
    return min(model.default_max_output, model.max_output) if demand.limited else model.max_output


def upper_bound(demand: Demand, model: ModelConfig, prices: Prices, limit: int) -> Nano:
    """Bound the cost of a call whose answers have at most `limit` tokens each, in nano-USD.

    Raises:
        Unbounded.
    """
    _check_allowed(demand, model, prices)
    spent = _input_cost(demand, model, prices)
    if prices.tokens:
        spent = EXACT.fma(limit * demand.outputs, dearest_output(demand, prices), spent)
    if demand.units is None:
        return round_up(spent)
    try:
        return with_units(spent, _most_units(demand.units, model, prices), prices)
    except NoImagePrice:
        message = f"{model.name} has no price for this size and quality of images: add perImage"
        raise Unbounded(message) from None


def _check_allowed(demand: Demand, model: ModelConfig, prices: Prices) -> None:
    """Refuse what the model's provider may not be asked for."""
    if demand.stored is not None and not model.stored:
        raise Unbounded(_STORED.format(demand.stored, model.name))
    if demand.service is not None and demand.service not in (prices.services or {}):
        raise Unbounded(_SERVICE.format(demand.service, model.name))
    if demand.file is not None and not model.files:
        raise Unbounded(_FILE.format(demand.file, model.name))
    if prices.unpriced and not demand.kinds.isdisjoint(prices.unpriced):
        what = _UNPRICED_FILE if demand.file else _UNPRICED_SOUND
        raise Unbounded(what.format(model.name))
    if demand.units is not None and demand.units.searches:
        if prices.search is None:
            raise Unbounded(_UNPRICED_SEARCH.format(model.name))
        if has_search_block(model.upstream_name, model.name):
            raise Unbounded(_SEARCH_BLOCK.format(model.name))


def _input_cost(demand: Demand, model: ModelConfig, prices: Prices) -> Decimal:
    if not prices.tokens:
        return Decimal(0)
    return EXACT.multiply(input_bound(demand, model), dearest_input(demand, prices))


def _most_units(units: Units, model: ModelConfig, prices: Prices) -> Units:
    """Bound audio by what the provider takes."""
    if prices.minute is None:
        return units
    if model.audio_seconds is None:
        raise Unbounded(_SECONDS.format(model.name))
    return replace(units, milliseconds=model.audio_seconds * 1000)


def affordable_limit(
    demand: Demand, model: ModelConfig, prices: Prices, remaining: Nano | None
) -> int | None:
    """Choose the output limit: the largest up to the default whose bound the balance covers.

    A limit that the request sets is never lowered. `remaining` None: there is no cap.

    Returns:
        Tokens for each answer, at least 1; None where the balance doesn't cover the call.
    """
    limit = default_limit(demand, model)
    if remaining is None or upper_bound(demand, model, prices, limit) <= remaining:
        return limit
    if not demand.adjustable:
        return None
    # Not the default fits, so either the input alone is too dear or output costs something.
    searches = 0 if demand.units is None else demand.units.searches or 0
    fixed = EXACT.fma(searches, prices.search or Decimal(0), _input_cost(demand, model, prices))
    left = EXACT.subtract(Decimal(remaining), fixed)
    rate = EXACT.multiply(demand.outputs, dearest_output(demand, prices))
    if left < rate or not rate:
        return None
    return int(EXACT.divide_int(left, rate))


def to_hold(
    demand: Demand, model: ModelConfig, prices: Prices, remaining: Nano | None
) -> tuple[int, Nano]:
    """Choose the output limit that `remaining` affords, else the default one, which the ledger then
    refuses: it knows whose cap is too low. The bound of the call's cost goes with it.

    Raises:
        Unbounded.
    """
    limit = default_limit(demand, model)
    amount = upper_bound(demand, model, prices, limit)
    if remaining is not None and amount > remaining:
        less = affordable_limit(demand, model, prices, remaining)
        if less is not None:
            return less, upper_bound(demand, model, prices, less)
    return limit, amount


def _may_apply(demand: Demand, prices: Rates) -> tuple[Rates, ...]:
    """List the rates of the service tier that is asked for, and the usual ones."""
    services = prices.services if isinstance(prices, Prices) else None
    asked = (services or {}).get(demand.service or "")
    return (prices,) if asked is None else (prices, asked)


def dearest_input(demand: Demand, prices: Rates) -> Decimal:
    """Tell the dearest rate that an input token may have."""
    if demand.service is not None:
        usual = replace(demand, service=None)
        return max(dearest_input(usual, rates) for rates in _may_apply(demand, prices))
    text = (prices.input, prices.cached_input, prices.cache_write, prices.hour)
    kinds = demand.kinds & _INPUT_KINDS
    return max(*text, *(prices.effective(kind) for kind in kinds)) if kinds else max(text)


def dearest_output(demand: Demand, prices: Rates) -> Decimal:
    """Tell the dearest rate that an output token may have."""
    if demand.service is not None:
        usual = replace(demand, service=None)
        return max(dearest_output(usual, rates) for rates in _may_apply(demand, prices))
    kinds = demand.kinds - _INPUT_KINDS
    return max(prices.output, prices.reasoning, *(prices.effective(kind) for kind in kinds))


def fits(demand: Demand, model: ModelConfig) -> bool:
    """Estimate whether the context holds prompt and answer, at three bytes for a token.

    An estimate for choosing among models, where the bound would rule out most of them; a call
    that doesn't fit after all is refused by the provider and costs nothing.
    """
    read = (demand.prompt_bytes + demand.schema_bytes) // _BYTES_PER_TOKEN
    return read + (demand.limit or 1) <= model.max_context


def expected_cost(demand: Demand, model: ModelConfig, prices: Prices) -> Decimal:
    """Estimate a call's cost in nano-USD, for comparing models."""
    read = (demand.prompt_bytes + demand.schema_bytes) // _BYTES_PER_TOKEN
    written = default_limit(demand, model) * demand.choices
    rates = prices.charged(read)
    return EXACT.fma(written, rates.output, EXACT.multiply(read, rates.input))


def plausible_tokens(demand: Demand, model: ModelConfig, limit: int) -> int:
    """Tell above which count a provider's usage figure is no figure any more, but garbage.

    Generous, since what a provider really charges beyond the hold must be recorded in full: also
    where the configuration says that the context is shorter than it is.
    """
    read = model.max_context * demand.contexts * demand.rounds
    if model.prices is None or model.prices.tokens:
        text = _text_bound(demand, model) * demand.rounds
        read = max(read, text, input_bound(demand, model))
    return _ABSURD * (read + limit * demand.outputs)
