"""`encoder_lora`: a LoRA of the Whisper encoder, trained in Stage I, merged wherever the adapters are loaded."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from soundwave_hf import SoundwaveForConditionalGeneration, SoundwaveForCTC, SoundwaveProcessor
from soundwave_hf.data.tiny import make_speech
from soundwave_hf.hub import merge_adapter
from soundwave_hf.modeling.backbones_soundwave import TRAINED_FILE, adapter_fields, load_lora
from soundwave_hf.modeling.folders_soundwave import ENCODER_LORA_FILE
from soundwave_hf.training.export import export_adapter
from tests.training.workspace import train


LORA = {"r": 2, "lora_alpha": 6}


@pytest.fixture(scope="module")
def folders(workspace, tmp_path_factory) -> dict:
    """The three stages of three steps each. Stage I trains a LoRA of the encoder."""
    home, start = tmp_path_factory.mktemp("encoder_lora"), {}
    for stage in ("align", "shrink", "instruct"):
        own = {"encoder_lora": LORA} if stage == "align" else {}
        start = {"start_from": str(train(workspace.recipe(stage, home / stage, **own, **start)).folder)}
    return {stage: home / stage for stage in ("align", "shrink", "instruct")}


@pytest.fixture(scope="module")
def features(workspace) -> dict[str, torch.Tensor]:
    request = workspace.processor().apply_transcription_request
    inputs = request([make_speech(1.0, seed=3)], sampling_rate=16_000)
    return {name: inputs[name] for name in ("input_features", "input_features_mask")}


def encoder_of(workspace) -> dict[str, torch.Tensor]:
    joined = SoundwaveForCTC.from_backbones(workspace.encoder, workspace.llm, warm_start=False)
    return {name: weight.double() for name, weight in joined.audio_tower.state_dict().items()}


def test_only_the_adapter_the_head_and_the_lora_train(workspace, tmp_path):
    run = train(workspace.recipe("align", tmp_path / "out", encoder_lora=LORA))
    trained = {name for name, parameter in run.model.named_parameters() if parameter.requires_grad}
    of_encoder = {name for name in trained if name.startswith("audio_tower.")}
    layers = run.model.config.audio_config.encoder_layers
    assert len(of_encoder) == layers * 6 * 2  # six matrices a layer, A and B of each
    assert {name.partition(".")[0] for name in trained - of_encoder} == {"alignment_adapter", "ctc_head"}
    assert run.moved() == trained
    with safe_open(tmp_path / "out" / ENCODER_LORA_FILE, "pt") as file:
        assert len(file.keys()) == len(of_encoder)
        assert json.loads(file.metadata()["lora"]) == LORA
    assert not any("lora" in name for name in load_file(tmp_path / "out" / TRAINED_FILE))


def test_loading_merges_it_as_worked_out_by_hand(workspace, folders):
    lora, before = load_file(folders["align"] / ENCODER_LORA_FILE), encoder_of(workspace)
    loaded = SoundwaveForCTC.from_pretrained(folders["align"])
    after = loaded.audio_tower.state_dict()
    assert after.keys() == before.keys()
    for name, weight in before.items():
        a, b = (lora.get(f"{name.removesuffix('.weight')}.lora_{part}.weight") for part in "AB")
        expected = weight if a is None else weight + 6 / 2 * b.double() @ a.double()
        assert torch.allclose(after[name].double(), expected, rtol=0, atol=1e-6), name
    changed = [name for name in before if not torch.equal(after[name].double(), before[name])]
    assert len(changed) == loaded.config.audio_config.encoder_layers * 6


def test_the_loaded_model_gives_what_the_trained_one_gave(workspace, tmp_path, features):
    run = train(workspace.recipe("align", tmp_path / "out", encoder_lora=LORA))
    loaded = SoundwaveForCTC.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        expected = run.model.eval()(**features, output_ctc_logits=True)
        found = loaded(**features, output_ctc_logits=True)
    assert torch.allclose(found.ctc_logits, expected.ctc_logits, atol=1e-5)
    plain = SoundwaveForCTC.from_backbones(workspace.encoder, workspace.llm, warm_start=False)
    plain.load_state_dict(
        {name: value for name, value in loaded.state_dict().items() if "audio_tower" not in name}, strict=False
    )
    with torch.no_grad():
        assert not torch.allclose(
            plain.eval()(**features, output_ctc_logits=True).ctc_logits, found.ctc_logits, atol=1e-3
        )


def test_later_stages_carry_the_file_and_leave_the_lora_as_it_is(folders):
    first = (folders["align"] / ENCODER_LORA_FILE).read_bytes()
    for stage in ("shrink", "instruct"):
        assert (folders[stage] / ENCODER_LORA_FILE).read_bytes() == first
    digests = [json.loads((folder / "config.json").read_text())["encoder_lora"] for folder in folders.values()]
    assert len(set(digests)) == 1 and digests[0]


@pytest.mark.parametrize("merge_lora", [True, False])
def test_every_way_to_load_a_later_stage_has_the_same_encoder(folders, merge_lora, tmp_path):
    expected = SoundwaveForCTC.from_pretrained(folders["align"]).audio_tower.state_dict()
    loaded = SoundwaveForConditionalGeneration.from_pretrained(folders["instruct"], merge_lora=merge_lora)
    base = loaded if merge_lora else loaded.get_base_model()
    others = [base, SoundwaveForCTC.from_pretrained(folders["instruct"])]
    if merge_lora:
        merge_adapter(folders["instruct"], tmp_path / "whole")
        others.append(SoundwaveForConditionalGeneration.from_pretrained(tmp_path / "whole"))
        export_adapter(folders["instruct"], tmp_path / "half")
        others.append(SoundwaveForConditionalGeneration.from_pretrained(tmp_path / "half"))
    for model in others:
        tower = getattr(model, "audio_tower", None) or model.model.audio_tower
        found = tower.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], weight) for name, weight in expected.items())


def test_stage_one_continues_the_lora_and_refuses_a_second_one(workspace, folders, tmp_path):
    start = str(folders["align"])
    run = train(workspace.recipe("align", tmp_path / "on", start_from=start))
    lora = load_file(folders["align"] / ENCODER_LORA_FILE)
    of_encoder = {name for name in run.before if ".lora_" in name}
    assert len(of_encoder) == len(lora)
    for name in of_encoder:
        short = name.removeprefix("audio_tower.").replace(".default.", ".")
        assert torch.equal(run.before[name], lora[short])
    assert of_encoder < run.moved()
    with pytest.raises(ValueError, match="holds a LoRA of the encoder already"):
        train(workspace.recipe("align", tmp_path / "two", start_from=start, encoder_lora=LORA))
    with pytest.raises(ValueError, match="trains on: leave `encoder_cache` out"):
        train(workspace.recipe("align", tmp_path / "cache", start_from=start, encoder_cache={"gigabytes": 1}))


@pytest.mark.slow
def test_a_resumed_run_ends_as_an_uninterrupted_one(workspace, tmp_path):
    changes = {"encoder_lora": LORA | {"lora_dropout": 0.2}, "save_steps": 2, "max_steps": 4}
    train(workspace.recipe("align", tmp_path / "whole", **changes))
    train(workspace.recipe("align", tmp_path / "parts", **changes))
    for path in (tmp_path / "parts").iterdir():  # as if killed after step 2
        if path.name != "checkpoint-2":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    train(workspace.recipe("align", tmp_path / "parts", **changes))
    for name in (TRAINED_FILE, ENCODER_LORA_FILE):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes(), name


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"encoder_lora": {"rank": 4}}, "`rank`"),
        ({"encoder_lora": {"use_dora": True}}, "`use_dora`"),
        ({"encoder_lora": {"target_modules": ["o_proj"]}}, "lists|has no"),
        ({"encoder_lora": {"r": 0}}, "`r`"),
        ({"encoder_lora": LORA, "encoder_cache": {"gigabytes": 1}}, "leave one of them out"),
    ],
)
def test_mistakes_are_refused(workspace, tmp_path, changes, words):
    with pytest.raises(ValueError, match=words):
        train(workspace.recipe("align", tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("stage", ["shrink", "instruct"])
def test_later_stages_refuse_the_key(workspace, folders, tmp_path, stage):
    start = {"start_from": str(folders["shrink"])} if stage == "instruct" else {}
    with pytest.raises(ValueError, match="give it in stage `align`"):
        train(workspace.recipe(stage, tmp_path / "out", encoder_lora=LORA, **start))


def test_a_folder_without_its_file_is_refused(folders, tmp_path):
    for stage in ("align", "instruct"):
        copy = shutil.copytree(folders[stage], tmp_path / stage)
        (copy / ENCODER_LORA_FILE).unlink()
        with pytest.raises(FileNotFoundError, match=f"lacks {ENCODER_LORA_FILE}"):
            SoundwaveForCTC.from_pretrained(copy)
    with pytest.raises(FileNotFoundError, match=f"lacks {ENCODER_LORA_FILE}"):
        SoundwaveForConditionalGeneration.from_pretrained(tmp_path / "instruct")


def test_the_file_of_another_run_is_refused(folders, tmp_path):
    copy = shutil.copytree(folders["instruct"], tmp_path / "mixed")
    lora = load_file(copy / ENCODER_LORA_FILE)
    name = sorted(lora)[0]
    save_file(lora | {name: lora[name] + 1}, copy / ENCODER_LORA_FILE, metadata={"lora": json.dumps(LORA)})
    with pytest.raises(ValueError, match="not the file that was saved with these adapters"):
        SoundwaveForConditionalGeneration.from_pretrained(copy)


def test_peft_alone_refuses_adapters_onto_an_encoder_without_it(workspace, folders):
    fields = adapter_fields(str(folders["instruct"]), workspace.encoder, workspace.llm)
    model = SoundwaveForConditionalGeneration.from_backbones(workspace.encoder, workspace.llm, **fields)
    with pytest.raises(ValueError, match="`encoder_lora` is None"):
        model.load_adapter(str(folders["instruct"]))
    merged = load_lora(model, str(folders["instruct"])).get_base_model()  # our loader merges it first
    assert merged.config.encoder_lora is not None


def test_a_transcript_comes_from_the_adapted_encoder(folders):
    model = SoundwaveForConditionalGeneration.from_pretrained(folders["instruct"])
    processor = SoundwaveProcessor.from_pretrained(folders["instruct"])
    inputs = processor.apply_transcription_request([np.float32(make_speech(1.0, seed=4))], sampling_rate=16_000)
    assert model.generate(**inputs, max_new_tokens=3).shape[1] > inputs["input_ids"].shape[1]
