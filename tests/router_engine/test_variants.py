"""Adapters kept as copies: each mode against the equation, written out in plain torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from adapters_store.expert_types import LoraExpertSpec
from adapters_store.types import AdapterManifest
from router_engine.experts.base import AdapterFiles, AdapterSource
from router_engine.experts.variants import (
    Choice,
    Soup,
    Stochastic,
    plain_digest,
    variant_digest,
    variant_of,
)
from router_engine.request import EngineRequest, SamplingParams
from tests.router_engine.conftest import MakeHarness
from tests.support.copies import DOWN, UP, CopiesAdapter, average, make_copies
from tests.support.harness import EngineHarness, request
from tests.support.oracle import assert_agrees, greedy

DIGEST = "sha256:" + 64 * "c"
PROMPT = [1, 5, 9, 13, 7, 3]
CHOICES = [Soup((1.0, -0.5, 0.25), (0.5, 2.0)), Soup(up=(0.0, 1.0)), Stochastic(0), Stochastic(12)]
