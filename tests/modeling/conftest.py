"""A tiny model of a 2 s window with a byte-level tokenizer, as a user would load it."""

import pytest

from soundwave_hf import SoundwaveForConditionalGeneration, SoundwaveProcessor
from tests.tiny_models import save_tiny_soundwave


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_soundwave(tmp_path_factory.mktemp("joint"))


@pytest.fixture(scope="module")
def model(folder):
    return SoundwaveForConditionalGeneration.from_pretrained(folder)


@pytest.fixture(scope="module")
def processor(folder):
    return SoundwaveProcessor.from_pretrained(folder)
