"""Whatever crosses the process border comes out as it went in."""

from __future__ import annotations

import inspect
from pathlib import Path

import msgspec
import pytest

import adapters_store.errors
import router_engine.errors
from adapters_store.errors import AdapterNotFoundError, InvalidAdapterError
from adapters_store.types import (
    BaseModelSpec,
    EmbeddingSpec,
    LinearShape,
    Problem,
    ResolvedMixture,
)
from router_engine import calls as c
from router_engine.config import CacheConfig, EngineConfig, ModelConfig
from router_engine.errors import AdapterBusyError, EngineError
from router_engine.events import (
    FinalEvent,
    FinishReason,
    GateStatistics,
    TokenEvent,
    TokenUncertainty,
)
from router_engine.info import AdapterResidency, EngineInfo, MergedState, Residency
from router_engine.process import messages as m
from router_engine.process.wire_errors import WireError
from router_engine.request import EngineRequest, LayerRouting, Reports, SamplingSpec, TokenRouting
from router_engine.stats import EngineStats

MIXTURE = ResolvedMixture(("sha256:" + "a" * 64, "sha256:" + "b" * 64), (0.5, -1.25), "linear")
ROUTED = EngineRequest(
    "r1",
    (1, 2, 3),
    SamplingSpec(max_new_tokens=3, temperature=0.7, seed=2**63, stop_token_ids=(2,)),
    adapters=MIXTURE.digests,
    routing=TokenRouting("given", {"weights": [[0.5, 0.5], [1.0, 0.0]]}, every=2),
    priority=-1,
    reports=Reports(weights=True),
)
FIXED = EngineRequest.from_mixture(MIXTURE, "r2", (4, 5), SamplingSpec())
ENSEMBLE = EngineRequest(
    "r4", (7,), adapters=("sha256:a~stochastic:0",), weights=(1.0,), ensemble=(("sha256:b",),)
)
LAYERED = EngineRequest(
    "r3", (6,), adapters=MIXTURE.digests, layer_routing=LayerRouting("arrow", {"top_k": 2})
)

COMMANDS: list[m.Command] = [
    m.Submit(ROUTED),
    m.Submit(FIXED),
    m.Submit(LAYERED),
    m.Submit(ENSEMBLE),
    m.Cancel("r1"),
    m.Shutdown(),
    m.CallRequest(1, c.LoadAdapter(MIXTURE.digests[0])),
    m.CallRequest(2, c.Pin(MIXTURE.digests[0], pinned=True)),
    m.CallRequest(3, c.Unload(MIXTURE.digests[0])),
    m.CallRequest(4, c.Merge(MIXTURE)),
    m.CallRequest(5, c.Merge(None)),
    m.CallRequest(6, c.GetResidency()),
    m.CallRequest(7, c.GetMerged()),
    m.CallRequest(8, c.GetStats()),
]

INFO = EngineInfo(
    base=BaseModelSpec(
        "tiny",
        "Llama",
        {"lm_head": LinearShape(64, 259)},
        ("norm",),
        embeddings={"lm_head": EmbeddingSpec((259, 64), "F32", {"F32": "0" * 64})},
    ),
    max_model_len=128,
    vocab_size=259,
    eos_token_ids=(2,),
    dtype="float32",
    device="cpu",
    token_routers=("given",),
    layer_routers=("arrow",),
)
TOKEN = TokenEvent(
    "r1",
    7,
    -0.5,
    top_tokens=((7, -0.5), (8, -1.5)),
    weights=(0.25, 0.75),
    uncertainty=TokenUncertainty(1.5, 0.25),
)
GATES = GateStatistics("sha256:a", 3, ((0.5, None),), ((0.1, None),), 0.25, 0.0)
FINAL = FinalEvent(
    "r1", FinishReason.STOP_TOKEN, stop_token_id=2, num_generated_tokens=1, gates=(GATES,)
)

REPORTS: list[m.Report] = [
    m.Ready(INFO),
    m.StartFailed(WireError("UnsupportedModelError", "no such family")),
    m.StepEvents([TOKEN], [FINAL]),
    m.CallFailed(3, WireError.of(AdapterBusyError("in use"))),
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: type(command).__name__)
def test_commands_survive_the_border(command: m.Command) -> None:
    assert m.decode_command(m.encode(command)) == command


@pytest.mark.parametrize("report", REPORTS, ids=lambda report: type(report).__name__)
def test_reports_survive_the_border(report: m.Report) -> None:
    assert m.decode_report(m.encode(report)) == report


@pytest.mark.parametrize(
    "value",
    [
        AdapterResidency(
            "sha256:x", Residency.DEVICE, pinned=True, users=2, rank_rows=16, device_bytes=4096
        ),
        MergedState(MIXTURE, 1.5),
        MergedState(None, 0.0),
        EngineStats(steps=3, gate_counts=(1, 2), load_seconds_recent=(0.1, 0.2)),
        17,
    ],
    ids=lambda value: type(value).__name__,
)
def test_replies_carry_values_of_the_type_that_the_caller_knows(value: object) -> None:
    reply = m.decode_report(m.encode(m.CallResult(9, msgspec.Raw(m.encode(value)))))
    assert isinstance(reply, m.CallResult)
    assert reply.number == 9
    assert msgspec.msgpack.decode(reply.value, type=type(value)) == value


def test_the_launch_document_survives_as_one_line_of_json() -> None:
    engine = EngineConfig(ModelConfig("a\nb"), CacheConfig(num_blocks=8))
    config = m.EngineProcessConfig(engine, "s3://blobs", blobs_cache_dir=Path("/cache"))
    launch = m.Launch(config, "ipc:///tmp/x", 42)
    line = m.encode_launch(launch)
    assert b"\n" not in line
    assert m.decode_launch(line) == launch


def test_the_events_of_a_step_keep_the_order_within_a_request() -> None:
    other = TokenEvent("r2", 8, -1.0)
    step = m.StepEvents.of([TOKEN, other, FINAL])
    assert list(step.tokens) == [TOKEN, other]
    assert list(step.finals) == [FINAL]


def _all_error_types() -> list[type[Exception]]:
    return [
        kind
        for module in (adapters_store.errors, router_engine.errors)
        for _, kind in inspect.getmembers(module, inspect.isclass)
        if issubclass(kind, Exception)
    ]


@pytest.mark.parametrize("kind", _all_error_types(), ids=lambda kind: kind.__name__)
def test_every_error_keeps_its_type_and_text(kind: type[Exception]) -> None:
    error = kind("what was wrong")
    if issubclass(kind, InvalidAdapterError):
        error = kind([Problem("r", "0 is no rank")])
    elif issubclass(kind, AdapterNotFoundError):
        error = kind("maths", near=("math",))
    again = _over_the_border(error)
    assert type(again) is kind
    assert str(again) == str(error)
    assert vars(again) == vars(error)


def test_an_error_that_only_the_engine_knows_comes_as_its_nearest_known_kind() -> None:
    class _SpecialError(AdapterBusyError):
        pass

    assert type(_over_the_border(_SpecialError("busy"))) is AdapterBusyError


def test_a_foreign_error_keeps_its_name_in_the_text() -> None:
    again = _over_the_border(OSError("disk full"))
    assert type(again) is EngineError
    assert str(again) == "OSError: disk full"


def _over_the_border(error: Exception) -> Exception:
    failure = m.decode_report(m.encode(m.CallFailed(1, WireError.of(error))))
    assert isinstance(failure, m.CallFailed)
    return failure.error.exception()
