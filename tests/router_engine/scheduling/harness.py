"""A runner without a model: KV entries and tokens are hashes, so any mix-up changes the text.

The entry at a position hashes the entries before it *as found through the block table*, the token
and the mixture in force; a token is drawn from the entry at the last position.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from msgspec import structs

from adapters_store.types import mixture_key
from router_engine.config import SchedulerConfig
from router_engine.events import EngineEvent, FinalEvent, FinishReason, TokenEvent
from router_engine.kv.block_pool import BlockPool
from router_engine.request import EngineRequest, Reports, SamplingSpec, TokenRouting
from router_engine.scheduling.integrity import check_integrity
from router_engine.scheduling.plan import PlannedRow, SampledToken, StepOutput, StepPlan
from router_engine.scheduling.request_validation import NOT_FINITE
from router_engine.scheduling.scheduler import Scheduler

BLOCK_SIZE = 4
MAX_MODEL_LEN = 48
VOCAB = 40
Weights = tuple[float, ...]


def hashed(*parts: object) -> bytes:
    return hashlib.sha256(repr(parts).encode()).digest()


def token_from(entry: bytes) -> int:
    return int.from_bytes(entry[:4], "little") % VOCAB


def router_weights(token_ids: Sequence[int], candidates: int) -> Weights:
    """What the router of these tests says of a text: few values, so that they recur."""
    entry = hashed("router", tuple(token_ids))
    return tuple(entry[i] % 3 / 2 for i in range(candidates))


class HashRunner:
    """KV entries by (block, offset); `run` is what the model's runner is in the engine."""

    def __init__(self) -> None:
        self.kv: dict[tuple[int, int], tuple[int, bytes]] = {}  # -> (position, entry)
        self.kept: dict[str, dict[int, bytes]] = defaultdict(dict)  # entries of ensembles' members
        self.spoilt: set[str] = set()  # sequences of which nothing that is computed is finite
        self.writers: dict[int, str] = {}  # by block: the sequence that wrote there last
        self._drawn: list[int] = []  # the tokens of the last step

    def run(self, plan: StepPlan) -> StepOutput:
        samples = []
        if plan.fed is not None:
            tokens_of = [self._drawn[index] for index in plan.fed]
            rows = zip(plan.rows, tokens_of, strict=True)
            plan = StepPlan(tuple(structs.replace(row, token_ids=(one,)) for row, one in rows))
        finite = np.ones(plan.num_tokens, dtype=np.bool_)
        for row, tokens in plan.parts:
            finite[tokens] = row.request_id not in self.spoilt
            entry = self._run_row(row)
            if row.ensemble_member is not None:
                self.kept[row.ensemble_member.ensemble][row.ensemble_member.member] = entry
            if row.samples_token:
                samples.append(SampledToken(token_from(self._drawn_from(row, entry)), -1.0))
        self._drawn = [sample.token_id for sample in samples]
        # Of probed requests the scheduler adds up the states, whatever they are.
        hidden_states = (
            np.ones((plan.num_tokens, 1), dtype=np.float32) if plan.reads_hidden_states else None
        )
        return StepOutput(tuple(samples), hidden_states, finite=finite)

    def _drawn_from(self, row: PlannedRow, entry: bytes) -> bytes:
        if row.ensemble_member is None:
            return entry
        kept = self.kept.pop(row.ensemble_member.ensemble)
        return together([kept[index] for index in range(row.ensemble_member.size)])

    def _run_row(self, row: PlannedRow) -> bytes:
        by_position = [weights.dense for length, weights in row.weight_runs for _ in range(length)]
        assert len(by_position) == len(row.token_ids) > 0
        entries = [self._read(row, position) for position in range(row.start)]
        for token, weights in zip(row.token_ids, by_position, strict=True):
            position = len(entries)
            entries.append(entry_of(entries, token, row, weights))
            place = self._place(row, position)
            self.kv[place] = (position, entries[-1])
            self.writers[place[0]] = row.request_id
        return entries[-1]

    def _read(self, row: PlannedRow, position: int) -> bytes:
        written_at, entry = self.kv[self._place(row, position)]
        assert written_at == position
        return entry

    @staticmethod
    def _place(row: PlannedRow, position: int) -> tuple[int, int]:
        return row.block_ids[position // BLOCK_SIZE], position % BLOCK_SIZE


def entry_of(
    before: Sequence[bytes], token: int, of: PlannedRow | EngineRequest, weights: Weights
) -> bytes:
    """KV entry of a token behind the entries `before`, under a mixture."""
    mixture = mixture_key(dict(zip(of.adapters, weights, strict=True)), of.combination)
    return hashed(tuple(before), token, mixture)


def together(entries: Sequence[bytes]) -> bytes:
    """What an ensemble draws from: the last entries of all its members."""
    return hashed(*entries)


def expected_ensemble(request: EngineRequest) -> list[int]:
    """The same of an ensemble: each member has entries of its own."""
    tokens, sampling = list(request.prompt_token_ids), request.sampling
    members = [replace(request, adapters=each) for each in (request.adapters, *request.ensemble)]
    entries: list[list[bytes]] = [[] for _ in members]
    for index in range(sampling.max_new_tokens):
        for member, own in zip(members, entries, strict=True):
            for token in tokens[len(own) :]:
                own.append(entry_of(own, token, member, member.weights))
        drawn = token_from(together([own[-1] for own in entries]))
        if drawn in sampling.stop_token_ids and index >= sampling.min_new_tokens:
            break
        tokens.append(drawn)
        if len(tokens) == MAX_MODEL_LEN:
            break
    return tokens[len(request.prompt_token_ids) :]


def expected_tokens(request: EngineRequest) -> list[int]:
    """The text of a request that runs alone in unbounded memory; stop ids end it unseen."""
    if request.ensemble:
        return expected_ensemble(request)
    tokens = list(request.prompt_token_ids)
    entries: list[bytes] = []
    weights = request.weights
    sampling, routing = request.sampling, request.routing
    for index in range(sampling.max_new_tokens):
        if routing is not None and _renewed(routing, index):
            seen = len(request.prompt_token_ids) + max(0, index - routing.lag)
            weights = router_weights(tokens[:seen], len(request.adapters))
            if routing.context == "recompute":
                entries = []
        for token in tokens[len(entries) :]:
            entries.append(entry_of(entries, token, request, weights))
        drawn = token_from(entries[-1])
        if drawn in sampling.stop_token_ids and index >= sampling.min_new_tokens:
            break
        tokens.append(drawn)
        if len(tokens) == MAX_MODEL_LEN:
            break
    return tokens[len(request.prompt_token_ids) :]


def _renewed(routing: TokenRouting, index: int) -> bool:
    """Whether new weights hold from the pass that yields token `index`."""
    since = index - routing.lag
    return index == 0 or (since >= 0 and since % routing.every == 0)


class Drive:
    """The engine's loop around a scheduler; checks integrity after every operation."""

    def __init__(
        self,
        config: SchedulerConfig,
        *,
        num_blocks: int = 64,
        prefix_cache: bool = True,
        ahead: bool = False,
    ) -> None:
        """ahead: the next step begins before the results of one are there, where it may."""
        self.now = 0.0
        self._runs_ahead = ahead
        self._ahead: tuple[StepPlan, StepOutput] | None = None
        self.pool = BlockPool(num_blocks)
        self.scheduler = Scheduler(
            config,
            self.pool,
            block_size=BLOCK_SIZE,
            max_model_len=MAX_MODEL_LEN,
            prefix_cache=prefix_cache,
            clock=lambda: self.now,
        )
        self.runner = HashRunner()
        self.requests: dict[str, EngineRequest] = {}
        self.asks: dict[str, int] = {}  # request id -> length of the text asked about first
        self._later: dict[str, deque[int]] = defaultdict(deque)  # and of those after it
        self.texts: dict[str, list[int]] = {}  # what the router was told
        self.tokens: dict[str, list[int]] = defaultdict(list)
        self.weights: dict[str, list[Weights]] = defaultdict(list)
        self.finals: dict[str, FinalEvent] = {}
        self.plans: list[StepPlan] = []

    def add(self, request: EngineRequest, *, ready: bool = True) -> FinalEvent | None:
        """`ready`: adapters are on the device, and the router answers about the prompt at once."""
        self.requests[request.request_id] = request
        final = self.scheduler.add(request)
        self._note([final])
        if final is None and request.routing is not None:
            self._tell(request.request_id, request.prompt_token_ids)
        if ready:
            self.scheduler.adapters_ready(request.request_id)
            self.answer(request.request_id)
        self.check()
        return final

    def answer(self, request_id: str) -> None:
        """The router answers what it was asked about a request, if it was."""
        num_tokens = self.asks.pop(request_id, None)
        if num_tokens is not None:
            request = self.requests[request_id]
            weights = router_weights(self.texts[request_id][:num_tokens], len(request.adapters))
            self.scheduler.set_weights(request_id, num_tokens, weights)
            if self._later[request_id]:
                self.asks[request_id] = self._later[request_id].popleft()
            self.check()

    def answer_all(self) -> None:
        for request_id in tuple(self.asks):
            self.answer(request_id)

    def cancel(self, request_id: str) -> None:
        self._note([self.scheduler.cancel(request_id)])
        self.check()

    def step(self, cancelled_in_flight: Sequence[str] = ()) -> StepPlan | None:
        step = self._ahead or self._begin()
        if step is None:
            return None
        plan, out = step
        self._ahead = self._begin_ahead(plan) if self._runs_ahead else None
        for request_id in cancelled_in_flight:
            self.cancel(request_id)
        self._note(self.scheduler.update(plan, out))
        self.check()
        for _, request_id, token_ids in self.scheduler.take_queries().text:
            self._tell(request_id, token_ids)
        self.now += 1.0
        return plan

    def _begin(self) -> tuple[StepPlan, StepOutput] | None:
        runnable = self.scheduler.has_runnable
        plan = self.scheduler.schedule()
        self.check()
        if plan is None:
            assert not self.scheduler.has_runnable
            return None
        assert runnable
        return plan, self._run(plan)

    def _begin_ahead(self, running: StepPlan) -> tuple[StepPlan, StepOutput] | None:
        plan = self.scheduler.ahead.plan(running)
        self.check()
        return None if plan is None else (plan, self._run(plan))

    def _run(self, plan: StepPlan) -> StepOutput:
        assert plan.num_tokens <= self.scheduler.config.max_step_tokens
        assert len({row.request_id for row in plan.rows}) == len(plan.rows)
        self.plans.append(plan)
        return self.runner.run(plan)

    def run_until_stuck(self) -> None:
        """Step without answering any question, until nobody can run."""
        while self.step() is not None:
            pass

    def drain(self, max_steps: int = 5000) -> None:
        """Step, and answer every question at once, until nobody is live."""
        for _ in range(max_steps):
            self.answer_all()
            for request_id in tuple(self.scheduler.live):
                self.scheduler.adapters_ready(request_id)
            if not self.scheduler.live:
                return
            assert self.step() is not None, "live requests, but none can run"
        raise AssertionError(f"still live after {max_steps} steps: {list(self.scheduler.live)}")

    def check(self) -> None:
        check_integrity(self.scheduler, self.pool)
        failed = {name for name, final in self.finals.items() if final.error == NOT_FINITE}
        for block in self.pool.keys if failed else ():
            writer, _, _ = self.runner.writers[block].partition("#")  # the request of a member
            assert writer not in failed, f"block {block} of {writer!r}, which failed, is findable"

    def check_texts(self) -> None:
        """Every request ended once, and its text is that of the request alone."""
        assert self.finals.keys() == self.requests.keys()
        for request_id, request in self.requests.items():
            final, tokens = self.finals[request_id], self.tokens[request_id]
            if final.reason is FinishReason.REFUSED:
                assert tokens == []
                continue
            expected = expected_tokens(request)
            whole = final.reason in (FinishReason.LENGTH, FinishReason.STOP_TOKEN)
            assert tokens == (expected if whole else expected[: len(tokens)])
            assert final.num_generated_tokens == len(tokens)

    def _tell(self, request_id: str, token_ids: Sequence[int]) -> None:
        text = self.texts.setdefault(request_id, [])
        text.extend(token_ids)
        if self.asks.setdefault(request_id, len(text)) != len(text):
            routing = self.requests[request_id].routing
            assert routing is not None
            assert routing.lag > 0, "asked again before the answer"
            self._later[request_id].append(len(text))

    def _note(self, events: Sequence[EngineEvent | None]) -> None:
        for event in events:
            if event is None:
                continue
            assert event.request_id not in self.finals, "an event after the final one"
            if isinstance(event, TokenEvent):
                self.tokens[event.request_id].append(event.token_id)
                self.weights[event.request_id].append(event.weights)
            else:
                self.finals[event.request_id] = event


def fixed(
    request_id: str,
    prompt: Sequence[int],
    new: int = 4,
    *,
    mixture: Mapping[str, float] | None = None,
    priority: int = 0,
    sampling: SamplingSpec | None = None,
) -> EngineRequest:
    mixture = mixture or {}
    return EngineRequest(
        request_id,
        tuple(prompt),
        sampling or SamplingSpec(max_new_tokens=new),
        tuple(mixture),
        tuple(mixture.values()),
        priority=priority,
    )


def routed(
    request_id: str, prompt: Sequence[int], new: int = 4, *, routing: TokenRouting
) -> EngineRequest:
    return EngineRequest(
        request_id,
        tuple(prompt),
        SamplingSpec(max_new_tokens=new),
        ("sha256:a", "sha256:b"),
        routing=routing,
        reports=Reports(weights=True),
    )
