"""Every test runs offline, on two threads and from the same seed."""

import os


# Read when the libraries are imported, so before any test module.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch


torch.set_num_threads(2)


@pytest.fixture(autouse=True)
def same_seed():
    torch.manual_seed(0)
