"""What the provider simulator's APIs look like on the wire: requests read, answers written."""

from __future__ import annotations

from typing import Final

from llmbudget.local.dialects.anthropic import CountTokens, Messages
from llmbudget.local.dialects.gemini import GeminiChat, GeminiEmbeddings
from llmbudget.local.dialects.media import Images, Speech, Transcriptions
from llmbudget.local.dialects.openai import Chat, Completions, Embeddings, Moderations, Responses

DIALECTS: Final = {
    dialect.path: dialect
    for dialect in (
        *(Chat(), Completions(), Responses(), Embeddings(), Moderations()),
        *(Transcriptions(), Speech(), Images()),
        *(Messages(), CountTokens()),
        *(GeminiChat(), GeminiEmbeddings()),
    )
}
FREE: Final = (CountTokens.path,)
"""Operations that are never charged."""
