"""Ensembles: requests of several sequences that read one text and draw its tokens together.

All members are admitted, preempted and ended together. Between, each has blocks and chunks of its
own, and one that has its logits waits until the others have theirs: it has no token to compute.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from router_engine.request import EngineRequest
from router_engine.scheduling.plan import EnsembleMember
from router_engine.scheduling.state import RequestState


def child_requests(request: EngineRequest) -> tuple[EngineRequest, ...]:
    """What the members behind an ensemble's first run; () for a request that is none."""
    return tuple(
        replace(
            request,
            request_id=f"{request.request_id}#{index}",
            adapters=adapters,
            ensemble=(),
            report_gates=False,
        )
        for index, adapters in enumerate(request.ensemble, 1)
    )


def ensemble_members_of(
    chunks: Mapping[str, tuple[RequestState, int]],
) -> dict[str, EnsembleMember]:
    """Seats of the members whose logits come of a step, by request id.

    chunks: (request, stop position) of the step's rows, in their order. The last row of an ensemble
    draws where no other member lacks its logits.
    """
    last: dict[str, str] = {}  # the row of an ensemble that comes last
    sampled: dict[str, RequestState] = {}
    for name, (state, stop) in chunks.items():
        if state.head.children and stop == len(state.tokens):
            sampled[name] = state
            last[state.head.request_id] = name
    return {
        name: EnsembleMember(
            ensemble=state.head.request_id,
            member=state.head.members.index(state),
            size=len(state.head.members),
            samples_token=last[state.head.request_id] == name
            and all(
                member.request_id in sampled or member.num_computed == len(member.tokens)
                for member in state.head.members
            ),
        )
        for name, state in sampled.items()
    }
