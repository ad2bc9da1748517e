"""Every test runs offline, on one thread and from the same seed."""

import os


# Read when the libraries are imported, so before any test module.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from importlib.metadata import version

import pytest
import torch


# A tiny model's operations are too small to share, and `make test` runs a worker on each of two cores.
torch.set_num_threads(1)

LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")


def pytest_report_header(config) -> str:
    return ", ".join(f"{name} {version(name)}" for name in LIBRARIES)


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        needs_gpu = pytest.mark.skip(reason="needs a GPU and PyTorch finds none: `make test-gpu` where there is one")
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(needs_gpu)


@pytest.fixture(autouse=True)
def same_seed():
    torch.manual_seed(0)
