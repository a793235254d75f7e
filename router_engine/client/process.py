"""The engine in its own, supervised OS process: what the server uses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from adapters_store.types import ResolvedMixture
from router_engine.client.base import AdapterResidency, EngineInfo, EngineState, MergedState
from router_engine.client.child import EngineChild
from router_engine.client.desired import DesiredState
from router_engine.client.messages import EngineProcessConfig
from router_engine.client.session import EngineSession
from router_engine.client.session_client import SessionClient
from router_engine.client.supervisor import RestartPolicy, Supervisor
from router_engine.errors import EngineNotReadyError


@dataclass(frozen=True, slots=True)
class ProcessLimits:
    """How long the parent waits for its engine process. Seconds; None waits for ever."""

    start: float | None = 600.0
    stop: float = 10.0
    answer: float | None = None  # between two steps; a process that takes longer is killed
    restart: RestartPolicy = field(default_factory=RestartPolicy)


class ProcessEngineClient(SessionClient):
    """Starts the engine as a child process and starts it again when it dies.

    When it dies every live request ends at once with ENGINE_DIED and pending calls raise
    EngineDiedError; until the next one is READY, `submit` and all calls raise
    EngineNotReadyError. The merged mixture and the pins are put back before READY.

    `environment` is the child's whole environment; thread counts and wait policies belong there,
    because they must be set before torch is imported.
    """

    def __init__(
        self,
        config: EngineProcessConfig,
        *,
        environment: Mapping[str, str],
        limits: ProcessLimits | None = None,
    ) -> None:
        self._config = config
        self._environment = dict(environment)
        self._limits = limits or ProcessLimits()
        self._desired = DesiredState()
        self._info: EngineInfo | None = None
        self._supervisor = Supervisor(
            self._launch, self._desired.restore, self._limits.restart, self._limits.answer
        )

    @property
    def state(self) -> EngineState:
        """See `EngineClient.state`."""
        return self._supervisor.state

    @property
    def pid(self) -> int:
        """The engine's process id; raises EngineNotReadyError while there is none."""
        return self._supervisor.child.pid

    @property
    def restarts(self) -> int:
        """How often the engine came back after a death."""
        return self._supervisor.restarts

    async def start(self) -> None:
        """See `EngineClient.start`; a failed start is not tried again."""
        await self._supervisor.start()

    async def wait_ready(self) -> None:
        """Return when the engine is READY (again); raises EngineNotReadyError once closed."""
        await self._supervisor.wait_ready()

    async def close(self) -> None:
        """See `EngineClient.close`; a process that does not end in time is killed."""
        await self._supervisor.close(self._limits.stop)

    async def info(self) -> EngineInfo:
        """See `EngineClient.info`."""
        if self._info is None:
            raise EngineNotReadyError("the engine has not started")
        return self._info

    async def pin(self, digest: str, *, pinned: bool) -> AdapterResidency:
        """See `EngineClient.pin`; survives restarts."""
        state = await super().pin(digest, pinned=pinned)
        self._desired.set_pin(digest, pinned=pinned)
        return state

    async def merge(self, mixture: ResolvedMixture | None) -> MergedState:
        """See `EngineClient.merge`; survives restarts."""
        state = await super().merge(mixture)
        self._desired.set_merged(state.mixture)
        return state

    def _session(self) -> EngineSession:
        return self._supervisor.child.session

    async def _launch(self) -> EngineChild:
        child = await EngineChild.launch(self._config, self._environment, self._limits.start)
        self._info = child.info
        return child
