"""Precisions, attention backends, devices and quantizers of the library."""

import pytest
import torch
from safetensors import safe_open
from torch import nn
from torch._dynamo.utils import counters
from torch._inductor.cpp_builder import get_cpp_compiler
from transformers import AutoModel, BitsAndBytesConfig, CompileConfig, TorchAoConfig
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from soundwave_hf import SoundwaveForConditionalGeneration, SoundwaveForCTC
from soundwave_hf.modeling.backbones_soundwave import HIGH_PRECISION_PARTS, quantize_llm_alone
from tests.tiny_models import AUDIO, FAMILIES, make_clips, pad_batch, tiny_config, tiny_model


ROWS = [[3, AUDIO, 4, AUDIO, 5, 6], [7, 8, 9], [11, 12, AUDIO]]
MEL_FRAMES = [80, 51, 5]


def mixed_batch() -> dict[str, torch.Tensor]:
    return pad_batch(ROWS, MEL_FRAMES)


def labelled_batch() -> dict[str, torch.Tensor]:
    batch = mixed_batch()
    labels = batch["input_ids"].masked_fill((batch["input_ids"] == AUDIO) | (batch["attention_mask"] == 0), -100)
    return {**batch, "labels": labels, "ctc_labels": torch.tensor([[1, 2], [3, -100], [4, -100]])}


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in ("gemma2", "gemma3", "mistral")])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_finite_losses_gradients_and_answers(family, tied, dtype):
    model = tiny_model(family, text_fields={"tie_word_embeddings": tied}).to(dtype)
    batch = labelled_batch()
    output = model(**batch)
    assert output.logits.dtype == dtype
    assert output.logits.isfinite().all()
    output.loss.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert len(gradients) > 20
    assert all(gradient.isfinite().all() for gradient in gradients)
    # Rounding may move a frame from one label to another: what is compared is the loss.
    whole = tiny_model(family, text_fields={"tie_word_embeddings": tied})(**batch)
    torch.testing.assert_close(output.ce_loss.float(), whole.ce_loss, rtol=0.25, atol=0.25)
    ids = model.generate(**mixed_batch(), max_new_tokens=3, do_sample=False)
    assert ids.shape == (3, 9)


@pytest.mark.parametrize(
    "implementation",
    ["eager", "sdpa", {"": "sdpa", "audio_config": "eager", "text_config": "flex_attention"}],
    ids=["eager", "sdpa", "flex in the LLM"],
)
@torch.no_grad()
def test_attention_backends_agree(implementation, tmp_path):
    batch = mixed_batch()
    true = batch["attention_mask"].bool()
    model = tiny_model()
    expected = model(**batch)
    model.save_pretrained(tmp_path)
    loaded = SoundwaveForConditionalGeneration.from_pretrained(tmp_path, attn_implementation=implementation)
    found = loaded(**batch)
    assert torch.equal(found.num_positions, expected.num_positions)
    torch.testing.assert_close(found.logits[true], expected.logits[true], rtol=0, atol=1e-4)


@pytest.mark.slow
@torch.no_grad()
def test_flex_attention_of_the_adapters_hears_clips_padded_together():
    model, clips = tiny_model(), make_clips([80, 20])
    expected = model.get_audio_features(*clips)
    model.set_attn_implementation({"": "flex_attention", "audio_config": "sdpa", "text_config": "sdpa"})
    found = model.get_audio_features(*clips)
    assert torch.equal(found.num_positions, expected.num_positions)
    torch.testing.assert_close(found.pooler_output, expected.pooler_output, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_a_decode_step_through_the_whole_compiler_changes_no_id():
    try:
        get_cpp_compiler()
    except Exception as error:
        pytest.skip(f"the compiler of PyTorch's CPU kernels is not there: {error}")
    model, batch = tiny_model(text_fields={"num_hidden_layers": 1}), pad_batch([[3, AUDIO, 5]], [51])
    options = {"max_new_tokens": 4, "do_sample": False}
    expected = model.generate(**batch, **options)
    torch._dynamo.reset()
    counters.clear()
    compile_config = CompileConfig(backend="inductor", fullgraph=True, mode="default")
    compile_config._compile_all_devices = True  # otherwise `generate` compiles on accelerators alone
    found = model.generate(**batch, **options, cache_implementation="static", compile_config=compile_config)
    assert torch.equal(found, expected)
    assert counters["stats"]["unique_graphs"] == 1
    assert counters["aot_autograd"]["ok"] == 1


@torch.no_grad()
def test_text_alone_is_one_graph_for_compiling_and_exporting():
    model = tiny_model(text_fields={"num_hidden_layers": 1})
    ids = torch.tensor([[3, 4, 5]])
    text = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
    expected = model(**text).logits
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(**text).logits, expected)
    exported = torch.export.export(model, (), kwargs=text, strict=False)
    torch.testing.assert_close(exported.module()(**text).logits, expected)


