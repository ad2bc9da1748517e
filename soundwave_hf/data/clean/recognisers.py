"""Filters that hear the recording: a Whisper's transcript and language, and the CTC score of a trained head."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from transformers.utils import logging

from ...evaluation.metrics import edits_by_clip, main_metric
from ...modeling.loading_soundwave import as_device
from ...paths import find_weights
from ...processing.languages_soundwave import language_code, language_name
from ...processing.text_soundwave import known_code
from ..backbones import resolve_backbone
from .filter import Clip
from .options import ThresholdFilter, number


logger = logging.get_logger(__name__)

SAMPLING_RATE = 16_000
SHORTEST = 640  # samples: 40 ms, a frame of the CTC head
KEPT_BYTES = 256 * 2**20  # of encoder states, for a second filter that hears the same clips
LEAST_LOG_PROB = -100.0  # of a label; also the value of a transcript with more labels than the recording has frames


def batches_of(clips: Sequence[Clip], batch_size: int) -> list[list[int]]:
    """Indices of clips in batches of similar length, so that little is padded."""
    order = sorted(range(len(clips)), key=lambda index: len(clips[index].samples))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


# ---- Whisper ----


class WhisperRecogniser:
    """A Whisper that transcribes clips and names their language. It encodes a clip once for both.

    Each clip is padded to the encoder's window, so that its results do not depend on the batch.

    Args: folder: of a Whisper with its decoder and processor; device: where it runs.
    """

    def __init__(self, folder: str, device: str = "cpu"):
        from transformers import WhisperForConditionalGeneration, WhisperProcessor

        self.model = WhisperForConditionalGeneration.from_pretrained(folder).to(device).eval()
        self.processor = WhisperProcessor.from_pretrained(folder)
        self.window = self.processor.feature_extractor.n_samples
        config = self.model.config
        states = 4 * config.d_model * config.max_source_positions  # bytes of a clip
        self.most_kept = max(1, KEPT_BYTES // states)
        self.kept: dict[int, tuple[np.ndarray, torch.Tensor]] = {}  # id of samples -> the samples, encoder states

    @property
    def is_multilingual(self) -> bool:
        config = self.model.generation_config
        return getattr(config, "is_multilingual", True) and bool(getattr(config, "lang_to_id", None))

    def knows(self, code: str | None) -> bool:
        """Whether the model has a token for a language. Not every Whisper has one for "yue"."""
        return self.is_multilingual and f"<|{code}|>" in self.model.generation_config.lang_to_id

    @torch.inference_mode()
    def encode(self, clips: Sequence[Clip]) -> torch.Tensor:
        """Encoder states `(clips, frames, width)` of the first window of each clip."""
        new = [clip.samples for clip in clips if id(clip.samples) not in self.kept]
        if new:
            features = self.processor(new, sampling_rate=SAMPLING_RATE, return_tensors="pt").input_features
            states = self.model.get_encoder()(features.to(self.model.device, self.model.dtype)).last_hidden_state
            found = {id(samples): (samples, own) for samples, own in zip(new, states, strict=True)}
        else:
            found = {}
        together = torch.stack([(found.get(id(clip.samples)) or self.kept[id(clip.samples)])[1] for clip in clips])
        self.kept |= {name: (samples, own.clone()) for name, (samples, own) in found.items()}
        for oldest in list(self.kept)[: max(0, len(self.kept) - self.most_kept)]:
            del self.kept[oldest]
        return together

    @torch.inference_mode()
    def languages(self, clips: Sequence[Clip]) -> list[str]:
        """Whisper's code of the likeliest language of each clip, from its first window."""
        from transformers.modeling_outputs import BaseModelOutput

        ids = self.model.detect_language(encoder_outputs=BaseModelOutput(last_hidden_state=self.encode(clips)))
        names = {number: name.strip("<|>") for name, number in self.model.generation_config.lang_to_id.items()}
        return [names[number] for number in ids.tolist()]

    def transcribe(self, clips: Sequence[Clip], languages: Sequence[str | None]) -> list[tuple[str, str]]:
        """Greedy transcripts and the code of the language of each. The language is detected where `languages` has None
        or one that this Whisper does not know; a Whisper for English hears English."""
        codes = [code if self.knows(code) else None for code in languages]
        if not self.is_multilingual:
            codes = ["en"] * len(clips)
        elif unknown := [place for place, code in enumerate(codes) if code is None]:
            for place, code in zip(unknown, self.languages([clips[place] for place in unknown]), strict=True):
                codes[place] = code
        texts: list[str] = [""] * len(clips)
        short = [place for place, clip in enumerate(clips) if len(clip.samples) <= self.window]
        if short:
            found = self._short([clips[place] for place in short], [codes[place] for place in short])
            for place, text in zip(short, found, strict=True):
                texts[place] = text
        for place in sorted(set(range(len(clips))) - set(short)):  # alone, so that no other clip changes its windows
            texts[place] = self._long(clips[place], codes[place])
        return list(zip(texts, codes, strict=True))

    def _options(self, languages: list[str]) -> dict:
        task = {"task": "transcribe", "language": languages} if self.is_multilingual else {}
        return {"num_beams": 1, "do_sample": False, **task}

    @torch.inference_mode()
    def _short(self, clips: list[Clip], languages: list[str]) -> list[str]:
        from transformers.modeling_outputs import BaseModelOutput

        states = BaseModelOutput(last_hidden_state=self.encode(clips))
        # A timestamp that Whisper writes unasked would begin a second window, which needs features, not states.
        first = getattr(self.model.generation_config, "no_timestamps_token_id", self.model.config.vocab_size) + 1
        timestamps = range(first, self.model.config.vocab_size)
        suppressed = [*(self.model.generation_config.suppress_tokens or ()), *timestamps]
        ids = self.model.generate(encoder_outputs=states, suppress_tokens=suppressed, **self._options(languages))
        return [text.strip() for text in self.processor.batch_decode(ids, skip_special_tokens=True)]

    @torch.inference_mode()
    def _long(self, clip: Clip, language: str) -> str:
        """A clip longer than the window, by Whisper's long-form algorithm: each window begins at the last timestamp
        of the window before it."""
        inputs = self.processor(
            [clip.samples],
            sampling_rate=SAMPLING_RATE,
            return_tensors="pt",
            return_attention_mask=True,
            truncation=False,
            padding="longest",
        ).to(self.model.device)
        ids = self.model.generate(**inputs, return_timestamps=True, **self._options([language]))
        return self.processor.batch_decode(ids, skip_special_tokens=True)[0].strip()


