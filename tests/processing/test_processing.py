"""Text and clips to tensors: features equal Whisper's own, batch equals single, counts are checked."""

import ast
import math
import pathlib
import re
import sys

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, PreTrainedTokenizerFast, WhisperFeatureExtractor

from soundwave_hf import SoundwaveForConditionalGeneration
from soundwave_hf.modeling import backbones_soundwave
from soundwave_hf.processing import SoundwaveProcessor, processing_soundwave
from tests.tiny import tiny_processor, tiny_tokenizer


AUDIO = "<|audio|>"


def noise(samples: int, seed: int = 0) -> np.ndarray:
    """Noise that grows louder to its end, so that the last frames hold the maximum that scales the features."""
    return (np.random.default_rng(seed).standard_normal(samples) * np.linspace(0, 0.3, samples)).astype(np.float32)


# 640 is the shortest clip; the others stand around the places where padding meets the end of the 30 s window.
@pytest.mark.parametrize("samples", [640, 641, 16000, 37777, 479300, 479440, 479441, 479999, 480000])
@pytest.mark.parametrize("mel_bins", [80, 128])
def test_features_are_the_first_frames_of_whispers_own(samples, mel_bins):
    processor, clip = tiny_processor(mel_bins), noise(samples)
    whisper = processor.feature_extractor(clip, sampling_rate=16000, return_tensors="pt")["input_features"]
    inputs = processor(text=AUDIO, audio=clip, sampling_rate=16000)
    frames = math.ceil(samples / 160)
    assert inputs["input_features"].shape == (1, mel_bins, frames)
    # The last bit is the machine's: spectra of other numbers of frames may take other kernels.
    torch.testing.assert_close(inputs["input_features"], whisper[:, :, :frames], rtol=0, atol=1e-5)
    assert inputs["input_features_mask"].tolist() == [[1] * frames]


def test_a_clip_in_a_batch_is_the_clip_alone_and_zeros():
    processor = tiny_processor()
    clips = [noise(16000, 1), noise(52345, 2), noise(640, 3)]
    batch = processor(text=[AUDIO] * 3, audio=clips, sampling_rate=16000)
    assert batch["input_features"].shape == (3, 80, 328) and batch["input_features"].dtype == torch.float32
    assert batch["input_features_mask"].sum(1).tolist() == [100, 328, 4]
    for index, clip in enumerate(clips):
        alone = processor(text=AUDIO, audio=clip, sampling_rate=16000)["input_features"][0]
        assert torch.equal(batch["input_features"][index, :, : alone.shape[1]], alone)
        assert not batch["input_features"][index, :, alone.shape[1] :].any()
        assert batch["input_features_mask"][index].tolist() == [1] * alone.shape[1] + [0] * (328 - alone.shape[1])


def test_one_token_stands_for_each_clip_and_batches_pad_left():
    processor = tiny_processor()
    inputs = processor(text=[f"a{AUDIO}b{AUDIO}", "c"], audio=[noise(1600), noise(1600)], sampling_rate=16000)
    ids = processor.tokenizer.convert_tokens_to_ids
    token, pad = processor.audio_token_id, processor.tokenizer.pad_token_id
    assert token == ids(AUDIO)
    assert inputs["input_ids"].tolist() == [[ids("a"), token, ids("b"), token], [pad, pad, pad, ids("c")]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1, 1], [0, 0, 0, 1]]
    assert inputs["input_features"].shape[0] == 2


