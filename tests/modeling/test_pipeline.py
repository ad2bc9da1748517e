"""The speech recognition pipeline: long clips in pieces, batches, streams, forms of input, bad input."""

import io
import json
import subprocess
import sys
import zlib
from types import SimpleNamespace

import numpy as np
import pandas
import pytest
import soundfile
import torch
from datasets import Audio, Dataset
from transformers import AutoModelForMultimodalLM, AutoProcessor, GenerationConfig, pipeline
from transformers.pipelines.pt_utils import KeyDataset

from soundwave_hf.modeling import pipeline_soundwave
from soundwave_hf.modeling.pipeline_soundwave import Request, SoundwaveSpeechRecognitionPipeline, cut_samples
from tests.tiny_models import save_tiny_soundwave


RATE = 16_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return str(save_tiny_soundwave(tmp_path_factory.mktemp("saved")))


@pytest.fixture(scope="module")
def transcribe(folder):
    found = pipeline("soundwave-asr", model=folder, max_new_tokens=4)
    assert type(found) is SoundwaveSpeechRecognitionPipeline
    return found


@pytest.fixture
def hearing(folder, monkeypatch):
    """A pipeline whose answers tell which clip and which question they belong to, and their rank.

    The tiny model answers most clips alike, so that it cannot tell answers that were swapped.
    """
    found = pipeline("soundwave-asr", model=folder)

    def generate(input_ids, attention_mask, input_features, input_features_mask, **options):
        config = options.get("generation_config") or GenerationConfig(num_return_sequences=1)
        rows = []
        for ids, asked, features, heard in zip(
            input_ids, attention_mask, input_features, input_features_mask, strict=True
        ):
            clip, question = features[:, heard.bool()].numpy(), ids[asked.bool()].numpy()
            told = f"{zlib.crc32(clip.tobytes()):08x}.{zlib.crc32(question.tobytes()):08x}"
            for rank in range(options.get("num_return_sequences", config.num_return_sequences)):
                rows.append(ids.tolist() + found.tokenizer.encode(f"{told}.{rank}"))
        return torch.tensor(rows)

    monkeypatch.setattr(found.model, "generate", generate)
    return found


def speech(seconds: float, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(round(seconds * RATE))).astype(np.float32)


def with_pause(seconds: float, at: float) -> np.ndarray:
    samples = speech(seconds)
    samples[round((at - 0.1) * RATE) : round((at + 0.1) * RATE)] = 0
    return samples


def test_a_clip_is_cut_in_its_pauses_and_nothing_is_lost():
    samples = with_pause(3.0, at=1.7)
    pieces = cut_samples(samples, RATE, 2.0)
    assert np.array_equal(np.concatenate(pieces), samples)
    assert 1.6 * RATE <= len(pieces[0]) <= 1.8 * RATE
    assert [len(piece) for piece in cut_samples(speech(2.0), RATE, 2.0)] == [2 * RATE]
    odd = speech(7.0)[: 7 * RATE - 13]
    assert np.array_equal(np.concatenate(cut_samples(odd, RATE, 2.0)), odd)


def test_a_tail_of_a_few_milliseconds_is_joined_to_the_piece_before_it():
    samples = speech(2.05)
    samples[round(1.98 * RATE) : round(1.99 * RATE)] = 0
    assert [len(piece) for piece in cut_samples(samples, RATE, 2.0)] == [len(samples)]


