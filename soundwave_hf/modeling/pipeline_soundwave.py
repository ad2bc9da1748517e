"""Speech recognition as a pipeline: files of any length, in batches, as a list or as a stream.

The library's own pipeline for this task supports CTC models and encoder-decoders, but no audio LLM.
"""

import array
import dataclasses
import difflib
import math
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from functools import partial
from numbers import Real

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset
from transformers import GenerationConfig, Pipeline
from transformers.pipelines.base import no_collate_fn
from transformers.pipelines.pt_utils import KeyDataset, PipelineDataset
from transformers.utils import logging

from .answers_soundwave import end_ids, have_ended
from .decoding_soundwave import CTC_OPTIONS, given_option
from .hotwords_soundwave import check_hotwords, has_lists
from .positions_soundwave import POSITION_OPTIONS
from .segments_soundwave import cut_samples
from .spacing_soundwave import join_texts
from .support_soundwave import check_kind


logger = logging.get_logger(__name__)

# In a saved model's config: with `trust_remote_code=True`, this class does the library's task.
CUSTOM_PIPELINES = {
    "automatic-speech-recognition": {
        "impl": "pipeline_soundwave.SoundwaveSpeechRecognitionPipeline",
        "pt": ["AutoModelForMultimodalLM"],
        "type": "multimodal",
    }
}


TOKENS_OF_30_SECONDS = 256  # English speech seldom needs half of that
SHORTEST_CHUNK = 1.0  # seconds
# Those of `generate` that are no fields of a generation config.
OWN_OPTIONS = ("return_timestamps", "drop_unsupported", *CTC_OPTIONS, *POSITION_OPTIONS)
AUDIO_OPTIONS = ("mono", "allow_truncated", "max_seconds", "max_bytes")  # of the processor's call
CALL_OPTIONS = ("chunk_length_s", *AUDIO_OPTIONS, "language", "prompt", "batch_size", "generate_kwargs")


def is_clip(inputs) -> bool:
    """True for one clip; false for a list, a column, a data set or an iterator of clips."""
    if is_data_set(inputs):
        return False
    if isinstance(inputs, (str, bytes, bytearray, memoryview, Mapping, torch.Tensor, array.array)):
        return True
    if isinstance(inputs, np.ndarray):
        return inputs.dtype.kind not in "OU"  # objects, strings
    if any(hasattr(inputs, name) for name in ("read", "get_all_samples", "sample_rate")):  # open file, torchcodec
        return True
    if isinstance(inputs, (list, tuple)) and inputs:
        is_number = [isinstance(item, Real) for item in inputs[:2]]
        return is_number[0] or (len(inputs) == 2 and is_number[1])  # samples, or samples and their rate
    return not isinstance(inputs, Iterable)


def is_data_set(inputs) -> bool:
    """True for data sets of torch and `datasets`. The library returns their answers one by one."""
    return isinstance(inputs, Dataset) or hasattr(inputs, "cast_column")


def undecoded(rows, column: str | None = None):
    """A column of `datasets` with undecoded audio, because `datasets` needs torchcodec to decode it."""
    features = rows.features or {}
    names = [name for name, feature in features.items() if type(feature).__name__ == "Audio"]
    if column is None and len(names) != 1:
        raise ValueError(
            f"A data set with the audio columns {names} arrived; expected one. Pass a column: "
            "`KeyDataset(dataset, 'audio')` of `transformers.pipelines.pt_utils`."
        )
    column = column or names[0]
    if column in names:
        rows = rows.cast_column(column, dataclasses.replace(features[column], decode=False))
    return KeyDataset(rows, column) if isinstance(rows, Sized) else (row[column] for row in rows)


def as_clips(inputs):
    """Many clips as `Clips` if their number is known, else as an iterator."""
    if hasattr(inputs, "iterrows") or hasattr(inputs, "iter_rows"):  # a table of pandas or polars
        raise ValueError("A table arrived; expected clips. Pass the column of their paths: `frame['audio']`.")
    if hasattr(inputs, "cast_column"):
        inputs = undecoded(inputs)
    elif isinstance(inputs, KeyDataset) and hasattr(inputs.dataset, "cast_column"):
        inputs = undecoded(inputs.dataset, inputs.key)
    elif hasattr(getattr(inputs, "source", None), "cast_column"):  # a column of `datasets`
        inputs = undecoded(inputs.source, inputs.column_name)
    if isinstance(inputs, IterableDataset) or not isinstance(inputs, Sized):
        return iter(inputs)
    return Clips(inputs if isinstance(inputs, (Sequence, Dataset)) else list(inputs))


