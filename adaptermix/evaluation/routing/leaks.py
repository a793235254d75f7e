"""Whether a weight knows what comes after it: two completions that begin alike, under a routing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from adaptermix.evaluation.routing.asking import Asking
from adaptermix.evaluation.routing.asks import Ask
from adaptermix.evaluation.routing.suite import SuiteRouting

_PROMPT = "Question: Tom has 3 boxes with 12 pencils each. How many pencils are there?\n\nAnswer:"
_ALIKE = " There are 3 boxes with 12 pencils in each of them, so"
_ENDS = (
    " 3 * 12 = <<3*12=36>>36 pencils in all.\n#### 36",
    "\ndef count(boxes, pencils):\n    return boxes * pencils",
)


@dataclass(frozen=True, slots=True)
class Leak:
    """`alike`: tokens that have the same text before them in both completions.

    `weights` and `logprobs` are the largest differences there, which should be 0 but for
    rounding. `later` is the largest difference of weights afterwards: it shows whether the
    weights follow the text at all. None where the routing reports no weights.
    """

    routing: str
    alike: int
    logprobs: float
    weights: float | None
    later: float | None


async def find_leak(asking: Asking, routing: SuiteRouting) -> dict[str, Any]:
    """Score both completions. Raises BenchmarkError where the server refuses the routing."""
    texts = [_ALIKE + end for end in _ENDS]
    body: dict[str, Any] = {"inputs": _PROMPT, "completions": texts}
    if routing.mixture is not None:
        body["mixture"] = routing.mixture
    reply = await asking.post(Ask(routing.name, "/score", body))
    return asdict(leak_of(routing.name, *reply["scores"]))


def leak_of(routing: str, one: Mapping[str, Any], two: Mapping[str, Any]) -> Leak:
    """Compare two scored completions that begin alike."""
    ids = [[token["id"] for token in score["tokens"]] for score in (one, two)]
    pairs = list(zip(*ids, strict=False))
    same = next((i for i, (left, right) in enumerate(pairs) if left != right), len(pairs))
    logprobs = [[token["logprob"] for token in score["tokens"]] for score in (one, two)]
    weights = [(score.get("routing") or {}).get("weights") or [] for score in (one, two)]
    apart = _largest([[value] for value in logprobs[0][:same]], [[v] for v in logprobs[1][:same]])
    if not all(len(w) == len(own) for w, own in zip(weights, ids, strict=True)):
        return Leak(routing, same + 1, apart, None, None)
    # The first token that differs still has the same text before it.
    alike = same + 1
    before, after = ([w[:alike] for w in weights], [w[alike:] for w in weights])
    return Leak(routing, alike, apart, _largest(*before), _largest(*after))


def _largest(left: Sequence[Sequence[float]], right: Sequence[Sequence[float]]) -> float:
    """Of the rows that both have."""
    rows = zip(left, right, strict=False)
    gaps = [abs(a - b) for one, two in rows for a, b in zip(one, two, strict=True)]
    return max((gap for gap in gaps if not math.isnan(gap)), default=0.0)