def test_a_transcript_that_did_not_end_is_warned_of(folder, monkeypatch):
    warnings: list[str] = []
    monkeypatch.setattr(pipeline_soundwave.logger, "warning", warnings.append)
    transcribe = pipeline("soundwave-asr", model=folder)
    transcribe.model.generation_config.eos_token_id = 0
    transcribe(speech(0.5), max_new_tokens=2)
    assert len(warnings) == 1
    assert "piece 0 of clip 0 did not end within 2 tokens" in warnings[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"max_new_tokens": 7, "drop_unsupported": True},
            "did not end within 7 tokens: give more `max_n",
        ),
        ({"max_time": 1e-6}, "within 256 tokens and 1e-06 s: give more `max_new_tokens`, a longer `max_time`, or"),
        ({"generation_config": GenerationConfig(max_new_tokens=3)}, "did not end within 3 tokens"),
        ({"max_length": 90}, "did not end within a `max_length` of 90 tokens"),
    ],
)
def test_the_warning_names_the_limit_that_cut_a_text(folder, monkeypatch, options, message):
    warnings: list[str] = []
    transcribe = pipeline("soundwave-asr", model=folder)
    transcribe.model.generation_config.eos_token_id = 0
    monkeypatch.setattr(transcribe.model, "generate", lambda input_ids, **given: input_ids)  # no word is left
    monkeypatch.setattr(pipeline_soundwave.logger, "warning", warnings.append)
    transcribe(speech(0.5), **options)
    assert [message in one for one in warnings] == [True]


def test_a_text_that_ends_by_its_end_token_is_whole(folder, monkeypatch):
    warnings: list[str] = []
    transcribe = pipeline("soundwave-asr", model=folder)
    transcribe.model.generation_config.eos_token_id = 0
    said = torch.tensor([[*transcribe.tokenizer.encode("so."), 0]])
    generate = lambda input_ids, **given: torch.cat([input_ids, said], dim=1)  # noqa: E731
    monkeypatch.setattr(transcribe.model, "generate", generate)
    monkeypatch.setattr(pipeline_soundwave.logger, "warning", warnings.append)
    transcribe(speech(0.5))
    assert not warnings


def test_a_text_that_ends_by_a_stop_string_is_whole(folder, monkeypatch):
    warnings: list[str] = []
    transcribe = pipeline("soundwave-asr", model=folder)
    transcribe.model.generation_config.eos_token_id = 0
    said = torch.tensor([transcribe.tokenizer.encode("so. Stop")])
    generate = lambda input_ids, **given: torch.cat([input_ids, said], dim=1)  # noqa: E731
    monkeypatch.setattr(transcribe.model, "generate", generate)
    monkeypatch.setattr(pipeline_soundwave.logger, "warning", warnings.append)
    transcribe(speech(0.5), stop_strings="Stop")
    assert not warnings
    transcribe(speech(0.5), stop_strings=["End"])
    assert len(warnings) == 1


def test_a_long_piece_has_more_room_by_default(folder, monkeypatch):
    transcribe, given = pipeline("soundwave-asr", model=folder), []
    generate = transcribe.model.generate
    monkeypatch.setattr(
        transcribe.model,
        "generate",
        lambda **options: given.append(options.pop("max_new_tokens")) or generate(**options, max_new_tokens=1),
    )
    transcribe(speech(1.0))
    transcribe(speech(45.0), chunk_length_s=0)
    assert given == [256, 512]
    transcribe([speech(1.0), speech(45.0), speech(2.0), speech(3.0)], chunk_length_s=0, batch_size=4)
    assert given[2:] == [256, 512, 256]  # a batch has one limit


def test_a_long_clip_is_its_pieces_transcribed_and_joined(transcribe):
    samples = with_pause(3.0, at=1.7)
    texts = [transcribe(piece)["text"] for piece in cut_samples(samples, RATE, 2.0)]
    assert len(texts) == 2
    assert transcribe(samples) == {"text": " ".join(texts)}


def test_a_batch_gives_what_each_clip_gives(transcribe):
    clips = [speech(5.0, 1), speech(0.3, 2), speech(2.5, 3)]
    alone = [transcribe(clip) for clip in clips]
    assert transcribe(clips, batch_size=4) == alone
    assert list(transcribe(iter(clips), batch_size=2)) == alone
    assert transcribe([]) == []


