"""What the published code computed (tests/fixtures/published), computed again by a converted checkpoint."""

import json
import shutil
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMultimodalLM, AutoProcessor

from soundwave_hf.convert import convert_published, published_source, read_published_config
from soundwave_hf.convert import native_config as read_native_config
from tests.tiny_models import tiny_tokenizer


PUBLISHED = Path(__file__).parent.parent / "fixtures" / "published"
EXPECTED = load_file(PUBLISHED / "expected.safetensors")
CASES = range(4)
AUDIO, PAD = 95, 94


@pytest.fixture(scope="module")
def native_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted") / "native"
    convert_published(PUBLISHED, folder)
    return folder


@pytest.fixture(scope="module")
def model(native_folder):
    return AutoModelForMultimodalLM.from_pretrained(native_folder)


@pytest.fixture
def copy_of_published(tmp_path):
    """The published checkpoint in a folder that a test may spoil."""
    return Path(shutil.copytree(PUBLISHED, tmp_path / "published"))


def edit_config(folder: Path, **fields):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))


def expected_case(case: int) -> dict[str, torch.Tensor]:
    return {name.split(".", 1)[1]: value for name, value in EXPECTED.items() if name.startswith(f"{case}.")}


def prefill_at_input_tokens(case: dict) -> torch.Tensor:
    """The published logits of the expanded prompt, at the last position of each input token."""
    audio_index = case["input_ids"][0].tolist().index(AUDIO)
    num_added = case["prefill_logits"].shape[1] - case["input_ids"].shape[1]
    positions = [index + num_added * (index >= audio_index) for index in range(case["input_ids"].shape[1])]
    return case["prefill_logits"][:, positions]


def assert_near(found: torch.Tensor, expected: torch.Tensor):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def left_padded_batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """All four cases: features, ids and attention mask."""
    cases = [expected_case(case) for case in CASES]
    longest = max(case["input_ids"].shape[1] for case in cases)
    ids = torch.full((len(cases), longest), PAD)
    for row, case in enumerate(cases):
        ids[row, longest - case["input_ids"].shape[1] :] = case["input_ids"]
    return torch.cat([case["input_features"] for case in cases]), ids, (ids != PAD).long()


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_the_audio_side_gives_the_published_numbers(model, case):
    case = expected_case(case)
    audio = model.get_audio_features(case["input_features"], output_ctc_logits=True)
    assert_near(audio.last_hidden_state, case["encoder_states"])
    assert_near(audio.aligned_states, case["aligned_states"])
    assert_near(audio.ctc_logits, case["ctc_logits"])
    assert torch.equal(audio.ctc_best, case["ctc_argmax"])


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_as_many_frames_are_kept_as_in_the_published_code(model, case):
    kept = json.loads((PUBLISHED / "meta.json").read_text())["cases"][case]["kept_frames"]
    assert model.get_audio_features(expected_case(case)["input_features"]).num_positions.tolist() == [kept]


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_logits_at_the_input_tokens_are_the_published_ones(model, case):
    case = expected_case(case)
    logits = model(input_ids=case["input_ids"], input_features=case["input_features"]).logits
    assert_near(logits, prefill_at_input_tokens(case))


@pytest.mark.parametrize("case", CASES)
def test_greedy_ids_are_the_published_ones(model, case):
    case = expected_case(case)
    ids = model.generate(
        input_ids=case["input_ids"], input_features=case["input_features"], max_new_tokens=12, eos_token_id=None
    )
    assert torch.equal(ids, case["generated_ids"])


@torch.no_grad()
def test_a_batch_gives_the_audio_side_of_each_case_alone(model):
    features, _, _ = left_padded_batch()
    audio = model.get_audio_features(features, output_ctc_logits=True)
    cases = [expected_case(case) for case in CASES]
    for found, name in (("last_hidden_state", "encoder_states"), ("aligned_states",) * 2, ("ctc_logits",) * 2):
        assert_near(audio[found], torch.cat([case[name] for case in cases]))
    meta = json.loads((PUBLISHED / "meta.json").read_text())
    assert audio.num_positions.tolist() == [case["kept_frames"] for case in meta["cases"]]