def test_padding_follows_the_tokenizer_and_the_call():
    processor = tiny_processor(padding_side="right")
    assert processor(text=["ab", "c"])["attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert processor(text=["ab", "c"], padding_side="left")["attention_mask"].tolist() == [[1, 1], [0, 1]]
    assert [len(ids) for ids in processor(text=["ab", "c"], padding=False, return_tensors=None)["input_ids"]] == [2, 1]


def test_text_alone_gives_no_audio_inputs():
    processor = tiny_processor()
    assert set(processor(text="hello")) == {"input_ids", "attention_mask"}
    assert set(processor(text=["a", "b"], audio=[[], []])) == {"input_ids", "attention_mask"}


def test_model_input_names_are_the_keys_of_a_full_call():
    processor = tiny_processor()
    inputs = processor(text=AUDIO, audio=noise(1600), sampling_rate=16000)
    assert set(inputs) == set(processor.model_input_names)
    assert all(isinstance(value, torch.Tensor) for value in inputs.values())


def test_return_tensors_numpy():
    inputs = tiny_processor()(text=AUDIO, audio=noise(1600), sampling_rate=16000, return_tensors="np")
    assert all(isinstance(value, np.ndarray) for value in inputs.values())


def test_lists_per_text_and_a_flat_list_agree():
    processor, clips = tiny_processor(), [noise(1600, seed) for seed in range(3)]
    texts = [AUDIO, "none", AUDIO * 2]
    nested = processor(text=texts, audio=[clips[:1], [], clips[1:]], sampling_rate=16000)
    flat = processor(text=texts, audio=clips, sampling_rate=16000)
    assert torch.equal(nested["input_features"], flat["input_features"])
    assert torch.equal(nested["input_ids"], flat["input_ids"])


def test_the_rate_of_arrays_may_stand_in_audio_kwargs_or_on_the_processor():
    processor, clip = tiny_processor(), noise(4000)
    flat = processor(text=AUDIO, audio=clip, sampling_rate=8000)["input_features"]
    assert flat.shape[2] == 50  # 4000 samples at 8 kHz: 0.5 s
    nested = processor(text=AUDIO, audio=clip, audio_kwargs={"sampling_rate": 8000})["input_features"]
    processor.audio_kwargs = {"sampling_rate": 8000}
    assert torch.equal(flat, nested) and torch.equal(flat, processor(text=AUDIO, audio=clip)["input_features"])


def test_an_array_without_its_rate_is_taken_for_16_khz_or_refused():
    processor, clip = tiny_processor(), noise(1600)
    expected = processor(text=AUDIO, audio=clip, sampling_rate=16000)["input_features"]
    assert torch.equal(processor(text=AUDIO, audio=clip)["input_features"], expected)
    transcription = processor.apply_transcription_request(clip)
    assert torch.equal(transcription["input_features"], expected)
    slow = processor.apply_transcription_request(clip, processor_kwargs={"sampling_rate": 8000})
    assert slow["input_features"].shape[2] == 20
    row = {"array": clip[::2], "sampling_rate": 8000}
    assert processor(text=AUDIO * 2, audio=[row, clip])["input_features_mask"].sum(1).tolist() == [10, 10]
    processor.require_sampling_rate = True
    with pytest.raises(
        ValueError, match=r"audio\[0\] arrived as an array without its sampling rate.*also takes `sampling_rate="
    ):
        processor(text=AUDIO, audio=clip)
    assert torch.equal(processor.apply_transcription_request(clip)["input_features"], expected)


def test_inputs_are_not_changed():
    texts, clip = [AUDIO], noise(1600)
    before = clip.copy()
    tiny_processor()(text=texts, audio=[clip], sampling_rate=16000)
    assert texts == [AUDIO] and np.array_equal(clip, before)


def test_decode_and_batch_decode():
    processor = tiny_processor()
    ids = processor(text="hé<|im_end|>")["input_ids"]
    assert processor.decode(ids[0], skip_special_tokens=True) == "hé"
    assert processor.batch_decode(ids) == ["hé<|im_end|>"]


# text, audio -> what the message says
MISCOUNTED = {
    "no token": ("hello", [noise(1600)], "The text holds 0 <|audio|> tokens and 1 clips arrived"),
    "more clips": (AUDIO, [noise(1600)] * 2, "The text holds 1 <|audio|> tokens and 2 clips arrived"),
    "fewer clips": ([AUDIO, AUDIO], [noise(1600)], "The text holds 2 <|audio|> tokens and 1 clips arrived"),
    "no clips": (AUDIO, None, "The text holds 1 <|audio|> tokens and 0 clips arrived"),
    "other text": (
        [AUDIO * 2, AUDIO],
        [[noise(1600)], [noise(1600)] * 2],
        "text[0] holds 2 <|audio|> tokens and audio[0] 1 clips",
    ),
    "lists for other texts": ([AUDIO] * 2, [[noise(1600)] * 2, [], []], "3 lists of clips for 2 texts"),
    "no text": (None, [noise(1600)], "1 clips arrived without text. Pass `text=` with one <|audio|> per clip"),
}


@pytest.mark.parametrize(("text", "audio", "message"), MISCOUNTED.values(), ids=MISCOUNTED.keys())
def test_counts_of_clips_and_tokens_that_differ_are_refused(text, audio, message):
    with pytest.raises(ValueError) as error:
        tiny_processor()(text=text, audio=audio, sampling_rate=16000)
    assert message in str(error.value)


def test_clips_are_counted_before_they_are_read():
    with pytest.raises(ValueError, match="The text holds 0"):
        tiny_processor()(text="hello", audio="gone.wav")


def test_truncation_that_cuts_an_audio_token_is_refused():
    with pytest.raises(ValueError, match="Mismatch in `audio` token count"):
        tiny_processor()(text=f"hello{AUDIO}", audio=noise(1600), sampling_rate=16000, truncation=True, max_length=3)


def test_images_and_audio_options_that_nothing_reads_are_refused():
    processor = tiny_processor()
    with pytest.raises(ValueError, match="`images` arrived, but this processor supports only text and audio"):
        processor(text="hello", images=[np.zeros((3, 4, 4))])
    with pytest.raises(ValueError, match=r"Audio options \['padding'\] arrived.*padded to the longest and never cut"):
        processor(text=AUDIO, audio=noise(1600), audio_kwargs={"sampling_rate": 16000, "padding": "max_length"})
    with pytest.raises(ValueError, match=r"Audio options \['load_audio_backend'\] arrived"):
        processor(text=AUDIO, audio="a.wav", load_audio_backend="torchaudio")


def test_a_tokenizer_without_the_audio_token_is_refused():
    with pytest.raises(ValueError, match="has no token '<|audio|>'.*`SoundwaveProcessor.from_backbones"):
        SoundwaveProcessor(WhisperFeatureExtractor(), tiny_tokenizer(audio_token=None))


def test_saving_and_loading_keeps_everything(tmp_path):
    processor = tiny_processor(128)
    processor.save_pretrained(tmp_path)
    loaded = SoundwaveProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict() and loaded.chat_template == processor.chat_template
    text, clip = f"a{AUDIO}", noise(1600)
    for key, value in processor(text=text, audio=clip, sampling_rate=16000).items():
        assert torch.equal(value, loaded(text=text, audio=clip, sampling_rate=16000)[key])
    assert loaded(text=["ab", "c"])["attention_mask"].tolist() == [[1, 1], [0, 1]]


def test_another_audio_token_is_kept(tmp_path):
    processor = SoundwaveProcessor(
        WhisperFeatureExtractor(), tiny_tokenizer(audio_token="<|speech|>"), audio_token="<|speech|>"
    )
    processor.save_pretrained(tmp_path)
    loaded = SoundwaveProcessor.from_pretrained(tmp_path)
    assert loaded.audio_token == "<|speech|>" and loaded.audio_token_id == processor.audio_token_id
    conversation = [{"role": "user", "content": [{"type": "audio"}]}]
    assert "user\n<|speech|><|im_end|>" in loaded.apply_chat_template(conversation)


@pytest.mark.parametrize("as_given", [np.asarray, torch.from_numpy, list, lambda clip: [clip, clip]])
def test_the_call_of_whisper_is_told_where_audio_goes(as_given):
    clip = as_given(np.zeros(1600, np.float32))
    with pytest.raises(ValueError, match="Audio arrived as `text`, which comes first here: pass clips as `audio=`"):
        tiny_processor()(clip, sampling_rate=16000)


def test_a_name_that_is_no_folder_is_told_with_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for loader in (SoundwaveProcessor, SoundwaveForConditionalGeneration):
        with pytest.raises(OSError, match=re.escape(f"`weights/mine` is no folder here (current folder: {tmp_path})")):
            loader.from_pretrained("weights/mine")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"require_sampling_rte": True},
            "unknown argument `require_sampling_rte`. Did you mean `require_sampling_rate`",
        ),
        ({"trailing_silense": 1.0}, "unknown argument `trailing_silense`. Did you mean `trailing_silence`"),
        ({"ctc_txt": "lower"}, "unknown argument `ctc_txt`. Did you mean `ctc_text`"),
        (
            {"ctc_text": "as_written"},
            "`ctc_text` is set to 'as_written', and `.*` was trained with 'lower': leave it out",
        ),
        (
            {"audio_token": "<|im_end|>"},
            r"`audio_token` is set to '<\|im_end\|>', and `.*` was trained with '<\|audio",
        ),
    ],
)
def test_misspelt_and_contradicting_options_of_a_saved_processor_are_refused(tmp_path, options, message):
    tiny_processor().save_pretrained(tmp_path)
    for loader in (SoundwaveProcessor, AutoProcessor):
        with pytest.raises(ValueError, match=message):
            loader.from_pretrained(tmp_path, **options)