@lru_cache(maxsize=4)
def load_whisper(model: str, device: str) -> WhisperRecogniser:
    """A Whisper by hub name or folder, once in each process: two filters with the same model share it."""
    device = str(as_device(device))  # refuses a wrong device before anything is downloaded
    return WhisperRecogniser(resolve_backbone(model), device)


class _ByWhisper(ThresholdFilter):
    reads_samples: ClassVar[bool] = True

    @property
    def recogniser(self) -> WhisperRecogniser:
        return load_whisper(self.model, self.device)

    def load(self):
        load_whisper(self.model, self.device)


@dataclass
class WhisperWER(_ByWhisper):
    """Errors of a Whisper's greedy transcript against the row's transcript, after Whisper's normaliser.

    The paper keeps up to 10 % (appendix A), with Whisper medium. Words are compared, and characters in languages
    without spaces between words. The row's `language` is used if Whisper knows it; otherwise Whisper detects it.
    Recordings over 30 s are transcribed whole, by Whisper's long-form algorithm. An empty transcript has no value.

    Args:
        model (`str`): hub name or folder of a Whisper.
        max_wer (`float`): a share, 0.1 is one error in ten words.
        batch_size (`int`): clips at a time. It does not change the values.
        device (`str`): where the model runs.
    """

    name: ClassVar[str] = "whisper"
    unit: ClassVar[str] = "error rate"
    model: str = field()
    max_wer: float = number(0.1, least=0)
    batch_size: int = number(8, least=1)
    device: str = "cpu"

    def load(self):
        error_rate("a", "a", "en")  # refuses a missing jiwer now, and not after the first batch
        super().load()

    def measure(self, clips: Sequence[Clip]) -> list[float | None]:
        values: list[float | None] = [None] * len(clips)
        spoken = [index for index, clip in enumerate(clips) if clip.text.strip()]
        for batch in batches_of([clips[index] for index in spoken], self.batch_size):
            places = [spoken[index] for index in batch]
            some = [clips[place] for place in places]
            heard = self.recogniser.transcribe(some, [known_code(clip.row.get("language")) for clip in some])
            for place, (text, code) in zip(places, heard, strict=True):
                values[place] = error_rate(clips[place].text, text, code)
        return values

    def keeps(self, value: float) -> bool:
        return value <= self.max_wer