def test_a_piece_is_what_generate_makes_of_a_transcription_request(folder, transcribe):
    model, processor = AutoModelForMultimodalLM.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    inputs = processor.apply_transcription_request(speech(1.0), language="fr", sampling_rate=RATE)
    ids = model.generate(**inputs, max_new_tokens=4)[0, inputs["input_ids"].shape[1] :]
    found = transcribe(speech(1.0), language="fr")
    assert found == {"text": processor.decode(ids, skip_special_tokens=True).strip()}
    assert transcribe(speech(1.0), language="fr", generate_kwargs={"max_new_tokens": 4}) == found


def test_a_clip_left_whole_is_one_prompt(transcribe):
    assert transcribe(speech(5.0), chunk_length_s=0)["text"] != transcribe(speech(5.0))["text"]


def test_every_form_of_a_clip_is_taken(transcribe, tmp_path):
    samples = speech(1.0)
    path = tmp_path / "clip.wav"
    soundfile.write(path, samples, RATE, subtype="FLOAT")
    expected = transcribe({"array": samples, "sampling_rate": RATE})
    rows = [samples, {"raw": samples, "sampling_rate": RATE}, str(path), path.read_bytes()]
    assert transcribe(rows) == [expected] * 4
    assert transcribe(Dataset.from_dict({"clip": [samples.tolist()] * 2})["clip"]) == [expected] * 2
    assert transcribe(samples.tolist()) == expected


def read_with_care(clips, seen: list):
    """A generator that notes which clips it was asked for."""
    for number, clip in enumerate(clips):
        seen.append(number)
        yield clip


def test_a_generator_is_answered_clip_by_clip(hearing):
    clips = [speech(1.0, seed) for seed in range(4)]
    alone = [hearing(clip) for clip in clips]
    seen: list[int] = []
    answers = hearing(read_with_care(clips, seen))
    assert seen == [0]  # the library looks at the first
    assert next(answers) == alone[0] and seen == [0]
    assert next(answers) == alone[1] and seen == [0, 1]
    assert list(answers) == alone[2:] and seen == [0, 1, 2, 3]
    assert list(hearing(clip for clip in [])) == []


def test_a_batch_of_a_generator_holds_the_pieces_of_several_clips_and_no_more_are_read(hearing, monkeypatch):
    clips = [speech(1.0, 0), with_pause(3.0, at=1.7), speech(1.0, 2), speech(1.0, 3)]
    alone = [hearing(clip) for clip in clips]
    sizes, seen = [], []
    generate = hearing.model.generate
    monkeypatch.setattr(
        hearing.model, "generate", lambda **inputs: sizes.append(len(inputs["input_ids"])) or generate(**inputs)
    )
    answers = hearing(read_with_care(clips, seen), batch_size=2)
    assert next(answers) == alone[0] and seen == [0, 1]  # one piece of the second clip fills the batch
    assert list(answers) == alone[1:] and sizes == [2, 2, 1]


class Rows(torch.utils.data.Dataset):
    def __init__(self, clips):
        self.clips, self.read = clips, []

    def __len__(self):
        return len(self.clips)

    def __getitem__(self, index):
        self.read.append(index)
        return {"array": self.clips[index], "sampling_rate": RATE}


class Stream(torch.utils.data.IterableDataset):
    def __init__(self, clips):
        self.clips = clips

    def __iter__(self):
        return iter(self.clips)


def test_data_sets_are_read_row_by_row_and_columns_give_lists(hearing, tmp_path):
    clips = [speech(1.0, seed) for seed in range(3)]
    paths = [str(tmp_path / f"{number}.wav") for number in range(3)]
    for path, clip in zip(paths, clips, strict=True):
        soundfile.write(path, clip, RATE, subtype="FLOAT")
    alone = [hearing(clip) for clip in clips]
    stored = Dataset.from_dict({"audio": paths, "text": ["a", "b", "c"]}).cast_column("audio", Audio())
    undecoded = stored.cast_column("audio", Audio(decode=False))
    rows = Rows(clips)
    lazy = hearing(rows)
    assert len(lazy) == 3 and rows.read == []
    assert next(lazy) == alone[0] and rows.read == [0]
    assert list(lazy) == alone[1:]
    for data in (
        Stream(clips),
        stored,  # as `load_dataset` gives it, without torchcodec
        undecoded,
        stored.to_iterable_dataset(),
        KeyDataset(stored, "audio"),
        KeyDataset([{"file": path} for path in paths], "file"),
        (row["audio"] for row in undecoded),
        map(str, paths),
    ):
        answers = hearing(data, batch_size=2)
        assert not isinstance(answers, list)
        assert list(answers) == alone
    frame = pandas.DataFrame({"audio": paths})
    for many in (paths, tuple(paths), stored["audio"], undecoded["audio"], frame["audio"], frame["audio"].to_numpy()):
        assert hearing(many, batch_size=2) == alone
    assert hearing(frame["audio"][1:]) == alone[1:]
    assert list(hearing(Rows(clips), num_workers=1, batch_size=2)) == alone


