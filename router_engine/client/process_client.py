"""The engine in its own, supervised OS process: what the server uses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from router_engine.calls import EngineCall
from router_engine.client.engine_child import EngineChild
from router_engine.client.restart_state import RestartState
from router_engine.client.session import Answer, EngineSession, SessionClient
from router_engine.errors import EngineNotReadyError
from router_engine.info import EngineInfo
from router_engine.process.messages import EngineProcessConfig
from router_engine.processes.supervisor import RestartPolicy, RunState, Supervisor


@dataclass(frozen=True, slots=True)
class ProcessLimits:
    """How long the parent waits for its engine process. Seconds; None waits for ever."""

    start: float | None = 600.0
    stop: float = 10.0
    patience: float | None = None  # between two heartbeats; a process that takes longer is killed
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
        self._restart_state = RestartState()
        self._info: EngineInfo | None = None
        self._supervisor = Supervisor(
            "engine",
            self._launch,
            restore=self._restore,
            policy=self._limits.restart,
            patience=self._limits.patience,
        )

    @property
    def state(self) -> RunState:
        """See `EngineClient.state`."""
        return self._supervisor.state

    @property
    def pid(self) -> int:
        """The engine's process id; raises EngineNotReadyError while there is none."""
        return self._child().pid

    @property
    def restarts(self) -> int:
        """How often the engine came back after a death."""
        return self._supervisor.restarts

    async def start(self) -> None:
        """See `EngineClient.start`; a failed start is not tried again."""
        if not await self._supervisor.start():
            raise EngineNotReadyError("the engine was closed while it started")

    async def wait_ready(self) -> None:
        """Return when the engine is READY (again); raises EngineNotReadyError once closed."""
        if not await self._supervisor.wait_ready():
            raise EngineNotReadyError("the engine was closed")

    async def close(self) -> None:
        """See `EngineClient.close`; a process that does not end in time is killed."""
        await self._supervisor.close(self._limits.stop)

    async def info(self) -> EngineInfo:
        """See `EngineClient.info`."""
        if self._info is None:
            raise EngineNotReadyError("the engine has not started")
        return self._info

    async def call(self, command: EngineCall[Answer]) -> Answer:
        """See `EngineClient.call`; pins and the merged mixture survive restarts."""
        answer = await super().call(command)
        self._restart_state.record(command, answer)
        return answer

    def _session(self) -> EngineSession:
        return self._child().session

    def _child(self) -> EngineChild:
        child = self._supervisor.child
        if child is None:
            raise EngineNotReadyError(f"the engine is {self.state}; try again when it is ready")
        return child

    async def _restore(self, child: EngineChild) -> None:
        await self._restart_state.restore(child.session)

    async def _launch(self) -> EngineChild:
        child = await EngineChild.launch(self._config, self._environment, self._limits.start)
        self._info = child.info
        return child
