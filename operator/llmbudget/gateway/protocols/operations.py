"""All operations that the gateway serves. Any other path leads nowhere."""

from __future__ import annotations

from typing import Final

from llmbudget.gateway.protocols.chat import CHAT
from llmbudget.gateway.protocols.completions import COMPLETIONS
from llmbudget.gateway.protocols.embeddings import EMBEDDINGS, MODERATIONS
from llmbudget.gateway.protocols.images import IMAGES
from llmbudget.gateway.protocols.messages import COUNT_TOKENS, MESSAGES
from llmbudget.gateway.protocols.responses import RESPONSES
from llmbudget.gateway.protocols.speech import SPEECH
from llmbudget.gateway.protocols.transcriptions import TRANSCRIPTIONS

OPERATIONS: Final = (
    *(CHAT, RESPONSES, COMPLETIONS, EMBEDDINGS, MODERATIONS),
    *(TRANSCRIPTIONS, SPEECH, IMAGES),
    *(MESSAGES, COUNT_TOKENS),
)
