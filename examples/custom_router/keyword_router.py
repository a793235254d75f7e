"""Gives each candidate as much weight as the prompt holds words of its list, plus one."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, Field

from router_engine.routers.errors import RouterInputError
from router_engine.routers.params import parse_params
from router_engine.routers.registry import RouterSpec


class Params(BaseModel):
    words: list[list[str]] = Field(fail_fast=True, description="One list of words per candidate.")


class Keywords:
    async def route(
        self, prompt_text: str, candidates: Sequence[str], params: Mapping[str, Any]
    ) -> tuple[float, ...]:
        words = parse_params(Params, "keywords", params).words
        if len(words) != len(candidates):
            raise RouterInputError(f"words: {len(words)} lists for {len(candidates)} candidates")
        counts = [1 + sum(prompt_text.count(word) for word in one) for one in words]
        return tuple(count / sum(counts) for count in counts)


SPEC = RouterSpec(
    name="keywords", summary="Words in the prompt.", params=Params, request=lambda _: Keywords()
)
