"""`paper` routing on the real model, token for token against PEFT doing what the paper does.

"Token-Level Adaptation of LoRA Adapters for Downstream Task Generalization" (2023): encode the
whole text, sharpen the best cosine, merge with `linear`, recompute everything, predict one token.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from router_engine.config import EngineConfig, ModelConfig
from router_engine.request import EngineRequest, Reports, SamplingSpec, TokenRouting
from router_engine.routers.centroids import centroid
from router_engine.routers.encoder.encoder_client import EncoderClient
from router_engine.routers.encoder.encoder_config import EncoderConfig
from router_engine.routers.encoder.encoder_process import EncoderProcess
from router_engine.routers.encoder.sessions import SimilarityTokenRouter
from tests.router_engine.paths import CPU, REFERENCE, EnginePath, PathHarness, path_params
from tests.support.oracle import assert_agrees, peft_model, set_mixture
from tests.support.waiting import HANG_SECONDS

pytestmark = pytest.mark.real_model

COUNT = 4
SAMPLES = 8
PROMPTS = [
    "Question: A baker makes 12 trays of 8 rolls and sells 61. How many are left?\n\nAnswer:",
    "Question: Which gas do plants take in?\nChoices: A. oxygen\nB. carbon dioxide\n\nAnswer:",
    "Sort this list in Python.\nInput: [3, 1, 2]\n\nAnswer:",
    "Context:\nThe river Oder rises in Moravia and ends in the Baltic.\n\n"
    "Question: Where does the Oder end?\n\nAnswer:",
]


class _Oracle:
    """The method as the paper's code runs it: no cache, one merge a token."""

    def __init__(self, base: Path, encoder: Path, folders: list[Path]) -> None:
        self._tokenizer: Any = AutoTokenizer.from_pretrained(base)
        self._pieces: Any = AutoTokenizer.from_pretrained(encoder)
        self._encoder: Any = AutoModel.from_pretrained(encoder).eval()
        self._model = peft_model(
            AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), folders
        )
        self.centroids = [self._centroid(folder) for folder in folders]

    @torch.no_grad()
    def embed(self, text: str) -> NDArray[np.float32]:
        """Mean of the first 256 word pieces' states, as sentence-transformers makes it."""
        batch = self._pieces([text], truncation=True, max_length=256, return_tensors="pt")
        states = self._encoder(**batch).last_hidden_state[0]
        mean: NDArray[np.float32] = torch.nn.functional.normalize(states.mean(0), dim=0).numpy()
        return mean

    def _centroid(self, folder: Path) -> NDArray[np.float32]:
        mean: NDArray[np.float32] = np.mean([self.embed(text) for text in sample_texts(folder)], 0)
        return mean

    def text(self, ids: list[int]) -> str:
        """What has been written: an end-of-text token that was generated is no text."""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def weights(self, text: str) -> list[float]:
        e = self.embed(text)
        s = np.array([e @ c / np.linalg.norm(e) / np.linalg.norm(c) for c in self.centroids])
        s[s.argmax()] *= 4.0
        exponent = np.exp(s - s.max())
        return [float(weight) for weight in exponent / exponent.sum()]

    @torch.no_grad()
    def generate(self, prompt: list[int]) -> _Expected:
        ids, rows, weights = list(prompt), [], []
        for _ in range(COUNT):
            weights.append(self.weights(self.text(ids)))
            set_mixture(self._model, weights[-1], "linear")
            logits = self._model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
            rows.append(logits.log_softmax(-1))
            ids.append(int(logits.argmax()))
        return _Expected(prompt, ids[len(prompt) :], rows, weights)


def sample_texts(folder: Path) -> list[str]:
    """The first of an adapter's sample texts: enough for a centroid that tells it from others."""
    lines = (folder / "texts.jsonl").read_text().splitlines()[:SAMPLES]
    return [json.loads(line)["text"] for line in lines]


@pytest.fixture(scope="module")
def endpoint(
    real_base: Path, real_encoder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """A running encoder worker."""
    address = f"ipc://{tmp_path_factory.mktemp('encoder')}/socket"
    threads = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    worker = EncoderProcess(
        EncoderConfig(real_encoder, real_base, address, {**os.environ, **threads}, dtype="float32")
    )
    worker.start()
    yield address
    worker.stop()


@pytest.fixture
def routed(
    endpoint: str, path: EnginePath, path_cache: Path, real_base: Path, tmp_path: Path
) -> Iterator[PathHarness]:
    """An engine on the path that asks the encoder worker for every token's weights."""
    holder: list[PathHarness] = []
    router = SimilarityTokenRouter(endpoint, wake=lambda: holder[0].wake())
    config = EngineConfig(ModelConfig(dtype="float32"))
    routers = {"similarity": router}
    harness = PathHarness(
        tmp_path / "engine", path, path_cache, model=real_base, config=config, routers=routers
    )
    holder.append(harness)
    yield harness
    harness.close()


@dataclass(frozen=True, slots=True)
class _Expected:
    """What the paper's code answers to one prompt."""

    prompt: list[int]
    ids: list[int]
    rows: list[torch.Tensor]
    weights: list[list[float]]  # of each token


@pytest.fixture(scope="module")
def expected(real_base: Path, real_encoder: Path, example_adapters: list[Path]) -> list[_Expected]:
    """For PROMPTS, once for all paths."""
    oracle = _Oracle(real_base, real_encoder, example_adapters)
    tokenizer: Any = AutoTokenizer.from_pretrained(real_base)
    return [oracle.generate(list(tokenizer(text).input_ids)) for text in PROMPTS]


async def _put_centroids(endpoint: str, folders: dict[str, Path]) -> None:
    async with EncoderClient(endpoint, connect_seconds=HANG_SECONDS) as client:
        for digest, folder in folders.items():
            embeddings = await client.embed(sample_texts(folder), window="head")
            await client.put_centroids({digest: centroid(embeddings)})


@pytest.mark.parametrize("path", path_params(REFERENCE, CPU), indirect=True)
def test_paper_routing_matches_peft(
    routed: PathHarness, endpoint: str, expected: list[_Expected], example_adapters: list[Path]
) -> None:
    folders = {routed.publish(path.name, path): path for path in example_adapters}
    asyncio.run(_put_centroids(endpoint, folders))
    routing = TokenRouting("similarity", {"scoring": "paper", "window": "head"}, 1, "recompute")
    answers = routed.run(
        *(
            EngineRequest(
                f"r{index}",
                tuple(each.prompt),
                SamplingSpec(max_new_tokens=COUNT),
                adapters=tuple(folders),
                combination="linear",
                routing=routing,
                reports=Reports(weights=True),
            )
            for index, each in enumerate(expected)
        )
    )
    for each, answer in zip(expected, answers, strict=True):
        assert_agrees(answer, each.ids, each.rows)
        for index, (token, weights) in enumerate(zip(answer.tokens, each.weights, strict=True)):
            assert token.weights == pytest.approx(weights, abs=1e-4)
            if token.token_id != each.ids[index]:
                break  # a tie: the texts are two from here on
    assert any(each.weights[0] != pytest.approx(each.weights[-1], abs=1e-2) for each in expected)
    winners = {int(np.argmax(answer.tokens[0].weights)) for answer in answers}
    assert len(winners) > 1  # negative control: the prompts are told apart
