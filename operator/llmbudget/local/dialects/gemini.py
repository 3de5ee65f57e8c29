"""Gemini's OpenAI-compatible endpoint, as it differs from OpenAI's: its own path, thoughts that
stand in no figure but the total, figures left out where they are 0, and usage in each chunk."""

from __future__ import annotations

from llmbudget.local.dialects.dialect import Call, Document
from llmbudget.local.dialects.openai import Chat, Embeddings, data, openai_document

_PATH = "/v1beta/openai"


class GeminiChat(Chat):
    """Chat completions of a model that thinks: half of what it writes is not shown."""

    path = f"{_PATH}/chat/completions"

    def plain(self, call: Call) -> Document:
        return super().plain(call) | _usage(call)

    def piece(self, call: Call, choice: int, text: str) -> bytes:
        delta = {"index": choice, "delta": {"role": "assistant", "content": text}}
        kind = "chat.completion.chunk"
        # Figures that grow: only the last ones are charged.
        early = _usage(call, written=0) if call.include_usage else {}
        return data(openai_document(call, kind, choices=[delta]) | early)

    def closing(self, call: Call) -> bytes:
        stops = [
            {"index": choice, "delta": {}, "finish_reason": "stop"}
            for choice in range(call.choices)
        ]
        usage = _usage(call) if call.include_usage else {}
        end = openai_document(call, "chat.completion.chunk", choices=stops) | usage
        return data(end) + b"data: [DONE]\n\n"


class GeminiEmbeddings(Embeddings):
    """Embeddings."""

    path = f"{_PATH}/embeddings"


def _usage(call: Call, written: int | None = None) -> Document:
    if call.counts is None:
        return {}
    read, all_written = call.counts
    shown = all_written // 2 if written is None else written
    total = read + (all_written if written is None else written)
    figures = {"prompt_tokens": read, "completion_tokens": shown, "total_tokens": total}
    return {"usage": {name: figure for name, figure in figures.items() if figure}}
