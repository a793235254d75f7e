"""Scores of one answer against its reference, each in [0, 1]."""

from __future__ import annotations

import ast
import re
import string
import warnings
from collections import Counter
from collections.abc import Sequence

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_FENCE = re.compile(r"```[^\n]*\n(.*?)(?:```|\Z)", re.DOTALL)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def number_match(answer: str, reference: str) -> float:
    """GSM8K: the number after `####`, or the last number where an answer has no such mark."""
    return float(_final_number(answer) == _final_number(reference))


def _final_number(text: str) -> float | None:
    marked = _NUMBER.findall(text.rpartition("####")[2]) if "####" in text else None
    if marked:
        return _value(marked[0])
    anywhere = _NUMBER.findall(text)
    return _value(anywhere[-1]) if anywhere else None


def _value(text: str) -> float:
    return float(text.replace(",", ""))


def exact_match(answer: str, reference: str) -> float:
    """SQuAD: equal after lower case, without punctuation and articles."""
    return float(_words(answer) == _words(reference))


def token_f1(answer: str, reference: str) -> float:
    """SQuAD: F1 of the bags of normalised words."""
    ours, theirs = _words(answer), _words(reference)
    return _f1(sum((Counter(ours) & Counter(theirs)).values()), len(ours), len(theirs))


def _words(text: str) -> list[str]:
    plain = "".join(char for char in text.lower() if char not in string.punctuation)
    return _ARTICLES.sub(" ", plain).split()


def rouge_l(answer: str, reference: str) -> float:
    """ROUGE-L F1: longest common subsequence of words and signs (Lin 2004)."""
    ours, theirs = (re.findall(r"\w+|[^\w\s]", text.lower()) for text in (answer, reference))
    return _f1(_common_subsequence(ours, theirs), len(ours), len(theirs))


def parses_as_python(answer: str) -> float:
    """Whether the code of an answer is Python: its first fenced block, or all of it without one.

    A fence that is never closed ends with the answer. Code of blanks alone does not count.
    """
    fenced = _FENCE.search(answer)
    code = (fenced[1] if fenced else answer).strip()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of code that is legal but odd
            ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return 0.0
    return float(bool(code))


def _common_subsequence(left: Sequence[str], right: Sequence[str]) -> int:
    row = [0] * (len(right) + 1)
    for word in left:
        diagonal = 0
        for column, other in enumerate(right, start=1):
            above = row[column]
            row[column] = diagonal + 1 if word == other else max(above, row[column - 1])
            diagonal = above
    return row[-1]


def _f1(common: int, ours: int, theirs: int) -> float:
    return 2 * common / (ours + theirs) if common else 0.0
