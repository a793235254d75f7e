"""Owns the merged base: what is folded in, who asked for it, and how often it changed."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence

from adapters_store.types import ResolvedMixture
from router_engine.config import MergeConfig, Quantization
from router_engine.errors import EngineError, MixtureError
from router_engine.experts.base import HostAdapter
from router_engine.experts.residency import ADMIN, ResidencyManager
from router_engine.info import MergedState
from router_engine.merging.merge_bound import MergeBound
from router_engine.merging.merge_policy import MergePolicy
from router_engine.merging.merged_base import MergedBase
from router_engine.mixture.rules import MERGE_NEEDS_PLAIN_LORA, check_mixture, require_plain_lora
from router_engine.processes.long_work import long_work
from router_engine.scheduling.plan import PlannedRow
from router_engine.scheduling.request_validation import weights_problem

MERGED = f"{ADMIN}merged"  # owner of the merged mixture's adapters
_REMEMBERED = 1024  # mixtures that `auto` found to be none to merge


class MergeControl:
    """Switches the base between mixtures, between two steps, on the engine's thread.

    An admin's merge stays until an admin ends it; under `auto` the traffic decides meanwhile.
    """

    def __init__(
        self,
        base: MergedBase,
        residency: ResidencyManager,
        config: MergeConfig,
        quantization: Quantization,
        bound: MergeBound,
    ) -> None:
        self._quantization = quantization
        self._base = base
        self._residency = residency
        self._policy = MergePolicy(config) if config.mode == "auto" else None
        self._bound = bound
        self._passed_over: OrderedDict[ResolvedMixture, None] = OrderedDict()  # latest last
        self._by_admin = False
        self._seconds = 0.0
        self.switches = 0

    @property
    def mixture(self) -> ResolvedMixture | None:
        return self._base.mixture

    @property
    def state(self) -> MergedState:
        return MergedState(self._base.mixture, self._seconds)

    @long_work("a switch of the merged mixture")
    def switch(self, mixture: ResolvedMixture | None, *, by_admin: bool) -> None:
        """Fold `mixture` in, or restore the base; its adapters are on the device.

        Raises MixtureError or AdapterLoadError, the base unchanged, where `_checked` does;
        MixtureError, the base restored, where a weight would be no finite number.
        """
        started = time.perf_counter()
        adapters = () if mixture is None else self._checked(mixture)
        self._base.restore()
        self._residency.release(MERGED)
        self._by_admin = False
        if mixture is not None:
            self._base.merge(mixture, adapters)
            # Requests under other mixtures subtract this one, so its rows must stay on the device.
            self._residency.hold(MERGED, mixture.digests, for_good=by_admin)
            self._by_admin = by_admin
        self._seconds = time.perf_counter() - started
        self.switches += 1

    def _checked(self, mixture: ResolvedMixture) -> tuple[HostAdapter, ...]:
        """The adapters of a mixture that the base can take in.

        Raises MixtureError where the combination is not defined for it, where an adapter holds more
        than plain LoRA, where other requests would be answered otherwise (`MergeBound`), or where
        the base is quantized: the rounding of the sum would be far coarser than what is merged;
        AdapterLoadError where a copy on the host is gone and its file cannot be read.
        """
        if self._quantization != "none":
            raise MixtureError(
                f"a base in {self._quantization} takes no mixture in: send the mixture with each "
                "request, or start the server with quantization 'none'"
            )
        problem = weights_problem(mixture.weights)
        if problem is not None:
            raise MixtureError(problem)
        manifests = [self._residency.manifest(digest) for digest in mixture.digests]
        for digest, manifest in zip(mixture.digests, manifests, strict=True):
            require_plain_lora(digest, manifest, MERGE_NEEDS_PLAIN_LORA)
        check_mixture(mixture, manifests)
        adapters = tuple(self._residency.host_copy(digest) for digest in mixture.digests)
        self._bound.check(mixture, adapters)
        return adapters

    def give_way(self) -> None:
        """Under `auto`, restore the base where a request waits for the rows of what is merged."""
        mixture = self.mixture
        if mixture is None or self._by_admin:
            return
        if self._residency.would_block(mixture.digests):
            self._let_go()

    def follow(self, rows: Sequence[PlannedRow]) -> None:
        """Under `auto`, switch to what the traffic asks for; `rows` are those of the next step.

        A mixture is merged only while its adapters are on the device, which they are while it
        dominates, and on the host, which they are while there is room: nothing is loaded for a
        merge. One that cannot be merged counts as the bare base, and is not tried again.
        """
        if self._policy is None or self._by_admin:
            return
        self._policy.observe(rows)
        wanted = self._policy.choose(self.mixture)
        if wanted is not None and not self._may_be_merged(wanted):
            wanted = None
        if wanted == self.mixture:
            return
        try:
            self.switch(wanted, by_admin=False)
        except EngineError:
            assert wanted is not None
            self._passed_over[wanted] = None
            if len(self._passed_over) > _REMEMBERED:
                self._passed_over.popitem(last=False)
            self._let_go()

    def _let_go(self) -> None:
        """Restore the base, if it holds anything."""
        if self.mixture is not None:
            self.switch(None, by_admin=False)

    def _may_be_merged(self, mixture: ResolvedMixture) -> bool:
        """Whether its adapters are there, in nobody's way, and it was not passed over."""
        if mixture == self.mixture:
            return True
        if mixture in self._passed_over:
            self._passed_over.move_to_end(mixture)
            return False
        residency, digests = self._residency, mixture.digests
        is_there = residency.are_resident(digests) and residency.are_on_host(digests)
        return is_there and not residency.would_block(digests)
