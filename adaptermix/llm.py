"""`LLM`: one base model and its adapters in this process; no server, no second process needed."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from adaptermix.answers import Answer, Piece
from adaptermix.batches import (
    Conversations,
    Mixtures,
    Prompts,
    Samplings,
    chat_prompts,
    text_prompts,
    valid_body,
)
from adaptermix.client.generation import AnyMixture, Sampling, mixture_json
from adaptermix.errors import InvalidInputError
from adaptermix.llm_adapters import LocalAdapters
from adaptermix.local import LocalRuntime, Prompt
from adaptermix.progress import progress_bar
from adapters_store.home import expanded
from adapters_store.near_names import near_names
from server.adapters.service import adapter_folders
from server.schemas.score import ScoreBody, ScoreReply
from server.settings import Settings, SettingsError, load_settings, variable_of

_OF_A_SERVER = frozenset(
    {
        *("host", "port", "admin_key", "max_body", "body_patience", "drain_seconds"),
        *("max_waiting", "metrics_adapters", "log_level", "log_format"),
    }
)
_OF_THE_PROCESS = frozenset({"cpu_isa"})  # the kernels' library reads it from the environment
_NO_BOUND = 1 << 31  # prompts of a batch wait for their turn: none is refused for it


class LLM:
    """A base model in this process, as in vLLM, with a mixture of adapters for every prompt.

        llm = LLM("default", adapters="examples/adapters")
        for answer in llm.generate(prompts, mixture=Mixture(math=0.7, code=0.3)):
            print(answer.text)

    Prompts are answered as POST /generate answers them, by the same scheduler, and may be given
    from several threads. It starts two threads of its own, and a sentence encoder in a process of
    its own once a router needs one. Close it, or use it as a context manager.
    """

    def __init__(
        self, model: str | Path = "default", *, adapters: str | Path | None = None, **settings: Any
    ) -> None:
        """Load a model.

        model: "default", "tiny-random", a directory, a hub id or a .gguf file.
        adapters: a folder of adapter folders, published under the folders' names where the store
            has not got them yet.
        settings: any of the server's that isn't about HTTP, under its name: dtype, device,
            quantization, kernels, engine_threads, max_model_len, kv_memory, store, ... What isn't
            given comes from ADAPTERMIX_* variables, as a server's do.

        Raises InvalidInputError for an argument, StartFailedError for what is not there.
        """
        _check_settings(settings)
        if adapters is not None:
            _check_adapters(expanded(Path(adapters)))
        self._runtime = LocalRuntime(_settings(model=str(model), adapters=adapters, **settings))
        # Whoever forgets it gets its memory back; at the end of the process there is no need.
        weakref.finalize(self, self._runtime.abandon).atexit = False

    @property
    def model(self) -> str:
        """The base model's name."""
        return self._runtime.services.base_name

    @property
    def adapters(self) -> LocalAdapters:
        """The adapters: publish, list, delete."""
        return LocalAdapters(self._runtime)

    def generate(
        self,
        prompts: Prompts,
        sampling: Samplings = None,
        *,
        mixture: Mixtures = None,
        priority: int | None = None,
        timeout: float | None = None,
        progress: bool = True,
    ) -> list[Answer]:
        """An answer to each prompt, in their order. All are in the scheduler together.

        sampling, mixture: one for all prompts, or a list with one for each. None: greedy, the base.
        priority: lower runs first, where the policy is priority.
        timeout: seconds that each may take (RequestTimeoutError).
        progress: a bar on standard error for several prompts; False: none, even on a terminal.

        Raises InvalidInputError for arguments, StatusError for what the model, the store or the
        engine refuses; then the others are cancelled.
        """
        asked = text_prompts(prompts, sampling, mixture, priority=priority, timeout=timeout)
        return self._answers(asked, progress=progress)

    def chat(
        self,
        messages: Conversations,
        sampling: Samplings = None,
        *,
        mixture: Mixtures = None,
        priority: int | None = None,
        timeout: float | None = None,
        progress: bool = True,
    ) -> list[Answer]:
        """The next turn of each conversation, under the model's chat template.

        messages: one conversation, such as `[{"role": "user", "content": "Hello"}]`, or several.
        The rest is as for `generate`: greedy, where nothing else is asked for.
        """
        asked = chat_prompts(messages, sampling, mixture, priority=priority, timeout=timeout)
        return self._answers(asked, progress=progress)

    def stream(
        self,
        prompt: str,
        sampling: Sampling = None,
        *,
        mixture: AnyMixture = None,
        priority: int | None = None,
        timeout: float | None = None,
    ) -> Generator[Piece, None, None]:
        """The pieces of one answer as they come; the last has the whole. Closing it ends it."""
        (asked,) = text_prompts([prompt], sampling, mixture, priority=priority, timeout=timeout)
        return self._runtime.stream(asked)

    def score(
        self,
        prompt: str,
        completions: Sequence[str],
        *,
        mixture: AnyMixture = None,
        uncertainty: bool = False,
        gates: bool = False,
        priority: int | None = None,
        timeout: float | None = None,
    ) -> ScoreReply:
        """The log probabilities of completions of a prompt, token by token, in their order.

        uncertainty: report the entropy at each token. gates: statistics of gates inside layers.
        """
        body = {
            "inputs": prompt,
            "completions": list(completions),
            "mixture": mixture_json(mixture),
            "uncertainty": uncertainty,
            "gates": gates,
            "priority": priority or 0,
            "timeout": timeout,
        }
        return self._runtime.score(valid_body(ScoreBody, "score", body))

    def close(self) -> None:
        """End its threads, and the encoder's process; it may be called again."""
        self._runtime.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _answers(self, prompts: Sequence[Prompt], *, progress: bool) -> list[Answer]:
        with progress_bar(len(prompts), wanted=progress) as answered:
            return self._runtime.answers(prompts, answered)


def _check_settings(settings: Mapping[str, Any]) -> None:
    names = set(Settings.model_fields) - _OF_A_SERVER - _OF_THE_PROCESS
    for name in settings:
        if name in _OF_A_SERVER:
            raise InvalidInputError(f"{name} is a setting of a server's: leave it out")
        if name in _OF_THE_PROCESS:
            raise InvalidInputError(
                f"{name} binds a whole process: set {variable_of(name)} in its environment"
            )
        if name not in names:
            near = near_names(name, names)
            hint = f"near names: {', '.join(near)}" if near else f"settings: {sorted(names)}"
            raise InvalidInputError(f"{name} is not a setting; {hint}")
    if settings.get("omp_wait_policy") is not None and "torch" in sys.modules:
        raise InvalidInputError(
            f"omp_wait_policy = {settings['omp_wait_policy']!r}: torch is loaded already, and has "
            "read it: set OMP_WAIT_POLICY in the environment of the process"
        )


def _check_adapters(folder: Path) -> None:
    if not folder.is_dir() or adapter_folders(folder):
        return  # what is no directory is refused by the server's own check
    hint = "a store's home is given as store=" if (folder / "adapters.db").exists() else ""
    hint = hint or "name the folder that holds them, one folder an adapter"
    raise InvalidInputError(f"adapters = {str(folder)!r} holds no adapter folder: {hint}")


def _settings(**chosen: Any) -> Settings:
    try:
        return load_settings(**chosen, max_waiting=_NO_BOUND)
    except SettingsError as error:
        raise InvalidInputError(str(error)) from error
