"""AdaMix LoRA checkpoints: what is averaged, and everything that is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from adaptermix.training.importing.adamix import lora as adamix
from adaptermix.training.importing.adamix import state as adamix_state
from adapters_store.errors import InvalidAdapterError
from tests.support import adamix_checkpoint as original
from tests.support.adamix_checkpoint import EXPERTS, HIDDEN, LAYERS, RANK, adamix_model

Arrays = dict[str, NDArray[Any]]
ATTENTION = "transformer.h.1.attn.c_attn"


def arrays(model: Any = None, **options: Any) -> Arrays:
    """A checkpoint's tensors, named as the importer names them."""
    state = original.state_of(adamix_model() if model is None else model, **options)
    named = adamix_state.state_of({"model_state_dict": state})
    return {name: value.numpy() for name, value in named.items() if isinstance(value, Tensor)}


def refused(state: Arrays) -> str:
    with pytest.raises(InvalidAdapterError) as raised:
        adamix.read_lora(state)
    return str(raised.value)


@pytest.mark.parametrize("copies", [(EXPERTS, 1), (1, EXPERTS), (EXPERTS, EXPERTS), (1, 1)])
@pytest.mark.parametrize("scores", [None, [0.0] * EXPERTS, [0.3 * e for e in range(EXPERTS)]])
def test_experts_are_averaged_by_the_softmax_of_their_scores(
    copies: tuple[int, int], scores: list[float] | None
) -> None:
    """Each layer by itself, A and B apart; the mean where the scores are zeros or absent."""
    model = adamix_model(copies=copies, scores=scores)
    state = arrays(model)
    if scores is None:
        state = {name: array for name, array in state.items() if "score" not in name}
    lora = adamix.read_lora(state)
    assert (lora.rank, lora.hidden_size) == (RANK, HIDDEN)
    assert (lora.copies_a, lora.copies_b) == copies
    assert lora.weighted is (scores is not None and any(scores))
    assert len(lora.layers) == LAYERS
    for (a, b), block in zip(lora.layers, model.transformer.h, strict=True):
        layer = block.attn.c_attn
        torch.testing.assert_close(torch.tensor(a), layer.side(layer.experts_lora_A).detach())
        torch.testing.assert_close(torch.tensor(b), layer.side(layer.experts_lora_B).detach())
    if copies[0] > 1:
        first = state["transformer.h.0.attn.c_attn.experts_lora_A.0"]
        assert not np.allclose(lora.layers[0][0], first, atol=0.01)


def test_one_lora_of_twice_the_rank_does_what_both_groups_do() -> None:
    lora = adamix.read_lora(arrays())
    tensors, config = lora.peft_tensors(), lora.peft_config(32.0)
    assert (config["r"], config["lora_alpha"]) == (2 * RANK, 64)
    assert config["lora_alpha"] / config["r"] == 32 / RANK
    assert config["fan_in_fan_out"] is True
    assert lora.peft_config(0.25)["lora_alpha"] == 0.5
    for index, (a, b) in enumerate(lora.layers):
        module = f"base_model.model.transformer.h.{index}.attn.c_attn"
        fused = tensors.pop(f"{module}.lora_B.weight") @ tensors.pop(f"{module}.lora_A.weight")
        q, v = b[:HIDDEN] @ a[:RANK], b[HIDDEN:] @ a[RANK:]
        np.testing.assert_allclose(fused, np.concatenate([q, np.zeros_like(q), v]), atol=1e-6)
    assert not tensors


def test_all_layouts_of_one_model_read_the_same() -> None:
    """With and without `module.`, adapter-only and full, before and after an evaluation."""
    plain = adamix.read_lora(arrays()).peft_tensors()
    evaluated = adamix_model(evaluated=True)
    full = arrays(evaluated, full=True)
    assert f"{ATTENTION}.lora_B_w" in full
    assert "transformer.wte.weight" in full
    for state in (full, arrays(evaluated), arrays(prefix=""), arrays(full=True, prefix="")):
        found = adamix.read_lora(state).peft_tensors()
        assert found.keys() == plain.keys()
        assert all(np.array_equal(found[name], plain[name]) for name in plain)


