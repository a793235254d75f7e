"""The engine: `plan = schedule(); out = run(plan); events = update(plan, out)`, and little else.

One thread owns it and nothing in it blocks: files are read by the residency's threads, weights come
from routers that live elsewhere, and both only `wake` the owner.
"""

from __future__ import annotations

import functools
import itertools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from types import MappingProxyType
from typing import TypeVar

import torch

from adapters_store.errors import StoreError
from adapters_store.types import ResolvedMixture
from router_engine.assembly import assemble
from router_engine.backends.torch.projections import ModelProjections
from router_engine.config import EngineConfig
from router_engine.description import describe
from router_engine.errors import AdapterLoadError, EngineError, MixtureError, RequestRefusedError
from router_engine.events import EngineEvent, FinishReason
from router_engine.experts.base import AdapterSource
from router_engine.experts.residency import ADMIN, ResidencyManager
from router_engine.info import AdapterResidency, EngineInfo, MergedState
from router_engine.kv.block_pool import BlockPool
from router_engine.merging.control import MERGED, MergeControl
from router_engine.merging.merge_bound import MergeBound
from router_engine.merging.merged_base import MergedBase
from router_engine.mixture.rules import (
    ARROW_NEEDS_PLAIN_LORA,
    NOT_BEFORE_THE_PROMPT,
    check_mixture,
    require_plain_lora,
    without_zeros,
)
from router_engine.request import EngineRequest
from router_engine.routers.base import HiddenRouter, LayerRouter, TokenRouter
from router_engine.routing import RunningRouters
from router_engine.runner import RunningStep
from router_engine.scheduling.gate_statistics import GateCounts
from router_engine.scheduling.integrity import check_integrity
from router_engine.scheduling.plan import StepPlan
from router_engine.scheduling.request_validation import NO_MEMORY
from router_engine.scheduling.scheduler import Scheduler
from router_engine.stats import EngineStats

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")


