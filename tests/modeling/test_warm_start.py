"""Where a fresh alignment adapter begins: against Whisper's own decoder layers, and on real speech."""

import itertools

import pytest
import soundfile
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AutoModelForCausalLM,
    PreTrainedTokenizerFast,
    WhisperForAudioClassification,
    WhisperForConditionalGeneration,
    WhisperModel,
)

from soundwave_hf import SoundwaveForConditionalGeneration, SoundwaveForCTC, SoundwaveProcessor
from soundwave_hf.evaluation.shipped import ENCODER, EXAMPLES, LLM
from soundwave_hf.modeling import audio_model_soundwave, warm_start_soundwave
from soundwave_hf.modeling.warm_start_soundwave import between_embeddings, decoder_reading, words_of
from tests.evaluation.test_shipped import backbone_on_disk
from tests.tiny_models import save_tiny_llm, save_tiny_whisper, tiny_audio_config


WORDS = [f"Ġ{first}{second}" for first, second in itertools.product("abcdef", "uvwxyz")]  # 36 of them
OTHERS = ["ĠBig", "Ġx1", "<|end|>", "the"]  # not lower-case letters, but for the last


def save_words(folder, tokens: list[str]) -> str:
    tokenizer = Tokenizer(WordLevel({token: index for index, token in enumerate(tokens)}, unk_token=tokens[-1]))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=tokens[-1]).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def backbones(tmp_path) -> tuple[str, str]:
    """A Whisper and an LLM with words in common, each in an order of its own."""
    encoder = save_tiny_whisper(tmp_path / "whisper", vocab_size=40, decoder_layers=3)
    llm = save_tiny_llm(tmp_path / "llm", vocab_size=40)
    save_words(encoder, [*WORDS, *OTHERS])
    save_words(llm, [*OTHERS, *WORDS[::-1]])
    return encoder, llm


def test_words_are_the_lower_case_tokens_by_their_text(backbones):
    encoder, llm = backbones
    heard, read = words_of(encoder), words_of(llm)
    assert heard.keys() == read.keys() == {*(word.replace("Ġ", " ") for word in WORDS), "the"}
    assert (heard[" au"], read[" au"]) == (0, 39)


@torch.no_grad()
def test_the_reading_of_a_frame_is_what_the_later_decoder_layers_add_for_it(backbones):
    decoder = WhisperModel.from_pretrained(backbones[0]).eval().decoder
    for value in decoder.parameters():
        value.normal_()
    frame = torch.randn(1, 1, 12)
    # Attention over one frame is that frame, whatever asks.
    added = sum(
        layer.encoder_attn(torch.randn(1, 1, 12), key_value_states=frame)[0][0, 0] for layer in decoder.layers[1:]
    )
    weight, bias = decoder_reading(decoder)
    expected = decoder.layer_norm.weight * (added - added.mean())
    torch.testing.assert_close(weight @ frame[0, 0] + bias, expected, rtol=1e-4, atol=1e-4)