def test_what_is_no_column_of_clips_is_refused(transcribe):
    with pytest.raises(ValueError, match=r"A table arrived; expected clips. Pass the column .* `frame\['audio'\]`"):
        transcribe(pandas.DataFrame({"audio": ["a.wav"]}))
    with pytest.raises(ValueError, match=r"the audio columns \[\] arrived; expected one. Pass a column: `KeyDataset"):
        transcribe(Dataset.from_dict({"text": ["a"]}))
    answers = transcribe(iter([speech(1.0), np.zeros(0, np.float32)]))
    next(answers)
    with pytest.raises(ValueError, match=r"audio\[1\] is empty"):
        next(answers)


@pytest.mark.parametrize("name", ["transcribe", "hearing"])
def test_several_hypotheses_belong_to_their_own_clip(name, request):
    transcribe = request.getfixturevalue(name)
    clips = [speech(1.0, 1), with_pause(3.0, at=1.7), speech(1.0, 3)]
    options = {"num_beams": 3, "num_return_sequences": 2}
    alone = [transcribe(clip, **options) for clip in clips]
    assert all(len(answer) == 2 and answer[0].keys() == {"text"} for answer in alone)
    assert alone[0][0] == transcribe(clips[0], num_beams=3)
    assert alone[0][0] != alone[0][1]
    pieces = [transcribe(piece, **options) for piece in cut_samples(clips[1], RATE, 2.0)]
    assert alone[1] == [{"text": f"{first['text']} {second['text']}"} for first, second in zip(*pieces, strict=True)]
    assert transcribe(clips, batch_size=4, **options) == alone
    assert transcribe(clips, batch_size=4, generate_kwargs=options) == alone
    assert transcribe(clips, generation_config=GenerationConfig(max_new_tokens=4, **options)) == alone


def test_outputs_of_generate_as_a_dict_give_the_same_transcripts(transcribe):
    clips = [speech(1.0, 1), speech(2.5, 2)]
    found = transcribe(clips, batch_size=2, return_dict_in_generate=True, output_scores=True)
    assert found == transcribe(clips)


def test_a_generation_config_is_followed_and_left_as_it_was(folder, transcribe, monkeypatch):
    clip = speech(1.0)
    config = GenerationConfig(max_new_tokens=2)
    assert transcribe(clip, generation_config=config) == transcribe(clip, max_new_tokens=2)
    fresh, given = pipeline("soundwave-asr", model=folder), []
    generate = fresh.model.generate
    monkeypatch.setattr(fresh.model, "generate", lambda **options: given.append(options) or generate(**options))
    beams = GenerationConfig(num_beams=2, eos_token_id=5)
    fresh.model.generation_config.eos_token_id = 5
    monkeypatch.setattr(pipeline_soundwave, "TOKENS_OF_30_SECONDS", 3)
    fresh(clip, generation_config=beams)
    assert given[0]["generation_config"].max_new_tokens == 3 and beams.max_new_tokens is None
    fresh.model.generation_config.max_new_tokens = 2  # the model's own
    fresh(clip)
    assert "max_new_tokens" not in given[1]


