"""PEFT's own calls on a joined model: its methods hear the clips or are refused, and adapters know their config."""

import json
import shutil

import pytest
import torch
from peft import (
    AdaLoraConfig,
    IA3Config,
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForMultimodalLM

from soundwave_hf import SoundwaveForConditionalGeneration, SoundwaveForCTC, SoundwaveModel
from soundwave_hf.modeling.backbones_soundwave import load_lora
from soundwave_hf.modeling.trained_fields_soundwave import TRAINED_FIELDS
from soundwave_hf.training.export import export_adapter
from soundwave_hf.training.stages import ADAPTERS
from tests.tiny_models import pad_batch, save_tiny_llm, save_tiny_whisper


AUDIO = 32  # added to the vocabulary of the tiny LLM
TARGETS = r".*language_model.*\.(q|v)_proj"
FIELDS = {"blank_margin": 1.0, "label_embeddings": True, "keep_blanks": False}
TENSOR = "base_model.model.model.alignment_adapter.trained_fields"


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backbones")
    return save_tiny_whisper(folder / "whisper"), save_tiny_llm(folder / "llm")


def joined(backbones, **fields) -> SoundwaveForConditionalGeneration:
    torch.manual_seed(3)
    model = SoundwaveForConditionalGeneration.from_backbones(*backbones, warm_start=False, **fields)
    if model.config.tie_ctc_head:
        model.model.ctc_head.blank_bias.data.fill_(1.0)
    return model


def batch() -> dict[str, torch.Tensor]:
    return pad_batch([[3, AUDIO, 4], [7, AUDIO]], [80, 51])


@torch.no_grad()
def logits_of(model) -> torch.Tensor:
    return model.eval()(**batch()).logits


@pytest.fixture(scope="module")
def adapter(backbones, tmp_path_factory):
    """A folder as a run writes it, by PEFT's own calls, and the logits of what was trained."""
    folder = tmp_path_factory.mktemp("adapter")
    lora = LoraConfig(r=4, target_modules=TARGETS, modules_to_save=list(ADAPTERS))
    model = get_peft_model(joined(backbones, **FIELDS), lora)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    model.get_base_model().config.save_pretrained(folder)
    return folder, logits_of(model)


# ---- Adapters on a model with another config


def test_peft_loads_adapters_onto_a_model_with_the_fields_of_their_training(backbones, adapter):
    folder, expected = adapter
    loaded = PeftModel.from_pretrained(joined(backbones, **FIELDS), folder)
    torch.testing.assert_close(logits_of(loaded), expected)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "here `blank_margin` is 0.0, not 1.0; `keep_blanks` is True, not False; `label_embeddings` is False"),
        ({**FIELDS, "blank_margin": 0.5}, r"here `blank_margin` is 0.5, not 1.0\. Load the folder by"),
        ({**FIELDS, "look_back": "kept"}, "here `look_back` is 'kept', not 'all'"),
        ({**FIELDS, "adapter_heads": 4}, "here `adapter_heads` is 4, not 2"),
        ({**FIELDS, "alignment_attention": "frame"}, "here `alignment_attention` is 'frame', not 'sequence'"),
        ({**FIELDS, "stack_factor": 3}, "here `stack_factor` is 3, not 2"),
        ({**FIELDS, "ctc_text": "as_written"}, "here `ctc_text` is 'as_written', not 'lower'"),
    ],
    ids=lambda value: None if isinstance(value, str) else "-".join(map(str, value)),
)
def test_peft_refuses_adapters_on_a_model_with_other_fields(backbones, adapter, fields, message):
    with pytest.raises(ValueError, match=message):
        PeftModel.from_pretrained(joined(backbones, **fields), adapter[0])


