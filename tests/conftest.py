"""Every test runs offline, on one thread and from the same seed."""

import os


# Read when the libraries are imported, so before any test module.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch


# A tiny model's operations are too small to share, and `make test` runs a worker on each of two cores.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def same_seed():
    torch.manual_seed(0)