class Clips(Dataset):
    """Clips with their numbers, for error messages."""

    def __init__(self, clips):
        self.clips = clips

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, number: int) -> tuple:
        return number, self.clips[number]


class Transcripts(Iterator):
    """The pipeline's output for a data set or an iterator: each answer is computed when it is read."""

    def __init__(self, answers: Iterator, clips):
        self.answers, self.clips = answers, clips

    def __next__(self):
        return next(self.answers)

    def __len__(self) -> int:
        return len(self.clips)


@dataclasses.dataclass
class Request:
    """One clip and its results so far."""

    number: int
    seconds: list[float]  # length of each piece
    language: str | None
    prompt: str | None
    texts: list[list[str]] = dataclasses.field(default_factory=list)  # of each piece, its hypotheses
    chunks: list[list[list[dict]]] = dataclasses.field(default_factory=list)  # of each piece and hypothesis

    @property
    def pieces(self) -> int:
        return len(self.seconds)


def option_of(option, number: int, name: str):
    """The language, prompt or hotwords of one clip, from a value for all clips or a list with one for each."""
    if option is None or isinstance(option, str):
        return option
    if number >= len(option):
        raise wrong_number(option, f"clip {number + 1}", name)
    return option[number]


def check_chunk_length(seconds):
    if seconds is not None and not (isinstance(seconds, Real) and (seconds == 0 or seconds >= SHORTEST_CHUNK)):
        raise ValueError(
            f"`chunk_length_s` is {seconds!r}; expected {SHORTEST_CHUNK} or more, or 0 for whole clips, as a number."
        )


def most_tokens(seconds: float) -> int:
    """The usual limit of tokens for the transcript of a piece."""
    return TOKENS_OF_30_SECONDS * max(1, math.ceil(seconds / 30))


def moved_chunks(chunks: list[dict], seconds: float) -> list[dict]:
    """Chunks of a piece with times in the whole clip. Args: seconds: where the piece begins."""
    return [
        {
            **chunk,
            "timestamp": tuple(time if time is None else round(time + seconds, 3) for time in chunk["timestamp"]),
        }
        for chunk in chunks
    ]


def wrong_number(option, arrived: str, name: str) -> ValueError:
    return ValueError(
        f"`{name}` holds {len(option)} entries and {arrived} arrived; give one for each clip, or one text for all."
    )