def test_a_tensor_of_old_that_names_no_ctc_text_stands_for_lower_case(backbones, adapter, tmp_path):
    folder, expected = adapter
    old = shutil.copytree(folder, tmp_path / "old")
    weights = load_file(old / "adapter_model.safetensors")
    fields = json.loads(bytes(weights[TENSOR].tolist()))
    assert fields.pop("ctc_text") == "lower"
    weights[TENSOR] = torch.tensor(list(json.dumps(fields).encode()), dtype=torch.uint8)
    save_file(weights, old / "adapter_model.safetensors", metadata={"format": "pt"})
    torch.testing.assert_close(logits_of(PeftModel.from_pretrained(joined(backbones, **FIELDS), old)), expected)
    with pytest.raises(ValueError, match="here `ctc_text` is 'as_written', not 'lower'"):
        PeftModel.from_pretrained(joined(backbones, **FIELDS, ctc_text="as_written"), old)


def test_what_the_ctc_head_writes_is_no_change_on_purpose(backbones, adapter):
    message = "`ctc_text` is set to 'as_written', and `.*` was trained with 'lower': leave it out"
    with pytest.raises(ValueError, match=message):
        SoundwaveForConditionalGeneration.from_backbones(*backbones, adapter=str(adapter[0]), ctc_text="as_written")


def test_fields_that_change_no_meaning_may_differ(backbones, adapter):
    folder, expected = adapter
    model = joined(backbones, **FIELDS, adapter_dropout=0.3, ctc_loss_weight=1.0, no_speech_threshold=0.4)
    torch.testing.assert_close(logits_of(PeftModel.from_pretrained(model, folder)), expected)


def test_a_second_adapter_of_another_config_is_refused(backbones, adapter, tmp_path):
    lora = LoraConfig(r=4, target_modules=TARGETS, modules_to_save=list(ADAPTERS))
    model = get_peft_model(joined(backbones), lora)
    with pytest.raises(ValueError, match="`blank_margin` is 0.0, not 1.0"):
        model.load_adapter(str(adapter[0]), "other")


def test_the_loaders_of_transformers_and_of_this_package_compare_the_fields_too(backbones, adapter):
    folder, expected = str(adapter[0]), adapter[1]
    for load in (lambda model: model.load_adapter(folder), lambda model: load_lora(model, folder)):
        with pytest.raises(ValueError, match="with another config: the model's `blank_margin` is 0.0, not 1.0"):
            load(joined(backbones))
        model = joined(backbones, **FIELDS)
        load(model)  # into the model itself
        torch.testing.assert_close(logits_of(model), expected)


def test_a_change_on_purpose_is_made(backbones, adapter):
    folder = str(adapter[0])
    changed = SoundwaveForConditionalGeneration.from_backbones(*backbones, adapter=folder, blank_margin=0.25)
    assert (changed.config.blank_margin, changed.config.label_embeddings) == (0.25, True)
    torch.testing.assert_close(
        logits_of(SoundwaveForConditionalGeneration.from_backbones(*backbones, adapter=folder)), adapter[1]
    )


@pytest.mark.parametrize("merge_lora", [True, False])
@torch.no_grad()
def test_fields_set_after_loading_count_at_once(backbones, adapter, tmp_path, merge_lora):
    """PEFT copies the adapters, and a copy must not keep the config of its own."""
    encoder, llm = backbones
    options = {"encoder": encoder, "llm": llm, "merge_lora": merge_lora}
    clips = {name: value for name, value in batch().items() if name.startswith("input_features")}

    def positions(**fields) -> torch.Tensor:
        loaded = SoundwaveForConditionalGeneration.from_pretrained(str(adapter[0]), **options)
        model = loaded if merge_lora else loaded.get_base_model()
        for name, value in fields.items():
            setattr(model.config, name, value)
        return model.get_audio_features(**clips).pooler_output

    before = positions()
    for fields in ({"blank_margin": -9.0}, {"look_back": "kept"}):
        found = positions(**fields)
        assert found.shape != before.shape or not torch.equal(found, before), fields


