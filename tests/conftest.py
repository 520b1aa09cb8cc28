"""Fixtures that several test modules share; plain helpers are in `support.py`."""

from __future__ import annotations

import os
from typing import Dict

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():  # Triton reads it when it is first imported, by whomever
    os.environ.setdefault("TRITON_INTERPRET", "1")

from hypothesis import settings
from loss_support import all_losses, random_labelled, random_scores
from pairs_support import NATIVE, SETS
from pairs_support import instruction_set as computing_with
from ranks import RankPool
from support import random_triples

from besskge_core.dataset import KGDataset
from besskge_core.loss import LOSSES
from besskge_core.ops import native

# A program for processes of its own, which needs a new Triton and changes the environment.
collect_ignore = ["triton_compile.py"]

# The same examples in every run, and no time limit: a test states a claim, not a speed.
settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=40)
settings.load_profile("repeatable")


# The tensors are tiny: more threads only wait for each other.
torch.set_num_threads(1)


def pytest_report_header() -> str:
    versions = f"torch {torch.__version__}, numpy {np.__version__}"
    return f"{versions}, native operations: {native.MISSING or 'built'}"


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="there is no CUDA device"))


@pytest.fixture(autouse=True)
def same_random_numbers():
    """Whatever ran before in this process."""
    torch.manual_seed(0)


@pytest.fixture
def plain(monkeypatch):
    """Operations are plain torch, as where no native library serves."""
    monkeypatch.setattr(native, "NATIVE", False)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def threads():
    """Sets torch's number of threads, until the test ends."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(params=SETS)
def instruction_set(request):
    """Each instruction set of the native operations that this processor has, one after the other."""
    if not NATIVE:
        pytest.skip("the native operations are not built")
    with computing_with(request.param):
        yield request.param


@pytest.fixture
def graph() -> KGDataset:
    """37 entities of 3 types, 4 relations, 200 train triples with a hub as frequent tail."""
    triples = random_triples(37, 4, 260, seed=0)
    return KGDataset.from_triples(
        triples,
        split=(200 / 260, 30 / 260, 30 / 260),
        entity_dict=[f"e{i}" for i in range(37)],
        relation_dict=[f"r{i}" for i in range(4)],
        type_offsets={"a": 0, "b": 11, "c": 34},
    )


@pytest.fixture(params=all_losses())
def loss(request):
    """Each loss of labels, with several options."""
    name, options = request.param
    return LOSSES[name](**options)


@pytest.fixture
def scores(generator):
    return random_scores(generator)


@pytest.fixture
def labelled(generator):
    return random_labelled(generator)


@pytest.fixture(scope="session")
def pools():
    """Number of ranks -> processes, started when first asked for."""
    made: Dict[int, RankPool] = {}

    def pool(n_rank: int) -> RankPool:
        if n_rank not in made:
            made[n_rank] = RankPool(n_rank)
        return made[n_rank]

    yield pool
    for started in made.values():
        started.close()
