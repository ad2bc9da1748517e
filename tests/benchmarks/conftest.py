"""The benchmark of a test file, as a module: benchmarks are scripts, and no package holds them."""

import importlib.util
import sys
from pathlib import Path

import pytest


FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def benchmark(request):
    """`benchmarks/live.py` for `test_live.py`."""
    name = request.module.__name__.rpartition(".test_")[2]
    spec = importlib.util.spec_from_file_location(f"{name}_benchmark", FOLDER / f"{name}.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module