@torch.no_grad()
def test_a_padded_batch_gives_the_logits_of_each_case_alone(model):
    features, ids, mask = left_padded_batch()
    logits = model(input_ids=ids, input_features=features, attention_mask=mask).logits
    for case in CASES:
        assert_near(logits[case : case + 1, mask[case].bool()], prefill_at_input_tokens(expected_case(case)))


def test_a_padded_batch_gives_the_greedy_ids_of_each_case_alone(model):
    features, ids, mask = left_padded_batch()
    new_ids = model.generate(
        input_ids=ids, input_features=features, attention_mask=mask, max_new_tokens=12, eos_token_id=None
    )[:, ids.shape[1] :]
    assert torch.equal(new_ids, torch.cat([expected_case(case)["generated_ids"][:, -12:] for case in CASES]))


def training_step(native_folder):
    """The model after the published training step, and what it returned."""
    model = AutoModelForMultimodalLM.from_pretrained(native_folder, adapter_dropout=0.0).train()
    step = {name[len("train.") :]: value for name, value in EXPECTED.items() if name.startswith("train.")}
    output = model(
        input_ids=step["input_ids"],
        attention_mask=(step["input_ids"] != PAD).long(),
        input_features=step["input_features"],
        labels=step["labels"],
        ctc_labels=step["ctc_targets"],
    )
    output.loss.backward()
    return model, output


@pytest.fixture(scope="module")
def trained(native_folder):
    return training_step(native_folder)


@pytest.mark.parametrize("name", ["loss", "ce_loss", "ctc_loss"])
def test_training_losses_are_the_published_ones(trained, name):
    torch.testing.assert_close(trained[1][name].detach(), EXPECTED[f"train.{name}"][0], rtol=1e-4, atol=0)


def test_every_gradient_has_the_published_norm(trained):
    squares = defaultdict(float)
    for name, parameter in trained[0].named_parameters():
        if parameter.grad is not None:
            squares[published_source(name)[0]] += parameter.grad.double().pow(2).sum().item()
    prefix = "train.grad_norm."
    expected = {name[len(prefix) :]: value.item() for name, value in EXPECTED.items() if name.startswith(prefix)}
    assert {name: square**0.5 for name, square in squares.items()} == pytest.approx(expected, rel=1e-4)


def test_a_converted_checkpoint_names_the_published_choices(model):
    config = model.config
    assert (config.compat, config.alignment_attention, config.look_back) == ("published", "frame", "kept")
    assert (config.keep_blanks, config.tie_ctc_head, config.audio_token_id) == (True, False, AUDIO)
    assert config.text_config.rope_parameters == {"rope_type": "default", "rope_theta": 500000.0}


def test_ids_that_end_and_pad_a_row_come_from_the_published_config(model):
    generation = model.generation_config
    assert (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id) == (0, 93, PAD)


def test_llama3_rope_scaling_survives(copy_of_published):
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
    }
    edit_config(copy_of_published, rope_scaling=scaling, max_position_embeddings=131072)
    config = read_native_config(read_published_config(copy_of_published), copy_of_published)
    assert config.text_config.rope_parameters == {**scaling, "rope_theta": 500000.0}


def test_float16_weights_stay_float16(copy_of_published, tmp_path):
    weights = load_file(copy_of_published / "model.safetensors")
    save_file({name: value.half() for name, value in weights.items()}, copy_of_published / "model.safetensors")
    convert_published(copy_of_published, tmp_path / "native")
    native = load_file(tmp_path / "native" / "model.safetensors")
    assert {value.dtype for value in native.values()} == {torch.float16}
    assert AutoModelForMultimodalLM.from_pretrained(tmp_path / "native").dtype == torch.float16