class Engine:
    """One base model, its adapters, and every live request."""

    def __init__(
        self,
        config: EngineConfig,
        *,
        adapters: AdapterSource,
        token_routers: Mapping[str, TokenRouter],
        wake: Callable[[], None],
        hidden_routers: Mapping[str, HiddenRouter] = MappingProxyType({}),
        layer_routers: Mapping[str, LayerRouter] = MappingProxyType({}),
    ) -> None:
        parts = assemble(config)
        config, loaded, backend = parts.config, parts.loaded, parts.backend
        self.model, self.base, self.backend = loaded.model, parts.base, backend
        self._routing = RunningRouters(token_routers, hidden_routers, layer_routers)
        self._experts, self._runner, self._cache = parts.experts, parts.runner, parts.cache
        self._blocks = BlockPool(self._cache.num_blocks)
        self.info = describe(parts, self._routing)
        self._scheduler = _scheduler(config, self._blocks, self.info)
        base, quantization = MergedBase(backend), config.model.quantization
        self._residency = ResidencyManager(
            self._experts.pool,
            adapters,
            config.adapters,
            ModelProjections(loaded, base),
            wake,
            config.scheduler,
            lambda: backend.capabilities.expert_kinds,  # of no engine: it would hold itself
        )
        bound = MergeBound(base, loaded.dtype, [block.path for block in parts.base.blocks])
        self._merge = MergeControl(base, self._residency, config.merge, quantization, bound)
        self._events: list[EngineEvent] = []
        # By owner of an admin: what follows once its adapters are there, or the reason why not.
        self._tasks: dict[str, Callable[[EngineError | None], None]] = {}
        self._task_ids = itertools.count()
        self._gates = GateCounts()
        self._ahead: RunningStep | None = None  # begun before the last one's results were there
        self._steps = 0
        self._step_seconds = 0.0

    # Requests

    def add_request(self, request: EngineRequest) -> None:
        """Take a request on. One that can never run gets its final event from the next step."""
        request_id = request.request_id
        layer_routing, reason = self._routing.layer_routing(request)
        final = self._scheduler.add(request, layer_routing)
        if final is not None:
            self._events.append(final)
            return
        if reason is not None:
            self._fail(request_id, reason, FinishReason.REFUSED)
            return
        failure = self._routing.begin(request, self._scheduler)
        if failure is not None:
            self._fail(*failure)
        adapters = request.all_adapters
        if adapters and self._residency.acquire(request_id, adapters):
            self._on_resident(request_id, None)

    def cancel(self, request_id: str) -> None:
        """End a request wherever it is; unknown ids are ignored."""
        final = self._scheduler.cancel(request_id)
        if final is not None:
            self._events.append(final)
        self._release_finished()

    def step(self) -> list[EngineEvent]:
        """One step. Returns what happened since the last one; [] when there was nothing to do."""
        self._poll_sources()
        started = time.perf_counter()
        step = self._ahead or self._begin(self._scheduler.schedule())
        if step is not None:
            self._ahead = self._begin_ahead(step)
            output = step.output()
            self._step_seconds += time.perf_counter() - started
            self._steps += 1
            if output.gates is not None:
                self._gates.add(output.gates, step.plan.logit_tokens)
            self._events.extend(self._scheduler.update(step.plan, output))
        self._route()  # what was computed, or found in the prefix cache
        events, self._events = self._events, []
        return events

    @property
    def has_work(self) -> bool:
        """Whether another step would do something now; if not, wait for `wake` or a command."""
        is_running = self._ahead is not None or self._scheduler.has_runnable
        return bool(self._events) or is_running or self._residency.has_news

    # Adapters and the merged base

    def load(self, digest: str) -> Future[AdapterResidency]:
        """Bring an adapter to the device; evictable again at once, as if a request had used it."""
        done: Future[AdapterResidency] = Future()
        describe = functools.partial(self._residency.describe, digest)
        self._when_resident((digest,), done, lambda: None, describe)
        return done

    def pin(self, digest: str, *, pinned: bool) -> Future[AdapterResidency]:
        """Load an adapter and keep it on the device, or let it go again."""
        if not pinned:
            self._residency.pin(digest, pinned=False)
            return self._residency.described(digest)
        done: Future[AdapterResidency] = Future()
        act = functools.partial(self._residency.pin, digest, pinned=True)
        describe = functools.partial(self._residency.describe, digest)
        self._when_resident((digest,), done, act, describe)
        return done

    def unload(self, digest: str) -> int:
        """Drop an adapter from device and host; bytes freed. AdapterBusyError while in use."""
        return self._residency.unload(digest)

    def residency(self) -> tuple[AdapterResidency, ...]:
        return self._residency.residency()

    def merge(self, mixture: ResolvedMixture | None) -> Future[MergedState]:
        """Fold a mixture into the base once its adapters are there; None restores the base.

        They are to be on the host, too. A mixture without weights other than 0 is None: nothing is
        merged then.
        """
        done: Future[MergedState] = Future()
        mixture = None if mixture is None else without_zeros(mixture)
        if mixture is None:
            self._merge.switch(None, by_admin=True)
            done.set_result(self.merged())
            return done
        switch = functools.partial(self._merge.switch, mixture, by_admin=True)
        self._when_resident(mixture.digests, done, switch, self.merged, on_host=True)
        return done

    def merged(self) -> MergedState:
        return self._merge.state

    def _begin(self, plan: StepPlan | None) -> RunningStep | None:
        """None where the device has no memory for a step: then the next one is smaller."""
        if plan is None:
            return None
        self._merge.follow(plan.rows)
        try:
            return self._runner.begin(plan, self._merge.mixture)
        except torch.OutOfMemoryError:
            _log.warning("no memory on the device for a step of %d tokens", plan.num_tokens)
        # Past the error, whose traceback holds the step's tensors.
        self._experts.pool.forget_gathered()
        torch.cuda.empty_cache()
        for head in self._scheduler.planner.shrink(plan):
            self._fail(head.request_id, NO_MEMORY)
        return None

    def _begin_ahead(self, running: RunningStep) -> RunningStep | None:
        """The step behind one that the device still works on, which so never waits for the host.

        None where that has to wait for the results, or finds no memory.
        """
        plan = self._scheduler.ahead.plan(running.plan) if self._runner.runs_ahead else None
        if plan is None:
            return None
        self._merge.follow(plan.rows)
        try:
            return self._runner.begin(plan, self._merge.mixture)
        except torch.OutOfMemoryError:
            return None  # which `_begin` sees to

    # The rest

    def put_centroids(self, router: str, centroids: Mapping[str, Sequence[float]]) -> None:
        """What a router that reads hidden states knows adapters by. Raises RouterError."""
        self._routing.put(router, centroids)

    def stats(self) -> EngineStats:
        scheduler, gauges = self._scheduler, self._scheduler.gauges
        counters, kv_blocks = self._residency.counters, self._scheduler.kv_blocks
        recent, counters.recent = tuple(counters.recent), []
        return EngineStats(
            steps=self._steps,
            running=gauges.running,
            waiting=gauges.waiting,
            waiting_for_adapters=gauges.waiting_for_adapters,
            waiting_for_weights=gauges.waiting_for_weights,
            prompt_tokens=scheduler.counters.prompt_tokens,
            generated_tokens=scheduler.counters.generated_tokens,
            prefix_queried_tokens=kv_blocks.prefix.queried,
            prefix_hit_tokens=kv_blocks.prefix.hit,
            preemptions=scheduler.counters.preemptions,
            steps_without_memory=scheduler.counters.shrunk,
            blocks_total=self._blocks.num_blocks,
            blocks_owned=self._blocks.num_owned,
            blocks_cached=self._blocks.num_cached,
            adapter_memory_bytes=self._experts.pool.memory.num_bytes,
            adapter_memory_used_bytes=self._experts.pool.used_bytes,
            rank_rows_used=self._experts.pool.used_rows,
            memory=self.info.memory,
            adapters_device=self._residency.num_device,
            adapters_host=self._residency.num_host,
            adapter_loads=counters.loads,
            adapter_evictions=counters.evictions,
            adapter_load_seconds=counters.load_seconds,
            merges=self._merge.switches,
            step_seconds=self._step_seconds,
            gate_counts=self._gates.counts,
            gate_total=self._gates.total,
            load_seconds_recent=recent,
            kernels=self.backend.capabilities.kernels,
        )

    def check_integrity(self) -> None:
        """The invariants of design section 6; raises naming what broke."""
        check_integrity(self._scheduler, self._blocks)
        self._residency.check_integrity({*self._scheduler.live, *self._tasks, MERGED})

    def close(self) -> None:
        self._residency.close()
        self._routing.close()
        self._cache.close()

    def _poll_sources(self) -> None:
        """Take in what came from outside: loaded adapters, routed weights."""
        results = self._residency.poll()
        self._merge.give_way()  # which the next `poll` makes use of
        for owner in results.ready:
            self._on_resident(owner, None)
        for owner, reason in results.failed:
            self._on_resident(owner, AdapterLoadError(reason))
        for owner, reason in results.refused:
            self._on_resident(owner, RequestRefusedError(reason))
        self._route()

    def _route(self) -> None:
        """Let routers go on; then let go of what ended requests held."""
        for failure in self._routing.advance(self._scheduler):
            self._fail(*failure)
        self._release_finished()

    def _on_resident(self, owner: str, error: EngineError | None) -> None:
        task = self._tasks.pop(owner, None)
        if task is not None:
            task(error)
        elif isinstance(error, RequestRefusedError):
            self._fail(owner, str(error), FinishReason.REFUSED)
        elif error is not None:
            self._fail(owner, str(error))
        elif owner in self._scheduler.live:
            self._validate_and_queue(self._scheduler.live[owner].request)

    def _validate_and_queue(self, request: EngineRequest) -> None:
        """Its adapters are on the device, so what they hold is known: check the mixture, go on."""
        weights = request.weights or (1.0,) * len(request.adapters)
        manifests = {digest: self._residency.manifest(digest) for digest in request.adapters}
        whole = [digest for digest, each in manifests.items() if each.reads_whole_prompts]
        try:
            mixture = ResolvedMixture(request.adapters, weights, request.combination)
            check_mixture(mixture, tuple(manifests.values()))
            if request.layer_routing is not None:
                for digest, manifest in manifests.items():
                    require_plain_lora(digest, manifest, ARROW_NEEDS_PLAIN_LORA)
            if request.reads_hidden_states and whole:
                raise MixtureError(f"{whole[0]}: {NOT_BEFORE_THE_PROMPT}")
        except MixtureError as error:
            self._fail(request.request_id, str(error), FinishReason.REFUSED)
        else:
            self._scheduler.adapters_ready(request.request_id, reads_whole_prompt=bool(whole))

    def _fail(
        self, request_id: str, error: str, reason: FinishReason = FinishReason.FAILED
    ) -> None:
        final = self._scheduler.fail(request_id, reason, error)
        if final is not None:
            self._events.append(final)

    def _release_finished(self) -> None:
        """Let go of the adapters, sessions and logits of requests that have ended."""
        for request in self._scheduler.take_finished():
            self._residency.release(request.request_id)
            self._routing.end(request)
            self._runner.forget(request.request_id)

    def _when_resident(
        self,
        digests: tuple[str, ...],
        done: Future[_Result],
        act: Callable[[], None],
        result: Callable[[], _Result],
        *,
        on_host: bool = False,
    ) -> None:
        """Once the adapters are on the device, now or in a later step: act, then tell `done`."""
        owner = f"{ADMIN}{next(self._task_ids)}"

        def follow(error: EngineError | None) -> None:
            try:
                if error is not None:
                    raise error
                act()
                outcome = result()
            except (EngineError, StoreError) as failure:
                done.set_exception(failure)
            else:
                done.set_result(outcome)
            finally:
                self._residency.release(owner)

        if self._residency.acquire(owner, digests, on_host=on_host):
            follow(None)
        else:
            self._tasks[owner] = follow


def _scheduler(config: EngineConfig, blocks: BlockPool, info: EngineInfo) -> Scheduler:
    return Scheduler(
        config.scheduler,
        blocks,
        block_size=config.cache.block_size,
        max_model_len=info.max_model_len,
        vocab_size=info.vocab_size,
        prefix_cache=config.cache.prefix_cache,
    )
