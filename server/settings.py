"""Every setting of the server, from ADAPTERMIX_* variables: the environment's only reader."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    ByteSize,
    Field,
    PlainValidator,
    SecretStr,
    ValidationInfo,
    field_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from adapters_store.home import expanded, is_homeless
from adapters_store.near_names import near_names
from router_engine.assets import is_hub_id
from router_engine.backends.cpu.build import known_isa
from router_engine.config import (
    CpuIsa,
    Device,
    DType,
    Fairness,
    GpuAttention,
    Kernels,
    MergeMode,
    Policy,
    Quantization,
)
from router_engine.processors import check_threads, usable_cores
from router_engine.routers.encoder.encoder_config import EncoderDType
from server.invalid_settings import explain
from server.loopback import is_loopback
from server.shares import Share, share_or_size
from server.utf8 import require_utf8

PREFIX = "ADAPTERMIX_"
_DAY = 86_400.0  # seconds: longer than anybody waits, and less than any clock or database counts
Seconds = Annotated[float, Field(gt=0, le=_DAY, allow_inf_nan=False)]


class SettingsError(ValueError):
    """A setting that cannot be used; the message names it and what would work."""


class Settings(BaseSettings):
    """Read from keyword arguments first, then from ADAPTERMIX_<NAME>, then the default."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, extra="forbid", frozen=True, validate_default=True
    )

    model: str = Field(
        default="default",
        description="Base model: 'default' (SmolLM2 from the cache), 'tiny-random', a directory, "
        "a hub id or a .gguf file.",
    )
    revision: str | None = Field(
        default=None, description="Branch, tag or commit of a hub id; its main branch if left out."
    )
    dtype: DType = Field(
        default="auto",
        description="Number format of the base and the adapters; auto: the checkpoint's, or on a "
        "CPU float32 where that is faster.",
    )
    device: Device = Field(
        default="auto", description="Where the engine runs; auto takes cuda if present."
    )
    quantization: Quantization = Field(
        default="none",
        description="Number format of the base's linear weights: as in dtype (none), or 8-bit "
        "integers (int8), which take half the memory and, on a CPU, half the time of a step. "
        "Adapters stay in dtype.",
    )
    tap_layer: int | None = Field(
        default=None,
        ge=0,
        description="Layer of the base at which the router hidden_mean reads hidden states; its "
        "adapters act from there on. Left out: a fifth of the way up.",
    )
    kernels: Kernels = Field(
        default="auto",
        description="What computes a step: plain torch (reference), the C++ decoder (cpu), Triton "
        "kernels on a GPU (triton), a package's own by name, or (auto) triton on a GPU, and on a "
        "CPU the C++ decoder as soon as it is compiled, where it can run the model. What computes "
        "is compared with transformers' own code at its first start, and where it differs that "
        "runs, with a warning, or nothing, under 'cpu'; the verdict is kept in the cache.",
    )
    enforce_eager: bool = Field(
        default=False, description="Run steps launch by launch, not as CUDA graphs: to seek faults."
    )
    attention: GpuAttention = Field(
        default="triton", description="What computes attention on a GPU (flashinfer: by its extra)."
    )
    cpu_isa: Annotated[CpuIsa | None, AfterValidator(known_isa)] = Field(
        default=None,
        description="The widest instruction set that the C++ decoder may use. All that the "
        "processor and the system run when left out.",
    )
    cache: Path = Field(
        default=Path("~/.cache/adaptermix"),
        description="Directory for downloaded models and the store.",
    )
    store: Path | None = Field(
        default=None, description="Directory of the adapter store; <cache>/store when left out."
    )
    database_url: str | None = Field(
        default=None, description="Metadata database URL; SQLite inside the store when left out."
    )
    blobs_url: str | None = Field(
        default=None,
        description="Blob store URL (file://, s3://, ...); inside the store when left out.",
    )
    adapters: Path | None = Field(
        default=None,
        description="Directory of adapter folders that are published at start if not stored yet.",
    )

    host: str = Field("127.0.0.1", description="Address to listen on; others need an API key.")
    port: int = Field(
        default=8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one."
    )
    admin_key: SecretStr | None = Field(
        default=None, min_length=16, description="An admin API key beside those kept in the store."
    )
    max_body: ByteSize = Field(
        default=ByteSize(8 << 20), ge=1024, description="Largest request body, uploads excepted."
    )
    max_upload: ByteSize = Field(
        default=ByteSize(1 << 30), ge=1024, description="Largest adapter upload, as sent."
    )
    body_patience: Seconds = Field(
        default=30.0,
        description="Seconds that a body may pause, or lag behind 16 KiB/s; and that a head has.",
    )
    # Longer than clients and proxies keep one, so that none is closed as a request is on its way.
    keep_alive: Seconds = Field(75.0, description="Seconds that an idle connection is kept open.")

    block_size: int = Field(
        default=16, ge=1, le=1024, description="Tokens in one block of the KV cache."
    )
    kv_blocks: int | None = Field(
        default=None,
        ge=2,
        description="Blocks of the KV cache; what kv_memory holds when left out.",
    )
    gpu_memory_utilization: float = Field(
        default=0.9,
        gt=0,
        le=1,
        description="Share of a GPU's memory that may be in use, whoever uses it.",
    )
    kv_memory: ByteSize | None = Field(
        default=None,
        ge=1,
        description="Memory of the KV cache; when left out, on a GPU all that is left of it, on a "
        "CPU 1 GiB.",
    )
    prefix_cache: bool = Field(
        default=True,
        description="Share KV between requests with equal prompts under equal mixtures.",
    )
    max_step_tokens: int | None = Field(
        default=None,
        ge=1,
        description="Tokens in one step of the engine; when left out, 2048 on a GPU, 512 on a CPU.",
    )
    max_running: int | None = Field(
        default=None,
        ge=1,
        description="Requests that run at the same time; when left out, 256 on a GPU, 64 on a CPU.",
    )
    max_model_len: int | None = Field(
        default=None,
        ge=2,
        description="Longest prompt and answer together; the model's when left out.",
    )
    policy: Policy = Field(default="fifo", description="Which waiting request goes first.")
    fairness: Fairness = Field(
        default="adapter", description="Whether adapters take turns when many wait."
    )
    merge: MergeMode = Field(
        default="manual",
        description="Who decides what is merged into the base: admins, or (auto) the traffic too.",
    )
    adapter_memory: Annotated[ByteSize | Share | None, PlainValidator(share_or_size)] = Field(
        default=None,
        description="Memory of the device for the adapters that are there at once: bytes (4GiB), "
        "or a share of what may be used of a GPU (20%); when left out, 10% there, 1 GiB on a CPU.",
    )
    host_bytes: ByteSize | None = Field(
        default=None,
        ge=0,
        description="Host memory for copies of adapters, those that are read ahead for waiting "
        "requests among them; what the first of these needs at once may exceed it. The traffic "
        "merges only what has a copy. When left out, beside a GPU a quarter of the host's memory, "
        "else 1 GiB.",
    )

    max_waiting: int = Field(
        default=256, ge=1, description="Requests without a first token before new ones get 429."
    )
    max_candidates: int = Field(
        default=64, ge=1, description="Adapters that a router may choose from."
    )
    default_max_new_tokens: int = Field(
        default=128, ge=1, description="Length of an answer when a request does not say."
    )
    default_timeout: Seconds | None = Field(
        default=None,
        description="Seconds after which a request that says no timeout of its own is cancelled; "
        "none when left out.",
    )
    max_timeout: Seconds = Field(
        default=3600.0,
        description="Longest timeout in seconds that a request may ask for.",
    )
    database_patience: Seconds = Field(
        default=10.0,
        description="Seconds that a database is waited for that is locked, away or hangs; then "
        "what needs it gets 503.",
    )
    routing_patience: Seconds = Field(
        default=60.0,
        description="Seconds that a request waits for the sentence encoder to be there, and then "
        "for what a router needs of it; after either it gets 503.",
    )
    encoder: str = Field(
        default="default",
        description="Sentence encoder of routers that read text: 'default' (from the cache; a "
        "tiny random one beside the tiny random model), a directory, or 'none'.",
    )

    drain_seconds: float = Field(
        default=30.0,
        ge=0,
        le=_DAY,
        allow_inf_nan=False,
        description="How long requests may go on once the server is told to stop.",
    )
    engine_threads: int | None = Field(
        default=None,
        ge=1,
        description="Threads of the engine process, at most the cores that the server may use; "
        "all of these when left out.",
    )
    engine_patience: Seconds = Field(
        default=60.0,
        description="Seconds without a heartbeat after which the engine process, or the encoder's, "
        "is taken for hung, killed and started again; ten times as long while it computes, as in a "
        "long step of a large model, or has announced long work: a switch of the merged mixture, "
        "the capture of a CUDA graph. A start has ten minutes, whatever this says.",
    )
    encoder_dtype: EncoderDType = Field(
        default="auto",
        description="Number format of the sentence encoder; auto: bfloat16 where products in it "
        "are measured to be faster as it starts, float32 elsewhere.",
    )
    encoder_threads: int = Field(
        default=1,
        ge=1,
        description="Threads of the encoder process, at most the cores that the server may use.",
    )
    omp_wait_policy: Literal["PASSIVE", "ACTIVE"] = Field(
        "PASSIVE", description="OMP_WAIT_POLICY of every process; ACTIVE spins while it waits."
    )
    metrics_adapters: int = Field(
        default=50,
        ge=0,
        description="Adapters with a label of their own in /metrics; the rest is 'other'.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least level that is logged."
    )
    log_format: Literal["console", "json"] = Field("console", description="Shape of a log line.")

    _text = field_validator("*")(require_utf8)

    @field_validator("cache", "store", "adapters")
    @classmethod
    def _begins_somewhere(cls, path: Path | None) -> Path | None:
        if path is not None and is_homeless(path):
            raise ValueError(f"no home directory {path.parts[0]} is known: use an absolute path")
        return path

    @field_validator("revision")
    @classmethod
    def _is_of_the_hub(cls, revision: str | None, info: ValidationInfo) -> str | None:
        model = info.data.get("model")
        if revision and model is not None and not is_hub_id(model):
            raise ValueError(f"only a hub id has one, and model is {model!r}: leave it out")
        return revision or None  # what passes variables on passes an empty one, too

    @field_validator("max_timeout")
    @classmethod
    def _holds_the_default(cls, most: float, info: ValidationInfo) -> float:
        default = info.data.get("default_timeout")
        if default is not None and default > most:
            raise ValueError(f"must not be below default_timeout = {default:g}")
        return most

    @field_validator("merge")
    @classmethod
    def _needs_plain_weights(cls, merge: MergeMode, info: ValidationInfo) -> MergeMode:
        if merge == "auto" and info.data.get("quantization", "none") != "none":
            raise ValueError(
                f"quantization is {info.data['quantization']!r}, whose weights take no mixture in: "
                "use merge 'manual', or quantization 'none'"
            )
        return merge

    @field_validator("engine_threads", "encoder_threads")
    @classmethod
    def _has_cores(cls, threads: int | None, info: ValidationInfo) -> int | None:
        check_threads(info.field_name or "threads", threads)
        return threads

    @property
    def cache_dir(self) -> Path:
        return expanded(self.cache)

    @property
    def store_dir(self) -> Path:
        return expanded(self.store) if self.store else self.cache_dir / "store"

    @property
    def lookup_patience(self) -> float:
        """Seconds after which a name or a key is looked up in vain: of a database that hangs."""
        return 2 * self.database_patience

    @property
    def is_loopback(self) -> bool:
        """Whether `host` can be reached from this machine only."""
        return is_loopback(self.host)

    def child_environment(self, threads: int | None) -> dict[str, str]:
        """Environment of a launched process that computes with `threads` (None: all usable).

        It must be in place before torch is imported, since OpenMP reads it once. The admin key
        stays behind: a child has no use for it.
        """
        count = str(threads or usable_cores())
        environment = {k: v for k, v in os.environ.items() if k.upper() != f"{PREFIX}ADMIN_KEY"}
        if self.cpu_isa is not None:  # the kernels' library reads it itself
            environment[variable_of("cpu_isa")] = self.cpu_isa
        return environment | {
            "OMP_NUM_THREADS": count,
            "MKL_NUM_THREADS": count,
            "OPENBLAS_NUM_THREADS": "1",  # numpy's: its products are small, and beside a step
            "OMP_WAIT_POLICY": self.omp_wait_policy,
            "TOKENIZERS_PARALLELISM": "false",
        }