def test_the_tensor_says_the_fields_survives_half_precision_and_is_in_no_whole_checkpoint(
    backbones, adapter, tmp_path
):
    folder, _ = adapter
    saved = load_file(folder / "adapter_model.safetensors")[TENSOR]
    assert saved.dtype == torch.uint8
    text = bytes(saved.half().to(torch.uint8).tolist()).decode()
    assert all(f'"{name}": ' in text for name in TRAINED_FIELDS)
    model = SoundwaveForConditionalGeneration.from_backbones(*backbones, adapter=str(folder))
    assert not any("trained_fields" in name for name in model.state_dict())
    shutil.copytree(folder, tmp_path / "run")
    (tmp_path / "run" / "processor_config.json").write_text("{}")
    exported = export_adapter(tmp_path / "run", tmp_path / "exported")
    assert torch.equal(load_file(exported / "adapter_model.safetensors")[TENSOR], saved)
    PeftModel.from_pretrained(joined(backbones, **FIELDS), exported)
    with pytest.raises(ValueError, match="`blank_margin` is 0.0, not 1.0"):
        PeftModel.from_pretrained(joined(backbones), exported)


def test_a_folder_of_old_without_the_tensor_loads_in_our_ways_and_not_in_pefts(backbones, adapter, tmp_path):
    folder, expected = adapter
    old = shutil.copytree(folder, tmp_path / "old")
    weights = load_file(old / "adapter_model.safetensors")
    weights.pop(TENSOR)
    save_file(weights, old / "adapter_model.safetensors", metadata={"format": "pt"})
    ours = SoundwaveForConditionalGeneration.from_backbones(*backbones, adapter=str(old))
    torch.testing.assert_close(logits_of(ours), expected)
    torch.testing.assert_close(logits_of(load_lora(joined(backbones, **FIELDS), str(old))), expected)
    with pytest.raises(KeyError, match="alignment_adapter.trained_fields"):
        PeftModel.from_pretrained(joined(backbones), old)


# ---- PEFT's methods


WEIGHTS = {
    "lora": LoraConfig(r=4, target_modules=TARGETS),
    "lora for causal LMs": LoraConfig(r=4, target_modules=TARGETS, task_type="CAUSAL_LM"),
    "dora": LoraConfig(r=4, use_dora=True, target_modules=TARGETS),
    "adalora": AdaLoraConfig(target_modules=TARGETS, total_step=10),
    "ia3": IA3Config(target_modules=TARGETS, feedforward_modules=[]),
    "vera": VeraConfig(r=4, target_modules=TARGETS),
}
PROMPTS = {
    "prompt tuning": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "p-tuning": PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, encoder_hidden_size=8),
}


def assert_hears(model):
    """Logits change with the clips, and what trains gets a gradient."""
    inputs = batch()
    others = {**inputs, "input_features": inputs["input_features"].flip(2)}
    output = model(**inputs, labels=inputs["input_ids"])
    assert not torch.allclose(output.logits, model(**others).logits, atol=1e-4)
    output.loss.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize("method", WEIGHTS)
def test_methods_that_change_weights_hear_the_clips_and_generate(backbones, method):
    model = get_peft_model(joined(backbones), WEIGHTS[method]).eval()
    assert_hears(model)
    assert model.generate(**batch(), max_new_tokens=3, do_sample=False).shape == (2, 6)


@pytest.mark.parametrize("method", PROMPTS)
def test_virtual_tokens_stand_before_prompts_whose_clips_are_heard(backbones, method):
    model = get_peft_model(joined(backbones), PROMPTS[method]).eval()
    assert model(**batch()).logits.shape[1] == 3 + 3
    assert_hears(model)
    with pytest.raises(ValueError, match="rebuilds the prompt with virtual tokens .* such as LoRA"):
        model.generate(**batch(), max_new_tokens=3)
    assert model.generate(input_ids=torch.tensor([[3, 4]]), max_new_tokens=2).shape == (1, 4)  # text has no clips


