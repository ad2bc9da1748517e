"""The picture of a clip: waveform, log-mel, peaks of the CTC head with their tokens, and the kept positions."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np

from .atomic import atomic_file


RATE = 16_000  # Hz, without a processor
MEL_SECONDS = 0.01  # of a log-mel frame, without a processor
STRIP_SECONDS = 15.0  # a longer clip is drawn in several strips
MOST_STRIPS = 40  # the strips of a recording of hours are longer
STRIP_INCHES = (12.0, 3.0)
TOKEN_SPACE = 3.4  # upper end of the waveform's panel, as a multiple of the loudest sample: the tokens stand above it
DOTS_PER_INCH = 110


@dataclass(frozen=True)
class Peak:
    """A token that the CTC head finds: the frame of its peak, in seconds from the clip's start, and its text."""

    seconds: float
    token: str


@dataclass(frozen=True)
class ClipPicture:
    """What is drawn of a clip.

    Args:
        samples (`np.ndarray` of shape `(samples,)`): from -1 to 1.
        sampling_rate (`int`): of the samples, Hz.
        log_mel (`np.ndarray` of shape `(mel_bins, mel_frames)`): the encoder's input.
        mel_seconds (`float`): length of a log-mel frame.
        peaks (`Sequence[Peak]`): in order; empty without a model.
        kept_seconds (`Sequence[float]`, *optional*): middle of each frame that becomes a position of the LLM.
        title (`str`).
        begin (`float`): where the samples begin in their file, in seconds. The time axis shows seconds of the file.
    """

    samples: np.ndarray
    sampling_rate: int
    log_mel: np.ndarray
    mel_seconds: float = MEL_SECONDS
    peaks: Sequence[Peak] = ()
    kept_seconds: Sequence[float] | None = None
    title: str = ""
    begin: float = 0.0

    @property
    def clip_seconds(self) -> float:
        return len(self.samples) / self.sampling_rate

    @property
    def seconds(self) -> float:
        """Length of what is drawn: the clip, and the silence behind it that the encoder hears."""
        return max(self.clip_seconds, self.log_mel.shape[1] * self.mel_seconds)


def look_at_clip(clip, processor=None, model=None, title: str = "") -> ClipPicture:
    """The picture of a clip in any form that `load_clip` takes, of any length.

    Args:
        processor (*optional*): a `SoundwaveProcessor`, for the log-mel of its encoder and the tokens of the peaks; by
            default Whisper's log-mel of 80 bins.
        model (*optional*): a `SoundwaveForConditionalGeneration`, whose CTC head is asked; needs `processor`.

    Raises: `ValueError` for a model without a processor, and the errors of `load_clip`.
    """
    if processor is None:
        if model is not None:
            raise ValueError("A `model` arrived without its `processor`, which knows the tokens: give both.")
        samples = _load(clip)
        return ClipPicture(samples, RATE, _whisper_log_mel(samples), title=title)
    extractor = processor.feature_extractor
    (samples,) = processor.load_clips([clip])
    features = processor.log_mel([samples])
    found = {} if model is None else _ask(model, processor, features)
    mel_seconds = extractor.hop_length / extractor.sampling_rate
    log_mel = features["input_features"][0]
    return ClipPicture(samples, extractor.sampling_rate, log_mel, mel_seconds, title=title, **found)


def _load(clip) -> np.ndarray:
    from .processing.audio_soundwave import load_clip

    return load_clip(clip, "The clip", None, RATE, MEL_SECONDS)


def _whisper_log_mel(samples: np.ndarray) -> np.ndarray:
    from transformers import WhisperFeatureExtractor

    extractor = WhisperFeatureExtractor()
    options = {"padding": "longest", "truncation": False, "return_tensors": "np"}
    return extractor(samples, sampling_rate=RATE, **options)["input_features"][0]


def _ask(model, processor, features: dict[str, np.ndarray]) -> dict:
    """The peaks of the CTC head, and the frames that become positions."""
    import torch

    from .evaluation.transcribe import audio_side
    from .modeling.adapters_soundwave import first_of_run
    from .modeling.positions_soundwave import find_position_limits

    tensors = {name: torch.from_numpy(values).to(model.device) for name, values in features.items()}
    tensors["input_features"] = tensors["input_features"].to(model.dtype)
    limits = find_position_limits(model, {}, model.generation_config)
    with torch.no_grad():
        audio = model.get_audio_features(**tensors, position_limits=limits)
        mask = torch.arange(audio.ctc_best.shape[1], device=model.device)[None] < audio.num_frames[:, None]
        kept = audio_side(model).keep_mask(audio.ctc_best, mask, limits)[0].nonzero().flatten()
        if len(kept) > audio.num_positions.item():
            kept = kept[_left(model, audio, tensors, limits)]
    starts = (first_of_run(audio.ctc_best) & mask & (audio.ctc_best != model.config.audio_token_id))[0]
    middle = model.config.frame_seconds / 2
    seconds = (torch.arange(len(starts)) * model.config.frame_seconds + middle).tolist()
    labels = audio.ctc_best[0].tolist()
    peaks = [Peak(seconds[i], _text_of(processor.tokenizer, labels[i])) for i in starts.nonzero().flatten().tolist()]
    return {"peaks": peaks, "kept_seconds": [seconds[i] for i in kept.tolist()]}


