"""Prompts of 48 to 80 tokens, all different, so that no two of them share a prefix in the cache."""

from __future__ import annotations

import random
from collections.abc import Callable

SHORTEST, LONGEST = 48, 80

_TEXT = (
    "a baker sells twelve loaves every morning and twice as many on market days while her brother "
    "carries water from the river to seven houses near the old mill where wind and light change "
    "with each season so they count coins measure flour write letters plant trees repair clocks "
    "read maps teach children mend nets and watch the stars over quiet hills"
)

TokenCount = Callable[[str], int]


def make_prompts(count: int, seed: str, count_tokens: TokenCount) -> list[str]:
    """`count` prompts whose lengths run evenly from SHORTEST to LONGEST tokens.

    `count_tokens` tells the length of a text in the tokens of the model that is measured. Equal
    seeds give equal prompts.
    """
    chooser = random.Random(seed)
    span = LONGEST - SHORTEST
    targets = [SHORTEST + (span * index) // max(1, count - 1) for index in range(count)]
    chooser.shuffle(targets)
    return [_prompt(chooser, target, count_tokens) for target in targets]


def _prompt(chooser: random.Random, target: int, count_tokens: TokenCount) -> str:
    """The longest text of random words that has at most `target` tokens."""
    words = _TEXT.split()
    text = chooser.choice(words)
    while True:
        longer = f"{text} {chooser.choice(words)}"
        if count_tokens(longer) > target:
            return text
        text = longer
