from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForMultimodalLM, AutoProcessor

from soundwave_hf import hub
from soundwave_hf.evaluation.shipped import load_adapter
from soundwave_hf.publish.runs import read_runs
from tests.training.workspace import make_workspace, train


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Tiny backbones and the folder of a stage II run over them."""
    workspace = make_workspace(tmp_path_factory.mktemp("workspace"))
    return workspace, train(workspace.recipe("shrink", tmp_path_factory.mktemp("run") / "2")).folder


def test_a_merged_folder_is_the_model_with_its_adapter(trained, tmp_path):
    workspace, run = trained
    folder = hub.merge_adapter(run, tmp_path / "deep" / "merged", workspace.encoder, workspace.llm)
    expected, processor = load_adapter(run, workspace.encoder, workspace.llm)
    model, loaded = AutoModelForMultimodalLM.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    clip = str(workspace.data / "clips" / "0.wav")
    inputs = loaded.apply_transcription_request(clip)
    assert all(torch.equal(value, inputs[name]) for name, value in processor.apply_transcription_request(clip).items())
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, expected(**inputs).logits)
    assert not any("lora" in name for name in model.state_dict())
    assert [path.name for path in folder.parent.iterdir()] == ["merged"]
    (kept,) = read_runs([folder])[-1:]
    assert (kept.stage, kept.history) == ("shrink", read_runs([run])[-1].history)


def test_a_folder_with_files_is_left_alone(trained, tmp_path):
    workspace, run = trained
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="exists and is not an empty folder: name a new one, or remove it"):
        hub.merge_adapter(run, tmp_path, workspace.encoder, workspace.llm)
    assert (tmp_path / "mine.txt").read_text() == "keep"


def test_a_merge_that_fails_leaves_nothing(trained, tmp_path, monkeypatch):
    workspace, run = trained

    def no_room(folder):
        raise OSError("No space left on device")

    model = load_adapter(run, workspace.encoder, workspace.llm)[0]
    monkeypatch.setattr(hub, "load_adapter", lambda *names: (model, SimpleNamespace(save_pretrained=no_room)))
    with pytest.raises(OSError, match="No space left"):
        hub.merge_adapter(run, tmp_path / "merged", workspace.encoder, workspace.llm)
    assert list(tmp_path.iterdir()) == []