def test_virtual_tokens_change_nothing_but_the_place_of_the_prompt(backbones):
    model = joined(backbones)
    inputs = batch()
    embeds = model.get_input_embeddings()(torch.tensor([[5, 6], [5, 6]]))
    embeds = torch.cat([embeds, model.get_input_embeddings()(inputs["input_ids"])], dim=1)
    clips = {name: inputs[name] for name in ("input_features", "input_features_mask")}
    mask = torch.cat([torch.ones(2, 2), inputs["attention_mask"]], dim=1)  # float, as PEFT makes it
    found = model(inputs_embeds=embeds, attention_mask=mask, **clips).logits
    ids = torch.cat([torch.tensor([[5, 6], [5, 6]]), inputs["input_ids"]], dim=1)
    torch.testing.assert_close(found, model(input_ids=ids, attention_mask=mask.long(), **clips).logits)


def test_embeddings_without_audio_tokens_do_not_swallow_clips(backbones):
    model = joined(backbones)
    embeds = model.get_input_embeddings()(torch.tensor([[3, 4], [5, 6]]))
    with pytest.raises(ValueError, match="holds 0 audio tokens .* and 2 clips were given"):
        model(inputs_embeds=embeds, input_features=batch()["input_features"])


def test_prefix_tuning_is_refused_with_the_way_out(backbones):
    model = get_peft_model(joined(backbones), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with pytest.raises(ValueError, match="PEFT's prefix tuning passes such a cache: use a method that"):
        model(**batch())
    with pytest.raises(ValueError, match="PEFT's PREFIX_TUNING rebuilds the prompt"):
        model.generate(**batch(), max_new_tokens=2)


# ---- a LoRA of a whole checkpoint ----


@pytest.fixture(scope="module")
def whole(backbones, tmp_path_factory) -> str:
    folder = str(tmp_path_factory.mktemp("whole"))
    joined(backbones).save_pretrained(folder)
    return folder


def tuned_folder(whole, folder, way: str) -> torch.Tensor:
    """Save a random LoRA on the LLM of `whole` in a way of transformers or PEFT. Returns the logits with it."""
    model = SoundwaveForConditionalGeneration.from_pretrained(whole)
    config = LoraConfig(r=2, target_modules=TARGETS, init_lora_weights=False)
    if way == "add_adapter":
        model.add_adapter(config)
    else:
        model = get_peft_model(model, config)
    model.save_pretrained(folder)
    return logits_of(model)


@pytest.mark.parametrize("way", ["add_adapter", "get_peft_model"])
@pytest.mark.parametrize("door", [SoundwaveForConditionalGeneration, AutoModel, AutoModelForMultimodalLM])
def test_a_lora_of_a_whole_checkpoint_loads_as_transformers_loads_one(whole, tmp_path, way, door):
    expected = tuned_folder(whole, tmp_path, way)
    found = door.from_pretrained(tmp_path)
    assert isinstance(found, SoundwaveForConditionalGeneration) and "default" in found.peft_config
    torch.testing.assert_close(logits_of(found), expected)
    model, report = SoundwaveForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    torch.testing.assert_close(logits_of(model), expected)


@pytest.mark.parametrize("way", ["add_adapter", "get_peft_model"])
def test_adapters_may_lie_beside_the_whole_model_that_they_were_trained_on_and_no_other(whole, tmp_path, way):
    own, other = (shutil.copytree(whole, tmp_path / name) for name in ("own", "other"))
    model = SoundwaveForConditionalGeneration.from_pretrained(own)
    config = LoraConfig(r=2, target_modules=TARGETS, init_lora_weights=False, modules_to_save=list(ADAPTERS))
    if way == "add_adapter":
        model.add_adapter(config)
        with pytest.raises(FileExistsError, match="holds model.safetensors, and adapters would be saved beside it"):
            model.save_pretrained(other)
    else:
        model = get_peft_model(model, config)
    for _ in range(2):
        model.save_pretrained(own)
    torch.testing.assert_close(logits_of(SoundwaveForConditionalGeneration.from_pretrained(own)), logits_of(model))
    with pytest.raises(FileExistsError, match="holds adapter_config.json, and a whole model would be saved beside it"):
        SoundwaveForConditionalGeneration.from_pretrained(whole).save_pretrained(own)
    shutil.copytree(own, tmp_path / "moved")
    with pytest.raises(ValueError, match="were trained on these very weights, write `.*moved` as `base_model_name"):
        SoundwaveForConditionalGeneration.from_pretrained(tmp_path / "moved")


def test_a_lora_whose_checkpoint_is_not_found_says_what_to_load(whole, tmp_path):
    tuned_folder(whole, tmp_path, "get_peft_model")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "/moved/away"}))
    with pytest.raises(ValueError, match=r"`/moved/away` is no Soundwave model that is found here. Load it by `peft"):
        SoundwaveForConditionalGeneration.from_pretrained(tmp_path)


