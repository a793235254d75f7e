"""The least that each launch of a decode step can take: its bytes over bandwidth, or its products.

Roofline: Williams, Waterman and Patterson, "Roofline: An Insightful Visual Performance Model for
Multicore Architectures", 2009. Weights, keys and values are read from memory once a step; what a
launch hands to the next counts too, though a card may find it in its cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from benchmarks.gpu.shapes import SHAPES

BEGIN, END = "<!-- roofline: written by make docs -->", "<!-- end of roofline -->"
_BF16, _FP32 = 2, 4  # bytes


class Card(NamedTuple):
    """What a card's maker says of it."""

    name: str
    bandwidth: float  # bytes a second
    products: float  # multiplications and additions a second, bf16, dense


H200 = Card("H200", 4.8e12, 989e12)
A100 = Card("A100 80 GB", 2.04e12, 312e12)


@dataclass(frozen=True, slots=True)
class Launches:
    """Equal launches of one step."""

    name: str
    count: int
    num_bytes: float  # of each
    operations: float  # of each

    def seconds(self, card: Card) -> float:
        """The least that one of them takes."""
        return max(self.num_bytes / card.bandwidth, self.operations / card.products)


@dataclass(frozen=True, slots=True)
class DecodeStep:
    """Requests with as many positions each; `rows`: rank rows of all their adapters, if any."""

    shape: str
    requests: int
    context: int
    rows: int = 0

    def launches(self) -> Iterator[Launches]:
        """All of a step, in order of their kinds."""
        config = SHAPES[self.shape]
        layers, hidden = config["num_hidden_layers"], config["hidden_size"]
        head = hidden // config["num_attention_heads"]
        kv = config["num_key_value_heads"] * head
        wide, qkv = config["intermediate_size"], hidden + 2 * kv
        tokens = self.requests
        state = tokens * hidden * _BF16
        yield Launches("norm", 2 * layers + 1, 4 * state, 0)
        yield self._product("q, k, v", layers, hidden, qkv)
        turned = tokens * (2 * (hidden + kv) + 2 * kv) * _BF16
        yield Launches("rotation, keys and values stored", layers, turned, 0)
        read = tokens * self.context * 2 * kv * _BF16
        products = 4 * tokens * self.context * hidden
        yield Launches("attention", layers, read + 2 * state, products)
        yield Launches("parts of long contexts joined", layers, 0, 0)  # here there are none
        yield self._product("attention's output", layers, hidden, hidden)
        yield self._product("gate and up", layers, hidden, 2 * wide)
        yield Launches("activation", layers, 3 * tokens * wide * _BF16, 0)
        yield self._product("down", layers, wide, hidden)
        yield self._product("head", 1, hidden, config["vocab_size"])
        if self.rows:
            yield from self._mixture(layers, hidden, (hidden, kv, kv), "q, k, v")
            yield from self._mixture(layers, hidden, (hidden,), "attention's output")
            yield from self._mixture(layers, hidden, (wide, wide), "gate and up")
            yield from self._mixture(layers, wide, (hidden,), "down")

    def seconds(self, card: Card) -> float:
        """The least that the step takes."""
        return sum(each.count * each.seconds(card) for each in self.launches())

    def _product(self, name: str, count: int, inputs: int, outputs: int) -> Launches:
        tokens = self.requests
        num_bytes = (inputs * outputs + tokens * (inputs + outputs)) * _BF16
        return Launches(name, count, num_bytes, 2 * tokens * inputs * outputs)

    def _mixture(
        self, count: int, inputs: int, outputs: tuple[int, ...], name: str
    ) -> Iterator[Launches]:
        """Shrink and expand of modules with one input; the products of skipped rows count too."""
        tokens, rows = self.requests, self.rows * len(outputs)
        between = tokens * rows * _FP32
        read = (rows * inputs + tokens * inputs) * _BF16
        yield Launches(f"shrink: {name}", count, read + between, 2 * tokens * rows * inputs)
        wide = sum(outputs)
        moved = (self.rows * wide + 2 * tokens * wide) * _BF16
        operations = 2 * tokens * self.rows * wide
        yield Launches(f"expand: {name}", count, moved + between, operations)


def table() -> str:
    """The launches of the step that the goals speak of, and what each can cost at least."""
    step = DecodeStep("llama-8b", requests=32, context=128, rows=8 * 16)
    base = DecodeStep("llama-8b", requests=32, context=128)
    lines = [
        f"| launch | a step | MB each | GFLOP each | {H200.name}, us each | {A100.name}, us each |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for each in step.launches():
        times = " | ".join(f"{each.seconds(card) * 1e6:.1f}" for card in (H200, A100))
        megabytes, operations = each.num_bytes / 1e6, each.operations / 1e9
        lines.append(
            f"| {each.name} | {each.count} | {megabytes:.2f} | {operations:.2f} | {times} |"
        )
    for name, whole in (("the base alone, ms", base), ("with the mixtures, ms", step)):
        sums = " | ".join(f"**{whole.seconds(card) * 1e3:.2f}**" for card in (H200, A100))
        count = sum(each.count for each in whole.launches())
        lines.append(f"| **{name}** | **{count}** | | | {sums} |")
    return "\n".join(lines) + "\n"


def with_table(page: str) -> str:
    """The page with the table between its two marks."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}{END}{after}" if begin and end else page
