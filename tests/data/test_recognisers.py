"""Filters that hear: Whisper's errors and language against transformers' own pipeline and jiwer, and the CTC score
against `torch.nn.functional.ctc_loss` over the whole vocabulary."""

import math
import pickle

import jiwer
import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
    pipeline,
)

from soundwave_hf import SoundwaveForConditionalGeneration, SoundwaveForCTC, SoundwaveProcessor
from soundwave_hf.data.clean import recognisers
from soundwave_hf.data.clean.filter import Clip
from soundwave_hf.data.clean.recognisers import CTCScore, WhisperLanguage, WhisperWER, load_ctc, load_whisper
from soundwave_hf.data.tiny import write_tiny_llm, write_tiny_whisper
from soundwave_hf.evaluation.metrics import text_normalizer
from soundwave_hf.training.collator import SoundwaveCollator
from tests.modeling.test_load_adapters import write_adapters, write_stage_one
from tests.tiny_models import save_tiny_soundwave, spread_weights


RATE = 16_000
SEED = 16


def save_transcriber(folder, languages=("en", "de", "ja")) -> str:
    """A random Whisper of a 2 s window that writes bytes, with its processor and language tokens."""
    control = ["<|endoftext|>", "<|startoftranscript|>", *(f"<|{code}|>" for code in languages), "<|translate|>"]
    control += ["<|transcribe|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]
    control += [f"<|{step * 0.02:.2f}|>" for step in range(101)]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*letters, *control])}
    tokenizer = WhisperTokenizer(vocab=vocabulary, merges=[])
    tokenizer.add_tokens(control, special_tokens=True)
    extractor = WhisperFeatureExtractor(feature_size=8, chunk_length=2)
    WhisperProcessor(extractor, tokenizer).save_pretrained(folder)
    special = {"pad_token_id": vocabulary["<|endoftext|>"], "eos_token_id": vocabulary["<|endoftext|>"]}
    special |= {"bos_token_id": vocabulary["<|endoftext|>"]}
    special |= {"decoder_start_token_id": vocabulary["<|startoftranscript|>"]}
    sizes = {"d_model": 12, "encoder_layers": 1, "decoder_layers": 1, "num_mel_bins": 8, "max_source_positions": 100}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24}
    config = WhisperConfig(vocab_size=len(vocabulary), max_target_positions=24, **sizes, **heads, **special)
    config.suppress_tokens = config.begin_suppress_tokens = None
    torch.manual_seed(3)
    model = spread_weights(WhisperForConditionalGeneration(config), seed=SEED)
    with torch.no_grad():  # so that the sound decides more than the tokens before
        model.model.decoder.layers[0].encoder_attn.out_proj.weight.mul_(8)
    model.generation_config = GenerationConfig(
        is_multilingual=len(languages) > 1,
        lang_to_id={f"<|{code}|>": vocabulary[f"<|{code}|>"] for code in languages},
        task_to_id={"transcribe": vocabulary["<|transcribe|>"], "translate": vocabulary["<|translate|>"]},
        no_timestamps_token_id=vocabulary["<|notimestamps|>"],
        prev_sot_token_id=vocabulary["<|startofprev|>"],
        max_length=24,
        **special,
    )
    model.generation_config.language = "en"  # what shipped Whispers have, and no clip may take unasked
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def whisper(tmp_path_factory) -> str:
    return save_transcriber(tmp_path_factory.mktemp("whisper"))


