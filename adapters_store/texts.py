"""Sample texts of an adapter, kept for the centroids that routers compare prompts with."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path

from adapters_store.limits import DEFAULT_LIMITS, StoreLimits
from adapters_store.types import Problem

TEXTS_FILE = "texts.jsonl"
MAX_TEXTS_BYTES = 16 << 20  # the database gives them in one piece: no thread has its turn meanwhile
_MOST_PROBLEMS = 8
_MOST_BLANKS = 65_536  # empty lines
_ESCAPED = 6  # bytes of JSON that one byte of a text takes at most, as \u00e9 does


def parse_texts(
    data: bytes, limits: StoreLimits = DEFAULT_LIMITS
) -> tuple[list[str], list[Problem]]:
    """Read JSONL, a JSON string or `{"text": "..."}` a line; empty lines are left out.

    Nothing is read after a few problems, nor past what the limits allow.
    """
    texts: list[str] = []
    problems: list[Problem] = []
    longest = _ESCAPED * limits.max_text_bytes + 64
    for number, line in enumerate(io.BytesIO(data), start=1):
        if number - len(texts) > _MOST_BLANKS:
            return [], [Problem("texts", f"hold more than {_MOST_BLANKS} empty lines")]
        if not line.strip():
            continue
        if len(texts) == limits.max_texts:
            message = f"are more than {limits.max_texts}, which is how many are accepted"
            return [], [Problem("texts", message)]
        text = _parse_line(line) if len(line) <= longest else None
        if text is None:
            problems.append(Problem(f"texts, line {number}", _line_problem(line, longest, limits)))
            if len(problems) == _MOST_PROBLEMS:
                break
        else:
            texts.append(text)
    return texts, problems


def _line_problem(line: bytes, longest: int, limits: StoreLimits) -> str:
    if len(line) > longest:
        return f"is {len(line)} bytes long; a text has at most {limits.max_text_bytes}"
    try:
        line.decode()
    except UnicodeDecodeError as error:
        return f"is not UTF-8: {error.reason} at byte {error.start}"
    return 'must be a JSON string or {"text": "..."}, in characters that UTF-8 has'


def read_texts(path: Path, limits: StoreLimits = DEFAULT_LIMITS) -> tuple[list[str], list[Problem]]:
    """`parse_texts` of a file that may be of any size."""
    if path.stat().st_size > MAX_TEXTS_BYTES:
        return [], [Problem("texts", f"are more than {MAX_TEXTS_BYTES} bytes")]
    return parse_texts(path.read_bytes(), limits)


def texts_file_problems(path: Path, limits: StoreLimits = DEFAULT_LIMITS) -> list[Problem]:
    """Problems of the sample texts in a file; none where they are accepted."""
    texts, problems = read_texts(path, limits)
    return [*problems, *text_problems(texts, limits)]


def text_problems(texts: Sequence[str], limits: StoreLimits) -> list[Problem]:
    """Problems of sample texts; none where they are accepted."""
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
    return b"".join(json.dumps(text).encode() + b"\n" for text in texts)


def texts_from_jsonl(data: bytes) -> list[str]:
    """Read what `texts_to_jsonl` wrote."""
    return [json.loads(line) for line in io.BytesIO(data)]


def texts_digest(lines: bytes) -> str:
    """ "sha256:..." of canonical JSONL; "" for no texts."""
    return f"sha256:{hashlib.sha256(lines).hexdigest()}" if lines else ""


def _parse_line(line: bytes) -> str | None:
    try:
        value = json.loads(line.decode(), object_pairs_hook=tuple)  # a key may come twice
    except (ValueError, RecursionError):
        return None
    if isinstance(value, tuple) and len(value) == 1 and value[0][0] == "text":
        value = value[0][1]
    return value if isinstance(value, str) and is_utf8(value) else None


def is_utf8(text: str) -> bool:
    """Whether UTF-8 can say it: JSON escapes can name half of a surrogate pair, which it cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