@pytest.mark.slow
def test_a_forward_compiled_as_evaluation_scripts_do_changes_no_id():
    model, batch = tiny_model(text_fields={"num_hidden_layers": 1}), pad_batch([[3, AUDIO, 5]], [51])
    options = {"max_new_tokens": 4, "do_sample": False}
    expected = model.generate(**batch, **options)
    torch._dynamo.reset()
    counters.clear()
    model.forward = torch.compile(model.forward, backend="eager", fullgraph=True)
    assert torch.equal(model.generate(**batch, **options, cache_implementation="static"), expected)
    assert counters["stats"]["unique_graphs"] > 0
    assert not counters["graph_break"]


def with_part_on_disk(model, part: str, folder):
    """The model saved and loaded again, with one part on disk."""
    model.save_pretrained(folder / "saved")
    parts = ["audio_tower", "alignment_adapter", "ctc_head", "shrinking_adapter", "language_model"]
    device_map = {**{f"model.{name}": "cpu" for name in parts}, "lm_head": "cpu", part: "disk"}
    return AutoModel.from_pretrained(folder / "saved", device_map=device_map, offload_folder=folder / "offload")


@pytest.mark.parametrize("part", ["model.audio_tower", "model.language_model", "model.alignment_adapter", "lm_head"])
@torch.no_grad()
def test_a_part_on_disk_changes_nothing(part, tmp_path):
    model, batch = tiny_model(), mixed_batch()
    loaded = with_part_on_disk(model, part, tmp_path)
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)
    ids = loaded.generate(**batch, max_new_tokens=3, do_sample=False)
    assert torch.equal(ids, model.generate(**batch, max_new_tokens=3, do_sample=False))


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@torch.no_grad()
def test_a_ctc_head_on_disk_gives_the_same_scores(tied, tmp_path):
    model, clips = tiny_model(tie_ctc_head=tied, label_embeddings="expected"), make_clips([80, 44])
    loaded = with_part_on_disk(model, "model.ctc_head", tmp_path)
    assert all(weight.is_meta for weight in loaded.model.ctc_head.parameters())
    expected, found = (each.get_audio_features(*clips, output_ctc_logits=True) for each in (model, loaded))
    torch.testing.assert_close(found.ctc_logits, expected.ctc_logits)
    torch.testing.assert_close(found.pooler_output, expected.pooler_output)
    for frames, same in zip(loaded.model.ctc_frames(found), model.model.ctc_frames(expected), strict=True):
        torch.testing.assert_close(frames.top_log_probs, same.top_log_probs)
        torch.testing.assert_close(frames.blank_log_probs, same.blank_log_probs)
        torch.testing.assert_close(
            frames.columns([0, 3]), same.columns([0, 3])
        )  # read after the weights are gone again


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@torch.no_grad()
def test_device_map_auto_puts_on_disk_what_memory_does_not_hold(tied, tmp_path):
    model, batch = tiny_model(text_fields={"tie_word_embeddings": tied}), mixed_batch()
    model.save_pretrained(tmp_path / "saved")
    loaded = AutoModel.from_pretrained(
        tmp_path / "saved", device_map="auto", max_memory={"cpu": "40KB"}, offload_folder=tmp_path / "offload"
    )
    assert set(loaded.hf_device_map.values()) == {"cpu", "disk"}
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)
    ids = loaded.generate(**batch, max_new_tokens=3, do_sample=False)
    assert torch.equal(ids, model.generate(**batch, max_new_tokens=3, do_sample=False))


@torch.no_grad()
def test_device_map_auto_places_whole_layers(tmp_path):
    model, batch = tiny_model(), mixed_batch()
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, device_map="auto")
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)
    assert {"SoundwaveAlignmentLayer", "WhisperEncoderLayer", "LlamaDecoderLayer"} <= set(loaded._no_split_modules)