def test_a_saved_processor_takes_the_options_of_its_parts_and_of_the_library(tmp_path):
    tiny_processor().save_pretrained(tmp_path)
    own = {"trailing_silence": 0.5, "require_sampling_rate": True, "chat_template": "{{ 1 }}", "ctc_text": "lower"}
    of_parts = {"padding_side": "right", "sampling_rate": 16_000, "model_max_length": 77, "pad_token": "<|im_end|>"}
    of_library = {"local_files_only": True, "trust_remote_code": False, "revision": "main", "dtype": torch.bfloat16}
    loaded = AutoProcessor.from_pretrained(tmp_path, audio_token=AUDIO, **own, **of_parts, **of_library)
    assert {name: getattr(loaded, name) for name in own} == own
    assert (loaded.tokenizer.padding_side, loaded.tokenizer.model_max_length) == ("right", 77)


def save_backbones(folder: pathlib.Path, tokenizer: PreTrainedTokenizerFast) -> tuple[str, str]:
    WhisperFeatureExtractor(feature_size=128).save_pretrained(folder / "encoder")
    tokenizer.save_pretrained(folder / "llm")
    return str(folder / "encoder"), str(folder / "llm")


def test_from_backbones_adds_the_audio_token_and_pads_left(tmp_path):
    tokenizer = tiny_tokenizer(audio_token=None, padding_side="right")
    processor = SoundwaveProcessor.from_backbones(*save_backbones(tmp_path, tokenizer))
    assert processor.audio_token_id == len(tokenizer) and len(processor.tokenizer) == len(tokenizer) + 1
    assert processor.feature_extractor.feature_size == 128
    assert processor.tokenizer.padding_side == "left"
    assert processor.chat_template == tokenizer.chat_template
    assert {"<|im_start|>", AUDIO} <= set(processor.tokenizer.all_special_tokens)
    processor.save_pretrained(tmp_path / "both")
    loaded = SoundwaveProcessor.from_pretrained(tmp_path / "both")
    assert loaded.audio_token_id == processor.audio_token_id
    assert loaded.tokenizer.all_special_tokens == processor.tokenizer.all_special_tokens
    assert loaded(text=["ab", "c"])["attention_mask"].tolist() == [[1, 1], [0, 1]]