def error_rate(reference: str, hypothesis: str, language: str) -> float:
    """Errors divided by the reference's length, or by 1 if the normaliser leaves nothing of it ("[laughter]")."""
    unit = "characters" if main_metric(language) == "cer" else "words"
    ((counts, _),) = edits_by_clip([reference], [hypothesis], unit, language)
    return counts.errors / max(counts.reference_length, 1)


@dataclass
class WhisperLanguage(_ByWhisper):
    """The language that Whisper hears in the first 30 s. Drops a clip in another language than it should have.

    The value is the code of the language, such as "de", or "de instead of en" for a clip to drop. A clip has no value
    if neither `wanted` nor the row names a language.

    Args:
        model (`str`): hub name or folder of a Whisper. With the same model and device as `whisper`, each clip is
            encoded once for both.
        wanted (`str`, *optional*): language of all clips; by default that in the row's `language`.
        batch_size (`int`): clips at a time. It does not change the values.
        device (`str`): where the model runs.
    """

    name: ClassVar[str] = "language"
    unit: ClassVar[str] = "language code"
    reads_text: ClassVar[bool] = False
    model: str = field()
    wanted: str | None = None
    batch_size: int = number(8, least=1)
    device: str = "cpu"

    def __post_init__(self):
        super().__post_init__()
        if self.wanted is not None and language_name(self.wanted) is None:
            raise ValueError(f"`language` has `wanted: {self.wanted}`; expected a language, or leave it out.")

    def load(self):
        super().load()
        if not self.recogniser.is_multilingual:
            raise ValueError(
                f"`language` has `model: {self.model}`, which knows only English: name a multilingual Whisper, such "
                "as openai/whisper-base."
            )
        if self.wanted is not None and not self.recogniser.knows(code := self._code(self.wanted)):
            raise ValueError(
                f"`language` has `wanted: {self.wanted}`, and `{self.model}` does not know {code!r}: name a Whisper "
                "that does (openai/whisper-large-v3 has the most languages)."
            )

    def measure(self, clips: Sequence[Clip]) -> list[str | None]:
        values: list[str | None] = [None] * len(clips)
        wanted = [self._wanted(clip) for clip in clips]
        named = [index for index, language in enumerate(wanted) if language is not None]
        for batch in batches_of([clips[index] for index in named], self.batch_size):
            places = [named[index] for index in batch]
            for place, code in zip(places, self.recogniser.languages([clips[at] for at in places]), strict=True):
                values[place] = code if code == wanted[place] else f"{code} instead of {wanted[place]}"
        return values

    def _wanted(self, clip: Clip) -> str | None:
        """Code of the language that a clip should have; as written if it is unknown, so that none fits."""
        return self._code(clip.row.get("language") if self.wanted is None else self.wanted)

    @staticmethod
    def _code(language) -> str | None:
        try:
            return language_code(language)
        except (TypeError, ValueError):
            return str(language)

    def keeps(self, value: str) -> bool:
        return " instead of " not in value


# ---- a CTC head ----


