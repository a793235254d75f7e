"""What a mixture must satisfy before it is computed: refused here, never approximated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from adapters_store.types import AdapterManifest, ResolvedMixture
from router_engine.errors import MixtureError

_TINY = 2.0**-150  # up to here a float32 is rounded to 0
# Why adapters that hold more than LoRA are refused, and what would work.
FACTORS_ONLY = (
    "combination 'linear' adds the factors of LoRA experts; combination 'sum' takes any experts"
)
WEIGHTS_ONLY = (
    "only LoRA without gates can be folded into the base's weights; send the mixture with each "
    "request instead"
)
DIRECTIONS_ONLY = (
    "layer router 'arrow' scores the directions of LoRA without gates; give the mixture's weights "
    "yourself, or choose a router of level 'request' or 'token'"
)
# Why a router that reads hidden states cannot weigh adapters with gates of whole prompts.
NOT_BEFORE_THE_PROMPT = (
    "gates of whole prompts are computed with all of a prompt in one step, and a router that reads "
    "hidden states weighs its last token by those before; choose one that reads text, or a router "
    "of level 'request'"
)


def refuse_special(adapter: str, manifest: AdapterManifest, reason: str) -> None:
    """Raise MixtureError, with the reason, for an adapter that holds more than plain LoRA."""
    if manifest.not_plain is not None:
        raise MixtureError(f"{adapter} holds {manifest.not_plain}: {reason}")


def check_mixture(mixture: ResolvedMixture, manifests: Sequence[AdapterManifest]) -> None:
    """Raise MixtureError where the combination is not defined for these adapters and weights.

    `sum` takes anything. `linear` adds the factors of its adapters, so it needs equal ranks in each
    layer that they share, and roots, so it needs weights and scales that are not negative.
    """
    if mixture.combination == "sum":
        return
    for digest, weight in zip(mixture.digests, mixture.weights, strict=True):
        if weight < 0:
            raise MixtureError(
                f"weight {weight} of {digest}: combination 'linear' takes square roots of weights, "
                "so they must be 0 or above; combination 'sum' takes any weight"
            )
    ranks: dict[str, int] = {}
    for digest, manifest in zip(mixture.digests, manifests, strict=True):
        refuse_special(digest, manifest, FACTORS_ONLY)
        for expert in manifest.lora_experts:
            if expert.scale <= 0:
                raise MixtureError(
                    f"{digest} has scale {expert.scale} at {expert.module}: combination 'linear' "
                    "needs scales above 0; combination 'sum' takes any"
                )
            rank = ranks.setdefault(expert.module, expert.rank)
            if rank != expert.rank:
                raise MixtureError(
                    f"ranks {rank} and {expert.rank} at {expert.module}: combination 'linear' "
                    "needs adapters of equal rank; combination 'sum' takes any ranks"
                )


def without_zeros(mixture: ResolvedMixture) -> ResolvedMixture | None:
    """The mixture of the adapters whose weight is not 0 in fp32; None where none has such."""
    pairs = zip(mixture.digests, mixture.weights, strict=True)
    kept = [(digest, weight) for digest, weight in pairs if not abs(weight) <= _TINY]
    if not kept:
        return None
    return replace(
        mixture, digests=tuple(d for d, _ in kept), weights=tuple(weight for _, weight in kept)
    )
