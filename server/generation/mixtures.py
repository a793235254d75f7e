"""A client's `mixture` as the engine runs it: its names become digests, once, now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import Protocol

from adapters_store.errors import AdapterNotFoundError, StoreError
from adapters_store.types import (
    AdapterManifest,
    AdapterRecord,
    AdapterRef,
    BaseModelSpec,
    Combination,
    ResolvedMixture,
)
from adapters_store.validation import misfits
from router_engine.events import TokenEvent
from router_engine.mixture.rules import ARROW_NEEDS_PLAIN_LORA, MERGE_NEEDS_PLAIN_LORA
from router_engine.request import LayerRouting, TokenRouting
from server.errors import InputError
from server.generation.copies import member_digests, refuse_copies
from server.generation.refusals import Refusals
from server.generation.request_routing import RequestRouting
from server.generation.uses import Uses
from server.schemas.mixture import (
    MixtureChoice,
    PlanLevel,
    RouterChoice,
    TagCandidates,
    WeightedAdapter,
)
from server.threads import Threads


class AdapterResolver(Protocol):
    """The part of the store that mixtures need. Its methods block."""

    def resolve(self, reference: str | AdapterRef) -> AdapterRecord: ...

    def resolve_all(self, references: Sequence[str | AdapterRef]) -> list[AdapterRecord]: ...

    def list(
        self, *, name: str | None = None, tag: str | None = None
    ) -> Sequence[AdapterRecord]: ...


@dataclass(frozen=True, slots=True)
class PlannedMixture:
    """The mixture that one request runs under, every adapter resolved."""

    labels: tuple[str, ...] = ()  # the adapters as responses show them: "math@1"
    digests: tuple[str, ...] = ()  # of adapters, or of variants of them, by label
    # One an adapter; () where the engine renews them (`routing`) or finds them inside the layers
    # (`layer_routing`).
    weights: tuple[float, ...] = ()
    combination: Combination = "sum"
    routing: TokenRouting | None = None  # a token router's choice, in the engine
    router: str | None = None  # its name, at whatever level
    level: PlanLevel = "fixed"
    names: tuple[str, ...] = field(default=())  # without versions, for metrics
    reads_hidden_states: bool = False  # the router does
    layer_routing: LayerRouting | None = None  # a layer router's choice, in the engine
    ensemble: tuple[tuple[str, ...], ...] = ()  # the digests of its further members
    manifests: tuple[AdapterManifest, ...] = ()  # by label

    @property
    def all_digests(self) -> tuple[str, ...]:
        """The digests of every member of an ensemble, the first one's too."""
        return (*self.digests, *chain.from_iterable(self.ensemble))

    def weights_at(self, event: TokenEvent) -> tuple[float, ...]:
        """Weights in force in the pass that yielded a token, one an adapter."""
        return self.weights if self.routing is None else event.weights


