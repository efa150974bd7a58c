"""Markers of questions in texts and conversations, for a query module."""

import copy
from typing import Any

from compressors.errors import UsageError
from llm_adapters.conversation import QUERY, QUESTION


def repeat_query_marker(text: str, number: int, num_queries: int) -> str:
    """`<query>` as often as there are query tokens, where it is not already. UsageError where markers are not
    one pair a turn."""
    text = text.replace(QUERY * num_queries, QUERY)
    markers = [piece for piece in _split_markers(text) if piece in (QUESTION, QUERY)]
    turns = len(markers) // 2
    if not markers or markers != [QUESTION, QUERY] * turns:
        raise UsageError(
            f"text {number} has {markers.count(QUESTION)} {QUESTION} and {markers.count(QUERY)} "
            f"{QUERY}: put one before and one after each question, in this order, or use "
            "apply_chat_template"
        )
    return text.replace(QUERY, QUERY * num_queries)


def _split_markers(text: str) -> list[str]:
    """Markers and what stands between them; a NUL is in no text that a tokenizer takes."""
    for marker in (QUESTION, QUERY):
        text = text.replace(marker, f"\0{marker}\0")
    return text.split("\0")


def add_markers(conversation: list[Any], num_queries: int = 1) -> list[Any]:
    """Markers in each user message that has text and none of them: before its first text, and, `num_queries`
    of them, at its end, where the query tokens have all of its images before them."""
    if conversation and isinstance(conversation[0], list):  # a batch of conversations
        return [add_markers(one_conversation, num_queries) for one_conversation in conversation]
    marked = []
    for message in conversation:
        if message["role"] == "user":
            message = _mark_message(message, QUERY * num_queries)
        marked.append(message)
    return marked


def _mark_message(message: dict[str, Any], queries: str) -> dict[str, Any]:
    """A user message with its markers, `queries` at its end; one without text, or that has them, as it is."""
    content = message["content"]
    if isinstance(content, str):
        if QUERY in content:
            return message
        return {**message, "content": QUESTION + content + queries}
    texts = [index for index, part in enumerate(content) if _is_text(part)]
    if not texts or any(QUERY in content[index]["text"] for index in texts):
        return message
    parts = copy.copy(content)  # the caller's message stays as it is
    first = parts[texts[0]]
    parts[texts[0]] = {**first, "text": QUESTION + first["text"]}
    if not _is_text(parts[-1]):
        parts.append({"type": "text", "text": ""})
    last = parts[-1]
    parts[-1] = {**last, "text": last["text"] + queries}
    return {**message, "content": parts}


def _is_text(part: dict[str, Any]) -> bool:
    """Whether a part of a message is text; chat templates such as Qwen's take it without its type."""
    return isinstance(part.get("text"), str) and part.get("type", "text") == "text"


def check_types(conversation: list[Any]) -> None:
    """UsageError for a part of a message without its type, by which processors that tokenize find images."""
    for message in conversation:
        if isinstance(message, list):  # a batch of conversations
            check_types(message)
            continue
        for part in message.get("content") or ():
            if isinstance(part, dict) and "type" not in part:
                raise UsageError(
                    f"a part of a message has {', '.join(part)} and no type: give it one, such as "
                    '{"type": "text", "text": ...}'
                )