def test_scores_are_carried_over_to_the_other_embeddings():
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(60, 16, generator=generator, dtype=torch.float64)
    carried = torch.randn(16, 12, generator=generator, dtype=torch.float64)
    source = target @ carried + torch.randn(12, generator=generator, dtype=torch.float64)  # the same for all tokens
    found = between_embeddings(source, target, ridge=0.0)
    torch.testing.assert_close(found, carried.float(), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_fresh_adapter_scores_words_as_nearly_as_can_be_as_the_decoder_does(backbones):
    encoder, llm = backbones
    model = SoundwaveForCTC.from_backbones(encoder, llm)
    whisper = WhisperModel.from_pretrained(encoder).eval()
    heard, read = words_of(encoder), words_of(llm)
    weight, bias = decoder_reading(whisper.decoder)
    frame = torch.randn(12)
    rows = model.token_embeddings.weight[[read[word] for word in sorted(read)]]
    aligned = model.alignment_adapter.linear(torch.cat([frame, frame]))
    found = (rows - rows.mean(dim=0)) @ aligned
    expected = whisper.decoder.embed_tokens.weight[[heard[word] for word in sorted(read)]] @ (weight @ frame + bias)
    best = torch.linalg.lstsq(rows - rows.mean(dim=0), (expected - expected.mean())[:, None]).solution[:, 0]
    best = (rows - rows.mean(dim=0)) @ best
    assert (found - best).norm() < 0.02 * best.norm()


@torch.no_grad()
def test_the_layers_of_a_fresh_adapter_begin_at_the_identity(backbones):
    adapter = SoundwaveForConditionalGeneration.from_backbones(*backbones).model.alignment_adapter
    states = torch.randn(2, 7, 16)
    assert torch.equal(adapter.layers[0](states, None), states)


def test_stage_one_and_the_whole_model_begin_alike(backbones):
    whole = SoundwaveForConditionalGeneration.from_backbones(*backbones).model
    stage_one = SoundwaveForCTC.from_backbones(*backbones)
    torch.testing.assert_close(stage_one.alignment_adapter.linear.weight, whole.alignment_adapter.linear.weight)
    torch.testing.assert_close(stage_one.alignment_adapter.linear.bias, whole.alignment_adapter.linear.bias)


@pytest.mark.parametrize("options", [{"warm_start": False}, {"tie_ctc_head": False}], ids=["asked for", "free head"])
def test_a_random_start_where_asked_for_and_with_a_free_head_reads_no_decoder(backbones, options, monkeypatch):
    monkeypatch.setattr(warm_start_soundwave, "read_decoder", None)
    adapter = SoundwaveForCTC.from_backbones(*backbones, **options).alignment_adapter
    assert adapter.layers[0].fc2.weight.any()
    assert not torch.equal(adapter.linear.weight[:, :12], adapter.linear.weight[:, 12:])


@pytest.fixture
def warnings(monkeypatch) -> list[str]:
    """What the model warns of."""
    found = []
    monkeypatch.setattr(audio_model_soundwave.logger, "warning", lambda text, *names: found.append(text % names))
    return found


def save_encoder_alone(folder) -> str:
    """A Whisper fine-tuned to classify, which has no decoder, with its tokenizer. Returns the folder."""
    WhisperForAudioClassification(tiny_audio_config(vocab_size=40)).save_pretrained(folder)
    return save_words(folder, [*WORDS, *OTHERS])


@pytest.mark.parametrize("model_class", [SoundwaveForCTC, SoundwaveForConditionalGeneration])
def test_a_random_start_without_a_decoder_or_with_too_few_words_is_warned_of(
    tmp_path, backbones, warnings, model_class
):
    model_class.from_backbones(*backbones)
    assert warnings == []
    few = save_words(save_tiny_llm(tmp_path / "few", vocab_size=40), [*OTHERS, *WORDS[:5]])
    untokenized, alone = save_tiny_whisper(tmp_path / "untokenized"), save_encoder_alone(tmp_path / "alone")
    for encoder, llm in ((backbones[0], few), (untokenized, backbones[1]), (alone, backbones[1])):
        model = model_class.from_backbones(encoder, llm)
        assert model.base_model.alignment_adapter.layers[0].fc2.weight.any()
        words = f"has random weights: `{encoder}` has no decoder, or shares too few words with `{llm}`."
        assert words in warnings.pop() and warnings == []


def test_an_encoder_alone_is_joined_with_its_weights(tmp_path, backbones):
    alone = save_encoder_alone(tmp_path / "alone")
    expected = WhisperForAudioClassification.from_pretrained(alone).encoder.state_dict()
    found = SoundwaveForCTC.from_backbones(alone, backbones[1]).audio_tower.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_an_encoder_that_lacks_a_weight_is_refused(backbones):
    encoder, llm = backbones
    whisper = WhisperForConditionalGeneration.from_pretrained(encoder)
    weights = whisper.state_dict()
    del weights["model.encoder.layers.1.fc2.bias"]
    whisper.save_pretrained(encoder, state_dict=weights)
    message = r"lacks 1 weights of a Whisper encoder: \['encoder.layers.1.fc2.bias'\]. Name a Whisper model, or"
    with pytest.raises(ValueError, match=message):
        SoundwaveForCTC.from_backbones(encoder, llm)


@torch.no_grad()
def test_a_fresh_model_hears_the_words_that_the_decoder_reads_off_its_frames(tmp_path):
    table = torch.randn(40, 16)
    table = 4 * torch.nn.functional.normalize(table - table.mean(dim=1, keepdim=True))
    whisper = WhisperForConditionalGeneration(tiny_audio_config(d_model=16, vocab_size=40))
    whisper.model.decoder.embed_tokens.weight.copy_(table)
    for value in whisper.model.decoder.layers[0].encoder_attn.parameters():
        value.normal_()
    whisper.save_pretrained(tmp_path / "whisper")
    tokens = [*WORDS, *OTHERS]
    encoder = save_words(tmp_path / "whisper", tokens)
    llm = save_tiny_llm(tmp_path / "llm", vocab_size=40)
    language = AutoModelForCausalLM.from_pretrained(llm)
    language.get_input_embeddings().weight.copy_(table.flip(0))
    language.save_pretrained(llm)
    save_words(llm, tokens[::-1])

    spoken = [3, 17, 3, 30]  # ids of Whisper
    weight, bias = decoder_reading(whisper.model.decoder)
    states = (table[spoken] - bias) @ torch.linalg.pinv(weight, rtol=1e-4).T  # of which the decoder reads these words
    inputs = {"encoder_states": states.repeat_interleave(2, dim=0)[None]}  # two frames a position
    inputs["ctc_labels"] = torch.tensor([[39 - word for word in spoken]])
    warm = SoundwaveForCTC.from_backbones(encoder, llm)(**inputs)
    random = SoundwaveForCTC.from_backbones(encoder, llm, warm_start=False)(**inputs)
    assert torch.equal(warm.ctc_best, inputs["ctc_labels"])
    assert not (random.ctc_best == inputs["ctc_labels"]).any()
    assert warm.loss < 0.1 * random.loss


@torch.no_grad()
def test_before_any_training_frames_of_real_speech_score_the_words_that_are_said():
    encoder, llm = backbone_on_disk(ENCODER), backbone_on_disk(LLM)
    processor = SoundwaveProcessor.from_backbones(encoder, llm)
    samples = soundfile.read(EXAMPLES / "librivox" / "sense_and_sensibility_01_austen-0880.flac", dtype="float32")[0]
    clip = {name: torch.from_numpy(value) for name, value in processor.log_mel([samples]).items()}
    words = words_of(llm)
    spoken = [" " + word for word in ["he", "was", "not", "an", "disposed", "young", "man"]]

    def mean_rank(**options) -> float:
        model = SoundwaveForCTC.from_backbones(encoder, llm, dtype=torch.float32, **options)
        aligned = model.align(**clip)[1][0]
        scores = aligned @ model.token_embeddings.weight[list(words.values())].T  # [frames, words]
        rise = (scores - scores.mean(dim=0)).max(dim=0).values  # of each word, where it is likeliest
        order = rise.argsort(descending=True).argsort()
        return sum(int(order[list(words).index(word)]) for word in spoken if word in words) / len(spoken)

    assert mean_rank() < 0.1 * mean_rank(warm_start=False)