def sound(seconds: float, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    loud = np.repeat(random.uniform(0.02, 0.5, int(seconds * 10) + 1), RATE // 10)[: int(seconds * RATE)]
    tone = np.sin(2 * np.pi * random.uniform(100, 7000) * np.arange(len(loud)) / RATE)
    return (loud * (tone + 0.1 * random.normal(size=len(loud)))).clip(-1, 1).astype("float32")


def clip(text: str, seconds: float = 1.0, seed: int = 0, **row) -> Clip:
    return Clip(row={"text": text, **row}, text=text, seconds=seconds, samples=sound(seconds, seed))


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    """Short and long clips (the window is 2 s), with and without a language, and two that say nothing."""
    return [
        clip("Good morning to all.", 1.0, 1, language="en"),
        clip("Guten Morgen, alle zusammen.", 1.7, 2, language="German"),
        clip("おはよう ございます。", 0.6, 3, language="ja"),
        clip("no language here", 2.0, 4),
        clip("a long clip of many words", 5.3, 5, language="en"),
        clip("another long clip", 3.1, 6),
        clip("", 1.0, 7, language="en"),
        clip("[laughter]", 1.0, 8, language="en"),
        clip("Saluton", 1.0, 9, language="Klingon"),
    ]


def by_pipeline(folder: str, one: Clip, language: str) -> str:
    """The transcript of the library's pipeline. Timestamps, which a random Whisper writes unasked, are suppressed."""
    recognise = pipeline("automatic-speech-recognition", folder, device="cpu")
    options = {"task": "transcribe", "language": language, "num_beams": 1, "do_sample": False}
    first = recognise.model.generation_config.no_timestamps_token_id + 1
    long = {"return_timestamps": True} if one.seconds > 2 else {}
    options |= {} if long else {"suppress_tokens": [*range(first, recognise.model.config.vocab_size)]}
    return recognise(one.samples.copy(), generate_kwargs=options, **long)["text"].strip()


def expected_rate(one: Clip, heard: str, language: str) -> float:
    said, found = (" ".join(text_normalizer(language)(text).split()) for text in (one.text, heard))
    if not said:  # the normaliser leaves nothing of "[laughter]": each word that was heard is an error
        return len(found.split())
    if language == "ja":
        return jiwer.cer(said.replace(" ", ""), found.replace(" ", ""))
    return jiwer.wer(said, found)


def test_the_error_rate_is_jiwers_on_the_text_of_the_librarys_pipeline(whisper, clips):
    heard = load_whisper(whisper, "cpu")
    values, heard_texts = WhisperWER(model=whisper).measure(clips), set()
    for place, one in enumerate(clips):
        if place == 6:
            continue
        language = {"German": "de"}.get(one.row.get("language"), one.row.get("language"))
        if language in (None, "Klingon"):  # Whisper detects it
            language = heard.languages([one])[0]
        text = by_pipeline(whisper, one, language)
        assert values[place] == pytest.approx(expected_rate(one, text, language)), place
        heard_texts.add(text)
    assert values[6] is None  # an empty transcript says nothing that could be compared
    assert len(heard_texts) >= 5


def test_a_transcript_of_what_whisper_hears_has_no_errors_and_each_wrong_word_counts(whisper, clips, monkeypatch):
    monkeypatch.setattr(
        recognisers.WhisperRecogniser,
        "transcribe",
        lambda self, some, codes: [("Good morning to all of you, dear friends: 10!", "en") for _ in some],
    )
    said = [
        "good morning TO all of you dear friends ten",
        "good evening to all of you dear friends ten",
        "zehn",
        "[laughter]",
    ]
    values = WhisperWER(model=whisper).measure([clip(text) for text in said])
    assert values == [0, pytest.approx(1 / 9), 9, 9]
    assert [WhisperWER(model=whisper).keeps(value) for value in (0, 0.1, 0.11)] == [True, True, False]


@pytest.mark.parametrize("own", [WhisperWER, WhisperLanguage, CTCScore])
def test_values_do_not_depend_on_the_batch(own, whisper, head, clips):
    folder = head if own is CTCScore else whisper
    alone = [value for one in clips for value in own(model=folder, batch_size=1).measure([one])]
    for size, order in ((1, 1), (3, 1), (20, 1), (4, -1)):
        values = own(model=folder, batch_size=size).measure(clips[::order])[::order]
        assert [type(value) for value in values] == [type(value) for value in alone]
        for value, other in zip(values, alone, strict=True):
            assert value == (other if isinstance(other, str | None) else pytest.approx(other, abs=1e-3))
    assert own(model=folder).measure([]) == []


def test_the_language_is_the_best_of_whispers_own_tokens(whisper, clips):
    model = WhisperForConditionalGeneration.from_pretrained(whisper).eval()
    processor = WhisperProcessor.from_pretrained(whisper)
    heard = load_whisper(whisper, "cpu").languages(clips)
    assert len({*heard}) > 1
    codes = {number: name.strip("<|>") for name, number in model.generation_config.lang_to_id.items()}
    for one, code in zip(clips, heard, strict=True):
        features = processor(one.samples, sampling_rate=RATE, return_tensors="pt").input_features
        assert codes[int(model.detect_language(features))] == code
    of_rows = WhisperLanguage(model=whisper).measure(clips)
    assert of_rows[3] is None and of_rows[5] is None  # these rows name no language
    assert of_rows[8] == f"{heard[8]} instead of Klingon"
    names = {"German": "de"}
    for place in (0, 1, 2, 4, 6, 7):
        wanted = names.get(clips[place].row["language"], clips[place].row["language"])
        assert of_rows[place] == (heard[place] if heard[place] == wanted else f"{heard[place]} instead of {wanted}")
    german = WhisperLanguage(model=whisper, wanted="de-AT")
    assert german.measure(clips) == [code if code == "de" else f"{code} instead of de" for code in heard]
    assert german.keeps("de") and not german.keeps("en instead of de")


def test_two_filters_load_whisper_once_and_encode_a_clip_once(whisper, clips, monkeypatch):
    errors, language = WhisperWER(model=whisper), WhisperLanguage(model=whisper, wanted="en")
    errors.load(), language.load()
    assert errors.recogniser is language.recogniser
    counted = []
    encoder = errors.recogniser.model.get_encoder()
    hook = encoder.register_forward_hook(lambda module, inputs, output: counted.append(len(output[0])))
    try:
        short = [clip(f"new {seed}", 1.0, 100 + seed) for seed in range(5)]
        errors.measure(short)
        assert sum(counted) == 5
        language.measure(short)
        assert sum(counted) == 5
        errors.recogniser.most_kept = 2  # the memory is limited, and the values stay
        more = [clip(f"more {seed}", 1.0, 200 + seed) for seed in range(5)]
        assert language.measure(more) == [language.measure([one])[0] for one in more]
        assert len(errors.recogniser.kept) == 2
    finally:
        hook.remove()


def test_an_english_whisper_transcribes_and_names_no_language(tmp_path):
    folder = save_transcriber(tmp_path, languages=("en",))
    assert WhisperWER(model=folder).measure([clip("Good morning.", language="de"), clip("You")])[1] is not None
    with pytest.raises(ValueError, match="`language` has `model: .*`, which knows only English"):
        WhisperLanguage(model=folder).load()


def test_a_language_that_this_whisper_has_no_token_for_is_detected_or_refused(whisper):
    with pytest.raises(ValueError, match="`language` has `wanted: fr`, and `.*` does not know 'fr'"):
        WhisperLanguage(model=whisper, wanted="fr").load()
    values = WhisperWER(model=whisper).measure([clip("Bonjour", 1.0, 1, language="fr"), clip("Bonjour", 1.0, 1)])
    assert values[0] == values[1] is not None


# ---- the CTC head ----


@pytest.fixture(scope="module")
def head(tmp_path_factory) -> str:
    """A whole tiny model of a 2 s window."""
    return str(save_tiny_soundwave(tmp_path_factory.mktemp("head")))


def whole_vocabulary_score(model, processor, one: Clip) -> float:
    """Mean log-probability of a label in float64, by the loss of PyTorch over a log-softmax of all tokens."""
    model = getattr(model.double(), "model", model)
    # Features and labels of the training's collator.
    batch = SoundwaveCollator(processor, losses=("ctc",))(
        [{"audio": {"array": one.samples, "sampling_rate": RATE}, **one.row}]
    )
    with torch.no_grad():
        features, mask = batch["input_features"].double(), batch["input_features_mask"]
        _, aligned, frames = model.align(features, mask)
        logits = model.ctc_head.logits(aligned, model.token_table())
    log_probs = logits.log_softmax(dim=-1).transpose(0, 1)
    labels = batch["ctc_labels"]
    lengths = frames.sum(dim=1), torch.tensor([labels.shape[1]])
    loss = torch.nn.functional.ctc_loss(log_probs, labels, *lengths, model.config.audio_token_id, reduction="sum")
    return -loss.item() / labels.shape[1]


def test_the_ctc_score_is_pytorchs_loss_over_the_whole_vocabulary(head):
    clips = [clip("Good morning!", 1.9, 1), clip("aab", 1.0, 2), clip("a much longer clip", 5.3, 3)]
    values = CTCScore(model=head).measure(clips)
    model = SoundwaveForConditionalGeneration.from_pretrained(head)
    processor = SoundwaveProcessor.from_pretrained(head)
    assert values == [pytest.approx(whole_vocabulary_score(model, processor, one), rel=1e-4) for one in clips]
    assert all(-100 < value < 0 for value in values) and values[0] != values[1]


def test_what_has_no_ctc_score_has_the_lowest_value_or_none(head):
    judge = CTCScore(model=head)
    # 0.2 s, and 0.1 s of silence behind it, are 8 frames of 40 ms: 7 letters and a space fit, 8 letters do not.
    assert judge.measure([clip("abcdefg", 0.2), clip("abcdefgh", 0.2)])[0] > -100
    assert judge.measure([clip("abcdefgh", 0.2), clip("aaaaaa", 0.2)]) == [-100, -100]
    assert judge.measure([clip(""), clip(" -- ")]) == [None, None]
    empty = Clip(row={}, text="a", seconds=0.0, samples=np.zeros(0, "float32"))
    assert judge.measure([empty, clip("a")])[0] == -100
    assert [judge.keeps(value) for value in (-100, -3.01, -3, 0)] == [False, False, True, True]


def test_targets_have_the_form_of_the_head_and_numbers_the_language_of_the_row(head, tmp_path):
    processor = SoundwaveProcessor.from_pretrained(head)
    processor.ctc_text = "lower_spelled"
    model = SoundwaveForConditionalGeneration.from_pretrained(head)
    model.config.ctc_text = "lower_spelled"
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    scorer = load_ctc(str(tmp_path), "cpu")
    decode = processor.tokenizer.decode
    assert decode(scorer.labels_of(clip("Call 9!", language="de"))) == " call neun"
    assert decode(scorer.labels_of(clip("Call 9!"))) == " call nine"
    one, other = (clip("Am 9. Mai", 3.0, 1, language="de"), clip("am neunten mai", 3.0, 1))
    assert CTCScore(model=str(tmp_path)).measure([one]) == CTCScore(model=str(tmp_path)).measure([other])
    # num2words has no Hindi: such a transcript cannot be scored, and the run goes on.
    values = CTCScore(model=str(tmp_path)).measure([clip("कमरा 9", language="hi"), clip("कमरा", 3.0, language="hi")])
    assert values[0] == -100 < values[1]


def test_adapters_of_every_stage_are_scored_without_their_llm(tmp_path):
    write_tiny_whisper(tmp_path / "encoder")
    write_tiny_llm(tmp_path / "llm")
    backbones = str(tmp_path / "encoder"), str(tmp_path / "llm")
    write_stage_one(*backbones, tmp_path / "align")
    write_adapters(*backbones, tmp_path / "run")
    one = clip("Good morning!", 1.9, 1)
    for stage, make in (("align", SoundwaveForCTC), ("run", SoundwaveForConditionalGeneration)):
        judge = CTCScore(model=str(tmp_path / stage))
        assert isinstance(load_ctc(judge.model, "cpu").model, SoundwaveForCTC)
        model = make.from_pretrained(tmp_path / stage, dtype="float32")
        processor = SoundwaveProcessor.from_pretrained(tmp_path / stage)
        expected = whole_vocabulary_score(model, processor, one)
        assert judge.measure([one]) == [pytest.approx(expected, rel=1e-4)]


def test_filters_can_be_sent_to_another_process(whisper, head, clips):
    for judge in (WhisperWER(model=whisper), WhisperLanguage(model=whisper), CTCScore(model=head)):
        judge.load()
        sent = pickle.loads(pickle.dumps(judge))
        assert sent == judge and len(pickle.dumps(judge)) < 1000
        assert sent.measure(clips[:1]) == judge.measure(clips[:1])


@pytest.mark.parametrize(
    ("judge", "error", "message"),
    [
        (WhisperWER(model="no/such-whisper"), Exception, "no/such-whisper"),
        (CTCScore(model="no/such-head"), Exception, "no/such-head"),
        (WhisperWER(model="x", device="cuda:99"), ValueError, "The device is 'cuda:99'; this machine has cpu"),
        (CTCScore(model="x", device="gpu"), ValueError, "The device is 'gpu'; this machine has cpu"),
    ],
)
def test_a_model_or_device_that_is_not_there_is_named(judge, error, message):
    with pytest.raises(error, match=message):
        judge.load()


def test_scores_are_finite_for_the_quietest_clip(head):
    silent = Clip(row={}, text="a", seconds=1.0, samples=np.zeros(RATE, "float32"))
    (value,) = CTCScore(model=head).measure([silent])
    assert math.isfinite(value)