def test_from_backbones_hears_as_the_adapters_were_trained_to(tmp_path):
    backbones = save_backbones(tmp_path, tiny_tokenizer(audio_token=None))
    assert SoundwaveProcessor.from_backbones(*backbones).trailing_silence == 0.3
    trained = SoundwaveProcessor.from_backbones(*backbones, trailing_silence=0.1)
    trained.save_pretrained(tmp_path / "adapter")
    loaded = SoundwaveProcessor.from_backbones(*backbones, adapter=tmp_path / "adapter")
    assert loaded.trailing_silence == 0.1
    assert (
        SoundwaveProcessor.from_backbones(*backbones, tmp_path / "adapter", trailing_silence=0).trailing_silence == 0
    )
    with pytest.raises(FileNotFoundError, match="holds no processor_config.json"):
        SoundwaveProcessor.from_backbones(*backbones, adapter=tmp_path)


def test_from_backbones_keeps_an_audio_token_that_is_there(tmp_path):
    tokenizer = tiny_tokenizer()
    processor = SoundwaveProcessor.from_backbones(*save_backbones(tmp_path, tokenizer))
    assert processor.audio_token_id == tokenizer.convert_tokens_to_ids(AUDIO)
    assert len(processor.tokenizer) == len(tokenizer)


def test_from_backbones_pads_with_the_end_token_of_an_llm_that_has_no_other(tmp_path):
    tokenizer = tiny_tokenizer(audio_token=None)
    tokenizer.pad_token = None
    processor = SoundwaveProcessor.from_backbones(*save_backbones(tmp_path, tokenizer))
    assert processor.tokenizer.pad_token == "<|im_end|>"
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="neither a padding nor an end token"):
        SoundwaveProcessor.from_backbones(*save_backbones(tmp_path / "no_end", tokenizer))


