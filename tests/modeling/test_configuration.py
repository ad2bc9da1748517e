import json

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForMultimodalLM, LlamaConfig, T5Config

from soundwave_hf import SoundwaveConfig, SoundwaveForConditionalGeneration
from tests.tiny_models import VOCABULARY, tiny_audio_config, tiny_config, tiny_model, tiny_text_config


def choices(config: SoundwaveConfig) -> tuple:
    return config.alignment_attention, config.look_back, config.keep_blanks, config.tie_ctc_head


def test_the_paper_is_the_default():
    assert choices(tiny_config()) == ("sequence", "all", True, True)
    assert tiny_config().compat == "paper"


def test_published_names_what_the_published_code_computes():
    assert choices(tiny_config(compat="published")) == ("frame", "kept", True, False)


def test_a_field_of_its_own_wins_over_the_set():
    config = tiny_config(compat="published", look_back="all", keep_blanks=False, tie_ctc_head=True)
    assert choices(config) == ("frame", "all", False, True)


def test_the_audio_token_is_the_last_id_unless_named():
    assert tiny_config().audio_token_id == VOCABULARY - 1
    assert tiny_config(audio_token_id=3).audio_token_id == 3


def test_the_adapters_have_the_llms_heads_unless_named():
    assert tiny_config(text_fields={"num_attention_heads": 4}).adapter_heads == 4
    assert tiny_config(adapter_heads=8).adapter_heads == 8


def test_the_defaults_are_a_whisper_and_a_llama():
    config = SoundwaveConfig()
    assert (config.audio_config.model_type, config.text_config.model_type) == ("whisper", "llama")
    assert (config.stack_factor, config.ctc_loss_weight) == (2, 0.3)


def test_backbones_may_come_as_dicts():
    config = SoundwaveConfig(
        audio_config=tiny_audio_config().to_dict(), text_config=tiny_text_config("qwen3").to_dict()
    )
    assert config.audio_config.d_model == 12
    assert config.text_config.model_type == "qwen3"


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_saved_config_is_the_same_when_loaded(tmp_path, family):
    config = tiny_config(family, compat="published", keep_blanks=False, audio_token_id=7, adapter_heads=4)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is SoundwaveConfig
    assert {**loaded.to_dict(), "_name_or_path": ""} == config.to_dict()


def test_whether_the_llm_is_tied_is_read_from_its_config():
    assert tiny_config(text_fields={"tie_word_embeddings": True}).tie_word_embeddings is True
    assert tiny_config().tie_word_embeddings is False


def test_a_misspelt_field_is_refused_with_the_near_one():
    with pytest.raises(ValueError, match="got an unknown field `stack_facter`. Did you mean `stack_factor`?"):
        tiny_config(stack_facter=3)


def test_an_unknown_field_is_refused_with_the_known_ones():
    with pytest.raises(
        ValueError, match=r"got an unknown field `wings`. Its own fields are \['adapter_dropout', 'adapter_heads'"
    ):
        tiny_config(wings=2)