Change = Callable[[Arrays], object]


def drop(*names: str) -> Change:
    return lambda state: [state.pop(name) for name in names]


def put(name: str, array: NDArray[Any]) -> Change:
    return lambda state: state.update({name: array})


def keep_first(count: int) -> Change:
    """Leave layer 1 fewer experts."""
    names = [f"{ATTENTION}.experts_lora_A.{e}" for e in range(count, EXPERTS)]
    score = np.zeros(count, np.float32)
    return lambda state: [drop(*names)(state), put(SCORE, score)(state)]


def narrow(state: Arrays) -> None:
    """Give layer 1 half the rank of layer 0."""
    for name in [name for name in state if name.startswith(f"{ATTENTION}.experts")]:
        array = state[name]
        state[name] = array[:RANK] if "_A." in name else array[:, : RANK // 2]


def zeros(*shape: int) -> NDArray[Any]:
    return np.zeros(shape, dtype=np.float32)


SCORE = f"{ATTENTION}.lora_expert_score_weight"
A0, B0 = f"{ATTENTION}.experts_lora_A.0", f"{ATTENTION}.experts_lora_B.0"
WRONG: dict[str, tuple[Change, str]] = {
    "A is not of 2r rows": (
        put(A0, zeros(3 * RANK, HIDDEN)),
        rf"{A0}: is float32 \[12, 64\].*r = 4",
    ),
    "B is not of 2d rows": (put(B0, zeros(3 * HIDDEN, RANK)), rf"{B0}: .*\[192, 4\].*d = 64"),
    "a rank of nothing": (put(B0, zeros(2 * HIDDEN, 0)), r"experts_lora_B.0.*r = 0"),
    "one dimension": (put(A0, zeros(HIDDEN)), rf"{A0}: is float32 \[64\]"),
    "whole numbers": (put(B0, np.zeros((2 * HIDDEN, RANK), np.int64)), rf"{B0}: is int64"),
    "fewer experts in a layer": (keep_first(4), rf"{ATTENTION}: has M = 4.*h\.0.* M = 8"),
    "another rank in a layer": (narrow, rf"{ATTENTION}: has .*r = 2.*h\.0.* r = 4"),
    "scores in one layer only": (drop(SCORE), rf"{ATTENTION}: has .*no scores.*has .* scores"),
    "an expert is missing": (
        drop(f"{ATTENTION}.experts_lora_A.3"),
        r"lacks experts_lora_A\.3 of 8",
    ),
    "the last is missing": (drop(f"{ATTENTION}.experts_lora_A.7"), r"lacks experts_lora_A\.7 of 8"),
    "the first is missing": (drop(A0), r"lacks experts_lora_A\.0 of 8"),
    "an expert too many": (
        put(f"{ATTENTION}.experts_lora_A.8", zeros(8, 64)),
        "one expert too many",
    ),
    "no B": (drop(B0), rf"{ATTENTION}: has no experts_lora_B"),
    "no layer 0": (
        lambda state: drop(*[name for name in state if ".h.0." in name])(state),
        r"transformer\.h\.0\.attn\.c_attn: has no experts_lora_A and experts_lora_B",
    ),
    "scores of no use": (put(SCORE, np.full(EXPERTS, np.nan, np.float32)), "NaN or infinite"),
    "scores of two dimensions": (
        put(SCORE, zeros(EXPERTS, 1)),
        r"\[8, 1\], expected a float \[M\]",
    ),
    "an alias of something else": (put(f"{ATTENTION}.lora_B_w", zeros(128, 4)), "is no copy of a"),
    "an alias of what isn't shared": (
        lambda state: state.update({f"{ATTENTION}.lora_A_w": state[A0]}),
        r"lora_A_w: is no copy of a shared experts_lora_A\.0",
    ),
    "an unknown tensor": (put(f"{ATTENTION}.lora_C", zeros(1)), r"don't: .*lora_C"),
    "no number of an expert": (put(f"{ATTENTION}.experts_lora_A.00", zeros(8, 64)), r"A\.00"),
}


@pytest.mark.parametrize(("change", "said"), WRONG.values(), ids=WRONG.keys())
def test_what_is_amiss_is_refused_by_name(change: Change, said: str) -> None:
    state = arrays()
    adamix.read_lora(state)
    change(state)
    with pytest.raises(InvalidAdapterError, match=said):
        adamix.read_lora(state)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        (f"{ATTENTION}.weight", (3 * HIDDEN, HIDDEN)),
        ("transformer.h.0.attn.bias", (1, 1, 32, 31)),
        ("transformer.h.0.mlp.c_proj.weight", (HIDDEN, 4 * HIDDEN)),
        ("transformer.wte.weight", (259, HIDDEN + 1)),
        ("lm_head.decoder.weight", (260, HIDDEN)),
        ("transformer.ln_f.bias", (1, HIDDEN)),
    ],
)
def test_base_weights_of_another_shape_are_refused(name: str, shape: tuple[int, ...]) -> None:
    state = arrays(full=True)
    assert name in state
    state[name] = zeros(*shape)
    said = refused(state)
    assert "has shape" in said
    assert name.rpartition(".")[0].split(".")[0] in said