def test_only_the_caller_makes_it_sample(folder, monkeypatch):
    made, given = pipeline("soundwave-asr", model=folder), []
    made.model.generation_config.do_sample = True  # as the generation config of many LLMs
    generate = made.model.generate
    monkeypatch.setattr(made.model, "generate", lambda **options: given.append(options) or generate(**options))

    def samples(**options) -> bool:
        made(speech(1.0), **options)
        options = given[-1].get("generation_config", SimpleNamespace(**given[-1]))
        return getattr(options, "do_sample", True)

    assert not samples(max_new_tokens=2)
    assert not samples(generation_config=GenerationConfig(max_new_tokens=2))
    assert samples(max_new_tokens=2, do_sample=True)
    assert samples(generation_config=GenerationConfig(max_new_tokens=2, do_sample=True))
    assert not samples(max_new_tokens=2, ctc_weight=0.9)  # which cannot sample


def test_options_of_the_call_join_those_of_the_pipeline(folder, monkeypatch):
    made = pipeline("soundwave-asr", model=folder, generate_kwargs={"num_beams": 2, "max_new_tokens": 3})
    given = []
    generate = made.model.generate
    monkeypatch.setattr(made.model, "generate", lambda **options: given.append(options) or generate(**options))
    made(speech(1.0), max_new_tokens=2)
    assert (given[0]["num_beams"], given[0]["max_new_tokens"]) == (2, 2)
    with pytest.raises(ValueError, match="`max_new_tokens` was given twice, in the call and in `generate_kwargs`"):
        made(speech(1.0), max_new_tokens=2, generate_kwargs={"max_new_tokens": 3})


def test_each_clip_has_its_own_language_and_question(hearing):
    clips = [with_pause(3.0, at=1.7), speech(1.0, 2), speech(1.0, 3)]
    languages, prompts = ["fr-CA", None, "German"], [None, "Write it.", "Say it."]
    alone = [
        hearing(clip, language=language, prompt=prompt)
        for clip, language, prompt in zip(clips, languages, prompts, strict=True)
    ]
    assert len({json.dumps(answer) for answer in [*alone, *map(hearing, clips)]}) == 6
    assert hearing(clips, language=languages, prompt=prompts, batch_size=3) == alone
    assert list(hearing(iter(clips), language=languages, prompt=prompts, batch_size=2)) == alone
    assert hearing(clips[0], language=["fr"]) == hearing(clips[0], language="fr")


def test_lists_of_another_length_than_the_clips_are_refused_before_a_clip_is_read(transcribe):
    with pytest.raises(ValueError, match="`language` holds 2 entries and 1 clips arrived; give one for each clip, or"):
        transcribe("gone.wav", language=["fr", "de"])
    with pytest.raises(ValueError, match="`prompt` holds 1 entries and 2 clips arrived"):
        transcribe(["gone.wav"] * 2, prompt=["Write."])
    with pytest.raises(ValueError, match="Unsupported language: 'frensh'. Did you mean 'french'"):
        transcribe(["gone.wav"] * 2, language=["fr", "frensh"])
    clips = [speech(1.0), speech(1.0, 1)]
    with pytest.raises(ValueError, match="`language` holds 1 entries and clip 2 arrived"):
        list(transcribe(iter(clips), language=["fr"]))
    with pytest.raises(ValueError, match="`prompt` holds 3 entries and 2 clips arrived"):
        list(transcribe(iter(clips), prompt=["Write."] * 3))


def test_a_clip_of_two_channels_is_averaged_where_it_has_a_rate_or_the_caller_asks(hearing):
    samples = speech(1.0)
    both = np.stack([samples, samples], axis=1)
    expected = hearing(samples)
    assert hearing((RATE, both)) == hearing({"raw": both, "sampling_rate": RATE}) == expected
    assert hearing([(RATE, both), (both, RATE)]) == [expected] * 2
    assert hearing(both, mono=True) == expected
    with pytest.raises(ValueError, match="2 channels .* also take `mono=True`"):
        hearing(both)