def write_shards(folder: Path, save, name: str):
    """Split the weights of a checkpoint into two shards with an index, `name` being model.safetensors or its kin."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    stem, ending = name.rsplit(".", 1)
    names = sorted(weights)
    shards = {f"{stem}-00001-of-00002.{ending}": names[:40], f"{stem}-00002-of-00002.{ending}": names[40:]}
    for shard, members in shards.items():
        save({member: weights[member] for member in members}, folder / shard)
    weight_map = {member: shard for shard, members in shards.items() for member in members}
    (folder / f"{name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def assert_same_weights(folder: Path, native_folder: Path):
    found, expected = load_file(folder / "model.safetensors"), load_file(native_folder / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("save", "name"), [(save_file, "model.safetensors"), (torch.save, "pytorch_model.bin")], ids=["safetensors", "bin"]
)
def test_shards_give_what_one_file_gives(copy_of_published, native_folder, tmp_path, save, name):
    write_shards(copy_of_published, save, name)
    convert_published(copy_of_published, tmp_path / "native")
    assert_same_weights(tmp_path / "native", native_folder)


def test_one_pytorch_file_gives_what_safetensors_give(copy_of_published, native_folder, tmp_path):
    torch.save(load_file(copy_of_published / "model.safetensors"), copy_of_published / "pytorch_model.bin")
    (copy_of_published / "model.safetensors").unlink()
    convert_published(copy_of_published, tmp_path / "native")
    assert_same_weights(tmp_path / "native", native_folder)


def test_without_a_tokenizer_the_model_alone_is_written_and_said_so(tmp_path, capsys):
    convert_published(PUBLISHED, tmp_path / "native")
    assert "holds no tokenizer: only the model is written" in capsys.readouterr().out
    written = sorted(path.name for path in (tmp_path / "native").iterdir() if path.suffix != ".py")
    assert written == ["README.md", "config.json", "generation_config.json", "model.safetensors"]


def test_a_tokenizer_becomes_a_processor_with_the_published_audio_token(copy_of_published, tmp_path):
    words = tuple(f"x{number}" for number in range(62)) + ("<pad94>",)  # ids 32..94; the audio token comes next
    tiny_tokenizer(words).save_pretrained(copy_of_published)
    convert_published(copy_of_published, tmp_path / "native")
    processor = AutoProcessor.from_pretrained(tmp_path / "native")
    assert processor.audio_token == "<audio_patch>"
    assert processor.tokenizer.convert_tokens_to_ids("<audio_patch>") == AUDIO
    assert processor.feature_extractor.feature_size == 20
    with pytest.raises(ValueError, match="arrived as an array without its sampling rate"):
        processor(text="<audio_patch>", audio=[0.0] * 800)


def assert_refused(src: Path, dst: Path, error: type[Exception], message: str):
    """An error with this message, and nothing written."""
    before = sorted(dst.parent.iterdir())
    with pytest.raises(error, match=message):
        convert_published(src, dst)
    assert sorted(dst.parent.iterdir()) == before


def test_a_missing_shard_is_named(copy_of_published, tmp_path):
    write_shards(copy_of_published, save_file, "model.safetensors")
    (copy_of_published / "model-00002-of-00002.safetensors").unlink()
    message = r"lacks 1 of the 2 shards .* \['model-00002-of-00002.safetensors'\]"
    assert_refused(copy_of_published, tmp_path / "native", FileNotFoundError, message)


def test_a_shard_that_broke_off_is_named(copy_of_published, tmp_path):
    path = copy_of_published / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    assert_refused(copy_of_published, tmp_path / "native", ValueError, "model.safetensors` cannot be read .* again")


def test_a_folder_without_weights_is_refused(copy_of_published, tmp_path):
    (copy_of_published / "model.safetensors").unlink()
    assert_refused(copy_of_published, tmp_path / "native", FileNotFoundError, "has no weights: model.safetensors or")


def test_missing_and_unexpected_tensors_are_named(copy_of_published, tmp_path):
    weights = load_file(copy_of_published / "model.safetensors")
    weights["model.out_norm.scale"] = weights.pop("model.out_norm.weight")
    save_file(weights, copy_of_published / "model.safetensors")
    message = r"lacks 1 of 81 tensors: \['model.out_norm.weight'\]; 1 of its .* \['model.out_norm.scale'\]"
    assert_refused(copy_of_published, tmp_path / "native", ValueError, message)


def test_tensors_of_another_shape_are_named(copy_of_published, tmp_path):
    edit_config(copy_of_published, intermediate_size=96)
    message = r"6 tensors do not fit config.json: model.layers.0.mlp.gate_proj.weight gives .*, not \(96, 64\)"
    assert_refused(copy_of_published, tmp_path / "native", ValueError, message)


def test_an_encoder_of_another_width_is_refused(copy_of_published, tmp_path):
    edit_config(copy_of_published, adapter_size=48)
    message = "`adapter_size` is 48 in .* has width 32: they must be equal"
    assert_refused(copy_of_published, tmp_path / "native", ValueError, message)


def test_an_encoder_whose_config_cannot_be_had_is_refused(copy_of_published, tmp_path):
    edit_config(copy_of_published, audio_tower="no_such_folder")
    message = r"audio encoder `no_such_folder` was not found: .* Save that model's config.json"
    assert_refused(copy_of_published, tmp_path / "native", FileNotFoundError, message)


def test_a_native_checkpoint_is_not_converted_again(native_folder, tmp_path):
    assert_refused(native_folder, tmp_path / "native", ValueError, "it is a native checkpoint already")


def test_another_models_checkpoint_is_refused(copy_of_published, tmp_path):
    (copy_of_published / "config.json").write_text('{"model_type": "llama"}')
    message = r'has model type "llama" and lacks \[\'adapter_size\''
    assert_refused(copy_of_published, tmp_path / "native", ValueError, message)


def test_several_audio_tokens_a_clip_are_refused(copy_of_published, tmp_path):
    edit_config(copy_of_published, audio_patch_size=2)
    assert_refused(copy_of_published, tmp_path / "native", ValueError, "`audio_patch_size` is 2 in .* only 1")


def test_a_tokenizer_with_the_audio_token_elsewhere_is_refused(copy_of_published, tmp_path):
    tiny_tokenizer(("<audio_patch>",)).save_pretrained(copy_of_published)
    message = "gives `<audio_patch>` the id 32 and config.json says 95"
    assert_refused(copy_of_published, tmp_path / "native", ValueError, message)


def test_a_folder_that_holds_something_is_not_overwritten(tmp_path):
    (tmp_path / "native").mkdir()
    (tmp_path / "native" / "notes.txt").write_text("mine")
    assert_refused(PUBLISHED, tmp_path / "native", FileExistsError, "exists and is not an empty folder: name")
    assert (tmp_path / "native" / "notes.txt").read_text() == "mine"


def test_an_error_while_saving_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", fail)
    assert_refused(PUBLISHED, tmp_path / "native", OSError, "No space left")


def test_a_converted_checkpoint_says_that_no_answer_holds_the_audio_token(native_folder, model, tmp_path):
    written = json.loads((native_folder / "generation_config.json").read_text())
    assert written["suppress_tokens"] == [AUDIO]
    old = Path(shutil.copytree(native_folder, tmp_path / "old"))  # as it was converted before
    written.pop("suppress_tokens")
    (old / "generation_config.json").write_text(json.dumps(written))
    loaded = AutoModelForMultimodalLM.from_pretrained(old)
    inputs = {name: expected_case(0)[name] for name in ("input_ids", "input_features")}
    with torch.no_grad():
        loaded.lm_head.weight[AUDIO] = 100 * loaded(**inputs).last_hidden_state[0, -1]  # by far the likeliest
    assert int(loaded(**inputs).logits[0, -1].argmax()) == AUDIO
    ids = loaded.generate(**inputs, max_new_tokens=5, do_sample=False)
    assert not (ids[:, inputs["input_ids"].shape[1] :] == AUDIO).any()