def quantized_parts(model: nn.Module) -> set[str]:
    """Names of the linear layers that are no longer plain ones."""
    plain = {torch.float32, torch.float16, torch.bfloat16}
    return {
        name
        for name, module in model.named_modules()
        if hasattr(module, "weight")
        and isinstance(module, nn.Linear)
        and (
            type(module) is not nn.Linear
            or type(module.weight.data) is not torch.Tensor
            or module.weight.dtype not in plain
        )
    }


def quantization(name: str):
    if name == "torchao int8":
        torchao = pytest.importorskip("torchao.quantization")
        return TorchAoConfig(torchao.Int8WeightOnlyConfig())
    if name == "torchao int4":
        torchao = pytest.importorskip("torchao.quantization")
        return TorchAoConfig(torchao.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=torchao.PerGroup(32)))
    pytest.importorskip("bitsandbytes")
    if name == "bitsandbytes 8 bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)


def quantize(name: str, folder):
    """A tiny model wide enough for the quantizers, saved whole, and that model loaded with a quantized LLM."""
    config = quantization(name)
    wide = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 32}
    model = tiny_model(text_fields=wide, adapter_heads=2)
    model.save_pretrained(folder)
    return model, AutoModel.from_pretrained(folder, quantization_config=config, dtype=torch.float32)


@pytest.mark.parametrize("name", ["torchao int8", "torchao int4", "bitsandbytes 8 bit", "bitsandbytes 4 bit"])
@torch.no_grad()
def test_a_quantized_llm_leaves_encoder_and_adapters_as_they_are(name, tmp_path):
    model, loaded = quantize(name, tmp_path)
    batch = mixed_batch()
    found = quantized_parts(loaded)
    assert len(found) == 2 * 7  # of each of two layers: four projections of attention, three of the feed-forward
    assert all(part.startswith("model.language_model.layers.") for part in found)
    features, mask = make_clips(MEL_FRAMES)
    expected = model.get_audio_features(features, mask)
    assert torch.equal(loaded.get_audio_features(features, mask).pooler_output, expected.pooler_output)
    logits, whole = loaded(**batch).logits, model(**batch).logits
    assert logits.isfinite().all()
    assert (logits - whole).norm() < (0.1 if "8" in name else 0.5) * whole.norm()


@pytest.mark.parametrize("name", ["torchao int8", "torchao int4", "bitsandbytes 8 bit", "bitsandbytes 4 bit"])
@torch.no_grad()
def test_a_quantized_model_is_the_same_when_saved_and_loaded(name, tmp_path):
    model, quantized = quantize(name, tmp_path / "whole")
    batch = mixed_batch()
    quantized.save_pretrained(tmp_path / "quantized")
    loaded = AutoModel.from_pretrained(tmp_path / "quantized")
    assert quantized_parts(loaded) == quantized_parts(quantized) != set()
    whole = dict(model.named_parameters())
    kept = {name: value for name, value in loaded.named_parameters() if name.startswith(HIGH_PRECISION_PARTS)}
    assert len(kept) > 40
    assert all(value.dtype == torch.float32 and torch.equal(value, whole[name]) for name, value in kept.items())
    assert torch.equal(loaded(**batch).logits, quantized(**batch).logits)
    options = {"max_new_tokens": 4, "do_sample": False}
    assert torch.equal(loaded.generate(**batch, **options), quantized.generate(**batch, **options))


def test_a_quantizer_that_names_modules_or_comes_as_a_dict_is_understood():
    given = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["lm_head"])
    assert quantize_llm_alone(given).llm_int8_skip_modules == ["lm_head"]
    given = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    assert quantize_llm_alone(given).llm_int8_skip_modules == list(HIGH_PRECISION_PARTS)
    assert given == {"quant_method": "bitsandbytes", "load_in_8bit": True}


def test_the_tensor_parallel_plan_of_the_llm_is_passed_on():
    plan = tiny_model().tp_plan
    assert plan["lm_head"] == "colwise_gather_output"
    assert plan["model.language_model.layers.*.self_attn.q_proj"] == "colwise"
    assert not any("adapter" in name or "ctc_head" in name for name in plan)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@torch.no_grad()