def test_a_full_file_tells_of_layers_cut_off_at_the_end() -> None:
    state = arrays(full=True)
    drop(*[name for name in state if name.startswith(f"{ATTENTION}.") and "lora" in name])(state)
    assert f"{ATTENTION}: has no experts_lora_A" in refused(state)


def test_all_problems_come_at_once() -> None:
    state = arrays()
    drop(f"{ATTENTION}.experts_lora_A.3", "transformer.h.0.attn.c_attn.experts_lora_B.0")(state)
    said = refused(state)
    assert "lacks experts_lora_A.3" in said
    assert "h.0.attn.c_attn: has no experts_lora_B" in said


def test_many_problems_are_counted() -> None:
    state = arrays()
    put(SCORE, zeros(1 << 20))(state)
    assert "experts_lora_A.15 and 1048560 more of 1048576 experts" in refused(state)
    many = {f"transformer.h.{i}.attn.c_attn.experts_lora_A.0": zeros(1, 1) for i in range(100)}
    assert "and 69 more problems" in refused(many)


@pytest.mark.parametrize(
    ("checkpoint", "said"),
    [
        ([], "holds a list; expected a dict"),
        ({"model_state_dict": [1]}, "is no dict of tensors by name"),
        ({"model_state_dict": {1: 2}}, "is no dict of tensors by name"),
        ({"epoch": 3}, r"no entry 'model_state_dict' \(it holds epoch\)"),
        ({"model_state_dict": {}, "optimizer": {}}, "holds optimizer beside"),
        ({"model_state_dict": {"module.a": 1, "a": 1}}, "a both with and without 'module.'"),
        (
            {
                "roberta.encoder.layer.0.output.ExpertSoup.MoA_A.deepspeed_experts.0.weight": 1,
                "classifier.dense.weight": 1,
            },
            r"encoder that classifies \(GLUE; roberta.*train AdaMix on GPT-2",
        ),
    ],
)
def test_files_that_hold_something_else_are_refused_by_name(checkpoint: object, said: str) -> None:
    with pytest.raises(InvalidAdapterError, match=said):
        adamix_state.state_of(checkpoint)


def test_a_checkpoint_without_lora_is_refused() -> None:
    assert "holds no AdaMix LoRA" in refused({"transformer.wte.weight": zeros(3, 4)})
    assert "it holds nothing" in refused({})


@pytest.mark.parametrize(
    ("alpha", "said"),
    [
        (None, r"--alpha: is missing.*32 in the published scripts, 128 .*default"),
        (0.0, "is 0: give a number above 0"),
        (-32.0, "is -32"),
        (float("nan"), "is nan"),
        (float("inf"), "is inf"),
    ],
)
def test_alpha_must_be_given(alpha: float | None, said: str) -> None:
    with pytest.raises(InvalidAdapterError, match=said):
        adamix.checked_alpha(alpha)
    assert adamix.checked_alpha(32) == 32.0
