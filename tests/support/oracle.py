"""What PEFT and transformers say: the ground that the engine is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from tests.support.harness import Answer

# Design section 7: logits agree to 1e-4 of the largest in fp32, greedy tokens but for closer ties.
LOGIT_TOLERANCE = 1e-4


def peft_model(base: PreTrainedModel, folders: Sequence[Path]) -> Any:
    """`base` with adapters "a0", "a1", ... in PEFT; `base` itself is changed."""
    model = PeftModel.from_pretrained(base, str(folders[0]), adapter_name="a0")
    for index, folder in enumerate(folders[1:], 1):
        model.load_adapter(str(folder), adapter_name=f"a{index}")
    return model.eval()


def set_mixture(model: Any, weights: Sequence[float], combination: str) -> None:
    """Activate a mixture of all adapters; PEFT's `cat` is the exact sum for any ranks."""
    names = [f"a{index}" for index in range(len(weights))]
    if "mixture" in model.peft_config:
        model.set_adapter("a0")
        model.delete_adapter("mixture")
    kind = "cat" if combination == "sum" else combination
    model.add_weighted_adapter(names, list(weights), "mixture", combination_type=kind)
    model.set_adapter("mixture")


@torch.no_grad()
def greedy(model: Any, prompt: Sequence[int], count: int) -> tuple[list[int], list[Tensor]]:
    """Greedy tokens by recomputing everything each time, and the log softmax [vocab] of each."""
    ids = list(prompt)
    rows: list[Tensor] = []
    for _ in range(count):
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].float()
        rows.append(logits.log_softmax(-1))
        ids.append(int(logits.argmax()))
    return ids[len(prompt) :], rows


def assert_agrees(
    answer: Answer,
    ids: Sequence[int],
    rows: Sequence[Tensor],
    tolerance: float = LOGIT_TOLERANCE,
) -> None:
    """Tokens equal, log probabilities within tolerance; a tie closer than that ends the check."""
    assert len(answer.tokens) == len(ids)
    for index, (token, expected, row) in enumerate(zip(answer.tokens, ids, rows, strict=True)):
        best, allowed = row.topk(2).values, tolerance * float(row.abs().max())
        if token.token_id != expected:
            gap = float(best[0] - best[1])
            assert gap < allowed, f"token {index} differs: {gap} of {allowed}"
            return
        difference = abs(token.logprob - float(row[expected]))
        assert difference < allowed, f"token {index}: {difference} of {allowed}"
