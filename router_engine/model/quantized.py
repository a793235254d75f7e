"""The base in 8 bits: every linear layer's weight and input as integers with scales.

y[t, o] = sum_g sx[t, g] * sw[o] * sum_{i in g} qx[t, i] * qw[o, i] + bias[o], the inner sums exact
in 32 bits. sw belongs to an output; sx to a token and a stretch g of 64 inputs, and is found as the
token comes: nothing is calibrated. Both are symmetric: q = round(v / s), s = max |v| / 127. Source:
Dettmers et al., "LLM.int8()", 2022, section 3.1; where that keeps inputs which are far larger than
the others in 16 bits, here they spoil their own stretch alone.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from router_engine.errors import UnsupportedModelError

_TOP = 127
_STRETCH = 64  # inputs of one scale, as in backends/cpu/src/int8.h
_OUTPUTS = 1024  # rounded at a time: in fp32 a whole head would be twice the model
_LEAST = 1e-30  # of a scale's numerator: rows of zeros stay finite


class Int8Linear(nn.Module):
    """A linear layer on integers, in place of nn.Linear or GPT-2's Conv1D."""

    values: Tensor  # [out, in] int8
    scale: Tensor  # [out] fp32

    def __init__(self, weight: Tensor, bias: nn.Parameter | None) -> None:
        """weight [out, in] in any floating-point dtype; bias [out]."""
        super().__init__()
        parts = [_rounded(part) for part in torch.split(weight.detach(), _OUTPUTS)]
        self.register_buffer("values", torch.cat([values for values, _ in parts]))
        self.register_buffer("scale", torch.cat([scale for _, scale in parts]))
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] in any floating-point dtype -> [..., out] in the same."""
        rows = x.reshape(-1, x.shape[-1]).float()
        y = rows.new_zeros(rows.shape[0], self.values.shape[0])
        parts = (torch.split(part, _STRETCH, dim=1) for part in (rows, self.values))
        for inputs, weights in zip(*parts, strict=True):
            top = inputs.abs().amax(dim=1, keepdim=True).clamp_min(_LEAST)
            values = torch.round(inputs * (top.reciprocal() * _TOP))
            # Exact: sums of 64 products of whole numbers stay below 2^24. Products of bytes would
            # saturate on processors without VNNI.
            y += values @ weights.T.float() * (top / _TOP * self.scale)
        if self.bias is not None:
            y += self.bias
        return y.to(x.dtype).view(*x.shape[:-1], y.shape[-1])


def _rounded(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Integers [out, in] and scales [out]."""
    wide = weight.float()
    scale = wide.abs().amax(dim=1).clamp_min(_LEAST) / _TOP
    return torch.round(wide / scale[:, None]).to(torch.int8), scale


def quantize_linears(
    model: PreTrainedModel, chosen: Callable[[str], bool] = lambda path: True
) -> None:
    """Put every linear layer into 8 bits, in place; each layer's own weight is let go at once.

    A weight that an embedding shares is copied: the embedding keeps its format. On a GPU torchao
    does it, weights only. On a CPU `chosen` can leave layers out by their path, such as PEFT's own.
    Raises UnsupportedModelError where it cannot be done.
    """
    if model.device.type != "cpu":
        return quantize_by_torchao(model)
    for path, module in list(model.named_modules()):
        if not isinstance(module, nn.Linear | Conv1D) or not chosen(path):
            continue
        weight = module.weight.T if isinstance(module, Conv1D) else module.weight
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, Int8Linear(weight, module.bias))
    return None


def quantize_by_torchao(model: PreTrainedModel) -> None:
    """Weights become torchao's tensors of int8 with one scale an output; layers stay nn.Linear.

    Weights only: small batches are bound by reading them, and inputs lose nothing.
    """
    if any(isinstance(module, Conv1D) for module in model.modules()):
        raise UnsupportedModelError(
            f"quantization 'int8' on device {model.device.type} does not know the layers of "
            f"{type(model).__name__}: use device 'cpu', or quantization 'none'"
        )
    try:
        torchao = importlib.import_module("torchao.quantization")
    except ImportError as error:
        raise UnsupportedModelError(
            f"quantization 'int8' on device {model.device.type} needs torchao: run "
            "`pip install 'adaptermix[gpu-quantization]'`"
        ) from error
    torchao.quantize_(model, torchao.Int8WeightOnlyConfig(set_inductor_config=False))
