"""Ensembles: requests of several sequences that read one text and draw its tokens together.

All members are admitted, preempted and ended together. Between, each has blocks and chunks of its
own, and one that has its logits waits until the others have theirs: it has no token to compute.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from router_engine.request import EngineRequest
from router_engine.scheduling.plan import EnsembleMember
from router_engine.scheduling.state import Ensemble, RequestState


def member_requests(request: EngineRequest) -> tuple[EngineRequest, ...]:
    """The request of each sequence, itself the first; itself alone where it is no ensemble."""
    return (
        request,
        *(
            replace(
                request,
                request_id=f"{request.request_id}#{index}",
                adapters=adapters,
                ensemble=(),
                reports=replace(request.reports, gates=False),
            )
            for index, adapters in enumerate(request.ensemble, 1)
        ),
    )


def join(states: Sequence[RequestState]) -> None:
    """Make one ensemble of several sequences: they read one text and have one turn."""
    ensemble, head = Ensemble(tuple(states)), states[0]
    for state in states:
        state.ensemble, state.tokens, state.turn = ensemble, head.tokens, head.turn


def ensemble_members_of(
    chunks: Mapping[str, tuple[RequestState, int]],
) -> dict[str, EnsembleMember]:
    """Members whose logits come of a step, by the request id of their sequence.

    chunks: (request, stop position) of the step's rows, in their order. The last row of an ensemble
    draws where no other member lacks its logits.
    """
    last: dict[str, str] = {}  # the row of an ensemble that comes last
    ending: dict[str, tuple[RequestState, Ensemble]] = {}  # chunks that end with the text
    for name, (state, stop) in chunks.items():
        if state.ensemble is not None and stop == len(state.tokens):
            ending[name] = state, state.ensemble
            last[state.ensemble.head.request_id] = name
    return {
        name: EnsembleMember(
            ensemble=ensemble.head.request_id,
            member=ensemble.members.index(state),
            size=len(ensemble.members),
            samples_token=last[ensemble.head.request_id] == name
            and all(
                member.request_id in ending or member.num_computed == len(member.tokens)
                for member in ensemble.members
            ),
        )
        for name, (state, ensemble) in ending.items()
    }
