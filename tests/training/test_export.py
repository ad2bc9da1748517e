import json
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from soundwave_hf import SoundwaveForConditionalGeneration, train
from soundwave_hf.modeling.backbones_soundwave import adapter_fields
from soundwave_hf.modeling.folders_soundwave import LORA_WEIGHTS
from soundwave_hf.publish.runs import read_runs
from soundwave_hf.training.export import export_adapter


@pytest.mark.parametrize("stage", ["shrink", "instruct"])
def test_an_exported_run_is_its_weights_in_half_precision(chain, tmp_path, stage):
    folder = export_adapter(chain[stage].folder, tmp_path / "shipped")
    assert {path.name for path in folder.iterdir()} == {
        LORA_WEIGHTS,
        "adapter_config.json",
        "config.json",
        "processor_config.json",
        "training_runs.json",
    }
    trained = load_file(chain[stage].folder / LORA_WEIGHTS)
    shipped = load_file(folder / LORA_WEIGHTS)
    assert shipped.keys() == trained.keys()
    for name, weight in shipped.items():
        whole = not trained[name].is_floating_point()  # the config's fields, kept among the weights
        assert whole or weight.dtype == torch.float16
        assert torch.equal(weight, trained[name] if whole else trained[name].half())


@torch.no_grad()
def test_an_exported_run_loads_and_is_near_the_run(workspace, chain, tmp_path):
    export_adapter(chain["shrink"].folder, tmp_path / "shipped")
    run, shipped = (
        SoundwaveForConditionalGeneration.from_backbones(workspace.encoder, workspace.llm, adapter=str(folder))
        for folder in (chain["shrink"].folder, tmp_path / "shipped")
    )
    weights = dict(shipped.named_parameters())
    for name, parameter in run.named_parameters():
        assert weights[name].dtype == torch.float32
        torch.testing.assert_close(weights[name], parameter, rtol=1e-2, atol=1e-3)