def test_a_lora_of_the_embeddings_needs_a_head_of_its_own(backbones):
    config = LoraConfig(r=2, target_modules=["embed_tokens"], init_lora_weights=False)
    with pytest.raises(ValueError, match="A LoRA changes the LLM's embeddings. The tied CTC head reads them without"):
        logits_of(get_peft_model(joined(backbones), config))
    tuned = get_peft_model(joined(backbones, tie_ctc_head=False), config)
    expected = logits_of(tuned)
    torch.testing.assert_close(logits_of(tuned.merge_and_unload()), expected)


def test_a_lora_of_the_embeddings_does_not_load_with_a_tied_head(backbones, adapter, tmp_path):
    folder = shutil.copytree(adapter[0], tmp_path / "adapter")
    weights = load_file(folder / "adapter_model.safetensors")
    name = "base_model.model.model.language_model.embed_tokens.lora_embedding_A"
    save_file({**weights, name: torch.zeros(2, 33)}, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="holds a LoRA of the LLM's embeddings, which the tied CTC head reads"):
        SoundwaveForConditionalGeneration.from_backbones(*backbones, adapter=str(folder))


def test_a_lora_of_the_encoder_does_not_load_without_the_llm(backbones, tmp_path):
    config = LoraConfig(r=2, target_modules=r".*audio_tower.*\.q_proj", modules_to_save=list(ADAPTERS))
    tuned = get_peft_model(joined(backbones), config)
    tuned.save_pretrained(tmp_path)
    tuned.get_base_model().config.save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"changes the encoder too \(.*audio_tower.*which `SoundwaveForCTC` cannot load"
    ):
        SoundwaveForCTC.from_pretrained(tmp_path)
    torch.testing.assert_close(
        logits_of(SoundwaveForConditionalGeneration.from_pretrained(tmp_path)), logits_of(tuned)
    )


@pytest.mark.parametrize("part", [SoundwaveForCTC, SoundwaveModel], ids=lambda part: part.__name__)
def test_a_part_of_the_model_takes_no_lora_of_the_whole(whole, tmp_path, part):
    tuned_folder(whole, tmp_path, "get_peft_model")
    with pytest.raises(ValueError, match="holds PEFT's adapter of the whole model .*is a part of it: load it by"):
        part.from_pretrained(tmp_path)


def test_an_adapter_whose_whole_model_is_gone_says_where_to_name_it(adapter, tmp_path):
    folder = shutil.copytree(adapter[0], tmp_path / "adapter")
    (folder / "config.json").unlink()
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "/gone/model"}))
    with pytest.raises(ValueError, match="adapter of the model `/gone/model`.*`base_model_name_or_path`"):
        SoundwaveForConditionalGeneration.from_pretrained(folder)


def test_adapters_that_peft_saved_are_never_put_onto_what_holds_them_already(adapter, tmp_path):
    """Published adapters name themselves as the base: their LoRA would be applied twice."""
    folder = shutil.copytree(adapter[0], tmp_path / "adapter")
    (folder / "config.json").unlink()
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(folder)}))
    with pytest.raises(ValueError, match="holds Soundwave adapters and a LoRA that PEFT saved, and no config.json"):
        SoundwaveForConditionalGeneration.from_pretrained(folder)
