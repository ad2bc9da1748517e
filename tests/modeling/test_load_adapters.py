"""Trained adapters load with the backbones that their config names, by every door of transformers."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForMultimodalLM, AutoProcessor, LlamaForCausalLM, pipeline

import soundwave_hf
from soundwave_hf import (
    SoundwaveForConditionalGeneration,
    SoundwaveForCTC,
    SoundwaveModel,
    SoundwaveProcessor,
    load_adapter,
    merge_adapter,
    resolve_adapter,
)
from soundwave_hf.data.tiny import write_tiny_llm, write_tiny_whisper
from soundwave_hf.modeling.folders_soundwave import backbone_name, describe_folder, model_digest, weights_digest
from soundwave_hf.training.export import export_adapter
from soundwave_hf.training.run import add_lora
from tests.local_hub import local_hub


@torch.no_grad()
def shake(model: torch.nn.Module, part: str):
    """Move the parameters whose name has `part`, as training would."""
    generator = torch.Generator().manual_seed(3)
    for name, value in model.named_parameters():
        if part in name:
            value.add_(0.05 * torch.randn(value.shape, generator=generator))


def write_adapters(encoder: str, llm: str, folder: Path):
    """What a run of stage `shrink` leaves, with a LoRA that changes the LLM."""
    torch.manual_seed(5)
    model = SoundwaveForConditionalGeneration.from_backbones(encoder, llm, keep_blanks=False, blank_margin=0.5)
    model = add_lora(model, {"r": 4, "lora_alpha": 8})
    for part in ("lora_B", "modules_to_save"):
        shake(model, part)
    model.save_pretrained(folder)
    model.get_base_model().config.save_pretrained(folder)
    SoundwaveProcessor.from_backbones(encoder, llm, trailing_silence=0.1).save_pretrained(folder)


def write_stage_one(encoder: str, llm: str, folder: Path):
    """What a run of stage `align` leaves."""
    model = SoundwaveForCTC.from_backbones(encoder, llm)
    shake(model, "alignment_adapter")
    model.config.save_pretrained(folder)
    weights = {name: value for name, value in model.named_parameters() if value.requires_grad}
    save_file({name: value.detach().contiguous() for name, value in weights.items()}, folder / "trained.safetensors")
    SoundwaveProcessor.from_backbones(encoder, llm).save_pretrained(folder)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with `whisper`, `llm`, `run`, its export `shipped`, and `align`."""
    folder = tmp_path_factory.mktemp("place")
    write_tiny_whisper(folder / "whisper")
    write_tiny_llm(folder / "llm")
    backbones = str(folder / "whisper"), str(folder / "llm")
    write_adapters(*backbones, folder / "run")
    export_adapter(folder / "run", folder / "shipped")
    write_stage_one(*backbones, folder / "align")
    return folder


@pytest.fixture
def inputs(place) -> dict:
    """A clip of 1 s and a question, as the processor of the run reads them."""
    clip = 0.1 * torch.randn(16_000, generator=torch.Generator().manual_seed(1)).numpy()
    processor = SoundwaveProcessor.from_pretrained(place / "run")
    return processor.apply_transcription_request(clip, sampling_rate=16_000)


@torch.no_grad()
def logits(model, inputs) -> torch.Tensor:
    return model(**inputs).logits


# ---- every door ----


@pytest.mark.parametrize("folder", ["run", "shipped"])
@pytest.mark.parametrize(
    "door", [SoundwaveForConditionalGeneration, AutoModelForMultimodalLM, AutoModel], ids=lambda door: door.__name__
)
def test_a_folder_of_adapters_is_the_joined_model_with_its_lora_merged(place, inputs, folder, door):
    whole = SoundwaveForConditionalGeneration.from_backbones(
        str(place / "whisper"), str(place / "llm"), adapter=str(place / folder)
    )
    found = door.from_pretrained(place / folder)
    assert type(found) is SoundwaveForConditionalGeneration and not found.training
    assert not any("lora" in name for name, _ in found.named_parameters())
    assert (found.config.keep_blanks, found.config.blank_margin) == (False, 0.5)
    torch.testing.assert_close(logits(found, inputs), logits(whole, inputs))
    fresh = SoundwaveForConditionalGeneration.from_backbones(str(place / "whisper"), str(place / "llm"))
    assert (logits(found, inputs) - logits(fresh, inputs)).abs().max() > 1e-3


@pytest.mark.parametrize("folder", ["run", "shipped"])
@pytest.mark.parametrize("door", [SoundwaveProcessor, AutoProcessor], ids=lambda door: door.__name__)
def test_the_processor_of_adapters_has_the_tokenizer_of_their_llm(place, folder, door):
    processor = door.from_pretrained(place / folder)
    assert type(processor) is SoundwaveProcessor
    assert processor.trailing_silence == 0.1 and processor.require_sampling_rate
    expected = SoundwaveProcessor.from_backbones(str(place / "whisper"), str(place / "llm"))
    assert processor.tokenizer.get_vocab() == expected.tokenizer.get_vocab()
    assert processor.chat_template == expected.chat_template and processor.tokenizer.padding_side == "left"


def test_a_pipeline_takes_a_folder_of_adapters(place):
    transcribe = pipeline("soundwave-asr", model=str(place / "shipped"), dtype="float32")
    clip = {"array": 0.1 * torch.randn(16_000).numpy(), "sampling_rate": 16_000}
    assert isinstance(transcribe(clip, generate_kwargs={"max_new_tokens": 3})["text"], str)
    assert transcribe.processor.trailing_silence == 0.1


