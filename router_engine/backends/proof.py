"""The proof, at the start, that a backend computes its model: one prompt, beside transformers.

Both must agree within a tolerance. The verdict is kept beside the kernels by a digest of weights,
config, code and device, so that only what is new is proven.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache as once
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
import transformers
from torch import Tensor, nn

import router_engine
from adapters_store.home import expanded
from router_engine.backends.base import StepRunner
from router_engine.backends.cpu.build import processor
from router_engine.backends.json_cache import read_cached, write_cached
from router_engine.backends.torch.attention_function import ATTENTION
from router_engine.errors import UnsupportedModelError
from router_engine.experts.step import StepExperts
from router_engine.kv.paged_cache import PagedCache
from router_engine.model.loader import LoadedModel
from router_engine.request import EngineRequest
from router_engine.scheduling.plan import PlannedRow, StepPlan
from router_engine.tolerances import TOLERANCES

_log = logging.getLogger(__name__)

TOKENS = 48  # of the prompt, where no layer has a window
_PAST = 16  # tokens past the widest window
_MOST_PRODUCTS = 2e12  # on a CPU: minutes; past a window of 4096, of models up to half a billion
_CHUNK = 512  # tokens of a step that reads a prompt
_DECODES = 4  # tokens at the prompt's end that come one by one
_PLAIN = "sdpa"  # transformers' own attention

# In 8 bits a value may fall on the other side of a rounding edge, which spreads through the layers.
_INT8_TOLERANCE = 1e-1
_STANDS_OUT = 8

_Steps = TypeVar("_Steps", bound=StepRunner)


class ProofVerdict(NamedTuple):
    """difference: see `difference`; not a number where one of both computes none."""

    difference: float
    tolerance: float

    @property
    def holds(self) -> bool:
        return self.difference <= self.tolerance

    def __str__(self) -> str:
        return (
            f"its log probabilities differ from those of transformers' own code by "
            f"{self.difference:.1e} of their size (allowed: {self.tolerance:.0e})"
        )


class Proof:
    """The logits of a prompt by transformers' own code, and a verdict on others beside them."""

    def __init__(
        self, loaded: LoadedModel, experts: StepExperts, cache: PagedCache, folder: Path
    ) -> None:
        """Before any weight changes. `folder` keeps verdicts."""
        self._loaded = loaded
        self._experts = experts
        self._cache = cache
        self._folder = expanded(folder)
        self._subject = _subject(loaded)
        self._tokens = _prompt(loaded, cache)

    def earlier(self, name: str) -> ProofVerdict | None:
        """The verdict on what computes under a name, if there was one before."""
        return read_cached(
            self._file(name), lambda stored: self._verdict(float(stored["difference"]))
        )

    @torch.inference_mode()
    def expected(self) -> Tensor:
        """Logits [samples, vocab] by transformers' own code on the weights as they are now."""
        model: Any = self._loaded.model
        positions = torch.tensor([stop - 1 for _, stop in self._chunks])
        self._experts.begin(None)
        model.set_attn_implementation(_PLAIN)
        try:
            tokens = torch.tensor([self._tokens], device=self._loaded.device)
            logits: Tensor = model(
                input_ids=tokens,
                use_cache=False,
                logits_to_keep=positions.to(self._loaded.device),
            ).logits
        finally:
            model.set_attn_implementation(ATTENTION)
        return logits[0].float().cpu()

    def judge(self, name: str, steps: StepRunner, expected: Tensor) -> ProofVerdict:
        """Compare what `steps` compute, and keep the verdict under `name`."""
        verdict = self._verdict(difference(expected, self._logits(steps)))
        write_cached(self._file(name), {"name": name, **verdict._asdict()})
        _log.info(
            "%s beside transformers' own code: a difference of %.1e (allowed: %.0e)",
            *(name, verdict.difference, verdict.tolerance),
        )
        return verdict

    def accept(
        self, name: str, make: Callable[[], _Steps], undo: Callable[[_Steps], None]
    ) -> tuple[_Steps | None, ProofVerdict]:
        """The result of `make`, proven under `name`, or None where it isn't exact; and the verdict.

        Nothing is made where an earlier verdict says no; `undo` takes back what is made in vain.
        """
        verdict = self.earlier(name)
        if verdict is not None:
            return (make() if verdict.holds else None), verdict
        expected = self.expected()  # before the weights move
        steps = make()
        verdict = self.judge(name, steps, expected)
        if verdict.holds:
            return steps, verdict
        undo(steps)
        return None, verdict

    def require(self, name: str, steps: StepRunner) -> None:
        """Raises UnsupportedModelError where `steps`, beside which there is nothing, differ."""
        verdict = self.earlier(name)
        if verdict is None:
            verdict = self.judge(name, steps, self.expected())
        if not verdict.holds:
            raise UnsupportedModelError(
                f"this model is not served exactly in {self._loaded.dtype}: {verdict}. Another "
                "--dtype may help, or a config without keys of other architectures"
            )

    @cached_property
    def _chunks(self) -> tuple[tuple[int, int], ...]:
        """(start, stop) of each step: the prompt in two pieces or more, its end one by one."""
        decodes = max(0, len(self._tokens) - _DECODES)
        size = min(_CHUNK, max(1, decodes // 2))
        stops = [*range(size, decodes, size), *range(decodes, len(self._tokens) + 1)]
        stops = [stop for stop in stops if stop > 0]
        return tuple(zip([0, *stops], stops, strict=False))

    @torch.inference_mode()
    def _logits(self, steps: StepRunner) -> Tensor:
        """The logits of `steps` for the prompt [samples, vocab], in blocks that are given back."""
        blocks = -(-len(self._tokens) // self._cache.block_size)
        logits = []
        with self._cache.borrowed(blocks):
            for start, stop in self._chunks:
                row = _row(self._tokens, start, stop, blocks)
                # A copy: the next step may overwrite these.
                logits.append(steps.forward(StepPlan((row,)), None).logits.float().cpu().clone())
        return torch.cat(logits)

    def _verdict(self, difference: float) -> ProofVerdict:
        loaded = self._loaded
        is_int8 = loaded.quantization == "int8"
        return ProofVerdict(difference, _INT8_TOLERANCE if is_int8 else TOLERANCES[loaded.dtype])

    def _file(self, name: str) -> Path:
        parts = (self._subject, name, len(self._tokens), self._cache.block_size)
        key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
        return self._folder / f"proof-{key}.json"


def difference(expected: Tensor, computed: Tensor) -> float:
    """The distance of logits [samples, vocab]: the most of a sample, relative to its own size.

    Of log probabilities the root mean square, and the largest where it stands out: noise of many
    roundings lies within `_STANDS_OUT` times the former, one wrong row of the head does not.
    """
    theirs, ours = (logits.log_softmax(-1) for logits in (expected, computed))
    apart = theirs - ours
    mean = apart.square().mean(-1).sqrt()
    most = torch.maximum(mean, apart.abs().amax(-1) / _STANDS_OUT)
    return float((most / theirs.square().mean(-1).sqrt()).amax())


def _prompt(loaded: LoadedModel, cache: PagedCache) -> tuple[int, ...]:
    """Tokens from all over the vocabulary, past every window, as many as model and cache hold.

    Large models on a CPU read no further than `TOKENS`: a first start would take too long.
    """
    windows = [call.window for call in loaded.attention if call.window is not None]
    wanted = max(TOKENS, max(windows, default=0) + _PAST)
    products = wanted * sum(parameter.numel() for parameter in loaded.model.parameters())
    if loaded.device.type == "cpu" and products > _MOST_PRODUCTS:
        wanted = TOKENS
    count = min(wanted, loaded.max_model_len, cache.num_blocks * cache.block_size)
    embedding: Any = loaded.model.get_input_embeddings()
    vocab = int(embedding.weight.shape[0])
    return tuple((7919 * index + 11) % vocab for index in range(count))


def _row(tokens: tuple[int, ...], start: int, stop: int, blocks: int) -> PlannedRow:
    return PlannedRow(
        EngineRequest("proof", tokens),
        arrival=0,
        token_ids=tokens[start:stop],
        start=start,
        block_ids=tuple(range(blocks)),
        needs_logits=True,
        weight_runs=(),
        known_tokens=tokens,
    )


def _subject(loaded: LoadedModel) -> str:
    """A digest of all that a verdict depends on, beside the prompt and who computes."""
    config = loaded.model.config.to_dict()
    config.pop("_name_or_path", None)
    parts = (
        *(type(loaded.model).__name__, str(loaded.dtype), loaded.quantization),
        *(_code(), _device(loaded.device), _weights(loaded.model)),
        json.dumps(config, sort_keys=True, default=str),
    )
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


@once
def _code() -> str:
    """A digest of what computes: the sources of its rooms, and the libraries' versions."""
    digest = hashlib.sha256(f"{torch.__version__} {transformers.__version__}".encode())
    root = Path(router_engine.__file__).parent
    for part in ("backends", "kernels", "model"):
        for file in sorted((root / part).rglob("*")):
            if file.is_file() and file.suffix in (".py", ".h", ".cpp"):
                digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def _device(device: torch.device) -> str:
    if device.type != "cuda":
        return f"{device.type} {processor()}"
    return f"{torch.cuda.get_device_name(device)} {torch.cuda.get_device_capability(device)}"


def _weights(model: nn.Module) -> str:
    """sha256 over every parameter and buffer; several at once, as hashing lets go of the GIL."""
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return hashlib.sha256("".join(pool.map(_digest, _tensors(model))).encode()).hexdigest()


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _digest(named: tuple[str, Tensor]) -> str:
    name, tensor = named
    values = tensor.detach()
    if type(values) is not Tensor and not isinstance(values, nn.Parameter):
        values = values.dequantize()  # torchao's, which has no bytes of its own
    values = values.contiguous().reshape(-1).cpu()
    digest = hashlib.sha256(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
    digest.update(values.view(torch.uint8).numpy().data)
    return digest.hexdigest()