def test_resizing_the_vocabulary_keeps_what_was_there(tied):
    model, batch = tiny_model(text_fields={"tie_word_embeddings": tied}), mixed_batch()
    before = model(**batch).logits
    positions = model(**batch).num_positions
    model.resize_token_embeddings(40, mean_resizing=False)
    assert model.get_input_embeddings().weight.shape[0] == model.lm_head.weight.shape[0] == 40
    assert model.config.text_config.vocab_size == 40
    assert (model.lm_head.weight is model.get_input_embeddings().weight) is tied
    # The new rows are scored by the tied CTC head as well: far from every frame, they win none.
    model.get_input_embeddings().weight[32:] = 0
    after = model(**batch)
    assert torch.equal(after.num_positions, positions)
    torch.testing.assert_close(after.logits[..., :32], before, rtol=0, atol=1e-5)


@pytest.mark.parametrize("vocabulary", [AUDIO + 1, 40])
@torch.no_grad()
def test_a_free_ctc_head_is_resized_with_the_vocabulary_and_hears_the_same(vocabulary, tmp_path):
    model, batch = tiny_model(compat="published", text_fields={"vocab_size": 36}, audio_token_id=AUDIO), mixed_batch()
    model.model.ctc_head.weight[AUDIO + 1 :] = -model.model.ctc_head.weight[3]  # rows that may be cut: heard nowhere
    before = model(**batch)
    assert int(before.ctc_best.max()) <= AUDIO
    model.resize_token_embeddings(vocabulary)
    after = model(**batch, output_ctc_logits=True)
    assert after.ctc_logits.shape[-1] == vocabulary
    assert torch.equal(after.ctc_best, before.ctc_best)
    torch.testing.assert_close(after.logits[..., : AUDIO + 1], before.logits[..., : AUDIO + 1], rtol=0, atol=1e-5)
    model.save_pretrained(tmp_path)
    assert torch.equal(AutoModel.from_pretrained(tmp_path)(**batch).logits, after.logits)


def test_a_vocabulary_without_the_audio_token_is_refused():
    with pytest.raises(ValueError, match="`new_num_tokens` is 31 and the audio token has id 31: give 32 or more"):
        tiny_model().resize_token_embeddings(31)


def test_the_table_of_stage_one_is_resized():
    model = SoundwaveForCTC(tiny_config())
    assert model.resize_token_embeddings(40).weight.shape == (40, 16)
    assert model(*make_clips([80]), ctc_labels=torch.tensor([[38]])).loss.isfinite()


@torch.no_grad()
def test_embeddings_may_be_read_and_replaced():
    model, batch = tiny_model(), mixed_batch()
    expected = model(**batch).logits
    table = nn.Embedding.from_pretrained(model.get_input_embeddings().weight.clone())
    model.set_input_embeddings(table)
    assert model.get_input_embeddings() is table
    assert model.model.language_model.get_input_embeddings() is table
    assert torch.equal(model(**batch).logits, expected)
    assert model.get_output_embeddings() is model.lm_head


@torch.no_grad()
def test_shards_are_written_and_read(tmp_path):
    model, batch = tiny_model(), mixed_batch()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2
    loaded = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)


@torch.no_grad()
def test_tied_weights_are_saved_once_and_tied_again(tmp_path):
    model = tiny_model(text_fields={"tie_word_embeddings": True})
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as weights:
        assert "lm_head.weight" not in set(weights.keys())
    loaded = AutoModel.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is loaded.get_input_embeddings().weight
    loaded.lm_head.weight = nn.Parameter(loaded.lm_head.weight.clone())
    loaded.tie_weights()
    assert loaded.lm_head.weight is loaded.get_input_embeddings().weight


@torch.no_grad()
def test_under_flash_attention_the_look_back_asks_with_as_many_queries_as_it_has_keys(monkeypatch):
    # Flash attention needs a GPU; what it does to masks is that it reads one for the keys as one for the queries.
    def as_flash(module, query, key, value, attention_mask, **kwargs):
        assert query.shape[2] == key.shape[2]
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, attention_mask, **kwargs)

    model = tiny_model()
    features, mask = make_clips([80, 20])
    expected = model.get_audio_features(features, mask)
    ALL_ATTENTION_FUNCTIONS.register("flash_in_name_alone", as_flash)
    ALL_MASK_ATTENTION_FUNCTIONS.register("flash_in_name_alone", ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    monkeypatch.setattr(model.config, "_attn_implementation_internal", "flash_in_name_alone")
    found = model.get_audio_features(features, mask)
    assert torch.equal(found.num_positions, expected.num_positions)
    torch.testing.assert_close(found.pooler_output, expected.pooler_output, rtol=0, atol=1e-5)