@pytest.mark.parametrize("folder", ["align", "run", "shipped"])
def test_the_ctc_class_takes_adapters_of_any_stage(place, inputs, folder):
    model = SoundwaveForCTC.from_pretrained(place / folder)
    features = {name: inputs[name] for name in ("input_features", "input_features_mask")}
    found = model(**features)
    assert found.ctc_best.shape == (1, int(found.num_frames))
    if folder == "align":
        stored = load_file(place / "align" / "trained.safetensors")
    else:
        stored = {
            name.removeprefix("base_model.model.model."): value.float()
            for name, value in load_file(place / folder / "adapter_model.safetensors").items()
            if "alignment_adapter" in name and value.is_floating_point()  # not the fields of the training
        }
    assert stored
    state = model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in stored.items())


def test_config_fields_and_attention_given_to_a_door_hold(place):
    for door in (SoundwaveForConditionalGeneration, AutoModelForMultimodalLM):
        model = door.from_pretrained(place / "run", keep_blanks=True, attn_implementation="eager")
        assert model.config.keep_blanks and model.config.blank_margin == 0.5
        assert {model.config._attn_implementation, model.config.text_config._attn_implementation} == {"eager"}


@pytest.mark.parametrize("door", [SoundwaveForConditionalGeneration, AutoModelForMultimodalLM])
def test_a_dtype_holds_for_all_weights_and_each_layer_is_rounded_once(place, door):
    exact = SoundwaveForConditionalGeneration.from_pretrained(place / "run", dtype=torch.float32)
    llm = SoundwaveForConditionalGeneration.from_backbones(str(place / "whisper"), str(place / "llm")).state_dict()
    found = door.from_pretrained(place / "run", dtype="bfloat16")
    assert {value.dtype for value in found.parameters()} == {torch.bfloat16}
    name = "model.language_model.layers.0.self_attn.q_proj.weight"
    delta = exact.state_dict()[name] - llm[name]
    once = (llm[name].to(torch.bfloat16).float() + delta).to(torch.bfloat16)
    assert (found.state_dict()[name] != once).float().mean() < 1e-3  # of the delta, computed anew


def test_the_backbones_keep_their_own_dtype_where_none_is_given(place, tmp_path):
    write_half_llm(place, tmp_path)
    model = SoundwaveForConditionalGeneration.from_pretrained(
        place / "run", llm=str(tmp_path / "llm"), allow_other_backbones=True
    )
    dtypes = {name.split(".")[1]: value.dtype for name, value in model.named_parameters() if "model." in name}
    assert dtypes["language_model"] == torch.bfloat16 and dtypes["alignment_adapter"] == torch.float32


def write_half_llm(place: Path, folder: Path):
    """A copy of the LLM in bfloat16."""
    shutil.copytree(place / "llm", folder / "llm")
    weights = load_file(place / "llm" / "model.safetensors")
    save_file({k: v.to(torch.bfloat16) for k, v in weights.items()}, folder / "llm" / "model.safetensors")
    config = json.loads((folder / "llm" / "config.json").read_text())
    (folder / "llm" / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))


def test_device_maps_hold_and_parts_may_lie_on_disk(place, inputs, tmp_path):
    expected = logits(SoundwaveForConditionalGeneration.from_pretrained(place / "run"), inputs)
    for device_map in ("cpu", torch.device("cpu"), {"": "cpu"}, "auto"):
        model = AutoModelForMultimodalLM.from_pretrained(place / "run", device_map=device_map)
        torch.testing.assert_close(logits(model, inputs), expected)
    parts = {"model.language_model.layers.0": "disk"}
    rest = ("audio_tower", "alignment_adapter", "ctc_head", "shrinking_adapter", "language_model.embed_tokens")
    rest += ("language_model.layers.1", "language_model.norm", "language_model.rotary_emb")
    parts |= {f"model.{name}": "cpu" for name in rest} | {"lm_head": "cpu"}
    model = SoundwaveForConditionalGeneration.from_pretrained(place / "run", device_map=parts, offload_folder=tmp_path)
    assert model.model.language_model.layers[0].mlp.up_proj.weight.is_meta
    torch.testing.assert_close(logits(model, inputs), expected)


def test_a_quantized_llm_takes_the_adapters(place):
    pytest.importorskip("torchao")
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    config = TorchAoConfig(Int8WeightOnlyConfig())
    for merge in (True, False):
        model = SoundwaveForConditionalGeneration.from_pretrained(
            place / "run", quantization_config=config, merge_lora=merge
        )
        names = {name: type(value).__name__ for name, value in model.named_parameters() if "up_proj" in name}
        assert all("Int8" in kind for kind in names.values()) and names


def test_the_report_of_loading_is_returned_on_request(place):
    model, report = SoundwaveForConditionalGeneration.from_pretrained(place / "run", output_loading_info=True)
    assert type(model) is SoundwaveForConditionalGeneration and not report["missing_keys"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"merge_lroa": False}, "does not take `merge_lroa`. Did you mean `merge_lora`?"),
        ({"load_in_4bit": True}, r"Give `quantization_config=BitsAndBytesConfig\(load_in_4bit=True\)`"),
        ({"variant": "fp16"}, "does not take `variant`"),
        ({"dtype": "int8"}, "`dtype` is 'int8'"),
        ({"device_map": "cuda:99"}, "The device is 'cuda:99'; this machine has cpu"),
        ({"device_map": "nowhere"}, "The device is 'nowhere'"),
        ({"max_memory": {"cpu": "1GB"}}, "`max_memory` needs a `device_map`"),
        ({"is_trainable": True}, "`is_trainable` needs a LoRA that is not merged: give `merge_lora=False` too"),
        ({"merge_lora": False, "device_map": "auto"}, "`merge_lora=False` needs one device: give one"),
        ({"stack_factor": 3}, "`stack_factor` is set to 3, and `.*run` was trained with 2"),
    ],
)
def test_what_adapters_cannot_be_loaded_with_is_refused(place, given, message):
    with pytest.raises(ValueError, match=message):
        SoundwaveForConditionalGeneration.from_pretrained(place / "run", **given)


