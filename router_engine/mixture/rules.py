"""Rules that a mixture must satisfy before it is computed: refused by name, never approximated.

The engine and the server ask the same rules; each says in its own words which adapter is meant.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from adapters_store.types import AdapterManifest, ResolvedMixture
from router_engine.errors import MixtureError

_TINY = 2.0**-150  # up to here a float32 is rounded to 0
# Why adapters that hold more than plain LoRA are refused, and what would work.
LINEAR_NEEDS_PLAIN_LORA = (
    "combination 'linear' adds the factors of LoRA experts; combination 'sum' takes any experts"
)
MERGE_NEEDS_PLAIN_LORA = (
    "only LoRA without gates can be folded into the base's weights; send the mixture with each "
    "request instead"
)
ARROW_NEEDS_PLAIN_LORA = (
    "layer router 'arrow' scores the directions of LoRA without gates; give the mixture's weights "
    "yourself, or choose a router of level 'request' or 'token'"
)
# Why a router that reads hidden states cannot weigh adapters with gates of whole prompts.
NOT_BEFORE_THE_PROMPT = (
    "gates of whole prompts are computed with all of a prompt in one step, and a router that reads "
    "hidden states weighs its last token by those before; choose one that reads text, or a router "
    "of level 'request'"
)


@dataclass(frozen=True, slots=True)
class MixtureFacts:
    """What the rules ask of one adapter: far less than its manifest holds."""

    rows: Mapping[str, int]  # rank rows by site: of plain LoRA, the rank at each layer
    extras: str | None  # what it holds beyond plain LoRA; None: nothing
    low_scale: tuple[float, str] | None  # the first scale that is not above 0, and its module
    reads_whole_prompts: bool

    @classmethod
    def of(cls, manifest: AdapterManifest) -> MixtureFacts:
        low = next((each for each in manifest.lora_experts if each.scale <= 0), None)
        return cls(
            manifest.rows_by_site,
            manifest.extras,
            None if low is None else (low.scale, low.module),
            manifest.reads_whole_prompts,
        )


@dataclass(frozen=True, slots=True)
class MixtureFault:
    """One adapter that a mixture cannot have as it is."""

    index: int  # of the adapter in the mixture
    subject: str  # what is wrong; {names[i]} stands for the name of adapter i
    reason: str  # why that will not do, and what would
    is_weight: bool = False  # whether its weight is at fault, and not what it holds

    def told(self, names: Sequence[str]) -> str:
        """The subject, with names of the mixture's adapters."""
        return self.subject.format(names=names)


def extras_faults(facts: Sequence[MixtureFacts], reason: str) -> Iterator[MixtureFault]:
    """Adapters that hold more than plain LoRA, where that is all that is taken: `reason`."""
    for index, each in enumerate(facts):
        if each.extras is not None:
            holds = _literal(each.extras)
            yield MixtureFault(index, f"{{names[{index}]}}, which holds {holds}", reason)


def linear_faults(
    facts: Sequence[MixtureFacts], weights: Sequence[float] = ()
) -> Iterator[MixtureFault]:
    """Why `linear` is not defined for these adapters, and weights where they are known.

    It adds the factors of its adapters, so it needs plain LoRA of equal ranks in each layer that
    they share; and it takes roots, so it needs weights and scales that are not negative.
    """
    for index, weight in enumerate(weights):
        if weight < 0:
            yield MixtureFault(
                index,
                str(weight),
                "combination linear takes square roots of weights: use 0 or more, or combination "
                "sum",
                is_weight=True,
            )
    yield from extras_faults(facts, LINEAR_NEEDS_PLAIN_LORA)
    for index, each in enumerate(facts):
        if each.low_scale is not None:
            scale, module = each.low_scale
            yield MixtureFault(
                index,
                f"{{names[{index}]}}, which has scale {scale} at {_literal(module)}",
                "combination linear takes square roots of scales: use adapters of scales above 0, "
                "or combination sum",
            )
    yield from _unequal_ranks(facts)


def _unequal_ranks(facts: Sequence[MixtureFacts]) -> Iterator[MixtureFault]:
    ranks: dict[str, tuple[int, int]] = {}
    for index, each in enumerate(facts):
        for site, own in each.rows.items():
            first, rank = ranks.setdefault(site, (index, own))
            if rank != own:
                yield MixtureFault(
                    index,
                    f"{{names[{first}]}} of rank {rank} with {{names[{index}]}} of rank {own}",
                    "combination linear needs equal ranks: use combination sum",
                )


def _literal(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def require_plain_lora(digest: str, manifest: AdapterManifest, reason: str) -> None:
    """Raise MixtureError, with the reason, for an adapter that holds more than plain LoRA."""
    for fault in extras_faults([MixtureFacts.of(manifest)], reason):
        raise MixtureError(f"{fault.told([digest])}: {fault.reason}")


def check_mixture(mixture: ResolvedMixture, manifests: Sequence[AdapterManifest]) -> None:
    """Raise MixtureError where the combination is not defined for these adapters and weights.

    `sum` takes anything; of `linear` see `linear_faults`.
    """
    if mixture.combination == "sum":
        return
    facts = [MixtureFacts.of(manifest) for manifest in manifests]
    for fault in linear_faults(facts, mixture.weights):
        told = fault.told(mixture.digests)
        if fault.is_weight:
            told = f"weight {told} of {mixture.digests[fault.index]}"
        raise MixtureError(f"{told}: {fault.reason}")


def without_zeros(mixture: ResolvedMixture) -> ResolvedMixture | None:
    """The mixture of the adapters whose weight is not 0 in fp32; None where none has such."""
    pairs = zip(mixture.digests, mixture.weights, strict=True)
    used = [(digest, weight) for digest, weight in pairs if not abs(weight) <= _TINY]
    if not used:
        return None
    return replace(
        mixture, digests=tuple(d for d, _ in used), weights=tuple(weight for _, weight in used)
    )
