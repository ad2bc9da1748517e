"""Nothing that this package does brings a warning of a deprecation: not by `warnings`, not by a library's logger."""

import logging
import warnings

import numpy as np
import pytest
from transformers import AutoModelForMultimodalLM, AutoProcessor, pipeline
from transformers.utils import logging as transformers_logging

from tests.tiny_models import save_tiny_soundwave
from tests.training.workspace import Workspace, make_workspace, train_chain


@pytest.fixture
def deprecations_are_errors(caplog):
    """Fails on a warning of a deprecation, and afterwards where a library logged one."""
    transformers_logging.enable_propagation()
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        for kind in (DeprecationWarning, FutureWarning, PendingDeprecationWarning):
            warnings.simplefilter("error", kind)
        yield
    transformers_logging.disable_propagation()
    assert [record.getMessage() for record in caplog.records if "deprecat" in record.getMessage()] == []


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Workspace:
    return make_workspace(tmp_path_factory.mktemp("workspace"))


@pytest.mark.slow
def test_all_stages_train_and_go_on(workspace, tmp_path, deprecations_are_errors):
    chain = train_chain(workspace, tmp_path)
    assert list(chain) == ["align", "shrink", "instruct"]


def test_saving_loading_and_transcribing(tmp_path, deprecations_are_errors):
    folder = save_tiny_soundwave(tmp_path / "saved")
    model, processor = AutoModelForMultimodalLM.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    clip = np.sin(np.arange(9600) / 9).astype(np.float32)
    inputs = processor.apply_transcription_request(clip, sampling_rate=16000)
    first = model.generate(**inputs, max_new_tokens=3, return_dict_in_generate=True)
    assert first.sequences.shape[1] > inputs["input_ids"].shape[1]
    assert model(**inputs, labels=inputs["input_ids"]).loss > 0
    transcribe = pipeline("soundwave-asr", model=str(folder))
    assert transcribe({"array": clip, "sampling_rate": 16000}, max_new_tokens=3)["text"] is not None