# ---- a LoRA that stays attached ----


def test_an_attached_lora_generates_as_the_merged_one_trains_on_and_saves_itself(place, inputs, tmp_path):
    merged = SoundwaveForConditionalGeneration.from_pretrained(place / "run")
    attached = AutoModelForMultimodalLM.from_pretrained(place / "run", merge_lora=False)
    assert type(attached).__name__ == "PeftModel" and not attached.training
    assert type(attached.get_base_model()) is SoundwaveForConditionalGeneration
    assert not any(value.requires_grad for value in attached.parameters())
    torch.testing.assert_close(logits(attached, inputs), logits(merged, inputs), atol=1e-4, rtol=1e-4)
    ids = [model.generate(**inputs, max_new_tokens=4) for model in (merged, attached)]
    assert torch.equal(*ids)

    tuned = SoundwaveForConditionalGeneration.from_pretrained(place / "run", merge_lora=False, is_trainable=True)
    assert tuned.training
    trains = {name for name, value in tuned.named_parameters() if value.requires_grad}
    assert trains and all("lora_" in name or "modules_to_save" in name for name in trains)
    tuned(**inputs, labels=inputs["input_ids"]).loss.backward()
    torch.optim.SGD([value for value in tuned.parameters() if value.requires_grad], lr=0.1).step()
    tuned.save_pretrained(tmp_path / "tuned")
    tuned.get_base_model().config.save_pretrained(tmp_path / "tuned")
    again = SoundwaveForConditionalGeneration.from_pretrained(tmp_path / "tuned")
    torch.testing.assert_close(logits(again, inputs), logits(tuned.eval(), inputs), atol=1e-4, rtol=1e-4)


# ---- where the folder and its backbones lie ----


def test_no_folder_of_adapters_holds_a_path_of_the_machine(place):
    for folder in ("run", "shipped", "align"):
        for file in (place / folder).glob("*.json"):
            assert str(place) not in file.read_text(), file
        config = json.loads((place / folder / "config.json").read_text())
        assert config["audio_config"]["_name_or_path"] == "../whisper"
        assert config["text_config"]["_name_or_path"] == "../llm"


def test_a_renamed_copy_and_a_tree_that_moved_as_a_whole_load(place, inputs, tmp_path):
    expected = logits(SoundwaveForConditionalGeneration.from_pretrained(place / "run"), inputs)
    shutil.copytree(place, tmp_path / "elsewhere")
    os.rename(tmp_path / "elsewhere" / "run", tmp_path / "elsewhere" / "renamed")
    found = AutoModelForMultimodalLM.from_pretrained(tmp_path / "elsewhere" / "renamed")
    torch.testing.assert_close(logits(found, inputs), expected)


def test_a_folder_that_moved_alone_takes_backbones_of_the_same_content_from_anywhere(place, inputs, tmp_path):
    shutil.copytree(place / "shipped", tmp_path / "a" / "b" / "shipped")
    moved = tmp_path / "a" / "b" / "shipped"
    with pytest.raises(FileNotFoundError, match="trained on the encoder in `.*whisper`.*no such folder here"):
        SoundwaveForConditionalGeneration.from_pretrained(moved)
    with pytest.raises(FileNotFoundError, match="trained on the LLM in `.*llm`, and there is no such folder"):
        AutoProcessor.from_pretrained(moved)
    shutil.copytree(place / "llm", tmp_path / "my llm")
    given = {"encoder": str(place / "whisper"), "llm": str(tmp_path / "my llm")}
    expected = logits(SoundwaveForConditionalGeneration.from_pretrained(place / "shipped"), inputs)
    for door in (SoundwaveForConditionalGeneration, AutoModelForMultimodalLM):
        torch.testing.assert_close(logits(door.from_pretrained(moved, **given), inputs), expected)
    assert AutoProcessor.from_pretrained(moved, llm=given["llm"]).audio_token_id == 256 + 3


def test_other_backbones_of_equal_width_are_refused_unless_the_caller_insists(place, tmp_path):
    torch.manual_seed(9)
    write_tiny_llm(tmp_path / "other")
    weights = load_file(tmp_path / "other" / "model.safetensors")
    changed = {name: value + 0.01 if "layers.1.mlp.up_proj" in name else value for name, value in weights.items()}
    save_file(changed, tmp_path / "other" / "model.safetensors", metadata={"format": "pt"})
    encoder, adapter, other = str(place / "whisper"), str(place / "run"), str(tmp_path / "other")
    message = "was trained on the llm `.*llm`, and `.*other` is another one.*allow_other_backbones=True"
    doors = {
        "class": lambda **more: SoundwaveForConditionalGeneration.from_pretrained(adapter, llm=other, **more),
        "joined": lambda **more: SoundwaveForConditionalGeneration.from_backbones(
            encoder, other, adapter=adapter, **more
        ),
        "ctc": lambda **more: SoundwaveForCTC.from_backbones(encoder, other, adapter=adapter, **more),
        "load_adapter": lambda **more: load_adapter(adapter, encoder, other, **more)[0],
        "merge": lambda **more: merge_adapter(adapter, tmp_path / "merged", llm=other, **more),
    }
    for call in doors.values():
        with pytest.raises(ValueError, match=message):
            call()
        assert call(allow_other_backbones=True) is not None