def test_a_field_that_was_edited_in_the_config_is_that_of_the_exported_weights(workspace, chain, tmp_path):
    run = shutil.copytree(chain["shrink"].folder, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    margin = config["blank_margin"] + 0.25
    (run / "config.json").write_text(json.dumps(config | {"blank_margin": margin}))
    folder = export_adapter(run, tmp_path / "shipped")
    backbones = workspace.encoder, workspace.llm
    model = SoundwaveForConditionalGeneration.from_backbones(*backbones, **adapter_fields(folder, *backbones))
    loaded = PeftModel.from_pretrained(model, folder)  # compares the weights' fields with the model's
    assert loaded.config.blank_margin == margin
    other = SoundwaveForConditionalGeneration.from_backbones(*backbones, **adapter_fields(run, *backbones))
    with pytest.raises(ValueError, match="`blank_margin` is"):
        PeftModel.from_pretrained(other, chain["shrink"].folder)


def test_defaults_of_decoding_travel_with_the_adapters(workspace, chain, tmp_path):
    folder = export_adapter(chain["shrink"].folder, tmp_path / "shipped")
    (folder / "generation_config.json").write_text(
        '{"ctc_weight": 0.4, "transcription_num_beams": 3, "max_positions_per_second": 6.5}'
    )
    for options in ({}, {"merge_lora": False}):
        model = SoundwaveForConditionalGeneration.from_pretrained(folder, **options)
        assert model.generation_config.ctc_weight == 0.4
    finetuned = train(
        "finetune",
        data=workspace.data / "train.jsonl",
        start_from=str(folder),
        output_dir=tmp_path / "finetuned",
        steps=1,
        encoder=workspace.encoder,
        llm=workspace.llm,
        bf16=False,
    )
    again = export_adapter(tmp_path / "finetuned", tmp_path / "again")
    kept = SoundwaveForConditionalGeneration.from_pretrained(again).generation_config
    assert (kept.ctc_weight, kept.transcription_num_beams, kept.max_positions_per_second) == (0.4, 3, 6.5), finetuned
    without = SoundwaveForConditionalGeneration.from_pretrained(chain["shrink"].folder)
    assert not hasattr(without.generation_config, "ctc_weight")


def test_a_run_of_stage_one_is_not_exported(chain, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"lacks \['adapter_model.safetensors', 'adapter_config.json'\]"):
        export_adapter(chain["align"].folder, tmp_path / "shipped")
    assert not (tmp_path / "shipped").exists()


@pytest.mark.parametrize("value", [1e6, float("nan")])
def test_a_weight_without_a_finite_half_is_refused(chain, tmp_path, value):
    run = tmp_path / "run"
    run.mkdir()
    for name in ("adapter_config.json", "config.json", "processor_config.json"):
        (run / name).write_text("{}")
    save_file({"layer.weight": torch.tensor([1.0, value])}, run / LORA_WEIGHTS)
    with pytest.raises(ValueError, match="`layer.weight` in .*run` has no finite float16 value"):
        export_adapter(run, tmp_path / "shipped")
    assert not (tmp_path / "shipped").exists()


def test_an_export_that_fails_leaves_weights_and_configs_of_before(chain, tmp_path):
    shipped = export_adapter(chain["shrink"].folder, tmp_path / "shipped")
    before = {path.name: path.read_bytes() for path in shipped.iterdir()}
    run = shutil.copytree(chain["shrink"].folder, tmp_path / "run")
    config = (run / "config.json").read_text()
    (run / "config.json").write_text(config.replace('"ctc_loss_weight": 0', '"ctc_loss_weight": 1'))
    (run / "processor_config.json").write_text("{")  # read last
    for destination in (shipped, tmp_path / "new" / "folder"):
        with pytest.raises(ValueError, match="Expecting property name"):
            export_adapter(run, destination)
    assert {path.name: path.read_bytes() for path in shipped.iterdir()} == before
    assert not (tmp_path / "new").exists()


def test_an_export_does_not_replace_that_of_another_run(chain, tmp_path):
    shipped = export_adapter(chain["shrink"].folder, tmp_path / "shipped")
    (shipped / "README.md").write_text("about these weights")
    before = {path.name: path.read_bytes() for path in shipped.iterdir()}
    other = shutil.copytree(chain["instruct"].folder, tmp_path / "other")
    for destination in (shipped, other):  # the second one is the run of somebody
        with pytest.raises(
            FileExistsError, match=f"`{destination}` holds other weights, which would be lost: name an"
        ):
            export_adapter(chain["instruct"].folder, destination)
    assert {path.name: path.read_bytes() for path in shipped.iterdir()} == before


@pytest.mark.parametrize("name", ["a.csv", "a.csv/shipped"])
def test_a_file_is_no_folder_to_export_to(chain, tmp_path, name):
    (tmp_path / "a.csv").write_text("audio,text")
    with pytest.raises(NotADirectoryError, match="`.*a.csv` is a file, and a folder was expected: give another name"):
        export_adapter(chain["shrink"].folder, tmp_path / name)
    assert (tmp_path / "a.csv").read_text() == "audio,text"


def test_no_folder_of_the_machine_is_shipped(chain, tmp_path):
    folder = export_adapter(chain["shrink"].folder, tmp_path / "shipped")
    for name in ("config.json", "adapter_config.json", "training_runs.json"):
        assert str(tmp_path.parent.parent) not in (folder / name).read_text()


def test_the_card_of_shipped_weights_knows_the_runs_and_their_data(chain, tmp_path):
    folder = export_adapter(chain["instruct"].folder, tmp_path / "shipped")
    expected, found = read_runs([chain["instruct"].folder]), read_runs([folder])
    assert [run.stage for run in found] == ["align", "shrink", "instruct"]
    assert [run.history for run in found] == [run.history for run in expected] and found[-1].history
    assert [run.data for run in found] == [run.data for run in expected] and found[-1].data.sources


def test_an_export_changes_neither_its_run_nor_mixes_two_models(chain, tmp_path):
    run = shutil.copytree(chain["shrink"].folder, tmp_path / "run")
    before = (run / LORA_WEIGHTS).read_bytes()
    with pytest.raises(FileExistsError, match="is the run itself: name another folder"):
        export_adapter(run, tmp_path / "somewhere" / ".." / "run")
    assert (run / LORA_WEIGHTS).read_bytes() == before
    (run / "generation_config.json").write_text('{"ctc_weight": 0.5}')
    folder = export_adapter(run, tmp_path / "shipped")
    export_adapter(run, folder)  # the same model again
    held = {path.name: path.read_bytes() for path in folder.iterdir()}
    (run / "generation_config.json").unlink()
    with pytest.raises(FileExistsError, match=r"holds \['generation_config.json'\], which `.*run` does not give"):
        export_adapter(run, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == held
