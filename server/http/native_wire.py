"""Bodies of /generate and /score, to and from the use case: what is asked, what is told."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial

from router_engine.excerpt import excerpt
from router_engine.request import SamplingSpec
from server.errors import InputError
from server.generation.generation import (
    Completion,
    Generation,
    PreparedRequest,
    fresh_seed,
    text_size,
)
from server.generation.generation_input import GenerationInput
from server.generation.tokenization import Tokenization
from server.http.rendering import gates_of, routing_of, uncertainty_of
from server.schemas.generate import GenerateBody, Parameters
from server.schemas.score import Score, ScoreBody, ScoredToken, ScoreReply


def inputs_of(
    body: GenerateBody, generation: Generation, prompt_ids: tuple[int, ...] | None = None
) -> tuple[GenerationInput, int | None]:
    """The inputs that a body gives, and the seed that the answer reports (None when greedy).

    prompt_ids: those of `inputs`, where they are known already.
    """
    parameters = body.parameters
    ids = _prompt_ids(body, generation.tokenization) if prompt_ids is None else prompt_ids
    if parameters.truncate is not None:
        ids = ids[-parameters.truncate :]
    sampling, seed = _sampling(parameters)
    inputs = GenerationInput(
        prompt_ids=ids,
        text=body.inputs,
        sampling=sampling,
        max_new_tokens=parameters.max_new_tokens,
        mixture=body.mixture,
        adapter=parameters.adapter_id or None,
        stops=tuple(parameters.stop),
        ignore_eos=parameters.ignore_eos_token,
        priority=body.priority,
        report_gates=parameters.gates,
    )
    return inputs, seed


def _prompt_ids(body: GenerateBody, tokenization: Tokenization) -> tuple[int, ...]:
    """Of `inputs`; at least the last ones, where only these are wanted."""
    parameters = body.parameters
    if parameters.apply_chat_template:
        return tokenization.chat([{"role": "user", "content": body.inputs}])
    if parameters.truncate is not None:
        return tokenization.encode_last(body.inputs, parameters.truncate)
    return tokenization.encode(body.inputs)


def _sampling(parameters: Parameters) -> tuple[SamplingSpec, int | None]:
    temperature = parameters.temperature or (1.0 if parameters.do_sample else 0.0)
    seed = parameters.seed if parameters.seed is not None or temperature == 0 else fresh_seed()
    parameters_set = parameters.model_dump(
        include={
            *("min_new_tokens", "top_p", "top_k", "min_p"),
            *("repetition_penalty", "frequency_penalty", "presence_penalty"),
        },
        exclude_none=True,
    )
    top = max(parameters.top_n_tokens or 0, parameters.return_k_alternatives or 0)
    sampling = SamplingSpec(
        **parameters_set,
        temperature=temperature,
        seed=seed or 0,
        top_n_tokens=top,
        report_entropy=parameters.uncertainty,
    )
    return sampling, seed


def score_input_of(body: ScoreBody, generation: Generation) -> GenerationInput:
    """The inputs that a body gives, without its completions."""
    return GenerationInput(
        prompt_ids=generation.tokenization.encode(body.inputs),
        text=body.inputs,
        sampling=SamplingSpec(report_entropy=body.uncertainty),
        mixture=body.mixture,
        adapter=body.adapter,
        priority=body.priority,
        endpoint="score",
        report_gates=body.gates,
    )


async def prepared_scores(body: ScoreBody, generation: Generation) -> list[PreparedRequest]:
    """One request a completion. Raises InputError, and what `prepare_scores` raises."""
    generation.require_places(len(body.completions), "completions")
    size = text_size([body.inputs, *body.completions])
    inputs = await generation.read(partial(score_input_of, body, generation), size)
    generation.require_fit(len(inputs.prompt_ids))
    encode = generation.tokenization.encode
    completions = []
    # One after the other: others have their turn between them, and what is too long ends it.
    for index, text in enumerate(body.completions):
        field = f"completions.{index}"
        read = partial(encode, text, field=field, add_special_tokens=False)
        ids = await generation.read(read, size)
        if not ids:
            raise InputError(field, excerpt(text), "has no tokens to score")
        generation.require_room(inputs, len(ids))
        completions.append(ids)
    prepared = await generation.prepare_scores(inputs, completions)
    generation.require_places(sum(1 + len(item.plan.ensemble) for item in prepared), "completions")
    return prepared


async def run_scores(
    prepared: Sequence[PreparedRequest], generation: Generation
) -> list[Completion]:
    """All completions, the first alone: the others find the prompt's blocks in the prefix cache."""
    first = await generation.run(prepared[0])
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(generation.run(item)) for item in prepared[1:]]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None  # the others were cancelled for its sake
    return [first, *(task.result() for task in tasks)]


def score_reply(completions: Sequence[Completion]) -> ScoreReply:
    """The scores of completions that have run, in their order."""
    return ScoreReply(
        prompt_tokens=completions[0].prompt_tokens,
        scores=[_score(completion) for completion in completions],
    )


def _score(completion: Completion) -> Score:
    tokens = [
        ScoredToken(
            id=piece.event.token_id,
            text=piece.text,
            logprob=piece.event.logprob,
            uncertainty=uncertainty_of(piece.event),
        )
        for piece in completion.pieces
    ]
    return Score(
        logprob=sum(token.logprob for token in tokens),
        tokens=tokens,
        routing=routing_of(completion),
        gates=gates_of(completion),
    )