def load_settings(**overrides: Any) -> Settings:
    """Settings from the environment, with `overrides` before it (None means not given).

    Raises SettingsError for an unknown ADAPTERMIX_* variable, naming the near ones, and for a
    value that cannot be used.
    """
    _refuse_unknown(os.environ)
    try:
        return Settings(**{key: value for key, value in overrides.items() if value is not None})
    except ValueError as error:
        raise SettingsError(explain(error, variable_of)) from error


def use_process_environment(environment: Mapping[str, str]) -> None:
    """Set the thread variables of this very process; call before torch is imported."""
    os.environ.update(environment)


def client_defaults() -> tuple[str, str | None]:
    """(server URL, API key) for the command line: ADAPTERMIX_URL and ADAPTERMIX_KEY."""
    return os.environ.get(CLIENT_URL, "http://127.0.0.1:8000"), os.environ.get(CLIENT_KEY)


CLIENT_URL = f"{PREFIX}URL"
CLIENT_KEY = f"{PREFIX}KEY"


def variable_of(field: str) -> str:
    """The environment variable of a setting: `kv_memory` -> `ADAPTERMIX_KV_MEMORY`."""
    return PREFIX + field.upper()


def _refuse_unknown(environment: Mapping[str, str]) -> None:
    variables = {variable_of(field) for field in Settings.model_fields} | {CLIENT_URL, CLIENT_KEY}
    for name in sorted(environment):
        if name.upper().startswith(PREFIX) and name.upper() not in variables:
            near = near_names(name.upper(), variables)
            hint = f"near names: {', '.join(near)}" if near else "see `adaptermix serve --help`"
            raise SettingsError(f"environment variable {name} is not a setting; {hint}")
