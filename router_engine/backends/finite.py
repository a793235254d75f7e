"""The tokens of a step whose numbers are none: they fail one request and no other.

Whatever is not finite in a layer gets into the residual stream of its token, and stays there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


def are_finite(states: Tensor) -> Tensor:
    """Whether rows of states [tokens, hidden] have a norm that is a number, in fp32: [tokens] bool.

    A norm that overflows makes zeros of the row, so it counts as not finite.
    """
    return states.float().square().sum(-1).isfinite()


class Finite:
    """The result of one pass. tokens [tokens] bool, on the device."""

    tokens: Tensor | None = None


class FiniteReader:
    """Looks at what enters the last norm of a transformers model."""

    def __init__(self, model: nn.Module) -> None:
        body: Any = model.base_model
        self._norm: nn.Module = body.ln_f if hasattr(body, "ln_f") else body.norm  # GPT-2, others

    @contextmanager
    def reading(self) -> Iterator[Finite]:
        """Those of the pass inside the block."""
        finite = Finite()

        def read(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            finite.tokens = are_finite(args[0].view(-1, args[0].shape[-1]))

        hook = self._norm.register_forward_pre_hook(read)
        try:
            yield finite
        finally:
            hook.remove()