class SoundwaveSpeechRecognitionPipeline(Pipeline):
    r"""
    Transcribe clips of any length: those over 30 s are cut at quiet places, transcribed piece by piece and joined.

    Example:

    ```python
    >>> import soundwave_hf
    >>> from transformers import pipeline

    >>> transcribe = pipeline("soundwave-asr", model=folder)
    >>> transcribe("speech.wav")
    {'text': ...}
    >>> outputs = transcribe(["speech.wav", "speech.wav"], batch_size=8, generate_kwargs={"num_beams": 2})
    ```

    Without the package: `pipeline("automatic-speech-recognition", model=folder, trust_remote_code=True)`.
    """

    _load_processor = True
    _load_tokenizer = _load_feature_extractor = _load_image_processor = _load_video_processor = False
    _pipeline_calls_generate = True

    def __call__(self, inputs, **kwargs):
        """
        Args:
            inputs: a clip in any form that the processor accepts, also `{"raw": samples, "sampling_rate": Hz}`; an
                array without a rate has the encoder's. Or many clips: a list, a column of `datasets` or pandas, a data
                set of torch or `datasets`, a `KeyDataset`, a generator.
            batch_size (`int`, *optional*): pieces transcribed at once, of one or several clips; 1 by default. The
                first answer comes after so many pieces were read.
            num_workers (`int`, *optional*): processes that read the clips, if the number of clips is known.
            chunk_length_s (`float`, *optional*): longest piece in seconds; by default the encoder's window of 30 s.
                With 0, clips are not cut: one prompt holds a clip, within the LLM's context.
            language, prompt (`str` or list, *optional*): as in `SoundwaveProcessor.apply_transcription_request`, one
                for all clips or one for each.
            mono, allow_truncated, max_seconds, max_bytes (*optional*): as in the processor's call.
            max_new_tokens (`int`, *optional*): by default 256 for each 30 s of a piece, also begun ones. A warning
                names transcripts that do not end within this limit.
            return_timestamps (`str`, *optional*): "word", or "segment" for sentences: adds "chunks", a list of
                `{"text", "timestamp": (start, end)}` in seconds of the clip, with the other fields of
                `SoundwaveProcessor.align_word_timestamps`. True means "segment".
            drop_unsupported (`bool`, *optional*): remove words that the sound does not support.
            ctc_weight, ctc_draft, draft_entropy, draft_probability (*optional*): use the CTC head, as in `generate`.
            keep_blanks, min_positions_per_second, max_positions_per_second (*optional*): as in `generate`.
            hotwords (*optional*): names and terms to favour where they are heard: a list for all clips, or one for
                each. hotword_weight (*optional*): as in `generate`.
            generation_config, generate_kwargs (*optional*): as for `generate`. Its arguments may also be given
                directly, such as `num_beams=2`. With `return_dict_in_generate` only the transcripts are used. It
                samples only if one of these sets `do_sample=True`, whatever the model's generation config says.

        Returns: `{"text": transcript}` for a clip, or with `num_return_sequences` above 1 a list of them, the best
            first (pieces of a clip are joined by rank). For a list or a column, a list of these; for data sets and
            generators, an iterator that reads a clip when its answer is read.

        Raises: `ValueError` for an unknown `return_timestamps`, for lists whose length is not the number of clips, and
            for a bad clip.
        """
        if is_clip(inputs):
            return super().__call__([inputs], **kwargs)[0]
        clips = as_clips(inputs)
        if isinstance(clips, Clips):
            answers = Transcripts(iter(super().__call__(clips, **kwargs)), clips)
            return answers if is_data_set(inputs) else list(answers)
        return Transcripts(iter(super().__call__((clip for clip in clips), **kwargs)), inputs)

    def _sanitize_parameters(self, **given):
        preprocess = {name: given.pop(name) for name in ("chunk_length_s", *AUDIO_OPTIONS) if name in given}
        check_chunk_length(preprocess.get("chunk_length_s"))
        forward = {name: given.pop(name) for name in ("language", "prompt") if name in given}
        generate_kwargs = dict(given.pop("generate_kwargs", None) or {})
        if wrong := sorted({"language", "prompt", "task"} & generate_kwargs.keys()):
            raise ValueError(
                f"`generate_kwargs` holds {wrong}, which `generate` does not take. Give `language` and `prompt` to "
                "the call, such as `language='fr'`, and no `task`: the pipeline only transcribes."
            )
        options = {*vars(GenerationConfig()), "generation_config", *OWN_OPTIONS}
        for name in given.keys() & options:
            value = given.pop(name)
            if generate_kwargs.setdefault(name, value) != value:
                raise ValueError(f"`{name}` was given twice, in the call and in `generate_kwargs`: leave one out.")
        if generate_kwargs.get("return_timestamps") not in (None, False):
            check_kind(generate_kwargs["return_timestamps"])
        if generate_kwargs:
            earlier = getattr(self, "_forward_params", {}).get("generate_kwargs", {})
            replaces = "generation_config" in generate_kwargs  # the same as in the library
            forward["generate_kwargs"] = generate_kwargs if replaces else {**earlier, **generate_kwargs}
        if given:
            near = {name: difflib.get_close_matches(name, [*CALL_OPTIONS, *options], n=1) for name in sorted(given)}
            hints = [f"Did you mean `{found[0]}` for `{name}`?" for name, found in near.items() if found]
            hint = " ".join(hints) or "See the arguments of its call."
            raise ValueError(f"The pipeline got unknown arguments {sorted(given)}. {hint}")
        return preprocess, forward, {}

    def get_iterator(self, inputs, num_workers, batch_size, preprocess_params, forward_params, postprocess_params):
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"`batch_size` is {batch_size!r}; expected a whole number of 1 or more.")
        clips = Clips(inputs) if isinstance(inputs, list) else inputs
        self._check_options(clips, **forward_params)
        if isinstance(clips, Clips) and num_workers:
            read = PipelineDataset(clips, self.preprocess, preprocess_params)
            pieces = DataLoader(read, num_workers=num_workers, batch_size=1, collate_fn=no_collate_fn)
        else:
            numbered = map(clips.__getitem__, range(len(clips))) if isinstance(clips, Clips) else enumerate(clips)
            pieces = (self.preprocess(clip, **preprocess_params) for clip in numbered)
        requests = self._transcribe(pieces, batch_size, **forward_params)
        return (self.postprocess(request, **postprocess_params) for request in requests)

    def _check_options(self, clips, language=None, prompt=None, generate_kwargs=None):
        """Refuse lists of the wrong length and unknown languages before the first clip is read."""
        for name, option in (("language", language), ("prompt", prompt)):
            if option is None or isinstance(option, str):
                continue
            if isinstance(clips, Clips) and len(clips) != len(option):
                raise wrong_number(option, f"{len(clips)} clips", name)
        hotwords = (generate_kwargs or {}).get("hotwords")
        if hotwords is not None:
            hotwords = check_hotwords(hotwords)
            if has_lists(hotwords) and isinstance(clips, Clips) and len(clips) != len(hotwords):
                raise wrong_number(hotwords, f"{len(clips)} clips", "hotwords")
        languages = [language] if language is None or isinstance(language, str) else list(dict.fromkeys(language))
        if languages:
            self.processor.apply_transcription_request(["clip"] * len(languages), language=languages, tokenize=False)

    def _transcribe(self, pieces: Iterable, batch_size: int, language=None, prompt=None, generate_kwargs=None):
        """Fill batches with the pieces of the clips in order. Yields a clip when its last piece is transcribed."""
        requests, waiting, number = deque(), [], -1
        forward = partial(self.forward, generate_kwargs=generate_kwargs)
        for number, samples in enumerate(pieces):
            options = option_of(language, number, "language"), option_of(prompt, number, "prompt")
            rate = self.processor.feature_extractor.sampling_rate
            request = Request(number, [len(piece) / rate for piece in samples], *options)
            requests.append(request)
            for piece in samples:
                # A batch has one limit of tokens, and a text may not depend on its batch.
                if waiting and most_tokens(len(waiting[-1][1]) / rate) != most_tokens(len(piece) / rate):
                    forward({"waiting": waiting})
                    waiting = []
                waiting.append((request, piece))
                if len(waiting) == batch_size:
                    forward({"waiting": waiting})
                    waiting = []
            while requests and len(requests[0].texts) == requests[0].pieces:
                yield requests.popleft()
        if waiting:
            forward({"waiting": waiting})
        yield from requests
        hotwords = (generate_kwargs or {}).get("hotwords") or ()
        lists = hotwords if has_lists(hotwords) else None
        for name, option in (("language", language), ("prompt", prompt), ("hotwords", lists)):
            if option is not None and not isinstance(option, str) and len(option) > number + 1:
                raise wrong_number(option, f"{number + 1} clips", name)

    def preprocess(self, inputs, chunk_length_s: float | None = None, **options) -> list[np.ndarray]:
        """The pieces of a clip, `(samples,)` each. Args: inputs: the clip's number and the clip."""
        extractor = self.processor.feature_extractor
        rate = extractor.sampling_rate
        longest = extractor.chunk_length if chunk_length_s is None else chunk_length_s or float("inf")
        number, clip = inputs
        (samples,) = self.processor.load_clips([clip], rate, first=number, **options)
        return cut_samples(samples, rate, longest)

    def _forward(self, model_inputs, generate_kwargs=None) -> dict:
        requests, pieces = zip(*model_inputs["waiting"], strict=True)
        rate = self.processor.feature_extractor.sampling_rate
        batch = self.processor.apply_transcription_request(
            [{"array": piece, "sampling_rate": rate} for piece in pieces],
            language=[request.language for request in requests],
            prompt=[request.prompt for request in requests],
        ).to(self.model.device)
        options = self._generate_options(generate_kwargs or {}, max(map(len, pieces)) / rate)
        hotwords = options.get("hotwords")
        if hotwords is not None and has_lists(hotwords):  # one for each clip, and here for each piece
            options["hotwords"] = [option_of(hotwords, request.number, "hotwords") for request in requests]
        outputs = self.model.generate(**batch, **{"tokenizer": self.processor.tokenizer, **options})
        chunks = getattr(outputs, "chunks", None)
        ids = getattr(outputs, "sequences", outputs)[:, batch["input_ids"].shape[1] :]  # [pieces * hypotheses, tokens]
        texts = self.processor.batch_decode(ids, skip_special_tokens=True)
        hypotheses = len(texts) // len(pieces)
        for place, request in enumerate(requests):
            rows = slice(place * hypotheses, (place + 1) * hypotheses)
            self._warn_of_unended(ids[rows], request, options)
            if chunks is not None:
                begin = sum(request.seconds[: len(request.texts)])
                request.chunks.append([moved_chunks(chunks[row], begin) for row in range(rows.start, rows.stop)])
            request.texts.append([text.strip() for text in texts[rows]])
        return {}

    def _generate_options(self, generate_kwargs: dict, seconds: float) -> dict:
        """Arguments of `generate`: by default greedy, with a limit that suits a transcript of this many seconds."""
        options = self._prepare_generate_kwargs(generate_kwargs)
        config = options.get("generation_config")
        given = {**(config.to_diff_dict() if config else {}), **options}
        limits = {**self.model.generation_config.to_diff_dict(), **given}
        defaults = {}
        if given.get("do_sample") is None:
            # Many LLMs sample by default, which suits a chat. A transcript is the likeliest text.
            defaults["do_sample"] = False
        if all(limits.get(name) is None for name in ("max_new_tokens", "max_length")):
            defaults["max_new_tokens"] = most_tokens(seconds)
        if config is None:
            return {**options, **defaults}
        config.update(**defaults)  # `_prepare_generate_kwargs` copied it
        return options

    def _warn_of_unended(self, ids: torch.Tensor, request: Request, options: dict):
        configs = options.get("generation_config"), self.model.generation_config
        names = "eos_token_id", "stop_strings", "max_new_tokens", "max_length", "max_time"
        ends, stops, tokens, length, seconds = (given_option(name, options, configs) for name in names)
        if not end_ids(ends) or all(have_ended(self.processor, ids, ends, stops)):
            return
        # The ids do not tell the limit: `drop_unsupported` takes some out.
        limit = f"{tokens} tokens" if tokens is not None else f"a `max_length` of {length} tokens"
        clock, longer = ("", "") if seconds is None else (f" and {seconds:g} s", ", a longer `max_time`")
        logger.warning(
            f"The transcript of piece {len(request.texts)} of clip {request.number} did not end within {limit}"
            f"{clock}: give more `max_new_tokens`{longer}, or a smaller `chunk_length_s`."
        )

    def postprocess(self, request: Request) -> dict | list[dict]:
        # For each rank, join the texts of the pieces. Silent pieces have none.
        answers = [{"text": join_texts(texts)} for texts in zip(*request.texts, strict=True)]
        for answer, chunks in zip(answers, zip(*request.chunks, strict=True), strict=False):
            answer["chunks"] = [chunk for piece in chunks for chunk in piece]
        return answers[0] if len(answers) == 1 else answers

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs):
        """
        Save the model, its generation config, its code and the processor: `pipeline(model=save_directory)` loads them.

        Args: save_directory: folder, made if it is missing; kwargs: as in `PreTrainedModel.save_pretrained`.
        """
        if os.path.isfile(save_directory):
            raise NotADirectoryError(f"`{save_directory}` is a file; expected a folder. Give another name.")
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)


__all__ = ["CUSTOM_PIPELINES", "SoundwaveSpeechRecognitionPipeline", "cut_samples"]