def test_a_copy_in_other_shards_and_another_float_type_is_the_same_backbone(place, tmp_path):
    expected = weights_digest(str(place / "llm"), "llm")
    write_half_llm(place, tmp_path)
    assert weights_digest(str(tmp_path / "llm"), "llm") == expected
    LlamaForCausalLM.from_pretrained(place / "llm").save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert (tmp_path / "sharded" / "model.safetensors.index.json").is_file()
    assert weights_digest(str(tmp_path / "sharded"), "llm") == expected
    assert weights_digest(str(place / "whisper"), "encoder") not in (None, expected)


def test_a_folder_has_the_digest_of_its_matrices_whatever_their_files_and_float_type(place, tmp_path):
    llm = LlamaForCausalLM.from_pretrained(place / "llm")
    llm.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    llm.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    expected = model_digest(str(place / "llm"))
    assert model_digest(str(tmp_path / "sharded")) == model_digest(str(tmp_path / "half")) == expected
    with torch.no_grad():
        llm.model.layers[0].mlp.up_proj.weight += 1
    llm.save_pretrained(tmp_path / "other")
    assert model_digest(str(tmp_path / "other")) not in (None, expected)
    assert model_digest(str(tmp_path)) is None


def test_adapters_whose_config_tells_nothing_of_their_backbones_are_compared_by_width_with_a_warning(
    place, tmp_path, caplog
):
    shutil.copytree(place / "shipped", tmp_path / "old")
    config = json.loads((place / "shipped" / "config.json").read_text())
    for part in ("audio_config", "text_config"):
        for key in ("_name_or_path", "weights_digest"):
            config[part].pop(key)
    (tmp_path / "old" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="does not name its encoder: give `encoder=`"):
        SoundwaveForConditionalGeneration.from_pretrained(tmp_path / "old")
    given = {"encoder": str(place / "whisper"), "llm": str(place / "llm")}
    SoundwaveForConditionalGeneration.from_pretrained(tmp_path / "old", **given)
    assert "does not say which llm it was trained on: only the width" in caplog.text


def test_adapters_without_a_digest_are_compared_with_the_named_backbone(place, tmp_path):
    shutil.copytree(place, tmp_path / "tree")
    folder = tmp_path / "tree" / "run"
    config = json.loads((folder / "config.json").read_text())
    config["text_config"].pop("weights_digest")
    (folder / "config.json").write_text(json.dumps(config))
    # Named `../llm`, which is here; another folder of the same content is the same LLM.
    SoundwaveForConditionalGeneration.from_pretrained(folder, llm=str(place / "llm"))


def test_backbones_in_the_hubs_cache_and_in_our_own_folder_have_their_hub_names(tmp_path, monkeypatch):
    monkeypatch.setenv("SOUNDWAVE_HOME", str(tmp_path))
    ours = tmp_path / "backbones" / "openai--whisper-base"
    cached = tmp_path / "hub" / "models--Qwen--Qwen3-0.6B" / "snapshots" / "abc"
    for folder in (ours, cached):
        folder.mkdir(parents=True)
    assert backbone_name(str(ours)) == "openai/whisper-base"
    assert backbone_name(str(cached)) == "Qwen/Qwen3-0.6B"
    assert backbone_name("openai/whisper-tiny") == "openai/whisper-tiny"
    monkeypatch.chdir(tmp_path)
    assert backbone_name("./hub") == str(tmp_path / "hub")


# ---- the hub ----


def put_in_cache(cache: Path, name: str, folder: Path):
    """What the hub's cache holds after a download of `name`."""
    repository = cache / f"models--{name.replace('/', '--')}"
    commit = "0123456789012345678901234567890123456789"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(folder, repository / "snapshots" / commit)


