"""Bodies of /generate and /generate_stream: LoRAX's and TGI's, with `mixture` beside them."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from server.schemas.base import Body, Many, Reply, Timeout
from server.schemas.mixture import FIXED_EXAMPLE, ROUTER_EXAMPLE, MixtureChoice, PlanLevel

StopString = Annotated[str, Field(min_length=1, max_length=1024)]
MAX_TOP = 20


def _is_none(value: Any) -> bool:
    return value is None


class Parameters(Body):
    """How to draw the answer. Fields of LoRAX and TGI that do nothing here must be at default."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {
        "adapter_source": (None, ""),
        "api_token": (None, ""),
        "best_of": (None, 1),
        "decoder_input_details": (False,),
        "grammar": (None,),
        "merged_adapters": (None,),
        "response_format": (None,),
        "typical_p": (None, 1.0),
        "watermark": (False,),
    }

    max_new_tokens: int | None = Field(
        default=None,
        ge=1,
        description="Longest answer in tokens; the server's default when left out.",
    )
    min_new_tokens: int = Field(
        default=0,
        ge=0,
        description="Neither end of text nor stop strings end the answer before this.",
    )
    temperature: float | None = Field(
        default=None,
        ge=0,
        description="null or 0: greedy, unless do_sample is true. Above 0: sampling.",
    )
    do_sample: bool = Field(
        default=False, description="true: sample, at temperature 1 where none is given."
    )
    top_p: float | None = Field(default=None, gt=0, le=1, description="Nucleus sampling.")
    top_k: int | None = Field(
        default=None, ge=0, description="Draw from the k likeliest; 0 is off."
    )
    min_p: float | None = Field(
        default=None, ge=0, le=1, description="Drop tokens below this share of the likeliest one."
    )
    repetition_penalty: float | None = Field(
        default=None, gt=0, description="Above 1 discourages tokens of prompt and answer."
    )
    frequency_penalty: float | None = Field(
        default=None, ge=-2, le=2, description="Per occurrence of a token in the answer."
    )
    presence_penalty: float | None = Field(
        default=None, ge=-2, le=2, description="For a token that is in the answer."
    )
    seed: int | None = Field(
        default=None,
        ge=0,
        lt=2**63,
        description="Same seed, same text. Drawn at random when left out.",
    )
    stop: Many[StopString] = Field(
        default_factory=list, max_length=16, description="The answer ends before any of these."
    )
    ignore_eos_token: bool = Field(default=False, description="Go on past the end-of-text token.")
    return_full_text: bool | None = Field(
        default=None, description="Put the prompt before the answer."
    )
    truncate: int | None = Field(
        default=None, ge=1, description="Keep only this many tokens of the prompt, the latest."
    )
    apply_chat_template: bool = Field(
        default=False, description="Wrap `inputs` as one user message in the model's chat template."
    )
    details: bool = Field(
        default=False, description="Tokens, logprobs and routing with the answer."
    )
    top_n_tokens: int | None = Field(
        default=None, ge=0, le=MAX_TOP, description="Likeliest tokens to report beside each (TGI)."
    )
    return_k_alternatives: int | None = Field(
        default=None, ge=0, le=MAX_TOP, description="The same, under LoRAX's name and in its shape."
    )
    uncertainty: bool = Field(
        default=False,
        description="The entropy of each token's distribution in the details. Under an ensemble it "
        "is always there, with the mutual information.",
    )
    gates: bool = Field(
        default=False,
        description="Statistics of the gates inside layers in the details. The prefix cache does "
        "not serve such a request: every token is read for it.",
    )
    adapter_id: str | None = Field(
        default=None,
        description='One adapter at weight 1; null or "" is the base. Not with `mixture`.',
    )

    @model_validator(mode="after")
    def _no_contradiction(self) -> Parameters:
        if self.do_sample and self.temperature == 0:
            raise PydanticCustomError(
                "contradiction", "do_sample is true but temperature is 0 (greedy): change one"
            )
        if (self.top_n_tokens or self.return_k_alternatives) and not self.details:
            raise PydanticCustomError(
                "contradiction",
                "top_n_tokens and return_k_alternatives are part of the details: set details",
            )
        if self.uncertainty and not self.details:
            raise PydanticCustomError(
                "contradiction", "uncertainty is part of the details: set details"
            )
        if self.gates and not self.details:
            raise PydanticCustomError("contradiction", "gates is part of the details: set details")
        return self


class GenerateBody(Body):
    """One generation."""

    inputs: str = Field(min_length=1, description="The prompt.")
    parameters: Parameters = Field(default_factory=Parameters)
    mixture: MixtureChoice | None = Field(default=None, description="Left out: the base model.")
    priority: int = Field(
        default=0,
        ge=-100,
        le=100,
        description="Lower runs first, under ADAPTERMIX_POLICY=priority.",
    )
    timeout: Timeout = None

    @model_validator(mode="after")
    def _one_choice_of_adapter(self) -> GenerateBody:
        if self.parameters.adapter_id and self.mixture is not None:
            raise PydanticCustomError(
                "contradiction", "give either parameters.adapter_id or mixture, not both"
            )
        return self


class GenerateAnyBody(GenerateBody):
    """One generation, whole or as a stream."""

    stream: bool = Field(default=False, description="Answer as server-sent events.")


class Alternative(Reply):
    id: int
    text: str
    logprob: float


