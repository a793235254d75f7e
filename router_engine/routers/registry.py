"""The registry of routers: the built-in ones and those of the entry-point group.

A router's module is imported when the router is first asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import Any

from pydantic import BaseModel

from adapters_store.plugins import Plugins, named, with_installed
from router_engine.errors import RouterError
from router_engine.excerpt import excerpt
from router_engine.request import Level
from router_engine.routers.base import (
    HiddenRouter,
    LayerRouter,
    LayerRoutingParams,
    RequestRouter,
    TokenRouter,
)
from router_engine.routers.centroids import CentroidService
from router_engine.routers.encoder.encoder_client import EncoderClient
from router_engine.routers.errors import RouterInputError
from router_engine.routers.params import did_you_mean, parse_params

GROUP = "adaptermix.routers"

_BUILT_IN = (
    EntryPoint("arrow", "router_engine.routers.arrow:SPEC", GROUP),
    EntryPoint("given", "router_engine.routers.given:SPEC", GROUP),
    EntryPoint("hidden_mean", "router_engine.routers.hidden_mean:SPEC", GROUP),
    EntryPoint("random", "router_engine.routers.random:SPEC", GROUP),
    EntryPoint("retrieval", "router_engine.routers.retrieval:SPEC", GROUP),
    EntryPoint("similarity", "router_engine.routers.similarity:SPEC", GROUP),
    EntryPoint("uniform", "router_engine.routers.uniform:SPEC", GROUP),
)


@dataclass(frozen=True, slots=True)
class RequestServices:
    """What the server's process has to offer to a request router."""

    encoder: EncoderClient | None = None
    centroids: CentroidService | None = None  # there where the encoder is


@dataclass(frozen=True, slots=True)
class TokenServices:
    """What the engine's process has to offer to a token router.

    `wake` may be called from any thread: it makes the engine poll its routers.
    """

    wake: Callable[[], None]
    encoder_endpoint: str | None = None


@dataclass(frozen=True, slots=True)
class RouterSpec:
    """One router: its name, its parameters, and how it is made at each level that it works at.

    At level layer nothing is made: `layer` turns parameters, an instance of `params`, into what the
    layers compute.
    """

    name: str
    summary: str
    params: type[BaseModel]
    request: Callable[[RequestServices], RequestRouter] | None = None
    token: Callable[[TokenServices], TokenRouter] | None = None
    hidden: Callable[[], HiddenRouter] | None = None  # at level token, from hidden states
    needs_encoder: bool = False  # reads text: candidates need centroids, a worker must run
    layer: Callable[[Any], LayerRoutingParams] | None = None

    @property
    def levels(self) -> tuple[Level, ...]:
        made: dict[Level, object] = {
            "request": self.request,
            "token": self.token or self.hidden,
            "layer": self.layer,
        }
        return tuple(level for level, factory in made.items() if factory is not None)

    def check(self, level: Level, params: Mapping[str, Any]) -> None:
        """Raises RouterInputError when the level or a parameter is not one of this router's."""
        if level not in self.levels:
            raise RouterInputError(
                f"router {self.name!r} works at level {' or '.join(self.levels)}, not {level!r}"
            )
        parse_params(self.params, self.name, params)

    def gate(self, params: Mapping[str, Any]) -> LayerRoutingParams:
        """What layers compute under these parameters; raises RouterInputError as `check`."""
        self.check("layer", params)
        assert self.layer is not None
        return self.layer(parse_params(self.params, self.name, params))

    def json_schema(self) -> dict[str, Any]:
        """JSON schema of the parameters."""
        return self.params.model_json_schema()


class RouterRegistry:
    """Routers by name."""

    def __init__(self, entries: Iterable[EntryPoint]) -> None:
        """Raises RouterError when two entries share a name."""
        nouns = ("router", "routers")
        self._plugins = Plugins(entries, named(RouterSpec), nouns=nouns, error=RouterError)

    @classmethod
    def discover(cls) -> RouterRegistry:
        """The built-in routers and those of installed packages."""
        return cls(with_installed(_BUILT_IN, GROUP))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self._plugins.names))

    def get(self, name: str) -> RouterSpec:
        """Raises RouterInputError, with near names and all known ones, for an unknown name."""
        if name not in self.names:
            raise RouterInputError(
                f"unknown router {excerpt(name)}{did_you_mean(name, self.names)} "
                f"(known: {', '.join(self.names)})"
            )
        return self._plugins.load(name)

    def token_routers(self, services: TokenServices) -> dict[str, TokenRouter]:
        """Every token router that can run with these services, ready to use."""
        specs = [self.get(name) for name in self.names]
        return {
            spec.name: spec.token(services)
            for spec in specs
            if spec.token and (services.encoder_endpoint is not None or not spec.needs_encoder)
        }

    def hidden_routers(self) -> dict[str, HiddenRouter]:
        """Every router that reads hidden states, ready to use."""
        specs = [self.get(name) for name in self.names]
        return {spec.name: spec.hidden() for spec in specs if spec.hidden}

    @property
    def hidden_names(self) -> tuple[str, ...]:
        """The routers that read hidden states."""
        return tuple(name for name in self.names if self.get(name).hidden)

    def layer_routers(self) -> dict[str, LayerRouter]:
        """Every layer router: they run wherever the engine does."""
        specs = [self.get(name) for name in self.names]
        return {spec.name: spec.gate for spec in specs if spec.layer}

    def request_routers(self, services: RequestServices) -> dict[str, RequestRouter]:
        """Every request router that can run with these services, ready to use."""
        specs = [self.get(name) for name in self.names]
        return {
            spec.name: spec.request(services)
            for spec in specs
            if spec.request and (services.encoder is not None or not spec.needs_encoder)
        }