def _left(model, audio, tensors: dict, limits) -> list[int]:
    """Which of the kept frames are left where `max_positions_per_second` takes out those that are alike."""
    from .modeling.positions_soundwave import PositionLimits

    class All(PositionLimits):
        def leave_out(self, positions, num_positions, num_frames, frame_seconds):
            return positions, num_positions

    every = model.get_audio_features(**tensors, position_limits=All(**vars(limits))).pooler_output
    rest, left = iter(audio.pooler_output), []
    wanted = next(rest, None)
    for index, position in enumerate(every):
        if wanted is not None and position.equal(wanted):
            left.append(index)
            wanted = next(rest, None)
    return left


def _text_of(tokenizer, token_id: int) -> str:
    """A token as text; one that is only a part of a character, as the vocabulary writes it."""
    text = tokenizer.decode([token_id])
    return tokenizer.convert_ids_to_tokens(token_id) if "\ufffd" in text or not text else text


def describe_peaks(picture: ClipPicture) -> str:
    """What the CTC head finds, in seconds of the file, and how many positions the LLM reads."""
    peaks = "  ".join(f"{picture.begin + peak.seconds:.2f} {peak.token!r}" for peak in picture.peaks)
    count = len(picture.kept_seconds)
    return f"CTC peaks: {peaks or 'none'}\n{count} positions, {count / picture.clip_seconds:.1f} a second"


# ---- drawing ----


def has_matplotlib() -> bool:
    return find_spec("matplotlib") is not None


def check_matplotlib():
    """Raises: `ImportError` that says how to install matplotlib, if it is missing."""
    if not has_matplotlib():
        raise ImportError("A picture needs matplotlib: `pip install 'soundwave-hf[train]'`.")


def new_figure(width: float, height: float):
    """A matplotlib `Figure` of so many inches. It belongs to no window, and no global state is changed."""
    check_matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def draw_clip(picture: ClipPicture):
    """A matplotlib `Figure` of a clip. No display is needed, and matplotlib's global state is not changed."""
    width = max(STRIP_SECONDS, picture.seconds / MOST_STRIPS)
    count = max(1, int(np.ceil(round(picture.seconds / width, 6))))
    width = min(width, picture.seconds)
    figure = new_figure(STRIP_INCHES[0], 0.5 + STRIP_INCHES[1] * count)
    panels = figure.subplots(2 * count, 1, squeeze=False, gridspec_kw={"height_ratios": [1.4, 2] * count}).flatten()
    limit = max(0.01, float(np.abs(picture.samples).max(initial=0)))
    for number in range(count):
        wave, mel = panels[2 * number : 2 * number + 2]
        _draw_wave(wave, picture, number * width, width, limit)
        _draw_mel(mel, picture, number * width, width)
    for panel in panels:
        panel.xaxis.set_major_formatter(lambda seconds, _: f"{seconds + picture.begin:.6g}")
    panels[-1].set_xlabel("seconds")
    figure.suptitle(picture.title or f"{picture.seconds:.2f} s", parse_math=False)
    return figure


def _draw_wave(panel, picture: ClipPicture, start: float, width: float, limit: float):
    first, last = (round(at * picture.sampling_rate) for at in (start, start + width))
    samples = picture.samples[first:last]
    panel.plot(start + np.arange(len(samples)) / picture.sampling_rate, samples, linewidth=0.4, color="tab:blue")
    top = TOKEN_SPACE if picture.peaks else 1
    panel.set(xlim=(start, start + width), ylim=(-limit, top * limit), yticks=[])
    panel.tick_params(labelbottom=False)
    for peak in picture.peaks:
        if start <= peak.seconds < start + width:
            panel.axvline(peak.seconds, color="tab:red", linewidth=0.5, alpha=0.6)
            panel.text(
                *(peak.seconds, 1.1 * limit, _printable(peak.token)),
                **{"rotation": 90, "fontsize": 7, "va": "bottom", "ha": "right", "parse_math": False},
                clip_on=True,
            )


def _printable(token: str) -> str:
    return token.strip() if token.strip().isprintable() else token.encode("unicode_escape").decode()


def _draw_mel(panel, picture: ClipPicture, start: float, width: float):
    first, last = (round(at / picture.mel_seconds) for at in (start, start + width))
    mel = picture.log_mel[:, first:last]
    if mel.shape[1]:
        extent = (start, start + mel.shape[1] * picture.mel_seconds, 0, len(mel))
        scale = {"vmin": float(picture.log_mel.min()), "vmax": float(picture.log_mel.max())}
        panel.imshow(mel, origin="lower", aspect="auto", extent=extent, cmap="magma", interpolation="nearest", **scale)
    panel.set(xlim=(start, start + width), ylim=(0, len(picture.log_mel)), ylabel="mel bin")
    for peak in picture.peaks:
        if start <= peak.seconds < start + width:
            panel.axvline(peak.seconds, color="white", linewidth=0.5, alpha=0.5)
    kept = [at for at in picture.kept_seconds or () if start <= at < start + width]
    if kept:
        panel.plot(kept, [0.03 * len(picture.log_mel)] * len(kept), "^", color="cyan", markersize=4, label="positions")


def save_picture(picture: ClipPicture, path: str | os.PathLike):
    """Draw a clip into a PNG."""
    with atomic_file(path) as part:
        draw_clip(picture).savefig(part, dpi=DOTS_PER_INCH, format="png")


__all__ = [
    "ClipPicture",
    "Peak",
    "check_matplotlib",
    "describe_peaks",
    "draw_clip",
    "look_at_clip",
    "new_figure",
    "save_picture",
]
