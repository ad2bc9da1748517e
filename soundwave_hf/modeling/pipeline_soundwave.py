"""Speech recognition as a pipeline: files of any length, in batches.

The library's own pipeline of that task knows CTC models and encoder-decoders; it cannot take an audio LLM.
"""

import math
from numbers import Real

import numpy as np
import torch
from transformers import Pipeline
from transformers.utils import logging

from .modeling_soundwave import cut_at_quiet


logger = logging.get_logger(__name__)

# What a saved model's config names: the task of the library, done by this class with `trust_remote_code=True`.
CUSTOM_PIPELINES = {
    "automatic-speech-recognition": {
        "impl": "pipeline_soundwave.SoundwaveSpeechRecognitionPipeline",
        "pt": ["AutoModelForMultimodalLM"],
        "type": "multimodal",
    }
}


TOKENS_OF_30_SECONDS = 256  # English speech seldom has half of that
SHORTEST_CHUNK = 1.0  # seconds
SHORTEST_TAIL = 0.1  # seconds; what is left after the last cut is joined to the piece before it if it is shorter


def is_many(inputs) -> bool:
    """True for a list, a column of a data set or a generator of clips; a list of numbers is one clip."""
    if isinstance(inputs, (str, bytes, bytearray, dict, np.ndarray, torch.Tensor)):
        return False
    if hasattr(inputs, "__len__") and hasattr(inputs, "__getitem__"):
        return len(inputs) == 0 or not isinstance(inputs[0], Real)
    return hasattr(inputs, "__next__")


