"""`copies` of a mixture's adapters: each mode through the API, and what is refused by name."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from router_engine.calls import Pin
from router_engine.experts.variants import Stochastic, variant_digest
from server.errors import QueueFullError
from server.generation.admission import Admission
from tests.server.live import Live, serving, tiny_settings
from tests.support.copies import DOWN, UP, make_copies
from tests.support.tiny import make_lora_folder

PROMPT = "a question"
PARAMETERS = {"max_new_tokens": 6, "ignore_eos_token": True, "details": True}
ENSEMBLE = {"mode": "ensemble", "members": 3, "seed": 5}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server with an adapter kept as copies, one whose copies are equal, and a plain one."""
    root: Path = tmp_path_factory.mktemp("copies")
    folders = {
        "adamix": make_copies(root / "adamix").folder,
        "other": make_copies(root / "other", seed=1).folder,
        "equal": make_copies(root / "equal", equal=True).folder,
        "plain": make_lora_folder(root / "plain"),
    }
    with serving(tiny_settings(root)) as live:
        for name, folder in folders.items():
            reply = live.publish(folder, name)
            assert reply.status_code < 300, reply.text
        yield live


def mixture(copies: dict[str, Any] | None, name: str = "adamix") -> dict[str, Any]:
    return {"adapters": [{"name": name} | ({} if copies is None else {"copies": copies})]}


def logprobs(live: Live, copies: dict[str, Any] | None) -> list[float]:
    """Of a given text, so that they can be compared."""
    (score,) = scores(live, ["some text"], mixture(copies))
    return [token["logprob"] for token in score["tokens"]]


def scores(live: Live, completions: list[str], under: dict[str, Any]) -> list[dict[str, Any]]:
    body = {"inputs": PROMPT, "completions": completions, "mixture": under}
    response = live.client.post("/score", json=body)
    assert response.status_code == 200, response.text
    return list(response.json()["scores"])


def test_average_is_what_acts_without_copies(server: Live) -> None:
    plain = logprobs(server, None)
    assert logprobs(server, {"mode": "average"}) == plain
    soup = {"mode": "soup", "down": list(DOWN), "up": list(UP)}
    assert logprobs(server, soup) == pytest.approx(plain, abs=1e-4)
    assert logprobs(server, soup | {"down": None}) == pytest.approx(plain, abs=1e-4)


def test_choices_differ_and_equal_ones_do_not(server: Live) -> None:
    choices: list[dict[str, Any]] = [
        {"mode": "average"},
        {"mode": "soup", "up": [0.0, 1.0]},
        {"mode": "stochastic"},
        {"mode": "stochastic", "seed": 1},
    ]
    found = [logprobs(server, choice) for choice in choices]
    assert len({tuple(each) for each in found}) == len(choices)
    assert logprobs(server, {"mode": "stochastic", "seed": 1}) == pytest.approx(found[3], abs=1e-6)


def test_an_ensemble_says_the_mean_of_its_members_probabilities(server: Live) -> None:
    """Of each first byte; the members are the stochastic draws whose seeds count up."""
    options = ["x", "y", " "]
    members = [
        [math.exp(score["logprob"]) for score in scores(server, options, mixture(draw))]
        for draw in ({"mode": "stochastic", "seed": seed} for seed in (5, 6, 7))
    ]
    ensemble = [math.exp(s["logprob"]) for s in scores(server, options, mixture(ENSEMBLE))]
    assert ensemble == pytest.approx([fmean(each) for each in zip(*members, strict=True)], rel=1e-3)
    assert members[0] != pytest.approx(members[1], rel=1e-2)


@pytest.mark.parametrize("name", ["adamix", "equal"])
def test_tokens_of_an_ensemble_carry_their_uncertainty(name: str, server: Live) -> None:
    body = {"parameters": PARAMETERS, "mixture": mixture(ENSEMBLE, name)}
    tokens = server.answer(PROMPT, **body)["details"]["tokens"]
    frames = server.frames(PROMPT, **body)
    assert [frame["token"]["uncertainty"] for frame in frames] == [
        token["uncertainty"] for token in tokens
    ]
    for token in tokens:
        information = token["uncertainty"]["mutual_information"]
        assert 0 <= information <= min(math.log(3), token["uncertainty"]["entropy"])
        assert (information > 1e-3) == (name == "adamix")
    (score,) = scores(server, ["text"], body["mixture"])
    assert all(set(t["uncertainty"]) == {"entropy", "mutual_information"} for t in score["tokens"])
    bare = server.frames(PROMPT, **body | {"parameters": {"max_new_tokens": 2}})
    assert all("uncertainty" not in frame["token"] for frame in bare)


