"""The `mixture` of a request: adapters with weights, or a router that chooses them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from adapters_store.types import Combination
from router_engine.request import MAX_LAG, Context, Level
from server.schemas.base import Body, Many
from server.schemas.copies import CopiesChoice

MAX_ADAPTERS = 1024  # of one mixture

PlanLevel = Literal["fixed", Level]  # who chose the weights of an answer


class WeightedAdapter(Body):
    """One adapter of a mixture."""

    name: str = Field(
        description="Adapter: name, name@version, name@alias or sha256:...", examples=["math@1"]
    )
    weight: float = Field(default=1.0, description="Any finite number; never normalised.")
    copies: CopiesChoice | None = Field(
        default=None,
        description="Which copies act, of an adapter that keeps them apart (AdaMix). Left out: "
        "their average.",
    )


class TagCandidates(Body):
    """Every adapter that carries a tag."""

    tag: str = Field(min_length=1, examples=["task"])


class RouterChoice(Body):
    """A router that chooses the weights from the text.

    Fields beyond these are parameters of the router (of similarity: scoring, temperature, top_k,
    threshold, sharpening, window); GET /admin/routers gives their schema, and one that the router
    does not know is refused.
    """

    model_config = ConfigDict(extra="allow")

    name: str = Field(max_length=128, description="Which router; GET /admin/routers lists them.")
    level: Level = Field(
        default="request",
        description="Weights from the prompt, once; or renewed while the text grows; or found "
        "inside each layer, for each token.",
    )
    every: int = Field(default=1, ge=1, description="Tokens between two renewals, at level token.")
    lag: int = Field(
        default=0,
        ge=0,
        le=MAX_LAG,
        description="At level token, context keep: weights come from the text as it was so many "
        "tokens before, so that the router works while the tokens between are generated. 0: "
        "each renewal waits for the router.",
    )
    candidates: Annotated[Many[str], Field(max_length=MAX_ADAPTERS)] | TagCandidates = Field(
        description="Adapters to choose from: references, or all that carry a tag."
    )
    combination: Combination = Field(
        default="sum",
        description="How the chosen adapters combine; scoring 'paper' needs 'linear', level layer "
        "'sum'.",
    )
    context: Context = Field(
        default="keep",
        description="keep: each token's KV stays as computed under its own weights; recompute: "
        "the whole context is computed again under the newest. Scoring 'paper' at level token "
        "needs recompute.",
    )

    @model_validator(mode="after")
    def _settings_that_apply(self) -> RouterChoice:
        if self.level != "token" and self.model_fields_set & {"every", "context", "lag"}:
            raise PydanticCustomError(
                "contradiction",
                "every, lag and context belong to level token: leave them out, or set it",
            )
        if self.lag > 0 and self.context == "recompute":
            raise PydanticCustomError(
                "contradiction",
                "context recompute waits for the newest weights: leave lag out, or set context "
                "keep",
            )
        if self.level == "layer" and self.combination != "sum":
            raise PydanticCustomError(
                "contradiction",
                "combination {combination} needs weights that hold in all layers, and level layer "
                "finds others in each: use combination sum",
                {"combination": self.combination},
            )
        if self.params.get("scoring") != "paper":
            return self
        if self.combination != "linear":
            raise PydanticCustomError(
                "contradiction", "scoring paper is defined for combination linear: set it"
            )
        if self.level == "token" and self.context != "recompute":
            raise PydanticCustomError(
                "contradiction", "scoring paper is defined for context recompute: set it"
            )
        return self

    @property
    def params(self) -> dict[str, Any]:
        """The parameters of the router itself, as they were given."""
        return dict(self.model_extra or {})


class MixtureChoice(Body):
    """Either `adapters` or `router`. No mixture at all means the base model."""

    adapters: Annotated[Many[WeightedAdapter], Field(max_length=MAX_ADAPTERS)] | None = None
    combination: Combination = Field(
        default="sum",
        description="sum is exact; linear is PEFT's (equal ranks, no negative weights).",
    )
    router: RouterChoice | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> MixtureChoice:
        if (self.adapters is None) == (self.router is None):
            raise PydanticCustomError(
                "mixture", "give exactly one of adapters and router; leave mixture out for the base"
            )
        if self.router is not None and "combination" in self.model_fields_set:
            raise PydanticCustomError("mixture", "give combination inside router, not beside it")
        if self.adapters is not None and not self.adapters:
            raise PydanticCustomError(
                "mixture", "adapters is empty: name at least one, or leave mixture out for the base"
            )
        return self

    @property
    def reads_text(self) -> bool:
        """Whether its weights come from the text of the prompt, before there are tokens."""
        return self.router is not None and self.router.level == "request"


class FixedMixture(Body):
    """The mixture that is to be folded into the base."""

    adapters: Many[WeightedAdapter] = Field(min_length=1, max_length=MAX_ADAPTERS)
    combination: Literal["sum"] = Field(
        default="sum", description="Only sums can be folded beside other traffic."
    )


FIXED_EXAMPLE = {"adapters": [{"name": "math", "weight": 0.7}, {"name": "code@2", "weight": 0.3}]}
ROUTER_EXAMPLE = {
    "router": {
        "name": "similarity",
        "level": "token",
        "every": 2,
        "candidates": ["math", "science", "code", "reading"],
        "scoring": "softmax",
        "temperature": 0.1,
        "top_k": 4,
        "context": "keep",
    }
}
