"""One frozen dataclass a component: nothing inherits another's, nothing reads the environment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from router_engine.errors import EngineError

TINY_RANDOM = "tiny-random"  # a base model made on the spot: nothing is downloaded

DType = Literal["auto", "float32", "bfloat16", "float16"]
Device = Literal["auto", "cpu", "cuda"]
Quantization = Literal["none", "int8"]
Policy = Literal["fifo", "priority"]
Fairness = Literal["adapter", "none"]
GpuAttention = Literal["triton", "flashinfer"]
MergeMode = Literal["manual", "auto"]
# Those of backends/cpu/build.py, by architecture from narrow to wide.
CpuIsa = Literal[
    "avx2", "avx2_vnni", "avx512", "avx512_vnni", "avx512_bf16", "amx", "neon", "neon_bf16"
]
# auto, cpu, or the name of an entry point in the group adaptermix.kernels (kernels.dispatch) or
# adaptermix.backends (backends.select).
Kernels = str


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Which base model, and how it is held."""

    model: str = "tiny-random"  # that word, a directory, a hub id or a .gguf file
    dtype: DType = "auto"  # auto: as the checkpoint, unless slow on the device (model.dtypes)
    device: Device = "auto"  # auto: cuda where there is one
    quantization: Quantization = "none"  # of the linear layers' weights (model.quantized)
    probe_layer: int | None = None  # at which routers read hidden states; None: see model.probe
    revision: str | None = None  # branch, tag or commit of a hub id; None: its main branch


@dataclass(frozen=True, slots=True)
class CacheConfig:
    """The paged KV cache."""

    block_size: int = 16  # tokens a block
    num_blocks: int | None = None  # None: as many as `memory_bytes` holds
    memory_bytes: int | None = 1 << 30  # None: on a GPU, what is left
    prefix_cache: bool = True


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """What one step may hold and who goes first."""

    # 0 of either: as many as suit the device.
    max_step_tokens: int = 512  # prefill chunks and decodes together
    max_running: int = 64  # requests that own KV blocks
    max_model_len: int | None = None  # None: the model's own limit
    policy: Policy = "fifo"
    fairness: Fairness = "adapter"
    # Later requests that may start before the one that waits longest, whatever speaks for them:
    # priority, fairness, or adapters that are resident.
    max_overtaken: int = 32
    # Of background requests, where there are no others, and beside those: who arrives or streams
    # waits for the rest of such a step.
    background_tokens: int = 64
    background_tokens_beside: int = 16


@dataclass(frozen=True, slots=True)
class AdapterPoolConfig:
    """Where adapters may live."""

    # On the device. None: a share of what the engine may use of a GPU, 1 GiB on a CPU.
    memory_bytes: int | None = None
    memory_share: float | None = None  # None: a tenth
    host_bytes: int | None = None  # None: what suits the device
    loader_threads: int = 1


@dataclass(frozen=True, slots=True)
class MergeConfig:
    """Who decides what is merged into the base: admins alone, or the traffic while none has."""

    mode: MergeMode = "manual"
    enter: float = 0.8  # share of the tokens at which `auto` merges a mixture
    leave: float = 0.5  # share below which it lets go
    half_life: int = 4096  # tokens after which an observation counts half


@dataclass(frozen=True, slots=True)
class KernelConfig:
    """What computes a step.

    reference: transformers and plain torch. triton: Triton kernels on a CUDA device, with a decoder
    of their own where it can run the model. cpu: the C++ decoder, compiled first if need be, or an
    error. auto: triton on a CUDA device; on a CPU the C++ decoder where it can run this model, from
    when it has been compiled (in the background); the reference until then and elsewhere. Whatever
    computes is proven first (`backends.proof`).
    """

    kernels: Kernels = "reference"
    cache: Path = Path("~/.cache/adaptermix/kernels")  # of compiled libraries, choices, verdicts
    isa: CpuIsa | None = None  # of the C++ decoder; None: the fastest, by measurement
    enforce_eager: bool = False  # no CUDA graphs
    attention: GpuAttention = "triton"  # what computes it on a GPU


@dataclass(frozen=True, slots=True)
class EngineConfig:
    model: ModelConfig = ModelConfig()
    cache: CacheConfig = CacheConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    adapters: AdapterPoolConfig = AdapterPoolConfig()
    merge: MergeConfig = MergeConfig()
    kernels: KernelConfig = KernelConfig()
    gpu_memory_utilization: float = 0.9  # share of a GPU's memory that may be used, by all

    @property
    def adapter_bytes(self) -> int:
        """Of the device's memory for adapters, once that is settled (`memory.defaults`)."""
        assert self.adapters.memory_bytes is not None
        return self.adapters.memory_bytes

    def __post_init__(self) -> None:
        """Raises EngineError for parts that do not go together."""
        if self.merge.mode == "auto" and self.model.quantization != "none":
            raise EngineError(
                f"merge 'auto' cannot go with quantization {self.model.quantization!r}, whose "
                "weights take no mixture in: use merge 'manual', or quantization 'none'"
            )