@pytest.fixture
def hub_cache(place, tmp_path, monkeypatch) -> Path:
    """An offline hub: `me/whisper`, `me/llm`, and the adapters `me/shipped`, which name these and themselves."""
    cache = tmp_path / "cache"
    for module in ("huggingface_hub.constants", "transformers.utils.hub", "transformers.utils"):
        monkeypatch.setattr(f"{module}.HF_HUB_CACHE", str(cache), raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setenv("SOUNDWAVE_HOME", str(tmp_path / "home"))
    for name in ("whisper", "llm"):
        put_in_cache(cache, f"me/{name}", place / name)
    shutil.copytree(place / "shipped", tmp_path / "to upload")
    set_json(tmp_path / "to upload" / "config.json", audio_config="me/whisper", text_config="me/llm")
    set_json(tmp_path / "to upload" / "adapter_config.json", base_model_name_or_path="me/shipped")
    put_in_cache(cache, "me/shipped", tmp_path / "to upload")
    return cache


def set_json(path: Path, **values):
    """Set keys of a JSON file; of the parts of a config, the name of the backbone."""
    config = json.loads(path.read_text())
    for key, value in values.items():
        if isinstance(config.get(key), dict):
            config[key]["_name_or_path"] = value
        else:
            config[key] = value
    path.write_text(json.dumps(config))


@pytest.mark.parametrize("door", [SoundwaveForConditionalGeneration, AutoModelForMultimodalLM, AutoModel])
def test_a_hub_name_of_adapters_that_name_themselves_loads_by_every_door(place, inputs, hub_cache, door):
    found = door.from_pretrained("me/shipped")
    expected = SoundwaveForConditionalGeneration.from_pretrained(place / "shipped")
    torch.testing.assert_close(logits(found, inputs), logits(expected, inputs))
    assert found.config.text_config._name_or_path == "me/llm"
    assert AutoProcessor.from_pretrained("me/shipped").trailing_silence == 0.1
    assert SoundwaveForCTC.from_pretrained("me/shipped").config.audio_config._name_or_path == "me/whisper"


def test_a_hub_name_goes_through_the_pipeline_and_resolves_to_its_folder(hub_cache):
    transcribe = pipeline("soundwave-asr", model="me/shipped", dtype="float32")
    assert type(transcribe.model) is SoundwaveForConditionalGeneration
    assert (Path(resolve_adapter("me/shipped")) / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("door", [SoundwaveForConditionalGeneration, AutoModelForMultimodalLM])
def test_a_copy_under_another_hub_name_gives_its_own_weights_and_fields(inputs, hub_cache, tmp_path, door):
    # Its adapter_config.json still names the first: the library reads that one's config, our class the copy's weights.
    shutil.copytree(tmp_path / "to upload", tmp_path / "copy")
    path = tmp_path / "copy" / "adapter_model.safetensors"
    weights = load_file(path)
    name = next(name for name in weights if "alignment_adapter.norm.bias" in name)
    save_file({**weights, name: weights[name] + 1}, path, metadata={"format": "pt"})
    set_json(tmp_path / "copy" / "config.json", blank_margin=0.25)
    put_in_cache(hub_cache, "you/copy", tmp_path / "copy")
    found = door.from_pretrained("you/copy", keep_blanks=True)
    assert torch.equal(found.model.alignment_adapter.norm.bias, (weights[name] + 1).float())
    assert (found.config.blank_margin, found.config.keep_blanks) == (0.25, True)


def test_a_hub_name_without_its_own_name_in_it_loads_by_our_class(inputs, hub_cache, tmp_path):
    shutil.copytree(tmp_path / "to upload", tmp_path / "nameless")
    set_json(tmp_path / "nameless" / "adapter_config.json", base_model_name_or_path=None)
    put_in_cache(hub_cache, "me/nameless", tmp_path / "nameless")
    assert SoundwaveForConditionalGeneration.from_pretrained("me/nameless").config.blank_margin == 0.5


def test_adapters_in_a_subfolder_and_of_a_revision_load(place, hub_cache, tmp_path):
    shutil.copytree(tmp_path / "to upload", tmp_path / "repository" / "small")
    put_in_cache(hub_cache, "me/many", tmp_path / "repository")
    for name in ("me/many", str(tmp_path / "repository")):
        model = SoundwaveForConditionalGeneration.from_pretrained(name, subfolder="small")
        assert model.config.blank_margin == 0.5
        assert SoundwaveProcessor.from_pretrained(name, subfolder="small").trailing_silence == 0.1
    assert SoundwaveForConditionalGeneration.from_pretrained("me/shipped", revision="main").config.blank_margin == 0.5
    with pytest.raises(OSError):
        SoundwaveForConditionalGeneration.from_pretrained("me/shipped", revision="v2")


def test_a_name_that_is_not_to_be_found_says_so(hub_cache):
    with pytest.raises(
        FileNotFoundError,
        match="no folder `me/nothing` with trained adapters, and no adapters of that name could be downloaded",
    ):
        resolve_adapter("me/nothing")
    with pytest.raises(FileNotFoundError, match="no folder `./no/such/folder` with trained adapters. Give"):
        resolve_adapter("./no/such/folder")


# ---- what a folder holds, where it cannot be loaded ----


def folder_of(place: Path, tmp_path: Path, kind: str) -> Path:
    """A folder of one kind."""
    folder = tmp_path / kind
    if kind in ("align", "whisper", "llm"):
        return place / kind
    if kind == "merged":
        return merge_adapter(place / "run", folder)
    folder.mkdir()
    if kind == "peft":
        (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "Qwen/Qwen3-0.6B"}')
    if kind == "a part":
        (folder / "adapter_config.json").write_text('{"modules_to_save": ["alignment_adapter"]}')
    if kind == "published":
        (folder / "config.json").write_text('{"model_type": "Soundwave"}')
    if kind == "checkpoints":
        (folder / "checkpoint-9").mkdir()
        (folder / "checkpoint-10").mkdir()
    if kind == "half":
        shutil.copy(place / "run" / "config.json", folder)
    if kind == "notes":
        (folder / "notes.txt").write_text("hello")
    return folder


KINDS = {
    "empty": "is an empty folder",
    "notes": "holds no model: its files are .'notes.txt'.",
    "peft": "holds a PEFT adapter of `Qwen/Qwen3-0.6B`, without all adapters of Soundwave.*PeftModel.from_pretrained",
    "a part": "PEFT adapter of `an unnamed model`, without all adapters of Soundwave.*PeftModel.from_pretrained",
    "published": "layout that the authors published.*`soundwave-hf convert SRC DST`",
    "whisper": 'has model type "whisper" and "soundwave" was expected.*from_backbones.encoder=folder',
    "llm": 'has model type "llama" and "soundwave" was expected.*from_backbones.llm=folder',
    "checkpoints": "holds checkpoints of a run. Name one of them: `.*checkpoint-10`",
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("door", [SoundwaveForConditionalGeneration, SoundwaveForCTC, resolve_adapter, load_adapter])
def test_another_folder_is_refused_with_what_it_holds_and_the_call_that_fits(place, tmp_path, kind, door):
    load = getattr(door, "from_pretrained", door)
    with pytest.raises(ValueError, match=KINDS[kind]):
        load(folder_of(place, tmp_path, kind))


def test_adapters_of_stage_align_are_not_for_the_class_that_generates(place):
    message = "holds adapters of stage `align`, which have no shrinking adapter yet.*SoundwaveForCTC.from_pretrained"
    for door in (SoundwaveForConditionalGeneration, AutoModelForMultimodalLM):
        with pytest.raises(ValueError, match=message):
            door.from_pretrained(place / "align")
    with pytest.raises(ValueError, match=message):
        load_adapter(place / "align")
    assert resolve_adapter(place / "align") == str(place / "align")
    heard, _ = load_adapter(place / "align", ctc_only=True)  # what `evaluate --ctc` scores
    stored = load_file(place / "align" / "trained.safetensors")
    assert all(torch.equal(heard.model.state_dict()[name], value) for name, value in stored.items())


def test_a_whole_model_is_no_adapter(place, tmp_path):
    merged = folder_of(place, tmp_path, "merged")
    message = "holds a whole Soundwave model, with its backbones"
    with pytest.raises(ValueError, match=message):
        resolve_adapter(merged)
    with pytest.raises(ValueError, match=message):
        SoundwaveForConditionalGeneration.from_backbones(adapter=str(merged), encoder=str(place / "whisper"), llm="x")
    with pytest.raises(ValueError, match="`merge_lora` is for trained adapters"):
        SoundwaveForConditionalGeneration.from_pretrained(merged, merge_lora=False)
    assert SoundwaveForConditionalGeneration.from_pretrained(merged).config.keep_blanks is False


def test_a_config_without_weights_names_the_files_that_are_missing(place, tmp_path):
    folder = folder_of(place, tmp_path, "half")
    assert "no adapter_config.json and adapter_model.safetensors of stages" in describe_folder(str(folder))
    with pytest.raises(ValueError, match="holds the config of a Soundwave model and no weights"):
        resolve_adapter(folder)


@pytest.mark.parametrize("base", [SoundwaveForConditionalGeneration, SoundwaveForCTC], ids=lambda base: base.__name__)
def test_a_subclass_takes_adapters_like_its_base(place, base):
    class Own(base):
        pass

    found, expected = (each.from_pretrained(place / "run").state_dict() for each in (Own, base))
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_bare_model_says_which_class_takes_adapters(place):
    with pytest.raises(ValueError, match="`SoundwaveModel` cannot load a folder of adapters.*`.model` is the bare"):
        SoundwaveModel.from_pretrained(place / "run")


def test_backbones_may_be_left_out_only_beside_adapters(place):
    joined = SoundwaveForConditionalGeneration.from_backbones(adapter=str(place / "run"))
    assert joined.config.blank_margin == 0.5
    with pytest.raises(ValueError, match="got the encoder None and the LLM 'x': give both"):
        SoundwaveForConditionalGeneration.from_backbones(llm="x")


def test_the_public_names_are_the_old_ones_too():
    from soundwave_hf.evaluation import shipped
    from soundwave_hf.modeling.backbones_soundwave import TRAINED_FILE

    assert soundwave_hf.load_adapter is load_adapter and TRAINED_FILE == "trained.safetensors"
    assert callable(shipped.load_adapter) and callable(shipped.load_processor)


# ---- a whole model beside adapters ----


def test_a_whole_model_is_not_saved_beside_the_adapters_that_it_holds(place, tmp_path):
    """Loading such a folder put their LoRA onto weights that held it already."""
    folder = shutil.copytree(place / "run", tmp_path / "run")
    before = sorted(path.name for path in folder.iterdir())
    for door in (SoundwaveForConditionalGeneration, SoundwaveForCTC):
        model = door.from_pretrained(folder, encoder=str(place / "whisper"), llm=str(place / "llm"))
        with pytest.raises(
            FileExistsError, match="holds adapter_config.json, and a whole model would be saved beside"
        ):
            model.save_pretrained(folder)
        for _ in range(2):  # over a model of the same kind
            model.save_pretrained(tmp_path / door.__name__)
    assert sorted(path.name for path in folder.iterdir()) == before


def test_whole_weights_beside_adapters_of_backbones_are_refused(place, tmp_path):
    model = SoundwaveForConditionalGeneration.from_pretrained(place / "run")
    model.save_pretrained(tmp_path)
    SoundwaveForConditionalGeneration.from_pretrained(place / "run", merge_lora=False).save_pretrained(tmp_path)
    message = "holds the weights of a whole model, and in adapter_config.json adapters of backbones.*may count twice"
    for door in (SoundwaveForConditionalGeneration, SoundwaveForCTC, AutoModel, resolve_adapter):
        with pytest.raises(ValueError, match=message):
            getattr(door, "from_pretrained", door)(tmp_path)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).unlink()
    found = SoundwaveForConditionalGeneration.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(found[name], value) for name, value in model.state_dict().items())


# ---- merging ----


def test_a_merged_checkpoint_has_one_dtype_the_llms_and_each_weight_once(place, tmp_path, monkeypatch):
    write_half_llm(place, tmp_path)
    given = {"llm": str(tmp_path / "llm"), "allow_other_backbones": True}
    for dtype, itemsize in (("auto", 2), ("float32", 4)):
        folder = merge_adapter(place / "run", tmp_path / dtype, dtype=dtype, **given)
        weights = load_file(folder / "model.safetensors")
        assert {value.element_size() for value in weights.values()} == {itemsize}
        model = SoundwaveForConditionalGeneration.from_pretrained(folder)
        count = sum(value.numel() for value in model.parameters())  # a tied weight counts once
        assert sum(value.numel() for value in weights.values()) == count
        assert (folder / "model.safetensors").stat().st_size < itemsize * count + 40_000
        assert model.dtype == {2: torch.bfloat16, 4: torch.float32}[itemsize]


@pytest.mark.parametrize("value", [1e6, float("nan")])
def test_a_weight_that_a_dtype_cannot_hold_is_not_merged(place, tmp_path, value):
    folder = shutil.copytree(place / "shipped", tmp_path / "shipped")
    path = folder / "adapter_model.safetensors"
    weights = {
        name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in load_file(path).items()
    }
    name = next(name for name in weights if name.endswith("alignment_adapter.norm.bias"))
    weights[name][0] = value
    save_file(weights, path, metadata={"format": "pt"})
    given = {"encoder": str(place / "whisper"), "llm": str(place / "llm")}
    message = r"alignment_adapter.norm.bias` in `.*shipped` has no finite float16 value.*`--dtype bfloat16` has it"
    with pytest.raises(ValueError, match=message):
        merge_adapter(folder, tmp_path / "whole", dtype="float16", **given)
    assert not (tmp_path / "whole").exists()
    if value == 1e6:
        merge_adapter(folder, tmp_path / "whole", dtype="bfloat16", **given)


def test_a_merged_checkpoint_is_written_in_shards(place, tmp_path, monkeypatch):
    monkeypatch.setattr("soundwave_hf.hub.SHARD_SIZE", "40KB")
    folder = merge_adapter(place / "run", tmp_path / "merged")
    assert (folder / "model.safetensors.index.json").is_file()
    assert not (folder / "model.safetensors").exists()
    assert SoundwaveForConditionalGeneration.from_pretrained(folder).config.blank_margin == 0.5


# ---- a server that speaks the hub's protocol ----


@pytest.fixture
def hub_server(place, tmp_path):
    """`me/whisper`, `me/llm` and `me/shipped`, which names these and itself, on a server; nothing is in the cache."""
    shutil.copytree(place / "shipped", tmp_path / "to upload")
    set_json(tmp_path / "to upload" / "config.json", audio_config="me/whisper", text_config="me/llm")
    set_json(tmp_path / "to upload" / "adapter_config.json", base_model_name_or_path="me/shipped")
    names = {"me/whisper": place / "whisper", "me/llm": place / "llm", "me/shipped": tmp_path / "to upload"}
    with local_hub(tmp_path / "cache", tmp_path / "home", names) as server:
        yield server


def test_adapters_and_backbones_come_from_the_users_own_endpoint(place, inputs, hub_server):
    expected = logits(SoundwaveForConditionalGeneration.from_pretrained(place / "shipped"), inputs)
    for door in (SoundwaveForConditionalGeneration, AutoModelForMultimodalLM):
        torch.testing.assert_close(logits(door.from_pretrained("me/shipped"), inputs), expected)
    assert AutoProcessor.from_pretrained("me/shipped").trailing_silence == 0.1
    assert {name for name, _ in hub_server.asked} >= {"me/shipped", "me/whisper", "me/llm"}


def test_a_gated_llm_takes_the_callers_token_and_is_reported_without_it(hub_server):
    hub_server.private = {"me/llm"}
    with pytest.raises(GatedRepoError, match="403"):
        SoundwaveForConditionalGeneration.from_pretrained("me/shipped")
    model = SoundwaveForConditionalGeneration.from_pretrained("me/shipped", token="hf_mine")
    assert model.config.text_config._name_or_path == "me/llm"
    assert SoundwaveProcessor.from_pretrained("me/shipped", token="hf_mine").trailing_silence == 0.1


def test_a_whole_model_is_not_pushed_onto_adapters(place, hub_server, tmp_path):
    model = SoundwaveForConditionalGeneration.from_pretrained(place / "run")
    message = "`me/shipped` holds adapter_config.json, and a whole model would be saved beside it"
    with pytest.raises(FileExistsError, match=message):
        model.push_to_hub("me/shipped", token="hf_mine")
    with pytest.raises(FileExistsError, match=message):
        model.save_pretrained(tmp_path / "whole", push_to_hub=True, repo_id="me/shipped", token="hf_mine")
    assert hub_server.commits == []
    model.push_to_hub("me/whole", token="hf_mine")
    assert hub_server.commits == [("me/whole", "main")]


def test_a_repository_with_whole_weights_and_other_adapters_is_refused(place, hub_server, tmp_path):
    SoundwaveForConditionalGeneration.from_pretrained(place / "run").save_pretrained(tmp_path / "whole")
    shutil.copy(tmp_path / "whole" / "model.safetensors", tmp_path / "to upload")
    set_json(tmp_path / "to upload" / "adapter_config.json", base_model_name_or_path=None)
    with pytest.raises(ValueError, match="`me/shipped` holds the weights of a whole model, and .* of backbones"):
        SoundwaveForConditionalGeneration.from_pretrained("me/shipped")


def test_a_repository_that_is_not_there_is_reported_as_such(hub_server):
    with pytest.raises(OSError, match="me/nothing"):
        SoundwaveForConditionalGeneration.from_pretrained("me/nothing")
    with pytest.raises(OSError, match="me/nothing"):
        resolve_adapter("me/nothing")


# ---- what PEFT itself takes and writes ----


def test_a_lora_in_memory_is_loaded_without_a_folder(place):
    tuned = SoundwaveForConditionalGeneration.from_pretrained(place / "run", merge_lora=False)
    weights = {name: value for name, value in get_peft_model_state_dict(tuned).items() if ".lora_" in name}
    model = SoundwaveForConditionalGeneration.from_pretrained(place / "run")
    config = LoraConfig(r=tuned.peft_config["default"].r, target_modules=tuned.peft_config["default"].target_modules)
    weights = {name.removeprefix("base_model.model."): value for name, value in weights.items()}
    model.load_adapter(adapter_state_dict=weights, peft_config=config, adapter_name="more")
    loaded = {name for name, _ in model.named_parameters() if ".more." in name}
    assert loaded and "more" in model.peft_config


def test_a_folder_that_peft_wrote_says_that_the_config_is_missing(place, tmp_path):
    tuned = SoundwaveForConditionalGeneration.from_pretrained(place / "run", merge_lora=False)
    tuned.save_pretrained(tmp_path)
    with pytest.raises((OSError, ValueError), match=r"that PEFT saved, and no config.json.*get_base_model\(\).config"):
        SoundwaveForConditionalGeneration.from_pretrained(tmp_path)
    tuned.get_base_model().config.save_pretrained(tmp_path)
    SoundwaveForConditionalGeneration.from_pretrained(tmp_path)


def test_embeddings_that_were_added_before_adapters_were_saved_are_missed(place, inputs, tmp_path):
    tuned = SoundwaveForConditionalGeneration.from_pretrained(place / "run", merge_lora=False)
    tokens = tuned.config.text_config.vocab_size
    tuned.resize_token_embeddings(tokens + 7)
    tuned.save_pretrained(tmp_path / "tuned")
    tuned.get_base_model().config.save_pretrained(tmp_path / "tuned")
    for door in (SoundwaveForConditionalGeneration, SoundwaveForCTC):
        with pytest.raises(ValueError, match=f"saved with an LLM of {tokens + 7} tokens, and .* has {tokens}, with"):
            door.from_pretrained(tmp_path / "tuned")
    shutil.copytree(place / "llm", tmp_path / "llm")
    llm = LlamaForCausalLM.from_pretrained(place / "llm")
    llm.resize_token_embeddings(tokens + 7, mean_resizing=False)
    llm.save_pretrained(tmp_path / "llm")
    found = SoundwaveForConditionalGeneration.from_pretrained(tmp_path / "tuned", llm=str(tmp_path / "llm"))
    assert logits(found, inputs).shape[-1] == tokens + 7


# ---- options of the processor's parts ----


@pytest.mark.parametrize(
    "options",
    [
        {"padding_side": "right"},
        {"padding_side": "left"},
        {"chat_template": "{{ messages[0].content }}"},
        {"model_max_length": 77},
        {"trailing_silence": 0.1},
        {"llm": None},
    ],
)
def test_the_processor_of_adapters_takes_the_options_of_its_parts(place, tmp_path, options):
    export_adapter(place / "run", tmp_path / "shipped")  # without a tokenizer
    plain, found = (AutoProcessor.from_pretrained(tmp_path / "shipped", **given) for given in ({}, options))
    for name, value in options.items():
        if name != "llm":
            holder = found if name in ("chat_template", "trailing_silence") else found.tokenizer
            assert getattr(holder, name) == value
    assert found.tokenizer.get_vocab() == plain.tokenizer.get_vocab()
    assert found.feature_extractor.to_dict() == plain.feature_extractor.to_dict()


def test_options_of_a_model_do_not_reach_the_tokenizer(place, tmp_path):
    export_adapter(place / "run", tmp_path / "shipped")
    options = {"dtype": torch.bfloat16, "device_map": "cpu", "trust_remote_code": False}
    processor = AutoProcessor.from_pretrained(tmp_path / "shipped", **options)
    assert not {*options} & {*processor.tokenizer.init_kwargs}
    processor.save_pretrained(tmp_path / "saved")
    assert AutoProcessor.from_pretrained(tmp_path / "saved").audio_token_id == processor.audio_token_id


def test_the_side_of_padding_is_that_of_the_text(place):
    clip = np.random.default_rng(0).standard_normal(8_000).astype(np.float32) / 9
    features = []
    for side in ("left", "right"):
        processor = AutoProcessor.from_pretrained(place / "run", padding_side=side)
        processor.feature_extractor.padding_side = side  # as a whole checkpoint sets it
        inputs = processor.apply_transcription_request({"array": clip, "sampling_rate": 16_000})
        features.append(inputs["input_features"])
    torch.testing.assert_close(features[0], features[1], rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, "float8_e4m3fn"])
def test_a_dtype_that_cannot_be_computed_in_is_refused(place, dtype):
    with pytest.raises(ValueError, match="expected a floating point `torch.dtype`.* need a `quantization_config`"):
        SoundwaveForConditionalGeneration.from_pretrained(place / "run", dtype=dtype)