def test_open_files_and_decoders_are_one_clip(hearing):
    samples, buffer = speech(1.0), io.BytesIO()
    soundfile.write(buffer, samples, RATE, format="WAV", subtype="FLOAT")
    decoded = SimpleNamespace(data=torch.from_numpy(samples)[None], sample_rate=RATE)
    for clip in (buffer, decoded, SimpleNamespace(get_all_samples=lambda: decoded), memoryview(buffer.getvalue())):
        assert hearing(clip) == hearing(samples)


RELOAD = """
import json, sys
sys.modules["soundwave_hf"] = None  # not installed
from transformers import pipeline
first, second, clip = sys.argv[1:]
loaded = pipeline(model=first, trust_remote_code=True)
loaded.save_pretrained(second)
print(json.dumps(loaded(clip, max_new_tokens=6)))
"""


@pytest.mark.slow
def test_a_saved_pipeline_is_whole(folder, tmp_path):
    made = pipeline("soundwave-asr", model=folder)
    made.processor.trailing_silence = 0.4
    made.model.generation_config.no_repeat_ngram_size = 1
    clip = tmp_path / "clip.wav"
    soundfile.write(clip, speech(1.0), RATE)
    expected = made(str(clip), max_new_tokens=6)
    assert expected != pipeline("soundwave-asr", model=folder)(str(clip), max_new_tokens=6)
    made.save_pretrained(tmp_path / "saved")
    again = pipeline("soundwave-asr", model=str(tmp_path / "saved"))
    assert again.processor.trailing_silence == 0.4
    assert again(str(clip), max_new_tokens=6) == expected
    arguments = [str(tmp_path / "saved"), str(tmp_path / "again"), str(clip)]
    environment = {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules"), "PATH": "/usr/bin"}
    result = subprocess.run(
        [sys.executable, "-c", RELOAD, *arguments], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert json.loads(result.stdout) == expected
    assert pipeline("soundwave-asr", model=str(tmp_path / "again"))(str(clip), max_new_tokens=6) == expected
    with pytest.raises(NotADirectoryError, match="is a file; expected a folder"):
        made.save_pretrained(clip)


def test_what_it_cannot_do_is_refused(transcribe):
    with pytest.raises(ValueError, match='`return_timestamps` is \'char\'; expected "word" or "segment"'):
        transcribe(speech(1.0), return_timestamps="char")
    with pytest.raises(
        ValueError, match="Did you mean `language` for `langauge`. Did you mean `num_beams` for `num_beam`"
    ):
        transcribe(speech(1.0), langauge="en", num_beam=1)
    with pytest.raises(ValueError, match=r"unknown arguments \['stride_length_s'\]"):
        transcribe(speech(1.0), stride_length_s=2)
    with pytest.raises(ValueError, match="`chunk_length_s` is 0.2; expected 1.0 or more, or 0 for whole clips"):
        transcribe(speech(1.0), chunk_length_s=0.2)
    for seconds in ("5", float("nan"), -1):
        with pytest.raises(ValueError, match=f"`chunk_length_s` is {seconds!r}; expected 1.0 or more, or 0"):
            transcribe(speech(1.0), chunk_length_s=seconds)
    with pytest.raises(ValueError, match="`batch_size` is 0; expected a whole number of 1 or more"):
        transcribe(speech(1.0), batch_size=0)
    with pytest.raises(ValueError, match=r"holds \['language', 'task'\], .* Give `language` and `prompt` to the call"):
        transcribe(speech(1.0), generate_kwargs={"language": "french", "task": "transcribe"})
    with pytest.raises(FileNotFoundError, match="absent.wav"):
        transcribe("absent.wav")


def test_pieces_in_a_script_without_spaces_are_joined_without_them():
    request = Request(0, [30.0, 9.0, 5.0], None, None, texts=[["今天", "今日"], ["", "は"], ["很好。", "いい"]])
    found = SoundwaveSpeechRecognitionPipeline.postprocess(None, request)
    assert found == [{"text": "今天很好。"}, {"text": "今日はいい"}]