def test_a_plain_request_carries_its_entropy_where_asked(server: Live) -> None:
    asked = server.answer(PROMPT, parameters=PARAMETERS | {"uncertainty": True})
    for token in asked["details"]["tokens"]:
        assert set(token["uncertainty"]) == {"entropy"}
        assert 0 < token["uncertainty"]["entropy"] < math.log(259)
    body = {"inputs": PROMPT, "completions": ["ab"], "uncertainty": True}
    (score,) = server.client.post("/score", json=body).json()["scores"]
    assert all(set(token["uncertainty"]) == {"entropy"} for token in score["tokens"])
    refused = server.generate(PROMPT, parameters={"uncertainty": True})
    assert refused.status_code == 422
    assert "uncertainty is part of the details: set details" in refused.text


def test_ensembles_are_counted(server: Live) -> None:
    before = metrics(server)
    body = {"parameters": PARAMETERS, "mixture": mixture(ENSEMBLE)}
    server.answer(PROMPT, **body)
    server.answer(PROMPT, parameters=PARAMETERS, mixture=mixture(None))
    after = metrics(server)
    assert {name: after[name] - before[name] for name in after} == {
        "adaptermix_ensemble_requests_total": 1,
        "adaptermix_mutual_information_nats_count": 6,
    }


def metrics(live: Live) -> dict[str, float]:
    text = live.client.get("/metrics").text
    pairs = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    wanted = ("adaptermix_ensemble_requests_total", "adaptermix_mutual_information_nats_count")
    return {name: float(value) for name, value in pairs if name in wanted}


@pytest.mark.parametrize(
    ("copies", "words"),
    [
        ({"mode": "best"}, ["copies", "best", "'soup'", "'ensemble'"]),
        ({}, ["copies", "mode"]),
        ({"mode": "average", "seed": 1}, ["seed is not a field here"]),
        ({"mode": "soup", "down": [1.0]}, ["copies.down = 1 weights", "keeps 3 of this side"]),
        ({"mode": "soup", "up": [1.0] * 3}, ["copies.up = 3 weights", "keeps 2 of this side"]),
        ({"mode": "soup", "up": []}, ["copies", "up"]),
        ({"mode": "stochastic", "seed": -1}, ["copies", "seed"]),
        ({"mode": "ensemble", "members": 1}, ["members"]),
        ({"mode": "ensemble", "members": 17}, ["members"]),
        ({"mode": "ensemble"}, ["members"]),
    ],
)
def test_what_cannot_be_chosen_is_refused_by_name(
    copies: dict[str, Any], words: list[str], server: Live
) -> None:
    response = server.generate(PROMPT, mixture=mixture(copies))
    assert response.status_code == 422
    for word in words:
        assert word in response.text


def test_mixtures_that_cannot_be_are_refused_by_name(server: Live) -> None:
    refused = server.generate(PROMPT, mixture=mixture({"mode": "average"}, "plain"))
    assert refused.status_code == 422
    assert "plain@1 keeps no copies apart: leave copies out" in refused.text
    both = [{"name": name, "copies": ENSEMBLE} for name in ("adamix", "other")]
    refused = server.generate(PROMPT, mixture={"adapters": both})
    assert refused.status_code == 422
    assert "mixture.adapters.1.copies.mode = 'ensemble'" in refused.text
    merged = server.client.put("/admin/merged", json=mixture({"mode": "average"}))
    assert merged.status_code == 422
    assert "adapters kept as copies cannot be merged" in merged.text


def test_an_ensemble_takes_a_place_for_each_member() -> None:
    refused: list[None] = []
    admission = Admission(4, lambda: refused.append(None))
    with admission.enter(3) as begun:
        with pytest.raises(QueueFullError), admission.enter(2):
            pass
        with admission.enter():
            assert admission.waiting == 4
        begun(0.1)
        assert admission.waiting == 0
    with admission.enter(9):  # more than there are: it finds all of them where nobody waits
        assert admission.waiting == 4
    assert admission.waiting == admission.live == 0
    assert refused == [None]


def test_an_adapter_stays_while_a_variant_of_it_is_held(server: Live) -> None:
    folder = server.client.get("/admin/adapters/other").json()
    digest = variant_digest(folder["adapters"][0]["digest"], Stochastic(3))
    engine = server.container.services.engine
    assert server.run(engine.call(Pin(digest, pinned=True))).pinned
    for path in ("/admin/adapters/other", "/admin/adapters/other/unload"):
        response = server.client.request("DELETE" if path.endswith("r") else "POST", path)
        assert response.status_code == 409
        assert response.json()["error_type"] == "conflict"
    assert not server.run(engine.call(Pin(digest, pinned=False))).pinned


def test_an_ensemble_beside_another_adapter_runs_both(server: Live) -> None:
    two = {
        "adapters": [
            {"name": "plain", "weight": 0.5},
            {"name": "adamix", "copies": ENSEMBLE},
            {"name": "other", "weight": 0.3, "copies": {"mode": "stochastic"}},
        ]
    }
    details = server.answer(PROMPT, parameters=PARAMETERS, mixture=two)["details"]
    assert details["routing"]["adapters"] == ["plain@1", "adamix@1", "other@1"]
    assert details["routing"]["weights"] == [[0.5, 1.0, 0.3]] * 6
    assert all(token["uncertainty"]["mutual_information"] > 0 for token in details["tokens"])
