"""`Mixture`: which adapters act on a request, how strongly. The server's own rules check it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from pydantic import ValidationError

from adaptermix.errors import InvalidInputError
from adaptermix.invalid import explained
from adapters_store.types import Combination
from router_engine.request import Context, Level
from server.schemas.mixture import MixtureChoice

_LEVELS: dict[str, Level] = {  # of built-in routers that don't work where others do: at request
    "arrow": "layer",
    "given": "token",
    "hidden_mean": "token",
}


@final
@dataclass(frozen=True, init=False, repr=False)
class Mixture:
    """Adapters with weights, or a router that chooses the weights from the text.

        Mixture(math=0.7, code=0.3)
        Mixture({"team.math@3": 0.7, "sha256:...": 0.3})
        Mixture.routed("similarity", candidates=["math", "code"], level="token", every=4)
        Mixture.base()

    Frozen, and equal where it asks for the same. Raises InvalidInputError for what no server takes.
    """

    body: MixtureChoice | None  # as the HTTP API has it; None is the base model

    def __init__(
        self,
        adapters: Mapping[str, float] | None = None,
        /,
        *,
        combination: Combination | None = None,
        copies: Mapping[str, Mapping[str, Any]] | None = None,
        **weights: float,
    ) -> None:
        """A fixed mixture: references (name, name@version, name@alias, digest) with their weights.

        adapters: for references that are no keywords, such as `math@2`.
        combination: "sum" (the default, exact) or "linear" (PEFT's).
        copies: for adapters that keep copies apart (AdaMix), which of them act, such as
            `{"math": {"mode": "ensemble", "members": 4}}`.
        """
        _require_mapping("adapters", adapters, 'Mixture({"math@2": 1.0})')
        twice = sorted(set(adapters or {}) & set(weights))
        if twice:
            raise InvalidInputError(f"{twice[0]} has two weights: name it once")
        chosen = {**(adapters or {}), **weights}
        if not chosen:
            raise InvalidInputError(
                "a mixture names at least one adapter, such as Mixture(math=1.0); "
                "Mixture.base() is the base model"
            )
        items = [{"name": name, "weight": weight} for name, weight in chosen.items()]
        spec: dict[str, Any] = {"adapters": items}
        if combination is not None:
            spec["combination"] = combination
        _add_copies(spec, copies)
        self._set(spec)

    @classmethod
    def routed(
        cls,
        router: str,
        *,
        candidates: Sequence[str] | Mapping[str, str],
        level: Level | None = None,
        every: int | None = None,
        lag: int | None = None,
        context: Context | None = None,
        combination: Combination | None = None,
        **params: Any,
    ) -> Mixture:
        """A router that chooses the weights of the candidates from the text.

        candidates: references, or `{"tag": "task"}` for all adapters that carry a tag.
        level: "request" (once, from the prompt), "token" (renewed while the text grows) or "layer"
            (inside each layer). Left out: request, or the only level of a built-in router.
        every, lag, context: see the HTTP API's `mixture.router`; they belong to level token.
        params: the router's own parameters, such as similarity's `temperature` and `top_k`.
        """
        for name, value in params.items():
            _require_json(name, value)
        options = {
            "level": level or _LEVELS.get(router),
            "every": every,
            "lag": lag,
            "context": context,
            "combination": combination,
        }
        spec = params | {name: value for name, value in options.items() if value is not None}
        spec |= {"name": router, "candidates": _choice(candidates)}
        return cls.from_json({"router": spec})

    @classmethod
    def base(cls) -> Mixture:
        """The untouched base model: the same as no mixture."""
        return cls.from_json(None)

    @classmethod
    def from_json(cls, spec: Mapping[str, Any] | None) -> Mixture:
        """The `mixture` field of the HTTP API; None is the base."""
        _require_mapping("the mixture", spec, '{"adapters": [{"name": "math", "weight": 1.0}]}')
        mixture = cls.__new__(cls)
        mixture._set(spec)
        return mixture

    def to_json(self) -> dict[str, Any] | None:
        """The `mixture` field of the HTTP API, with nothing in it that was left out here."""
        return None if self.body is None else self.body.model_dump(mode="json", exclude_unset=True)

    def _set(self, spec: Mapping[str, Any] | None) -> None:
        try:
            body = None if spec is None else MixtureChoice.model_validate(dict(spec))
        except ValidationError as error:
            raise explained("Mixture", error, _argument_of(spec or {})) from error
        object.__setattr__(self, "body", body)

    def __hash__(self) -> int:
        return hash(json.dumps(self.to_json(), sort_keys=True))

    def __repr__(self) -> str:
        return "Mixture.base()" if self.body is None else f"Mixture.from_json({self.to_json()})"


def _add_copies(spec: dict[str, Any], copies: Mapping[str, Mapping[str, Any]] | None) -> None:
    if copies is None:
        return
    if not isinstance(copies, Mapping):
        raise InvalidInputError(
            f"copies = {copies!r}: map adapters to their choice of copies; the weight of an "
            'adapter of that name goes into a mapping, such as Mixture({"copies": 1.0})'
        )
    by_name = {item["name"]: item for item in spec["adapters"]}
    for name, choice in copies.items():
        if name not in by_name:
            raise InvalidInputError(f"copies.{name}: that adapter has no weight in this mixture")
        by_name[name]["copies"] = dict(choice)


def _require_mapping(name: str, value: Any, example: str) -> None:
    if not isinstance(value, Mapping | None):
        raise InvalidInputError(f"{name} = {value!r}: use a mapping, such as {example}")


def _choice(candidates: Sequence[str] | Mapping[str, str]) -> list[str] | dict[str, str]:
    if isinstance(candidates, Mapping):
        return dict(candidates)
    if isinstance(candidates, str) or not isinstance(candidates, Sequence):
        raise InvalidInputError(
            f"candidates = {candidates!r}: use a list of references, such as ['math', 'code'], or "
            "{'tag': 'task'}"
        )
    return list(candidates)


def _require_json(name: str, value: Any) -> None:
    try:
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInputError(f"{name} = {value!r}: JSON cannot say that: {error}") from error


def _argument_of(spec: Mapping[str, Any]) -> Any:
    """Where a problem of the HTTP API's field lies in the arguments."""

    def argument(location: Sequence[Any]) -> Sequence[Any]:
        match location:
            case ("adapters", int(index), "weight"):
                return (spec["adapters"][index]["name"],)
            case ("adapters", int(index), "copies", *rest):
                return ("copies", spec["adapters"][index]["name"], *rest)
            case ("router", "name"):
                return ("router",)
            case ("router", *rest):
                return rest
        return location

    return argument