def test_a_saved_attribute_of_the_users_is_kept_and_a_misspelt_field_of_a_file_refused(tmp_path):
    config = tiny_config()
    config.trained_by = "us"
    config.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).trained_by == "us"
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"trained_by"', '"stack_facter"'))
    with pytest.raises(ValueError, match="got an unknown field `stack_facter`. Did you mean `stack_factor`?"):
        AutoConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"audio_token_id": 32}, "`audio_token_id` is 32 and the LLM's vocabulary has 32 ids: add the audio token"),
        ({"audio_token_id": -1}, "`audio_token_id` is -1"),
        ({"adapter_heads": 3}, "`adapter_heads` is 3 and does not divide the LLM's width 16. Choose a divisor"),
        ({"adapter_heads": 0}, "`adapter_heads` is 0 and does not divide"),
        ({"stack_factor": 0}, "`stack_factor` is 0; expected 1 encoder frame or more"),
        ({"alignment_layers": 0}, "`alignment_layers` is 0; expected 1"),
        ({"adapter_dropout": 1.0}, "`adapter_dropout` is 1.0; expected a number from 0 to less than 1"),
        ({"blank_margin": float("inf")}, "`blank_margin` is inf; expected a finite number"),
        ({"ctc_loss_weight": -0.3}, r"`ctc_loss_weight` is -0.3; expected 0 \(no CTC loss\) or more"),
        ({"ctc_loss_weight": float("nan")}, "`ctc_loss_weight` is nan"),
        ({"compat": "papers"}, r"expected one of \('paper', 'published'\), got papers"),
        ({"alignment_attention": "frames"}, r"expected one of \('sequence', 'frame'\), got frames"),
        ({"look_back": "some"}, r"expected one of \('all', 'kept'\), got some"),
        ({"ctc_text": "upper"}, r"expected one of \('as_written', 'lower', 'lower_spelled'\), got upper"),
        ({"keep_blanks": "no"}, "expected bool, got str"),
        ({"stack_factor": "2"}, "expected int, got str"),
    ],
)
def test_a_value_out_of_range_is_refused(fields, message):
    with pytest.raises(StrictDataclassError, match=message):
        tiny_config(**fields)


def test_a_keyword_of_the_loader_is_checked_like_a_field(tmp_path):
    tiny_config().save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path, adapter_dropout=0.5).adapter_dropout == 0.5
    with pytest.raises(
        StrictDataclassError, match="`adapter_dropout` is 3.0; expected a number from 0 to less than 1"
    ):
        AutoConfig.from_pretrained(tmp_path, adapter_dropout=3.0)
    with pytest.raises(ValueError, match="unknown field `adapter_droput`. Did you mean `adapter_dropout`"):
        AutoConfig.from_pretrained(tmp_path, adapter_droput=0.0)


