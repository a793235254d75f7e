"""Prompts of given lengths, all different, so that no two of them share a prefix in the cache."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

_TEXT = (
    "a baker sells twelve loaves every morning and twice as many on market days while her brother "
    "carries water from the river to seven houses near the old mill where wind and light change "
    "with each season so they count coins measure flour write letters plant trees repair clocks "
    "read maps teach children mend nets and watch the stars over quiet hills"
)

TokenCount = Callable[[str], int]


def make_prompts(targets: Sequence[int], seed: str, count_tokens: TokenCount) -> list[str]:
    """One prompt for each target: random words with at most so many tokens, nearly as many.

    `count_tokens` tells the length of a text in the tokens of the model that is measured. Equal
    seeds give equal prompts. A prompt has at least one word.
    """
    chooser = random.Random(seed)
    return [_prompt(chooser, target, count_tokens) for target in targets]


def _prompt(chooser: random.Random, target: int, count_tokens: TokenCount) -> str:
    """Words as long as they fit. Many are added at a time while much is missing."""
    words = _TEXT.split()
    text = chooser.choice(words)
    missing = target - count_tokens(text)
    while missing > 0:
        # A word of the text has at most nine letters, so at most ten tokens of any tokenizer.
        more = " ".join(chooser.choices(words, k=max(1, missing // 10)))
        longer = f"{text} {more}"
        if count_tokens(longer) > target:
            break
        text = longer
        missing = target - count_tokens(text)
    return text