class CTCScorer:
    """Scores transcripts by the CTC head of trained adapters or of a whole model. Nothing is decoded.

    Args:
        folder: of adapters of any stage, whose LLM is not loaded, or of a whole model; or a hub name.
        device: where the model runs.
    """

    def __init__(self, folder: str, device: str = "cpu"):
        from ...adapters import load_processor
        from ...modeling.audio_model_soundwave import SoundwaveForCTC
        from ...modeling.folders_soundwave import find_adapter
        from ...modeling.modeling_soundwave import SoundwaveForConditionalGeneration
        from ...processing.processing_soundwave import SoundwaveProcessor

        name = os.path.expanduser(find_weights(folder))
        if find_adapter(name) is not None:
            model, self.processor = SoundwaveForCTC.from_pretrained(name, dtype="float32"), load_processor(name)
        else:
            try:
                whole = SoundwaveForConditionalGeneration.from_pretrained(name, dtype="float32")
            except OSError as error:
                raise FileNotFoundError(
                    f"No trained CTC head was found in `{folder}` ({error}). Give a folder that `soundwave-hf train` "
                    "or `export` wrote, or a hub name of one; the shipped head is `weights/soundwave-small`."
                ) from error
            model, self.processor = whole.model, SoundwaveProcessor.from_pretrained(name)
        self.model = model.to(device).eval()
        self.processor.ctc_target("1")  # refuses a missing num2words now, and not at the first number

    @torch.inference_mode()
    def log_probs(self, samples: list[np.ndarray], labels: list[list[int]]) -> list[tuple[float, int]]:
        """Log-probability of each clip's labels in nats, -inf if they do not fit into its frames; its frames of 40 ms.

        Args: labels: one or more for each clip.
        """
        inputs = self.processor.log_mel(samples)
        features, mask = (torch.from_numpy(inputs[key]) for key in ("input_features", "input_features_mask"))
        features = features.to(self.model.device, self.model.dtype)
        _, aligned, mask = self.model.align(features, mask.to(self.model.device))
        targets = torch.nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in labels], True, -100)
        num_frames = mask.sum(dim=1)
        # Only the columns of these labels and a frame's normaliser are kept, never (frames, vocabulary).
        ctc = self.model.ctc_head(aligned, num_frames, self.model.token_table(), targets.to(aligned.device))
        losses = torch.where(ctc.feasible, ctc.losses, math.inf).tolist()
        return [(-loss, length) for loss, length in zip(losses, num_frames.tolist(), strict=True)]

    def labels_of(self, clip: Clip) -> list[int] | None:
        """The labels of a transcript, as in training; None, with a warning, if a number has no words in the row's
        language."""
        try:
            text = self.processor.ctc_target(clip.text, clip.row.get("language"))
        except (TypeError, ValueError) as error:
            logger.warning_once(f"A transcript has no CTC target and gets the value {LEAST_LOG_PROB:g}: {error}")
            return None
        return self.processor.tokenizer(text, add_special_tokens=False).input_ids


@lru_cache(maxsize=4)
def load_ctc(model: str, device: str) -> CTCScorer:
    """A CTC head by hub name or folder, once in each process."""
    return CTCScorer(model, str(as_device(device)))


@dataclass
class CTCScore(ThresholdFilter):
    """Mean log-probability of a label of the transcript, in nats, under a trained CTC head.

    A transcript that says what the clip says has a value near 0. Wrong, missing and added words make it lower, and so
    does noise. Nothing is decoded. The transcript takes the form of the head's targets (`ctc_text` of the processor)
    with the row's `language`. A clip longer than the encoder's window is cut at quiet places, as in training. An empty
    transcript has no value. A transcript that has more labels than its clip has frames, or a number without words in
    its language, has the lowest value, -100.

    Args:
        model (`str`): folder or hub name of trained adapters of any stage, or of a whole model.
        min_log_prob (`float`): a lower value drops the clip. -100 is the lowest value.
        batch_size (`int`): clips at a time. It does not change the values.
        device (`str`): where the model runs.
    """

    name: ClassVar[str] = "ctc"
    unit: ClassVar[str] = "nats a label"
    reads_samples: ClassVar[bool] = True
    model: str = field()
    min_log_prob: float = number(-3.0, least=LEAST_LOG_PROB, most=0)
    batch_size: int = number(8, least=1)
    device: str = "cpu"

    def load(self):
        load_ctc(self.model, self.device)

    def measure(self, clips: Sequence[Clip]) -> list[float | None]:
        scorer = load_ctc(self.model, self.device)
        labels = [scorer.labels_of(clip) for clip in clips]
        values: list[float | None] = [None if ids == [] else LEAST_LOG_PROB for ids in labels]
        heard = [index for index, clip in enumerate(clips) if labels[index] and len(clip.samples) >= SHORTEST]
        for batch in batches_of([clips[index] for index in heard], self.batch_size):
            places = [heard[index] for index in batch]
            scores = scorer.log_probs([clips[place].samples for place in places], [labels[place] for place in places])
            for place, (log_prob, _) in zip(places, scores, strict=True):
                values[place] = max(log_prob / len(labels[place]), LEAST_LOG_PROB)
        return values

    def keeps(self, value: float) -> bool:
        return value >= self.min_log_prob


RECOGNISERS = (WhisperWER, WhisperLanguage, CTCScore)

__all__ = [*(each.__name__ for each in RECOGNISERS), "RECOGNISERS", "CTCScorer", "WhisperRecogniser"]