def test_a_keyword_of_the_model_loader_is_checked_like_a_field(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    loaded = AutoModelForMultimodalLM.from_pretrained(tmp_path, dtype="auto", device_map="cpu", ctc_loss_weight=1)
    assert loaded.config.ctc_loss_weight == 1
    with pytest.raises(ValueError, match="unknown field `adapter_droput`. Did you mean `adapter_dropout`"):
        AutoModelForMultimodalLM.from_pretrained(tmp_path, adapter_droput=0.0)


def test_compat_names_defaults_of_a_new_config_and_does_not_change_a_saved_one(tmp_path):
    tiny_config().save_pretrained(tmp_path)
    for loads in (SoundwaveConfig, AutoConfig):
        with pytest.raises(ValueError, match="`compat` is set to 'published', and this config.json has 'paper' and"):
            loads.from_pretrained(tmp_path, compat="published")
        assert loads.from_pretrained(tmp_path, compat="paper").look_back == "all"
    assert choices(SoundwaveConfig.from_dict({}, compat="published")) == ("frame", "kept", True, False)


@pytest.mark.parametrize("loads", [SoundwaveForConditionalGeneration, AutoModelForMultimodalLM])
def test_a_field_that_the_weights_of_a_whole_model_fix_is_refused(tmp_path, loads):
    tiny_model().save_pretrained(tmp_path)
    for name, value, saved in (
        ("adapter_heads", 4, 2),
        ("alignment_attention", "frame", "sequence"),
        ("audio_token_id", 5, VOCABULARY - 1),
        ("ctc_text", "as_written", "lower"),
        ("tie_word_embeddings", True, False),
    ):
        with pytest.raises(ValueError, match=f"`{name}` is set to {value!r}, and `.*` was trained with {saved!r}"):
            loads.from_pretrained(tmp_path, **{name: value})
    with pytest.raises(ValueError, match="`compat` is set to 'published'"):
        loads.from_pretrained(tmp_path, compat="published")
    config = AutoConfig.from_pretrained(tmp_path)
    config.adapter_heads = 4
    with pytest.raises(ValueError, match="`adapter_heads` is set to 4"):
        loads.from_pretrained(tmp_path, config=config)


@pytest.mark.parametrize("loads", [SoundwaveForConditionalGeneration, AutoModelForMultimodalLM])
def test_fields_that_may_change_after_training_are_taken_for_a_whole_model(tmp_path, loads):
    tiny_model().save_pretrained(tmp_path)
    options = {"blank_margin": 0.5, "no_speech_threshold": 0.3, "keep_blanks": False, "adapter_heads": 2}
    loaded = loads.from_pretrained(tmp_path, **options, text_config={"attention_dropout": 0.2}, dtype="bfloat16")
    assert {name: getattr(loaded.config, name) for name in options} == options
    assert loaded.config.text_config.attention_dropout == 0.2
    config = AutoConfig.from_pretrained(tmp_path, label_embeddings=True)
    assert loads.from_pretrained(tmp_path, config=config, attn_implementation="eager").config.label_embeddings


@pytest.mark.parametrize(
    ("part", "fields", "message"),
    [
        (
            "text_config",
            {"hidden_sise": 64},
            "`text_config` got an unknown field `hidden_sise`. Did you mean `hidden_size`",
        ),
        (
            "audio_config",
            {"d_modle": 64},
            "`audio_config` got an unknown field `d_modle`. Did you mean `d_model`",
        ),
        (
            "audio_config",
            {"encoder_layer": 2},
            "`audio_config` got an unknown field `encoder_layer`. Did you mean `encoder_layers`",
        ),
        ("text_config", {"num_attention_heads": 0}, "`text_config.num_attention_heads` is 0; expected 1 or more"),
        ("audio_config", {"num_mel_bins": 0}, "`audio_config.num_mel_bins` is 0; expected 1 or more"),
        (
            "text_config",
            {"model_type": "llamma"},
            '`text_config` has model type "llamma", unknown to this version',
        ),
    ],
)
def test_a_mistake_in_the_config_of_a_backbone_is_refused(tmp_path, part, fields, message):
    with pytest.raises(ValueError, match=message):
        SoundwaveConfig(**{part: fields})
    tiny_config().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        AutoConfig.from_pretrained(tmp_path, **{part: fields})
    path = tmp_path / "config.json"
    saved = json.loads(path.read_text())
    for right in ("hidden_size", "d_model", "encoder_layers"):
        saved[part].pop(right, None)
    saved[part].update(fields)
    path.write_text(json.dumps(saved))
    with pytest.raises(ValueError, match=message):
        AutoConfig.from_pretrained(tmp_path)


def test_what_the_config_of_a_checkpoint_holds_beside_its_fields_is_kept(tmp_path):
    old = {
        "rope_theta": 1e4,
        "torch_dtype": "float32",
        "sep_token_id": 3,
        "sliding_window_size": 8,
        "use_mrope": False,
    }
    config = tiny_config(text_fields=old)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path, text_config={"max_position_embeddings": 99}).text_config
    assert (loaded.sliding_window_size, loaded.max_position_embeddings, loaded.hidden_size) == (8, 99, 16)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"audio_config": LlamaConfig()}, '`audio_config` has model type "llama" and "whisper" was expected'),
        (
            {"audio_config": {"d_model": 10, "encoder_attention_heads": 3}},
            "heads` is 3 and does not divide .* width 10",
        ),
        (
            {"text_config": T5Config()},
            '`text_config` has model type "t5", an encoder-decoder: give the config of a causal',
        ),
    ],
)
def test_a_config_of_no_such_backbone_is_refused(fields, message):
    with pytest.raises(StrictDataclassError, match=message):
        SoundwaveConfig(**fields)


def test_a_checkpoint_of_another_model_type_is_refused(tmp_path):
    LlamaConfig().save_pretrained(tmp_path)
    for loads in (SoundwaveConfig, SoundwaveForConditionalGeneration):
        with pytest.raises(ValueError, match='has model type "llama" and "soundwave" was expected: load it with'):
            loads.from_pretrained(tmp_path)
