"""Sample texts of an adapter, kept for the centroids that routers compare prompts with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from adapters_store.limits import StoreLimits
from adapters_store.types import Problem

TEXTS_FILE = "texts.jsonl"
_MOST_PROBLEMS = 8


def parse_texts(data: bytes) -> tuple[list[str], list[Problem]]:
    """Read JSONL, a JSON string or `{"text": "..."}` a line; empty lines are left out.

    Nothing is read after a few problems.
    """
    try:
        lines = data.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        return [], [Problem("texts", f"is not UTF-8: {error}")]
    texts: list[str] = []
    problems: list[Problem] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        text = _parse_line(line)
        if text is None:
            told = 'must be a JSON string or {"text": "..."}, in characters that UTF-8 has'
            problems.append(Problem(f"texts, line {number}", told))
            if len(problems) == _MOST_PROBLEMS:
                break
        else:
            texts.append(text)
    return texts, problems


def text_problems(texts: Sequence[str], limits: StoreLimits) -> list[Problem]:
    """Why these texts are not accepted, if so."""
    if len(texts) > limits.max_texts:
        return [Problem("texts", f"are {len(texts)}, at most {limits.max_texts} are accepted")]
    problems = []
    for index, text in enumerate(texts):
        size = len(text.encode("utf-8", "replace"))
        if not text.strip():
            problems.append(Problem(f"texts[{index}]", "is empty"))
        elif size > limits.max_text_bytes:
            problems.append(
                Problem(
                    f"texts[{index}]",
                    f"is {size} bytes long, at most {limits.max_text_bytes} are accepted",
                )
            )
    return problems


def texts_to_jsonl(texts: Sequence[str]) -> bytes:
    """Canonical JSONL, one JSON string a line; b"" for no texts."""
    return "".join(json.dumps(text) + "\n" for text in texts).encode()


def texts_from_jsonl(data: bytes) -> list[str]:
    """Read what `texts_to_jsonl` wrote."""
    return [json.loads(line) for line in data.decode().splitlines()]


def texts_digest(lines: bytes) -> str:
    """ "sha256:..." of canonical JSONL; "" for no texts."""
    return f"sha256:{hashlib.sha256(lines).hexdigest()}" if lines else ""


def _parse_line(line: str) -> str | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if isinstance(value, dict) and set(value) == {"text"}:
        value = value["text"]
    return value if isinstance(value, str) and is_utf8(value) else None


def is_utf8(text: str) -> bool:
    """Whether UTF-8 can say it: JSON escapes can name half of a surrogate pair, which it cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