def imported_modules(source: str) -> set[str]:
    """Top packages imported outside `try`, which code from the Hub needs to load; "." for its own folder."""
    found, nodes = set(), [ast.parse(source)]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("." * node.level if node.level else node.module.split(".")[0])
        if not isinstance(node, ast.Try):
            nodes.extend(ast.iter_child_nodes(node))
    return found


UPLOADED = ("audio", "chat", "containers", "languages", "llm_tokenizer", "processing", "sources", "spelling", "text")


def test_uploaded_files_import_only_what_every_user_has():
    folder = pathlib.Path(processing_soundwave.__file__).parent
    files = sorted(folder.glob("*_soundwave.py"))
    assert [file.name for file in files] == [f"{name}_soundwave.py" for name in UPLOADED]
    for file in files:
        allowed = {"torch", "numpy", "transformers", "."} | sys.stdlib_module_names
        assert imported_modules(file.read_text()) <= allowed


@pytest.mark.parametrize("samples", [480_001, 1_000_000])
def test_features_of_a_long_clip_are_those_of_whispers_own_extractor(samples):
    processor, clip = tiny_processor(), noise(samples)
    whisper = processor.feature_extractor(
        clip, sampling_rate=16000, return_tensors="np", truncation=False, padding=False, pad_to_multiple_of=160
    )["input_features"][0]
    found = processor.log_mel([clip])["input_features"][0]
    assert found.shape == (80, math.ceil(samples / 160))
    # The last frames reach past the end, which Whisper mirrors where nothing pads the clip.
    assert np.array_equal(found[:, :-2], whisper[:, : found.shape[1] - 2])


def test_trailing_silence_is_heard_as_if_the_clip_ended_in_it(tmp_path):
    clip = np.random.default_rng(0).standard_normal(8_000).astype(np.float32)
    processor = SoundwaveProcessor(WhisperFeatureExtractor(), tiny_tokenizer(), trailing_silence=0.3)
    heard = processor.log_mel([clip])
    expected = tiny_processor().log_mel([np.pad(clip, (0, 4_800))])
    assert heard["input_features"].shape == (1, 80, 80)
    np.testing.assert_array_equal(heard["input_features"], expected["input_features"])
    processor.save_pretrained(tmp_path)
    assert AutoProcessor.from_pretrained(tmp_path).trailing_silence == 0.3


def test_trailing_silence_ends_with_the_encoders_window():
    processor = SoundwaveProcessor(WhisperFeatureExtractor(), tiny_tokenizer(), trailing_silence=0.3)
    assert processor.log_mel([np.zeros(479_000, np.float32)])["input_features"].shape == (1, 80, 3000)


@pytest.mark.parametrize("seconds", [-0.1, 30])
def test_trailing_silence_of_no_length_that_fits_is_refused(seconds):
    with pytest.raises(ValueError, match="`trailing_silence` is"):
        SoundwaveProcessor(WhisperFeatureExtractor(), tiny_tokenizer(), trailing_silence=seconds)


def test_the_audio_token_is_the_same_in_modeling_and_processing():
    assert processing_soundwave.AUDIO_TOKEN == backbones_soundwave.AUDIO_TOKEN == "<|audio|>"