def cut_samples(samples: np.ndarray, sampling_rate: int, seconds: float) -> list[np.ndarray]:
    """Cut a clip longer than `seconds` where it is quietest: `(samples,)` -> pieces, together the whole clip."""
    hop = sampling_rate // 100
    if len(samples) <= seconds * sampling_rate:
        return [samples]
    frames = np.pad(samples, (0, -len(samples) % hop)).reshape(-1, hop)
    loudness = np.log10(np.mean(frames**2, axis=1) + 1e-10)  # [frames of 10 ms]
    places = cut_at_quiet(torch.from_numpy(loudness), round(100 * seconds), 1)
    if places[-1][1] - places[-1][0] < 100 * SHORTEST_TAIL:
        places[-2:] = [(places[-2][0], places[-1][1])]
    return [samples[hop * begin : hop * end] for begin, end in places]


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

    def __call__(self, inputs, **kwargs) -> dict[str, str] | list[dict[str, str]]:
        """
        Args:
            inputs: a clip, or a list, a column of a data set or a generator of clips, each a path, a URL, the bytes
                of an audio file, or `{"array" | "raw": samples, "sampling_rate": Hz}`; a bare array is at the
                encoder's rate.
            batch_size (`int`, *optional*): pieces transcribed at once, of one clip or of several; 1 by default.
            chunk_length_s (`float`, *optional*): longest piece in seconds; the encoder's window of 30 s by default.
                0 leaves a clip whole: one prompt holds it, as long as the LLM's context allows.
            language, prompt (`str`, *optional*): as in `SoundwaveProcessor.apply_transcription_request`.
            max_new_tokens (`int`, *optional*): 256 for each 30 s of the longest piece by default; a transcript that
                does not end within them is warned of.
            generate_kwargs (`dict`, *optional*): arguments of `generate`.

        Returns: `{"text": transcript}` of each clip, a list where a list was given.

        Raises: `ValueError` for `return_timestamps`, which the model does not give, and for a bad clip.
        """
        clips = list(inputs) if is_many(inputs) else [inputs]
        if not clips:
            return []
        # One call holds the pieces of all clips, so that a batch may be filled from several.
        kwargs.setdefault("batch_size", self._batch_size or 1)
        transcripts = super().__call__(
            {"clips": clips}, batch_size=1, **{"piece_batch": kwargs.pop("batch_size")}, **kwargs
        )
        return transcripts if is_many(inputs) else transcripts[0]

    def _sanitize_parameters(self, **given):
        if given.pop("return_timestamps", None):
            raise ValueError("`return_timestamps` was set, and this model gives no times: leave it out.")
        preprocess = {name: given.pop(name) for name in ("chunk_length_s",) if name in given}
        names = ("language", "prompt", "piece_batch")
        forward = {name: given.pop(name) for name in names if name in given}
        max_new_tokens = {"max_new_tokens": given.pop("max_new_tokens")} if "max_new_tokens" in given else {}
        if generate_kwargs := {**max_new_tokens, **(given.pop("generate_kwargs", None) or {})}:
            forward["generate_kwargs"] = generate_kwargs
        if given:
            raise ValueError(f"{sorted(given)} is nothing that this pipeline takes: see the arguments of its call.")
        return preprocess, forward, {}

    def preprocess(self, inputs, chunk_length_s: float | None = None) -> dict:
        extractor = self.processor.feature_extractor
        rate = extractor.sampling_rate
        if chunk_length_s and chunk_length_s < SHORTEST_CHUNK:
            raise ValueError(
                f"`chunk_length_s` is {chunk_length_s}; give {SHORTEST_CHUNK} or more, or 0 for whole clips."
            )
        longest = extractor.chunk_length if chunk_length_s is None else chunk_length_s or float("inf")
        clips = [self._as_row(clip) for clip in inputs["clips"]]
        pieces = [cut_samples(samples, rate, longest) for samples in self.processor.load_clips(clips, rate)]
        return {"pieces": [piece for clip in pieces for piece in clip], "counts": [len(clip) for clip in pieces]}

    @staticmethod
    def _as_row(clip):
        return {**clip, "array": clip["raw"]} if isinstance(clip, dict) and "raw" in clip else clip

    def _forward(self, model_inputs, language=None, prompt=None, piece_batch: int = 1, generate_kwargs=None) -> dict:
        rate = self.processor.feature_extractor.sampling_rate
        pieces, texts = model_inputs["pieces"], []
        options = self._prepare_generate_kwargs(generate_kwargs or {})
        if not options.keys() & {"max_new_tokens", "max_length", "generation_config"}:
            seconds = max(len(piece) for piece in pieces) / rate
            options["max_new_tokens"] = math.ceil(TOKENS_OF_30_SECONDS * max(1.0, seconds / 30))
        for start in range(0, len(pieces), piece_batch):
            some = [{"array": piece, "sampling_rate": rate} for piece in pieces[start : start + piece_batch]]
            batch = self.processor.apply_transcription_request(some, language=language, prompt=prompt)
            batch = batch.to(self.model.device)
            ids = self.model.generate(**batch, **options)[:, batch["input_ids"].shape[1] :]
            self._warn_of_unended(ids, start)
            texts += self.processor.batch_decode(ids, skip_special_tokens=True)
        return {"texts": texts, "counts": model_inputs["counts"]}

    def _warn_of_unended(self, ids: torch.Tensor, first_piece: int):
        ends = self.model.generation_config.eos_token_id
        ends = [] if ends is None else ends if isinstance(ends, list) else [ends]
        for place, row in enumerate(ids.tolist(), start=first_piece):
            if ends and not set(row) & set(ends):
                logger.warning(
                    f"The transcript of piece {place} did not end within {len(row)} tokens and may lack its "
                    "rest: give more `max_new_tokens`, or a smaller `chunk_length_s`."
                )

    def postprocess(self, model_outputs) -> list[dict[str, str]]:
        rest = iter(model_outputs["texts"])
        return [{"text": " ".join(next(rest).strip() for _ in range(count))} for count in model_outputs["counts"]]


__all__ = ["CUSTOM_PIPELINES", "SoundwaveSpeechRecognitionPipeline", "cut_samples"]