class Mixtures:
    """Resolves mixtures against the store and the base model.

    What reads manifests runs in the threads of lookups: there may be a thousand in one mixture.
    """

    def __init__(
        self,
        store: AdapterResolver,
        base: BaseModelSpec,
        routing: RequestRouting,
        max_candidates: int,
        threads: Threads,
    ) -> None:
        self._refuse = Refusals(base)
        self._store = store
        self._base = base
        self._routing = routing
        self._max_candidates = max_candidates
        self._threads = threads
        self._misfits: dict[str, str | None] = {}  # by digest
        self.uses = Uses()

    async def plan(
        self, mixture: MixtureChoice | None, adapter: str | None, prompt: str
    ) -> PlannedMixture:
        """The plan of one request.

        `adapter` is one reference at weight 1 and excludes `mixture`. Raises AdapterNotFoundError
        and InputError, each with the field's path.
        """
        if adapter:
            adapters = [WeightedAdapter(name=adapter)]
            plan = partial(self._fixed, adapters, "sum", "adapter")
        elif mixture is None:
            return PlannedMixture()
        elif mixture.router is not None:
            return await self._routed(mixture.router, prompt)
        else:
            adapters = mixture.adapters or []
            plan = partial(self._fixed, adapters, mixture.combination, "mixture.adapters")
        return await self._threads.run(plan)

    async def require_there(self, plan: PlannedMixture) -> None:
        """Raises AdapterNotFoundError where an adapter was deleted since the plan was made."""
        try:
            await self._threads.run(partial(self._store.resolve_all, plan.labels))
        except AdapterNotFoundError:
            raise
        except StoreError:
            return  # nobody knows

    async def resolve_fixed(self, adapters: Sequence[WeightedAdapter]) -> ResolvedMixture:
        """A mixture that the base's weights can hold, for the admin routes."""

        def resolve() -> ResolvedMixture:
            refuse_copies(adapters, "adapters")
            records = self._records([item.name for item in adapters], "adapters")
            self._refuse.extras(records, "adapters", MERGE_NEEDS_PLAIN_LORA)
            self._refuse.too_large(records, "adapters")
            digests = tuple(record.digest for record in records)
            return ResolvedMixture(digests, tuple(item.weight for item in adapters))

        return await self._threads.run(resolve)

    async def record(self, reference: str, path: str = "name") -> AdapterRecord:
        """Resolve one reference that must fit the base model."""

        def resolve() -> AdapterRecord:
            record = self._store.resolve(reference)
            self._refuse_misfit(record, path)
            return record

        return await self._threads.run(resolve)

    def _fixed(
        self, adapters: Sequence[WeightedAdapter], combination: Combination, path: str
    ) -> PlannedMixture:
        records = self._records([item.name for item in adapters], path)
        weights = tuple(item.weight for item in adapters)
        if combination == "linear":
            self._refuse.linear(records, path, weights)
        members = member_digests(adapters, records, path)
        self._refuse.too_large(records, path, members)
        plan = _plan(records, weights=weights, combination=combination)
        return replace(plan, digests=members[0], ensemble=members[1:])

    async def _routed(self, spec: RouterChoice, prompt: str) -> PlannedMixture:
        records, plan = await self._threads.run(partial(self._routable, spec))
        if spec.level == "token":
            await self._routing.prepare(spec, records)
        elif spec.level == "request":
            weights = await self._routing.weights(spec, records, prompt)
            return replace(plan, weights=weights)
        return plan

    def _routable(self, spec: RouterChoice) -> tuple[list[AdapterRecord], PlannedMixture]:
        """The candidates, and the plan of a request that chooses among them, without weights."""
        self._routing.check(spec)  # here: parameters may be long
        path = "mixture.router.candidates"
        records = self._records(self._candidates(spec, path), path)
        self._refuse.too_large(records, path)
        if spec.combination == "linear":
            self._refuse.linear(records, path)
        if spec.level == "token":
            reads_hidden_states = self._routing.reads_hidden_states(spec)
            if reads_hidden_states:
                self._refuse.whole_prompts(records, path)
            routing = TokenRouting(spec.name, spec.params, spec.every, spec.context, spec.lag)
            plan = _plan(records, combination=spec.combination, routing=routing, router=spec.name)
            return records, replace(plan, reads_hidden_states=reads_hidden_states)
        if spec.level == "layer":
            self._refuse.extras(records, path, ARROW_NEEDS_PLAIN_LORA)
            layers = LayerRouting(spec.name, spec.params)
            return records, _plan(
                records, combination="sum", layer_routing=layers, router=spec.name
            )
        return records, _plan(records, combination=spec.combination, router=spec.name)

    def _candidates(self, spec: RouterChoice, path: str) -> list[str]:
        if isinstance(spec.candidates, TagCandidates):
            tag = spec.candidates.tag
            references = self._tagged(tag)
            if not references:
                raise InputError(f"{path}.tag", repr(tag), "no adapter carries this tag")
        else:
            references = spec.candidates
        if not references:
            raise InputError(path, "[]", "name at least one adapter, or a tag")
        if len(references) > self._max_candidates:
            raise InputError(
                path,
                f"{len(references)} adapters",
                f"at most {self._max_candidates} (ADAPTERMIX_MAX_CANDIDATES)",
            )
        return references

    def _tagged(self, tag: str) -> list[str]:
        tagged = self._store.list(tag=tag)
        newest = {record.name: record for record in tagged}  # by version, ascending
        labels: dict[str, str] = {}  # names of one digest are one adapter: the first stands
        for record in newest.values():
            if self.fits(record):
                labels.setdefault(record.digest, record.label)
        return list(labels.values())

    def _records(self, references: Sequence[str], path: str) -> list[AdapterRecord]:
        try:
            records = self._store.resolve_all(references)
        except AdapterNotFoundError as error:
            error.add_note(path)
            raise
        references_by_digest: dict[str, str] = {}
        for reference, record in zip(references, records, strict=True):
            if record.digest in references_by_digest:
                raise InputError(
                    path,
                    repr(reference),
                    f"is the same adapter as {references_by_digest[record.digest]!r}: name each "
                    "once, with the weight that you want",
                )
            references_by_digest[record.digest] = reference
            self._refuse_misfit(record, path)
        return records

    def fits(self, record: AdapterRecord) -> bool:
        """Whether an adapter fits the base model."""
        return self._misfit(record) is None

    def _refuse_misfit(self, record: AdapterRecord, path: str) -> None:
        reason = self._misfit(record)
        if reason is not None:
            raise InputError(path, repr(record.label), reason)

    def _misfit(self, record: AdapterRecord) -> str | None:
        if record.digest not in self._misfits:
            self._misfits[record.digest] = misfit(record.manifest, self._base)
        return self._misfits[record.digest]


def misfit(manifest: AdapterManifest, base: BaseModelSpec) -> str | None:
    """The reason why an adapter does not fit the base model; None where it does."""
    problem = next(misfits(manifest, base), None)
    if problem is None:
        return None
    trained = f" (it says {manifest.base_model})" if manifest.base_model else ""
    return f"was made for another base model{trained}: {problem.where} {problem.message}"


def _plan(
    records: Sequence[AdapterRecord],
    *,
    combination: Combination,
    weights: tuple[float, ...] = (),
    routing: TokenRouting | None = None,
    layer_routing: LayerRouting | None = None,
    router: str | None = None,
) -> PlannedMixture:
    level: PlanLevel = "fixed" if router is None else "request"
    if routing is not None:
        level = "token"
    if layer_routing is not None:
        level = "layer"
    return PlannedMixture(
        labels=tuple(record.label for record in records),
        digests=tuple(record.digest for record in records),
        weights=weights,
        combination=combination,
        routing=routing,
        router=router,
        level=level,
        names=tuple(record.name for record in records),
        layer_routing=layer_routing,
        manifests=tuple(record.manifest for record in records),
    )