class Uncertainty(Reply):
    """How unsure the next token was, in nats."""

    entropy: float = Field(
        description="Of the distribution before temperature and penalties; an ensemble's is the "
        "mean of its members'."
    )
    mutual_information: float | None = Field(
        default=None,
        exclude_if=_is_none,
        description="What an ensemble's members disagree on: that entropy less the mean of "
        "theirs. 0 where all say the same.",
    )


class Token(Reply):
    """A generated token. `logprob` is null only on the end-of-text token that ends a stream."""

    id: int
    text: str
    logprob: float | None
    special: bool
    alternative_tokens: list[Alternative] | None = Field(default=None, exclude_if=_is_none)
    uncertainty: Uncertainty | None = Field(default=None, exclude_if=_is_none)


class Routing(Reply):
    """Which adapters acted, and with which weights."""

    level: PlanLevel = Field(
        description="Who chose the weights: the request (fixed), a router from the prompt "
        "(request), from the growing text (token), or inside the layers (layer)."
    )
    adapters: list[str]
    weights: list[list[float]] = Field(
        description="weights[i][j]: weight of adapters[j] in the pass that yielded token i. Empty "
        "at level layer, where every layer has weights of its own."
    )
    router: str | None = Field(description="Which router chose them; null for fixed weights.")
    entropy: float | None = Field(
        description="Mean over the tokens of the entropy of |w| / sum |w|, in nats: 0 where one "
        "adapter acts, ln k where k act alike; null without weights."
    )
    switches: int | None = Field(
        description="How often the strongest adapter (of the largest |weight|; none where all are "
        "0) is not that of the token before; null without weights."
    )
    fallback: int | None = Field(
        description="Tokens at which all weights were 0, so that the base answered alone; null "
        "without weights."
    )


class AdapterGates(Reply):
    """What the routers inside layers said of one adapter's experts, over prompt and answer.

    The last token of an answer counts only where another was asked for behind it. Tokens at which
    the adapter has weight 0 don't count. Of an ensemble, its first member's.
    """

    adapter: str
    experts: list[str] = Field(
        description="What each gate weighs, such as q_proj, prompt or parallel; a number where it "
        "is several experts."
    )
    mean: list[list[float | None]] = Field(
        description="mean[layer][expert] of the gate; null where a layer has none."
    )
    std: list[list[float | None]] = Field(
        description="Its standard deviation over the tokens, of the same shape."
    )
    spread: float = Field(
        description="Standard deviation over the experts of one token, in the mean of tokens and "
        "layers: how far the routers tell experts apart."
    )
    closed: float = Field(description="The part of all gates that are 0.")
    tokens: int


class TokenWeights(Reply):
    """The row of details.routing.weights that belongs to the token beside it."""

    weights: list[float]


class Details(Reply):
    finish_reason: Literal["length", "eos_token", "stop_sequence"]
    prompt_tokens: int
    generated_tokens: int
    cached_tokens: int | None = Field(
        description="Prompt tokens whose KV came from the prefix cache; null if not known."
    )
    seed: int | None
    tokens: list[Token] | None = Field(default=None, exclude_if=_is_none)
    top_tokens: list[list[Alternative]] | None = Field(default=None, exclude_if=_is_none)
    routing: Routing | None = Field(default=None, exclude_if=_is_none)
    gates: list[AdapterGates] | None = Field(
        default=None,
        exclude_if=_is_none,
        description="Where asked for: one entry for each adapter with routers inside layers.",
    )


class GenerateReply(Reply):
    generated_text: str
    details: Details | None = Field(default=None, exclude_if=_is_none)


class StreamFrame(Reply):
    """One server-sent event; the last has `generated_text` and `details`.

    `routing` is there where details are asked for and a mixture has weights at this token.
    """

    token: Token
    top_tokens: list[Alternative] | None = Field(default=None, exclude_if=_is_none)
    routing: TokenWeights | None = Field(default=None, exclude_if=_is_none)
    generated_text: str | None = None
    details: Details | None = None


PROMPT = "Question: What is 7 times 6?\n\nAnswer:"
GENERATE_EXAMPLES = {
    "base": {"summary": "The base model", "value": {"inputs": PROMPT}},
    "mixture": {
        "summary": "A fixed mixture",
        "value": {
            "inputs": PROMPT,
            "parameters": {"max_new_tokens": 64, "stop": ["\n\n"], "details": True},
            "mixture": FIXED_EXAMPLE,
        },
    },
    "router": {
        "summary": "Weights renewed every second token",
        "value": {
            "inputs": PROMPT,
            "parameters": {"max_new_tokens": 64, "details": True},
            "mixture": ROUTER_EXAMPLE,
        },
    },
}
ROUTING_EXAMPLE = {
    "adapters": ["math@1", "code@2"],
    "weights": [[0.7, 0.3]],
    "router": None,
    "level": "fixed",
    "entropy": 0.611,
    "switches": 0,
    "fallback": 0,
}
REPLY_EXAMPLE = {
    "generated_text": " 42",
    "details": {
        "finish_reason": "eos_token",
        "prompt_tokens": 12,
        "generated_tokens": 1,
        "cached_tokens": 0,
        "seed": None,
        "tokens": [{"id": 5062, "text": " 42", "logprob": -0.3, "special": False}],
        "routing": ROUTING_EXAMPLE,
    },
}
