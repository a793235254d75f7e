"""An adapter with bottlenecks and gates, from its upload to its answers and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.server.live import Live
from tests.support.expert_adapters import INSTANCE, NATIVE, make_expert_folder
from tests.support.tiny import make_lora_folder

ASKED = {"max_new_tokens": 4, "ignore_eos_token": True, "details": True}
BOTH = [{"name": "gated", "weight": 0.5}, {"name": "plain", "weight": 0.5}]
HELD = "gated@1, which holds a gate on the LoRA at model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def published(bare: Live, tmp_path_factory: pytest.TempPathFactory) -> Live:
    root = tmp_path_factory.mktemp("kinds")
    assert bare.publish(make_expert_folder(root / "gated", NATIVE), "gated").status_code == 201
    assert bare.publish(make_lora_folder(root / "plain"), "plain").status_code == 201
    return bare


def test_it_is_served_alone_and_in_a_mixture(published: Live) -> None:
    mixtures: list[list[dict[str, Any]]] = [[{"name": name}] for name in ("gated", "plain")]
    replies = [published.answer(parameters=ASKED)]
    for adapters in (*mixtures, BOTH):
        replies.append(published.answer(parameters=ASKED, mixture={"adapters": adapters}))
    firsts = {reply["details"]["tokens"][0]["logprob"] for reply in replies}
    assert len(firsts) == len(replies)


@pytest.mark.parametrize(
    ("mixture", "works"),
    [
        ({"adapters": BOTH, "combination": "linear"}, "combination 'sum' takes any experts"),
        (
            {"router": {"name": "arrow", "level": "layer", "candidates": ["plain", "gated"]}},
            "choose a router of level 'request' or 'token'",
        ),
    ],
)
def test_what_takes_lora_alone_refuses_it(
    mixture: dict[str, Any], works: str, published: Live
) -> None:
    response = published.generate(mixture=mixture)
    assert response.status_code == 422
    assert HELD in response.text
    assert works in response.text


def test_the_base_does_not_hold_it(published: Live) -> None:
    response = published.client.put("/admin/merged", json={"adapters": BOTH})
    assert response.status_code == 422
    assert HELD in response.text
    assert "send the mixture with each request instead" in response.text
    assert published.client.get("/admin/merged").json()["mode"] == "unmerged"


def test_gates_of_whole_prompts(published: Live, tmp_path: Path) -> None:
    """One set for a request; a router that reads the states of a prompt cannot weigh them."""
    folder = make_expert_folder(tmp_path / "whole", INSTANCE)
    assert published.publish(folder, "whole").status_code == 201
    asked = {**ASKED, "gates": True}
    details = published.answer(parameters=asked, mixture={"adapters": [{"name": "whole"}]})[
        "details"
    ]
    (said,) = details["gates"]
    assert said["tokens"] == details["prompt_tokens"] + 3  # the last of the answer is read by none
    assert max(max(row) for row in said["std"]) < 1e-6
    assert 0 < said["spread"] < 0.5
    router = {"name": "hidden_mean", "level": "token", "candidates": ["plain", "whole"]}
    response = published.generate(mixture={"router": router})
    assert response.status_code == 422
    assert "mixture.router.candidates" in response.text
    assert "gates of whole prompts are computed with all of a prompt in one step" in response.text


def test_linear_names_the_field_and_the_adapter_whose_scale_has_no_root(
    published: Live, tmp_path: Path
) -> None:
    negative = make_lora_folder(tmp_path / "negative", alpha=-8)
    assert published.publish(negative, "negative").status_code == 201
    adapters = [{"name": "plain", "weight": 0.5}, {"name": "negative", "weight": 0.5}]
    mixture = {"adapters": adapters, "combination": "linear"}
    response = published.generate(mixture=mixture)
    assert response.status_code == 422
    assert "mixture.adapters = negative@1, which has scale -2.0 at model.layers.0" in response.text
    assert "sha256" not in response.text
    assert "combination sum" in response.text
    assert published.generate(mixture=mixture | {"combination": "sum"}).status_code == 200
