"""What is asked of the server, under which key an answer is kept, and what is kept of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adaptermix.bench.errors import BenchmarkError
from adaptermix.evaluation.routing.rows import Case, Words
from adaptermix.evaluation.routing.suite import SuiteRouting

Answer = Mapping[str, Any]  # as kept: see `Ask.kept`
Body = dict[str, Any]

_CHARACTERS = 4.0  # of a token, roughly
_PREFILL = 3.0  # tokens of prompts that take as long as one of an answer, roughly


@dataclass(frozen=True, slots=True)
class Ask:
    """One request. `cuts` divides its completions (in characters) where likelihoods are asked."""

    routing: str
    path: str
    body: Body
    cuts: tuple[int, ...] = ()
    cost: float = 1.0

    def key(self, identity: Mapping[str, Any]) -> str:
        """Digest of all that the answer depends on: `identity` says what serves it.

        Its `adapters` count as far as the request names them.
        """
        named, there = named_in(self.body.get("mixture")), identity.get("adapters", {})
        adapters = {name: there[name] for name in named if name in there}
        parts = [{**identity, "adapters": adapters}, self.path, self.body, self.cuts]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]

    @property
    def size(self) -> float:
        """About how long it takes, in tokens of an answer under a fixed mixture."""
        prompt = len(self.body["inputs"]) / _CHARACTERS / _PREFILL
        texts = self.body.get("completions")
        if texts is None:
            return prompt + self.cost * float(self.body["parameters"]["max_new_tokens"])
        return prompt + self.cost * sum(map(len, texts)) / _CHARACTERS

    def kept(self, reply: Mapping[str, Any]) -> Answer:
        """{"text"} of a generation; {"scores": [...]} of completions: see `_parts`."""
        if self.path == "/generate":
            return {"text": reply["generated_text"]}
        texts = self.body["completions"]
        pairs = zip(texts, reply["scores"], strict=True)
        return {"scores": [_parts(text, score, self.cuts) for text, score in pairs]}


def score_ask(case: Case, routing: SuiteRouting, mixture: Body | None, words: Words) -> Ask:
    """How likely the completion is, or all options of a choice."""
    completion, cuts = case.completion, case.cuts
    if routing.completion_tokens is not None:
        completion = words.prefix(completion, routing.completion_tokens)
        cuts = tuple(cut for cut in cuts if cut < len(completion)) or (len(completion),)
    body: Body = {"inputs": case.prompt, "completions": list(case.options or (completion,))}
    return Ask(routing.name, "/score", _under(body, mixture), cuts, routing.cost)


def answer_ask(case: Case, routing: SuiteRouting, mixture: Body | None, max_new_tokens: int) -> Ask:
    """A greedy answer, up to the end of text or `max_new_tokens`."""
    parameters = {"max_new_tokens": max_new_tokens, "temperature": 0}
    body: Body = {"inputs": case.prompt, "parameters": parameters}
    return Ask(routing.name, "/generate", _under(body, mixture), cost=routing.cost)


def mixture_for(routing: SuiteRouting, task: str) -> Body | None:
    """What the rows of a plain task run under: of `by_task` its one adapter."""
    if routing.by_task is None:
        return routing.mixture
    return {"adapters": [{"name": routing.by_task[task]}]}


def mixture_for_mixed(
    routing: SuiteRouting, first: str, second: str, case: Case, words: Words
) -> Body | None:
    """What a mixed prompt runs under: `by_task` gives the weights of each token.

    The first task's adapter has weight 1 up to the second `Answer:`, the second's from there on.
    """
    if routing.by_task is None:
        return routing.mixture
    whole = len(words.ids(case.completion))
    before = min(whole, len(words.ids(case.completion[: case.cuts[-1]])))
    router = {
        "name": "given",
        "level": "token",
        "candidates": [routing.by_task[first], routing.by_task[second]],
        "weights": [[1.0, 0.0]] * before + [[0.0, 1.0]] * (whole - before),
    }
    return {"router": router}


def named_in(mixture: Mapping[str, Any] | None) -> set[str]:
    """Every adapter that a mixture names; what is not as it should be, the server will refuse."""
    mixture = mixture or {}
    router = mixture.get("router")
    found = router.get("candidates") if isinstance(router, Mapping) else mixture.get("adapters")
    names = [
        item.get("name") if isinstance(item, Mapping) else item
        for item in (found if isinstance(found, list) else [])
    ]
    return {name for name in names if isinstance(name, str)}


def _under(body: Body, mixture: Body | None) -> Body:
    return body if mixture is None else {**body, "mixture": mixture}


def _parts(text: str, score: Mapping[str, Any], cuts: Sequence[int]) -> dict[str, Any]:
    """{"parts": [[NLL in nats, tokens], ...]}, and "weights" {adapter: mean in each part}.

    A token belongs to the part in which its text begins. A part without tokens has weights 0.
    """
    tokens = score["tokens"]
    if "".join(token["text"] for token in tokens) != text:
        raise BenchmarkError(f"the scored tokens do not spell the completion {text!r}")
    members: list[list[int]] = [[] for _ in range(len(cuts) + 1)]
    begin = 0
    for index, token in enumerate(tokens):
        members[sum(begin >= cut for cut in cuts)].append(index)
        begin += len(token["text"])
    kept: dict[str, Any] = {
        "parts": [[-sum(tokens[i]["logprob"] for i in part), len(part)] for part in members]
    }
    routing = score.get("routing")
    if routing is not None and len(routing["weights"]) == len(tokens):
        kept["weights"] = {
            name: [_mean([routing["weights"][i][j] for i in part]) for part in members]
            for j, name in enumerate(routing["adapters"])
        }
    return kept


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 4) if values else 0.0
