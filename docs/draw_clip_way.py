"""Draw docs/images/clip.png: one clip on its way from samples to the LLM, with the real arrays of the shipped weights.

python docs/draw_clip_way.py    needs matplotlib and the backbones of weights/soundwave-small
"""

import argparse
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from soundwave_hf import load_adapter
from soundwave_hf.picture import Peak, look_at_clip, new_figure


ROOT = Path(__file__).resolve().parents[1]
CLIP = ROOT / "examples/librivox/sense_and_sensibility_01_austen-0880.flac"
SHOWN_WIDTH = 96  # components of a state that are drawn


@dataclass(frozen=True)
class ClipWay:
    """The arrays of each step. Shapes: samples `(samples,)`, the others `(rows, frames)`."""

    seconds: float
    samples: np.ndarray
    log_mel: np.ndarray
    encoder: np.ndarray
    aligned: np.ndarray
    positions: np.ndarray
    peaks: list[Peak]
    kept_seconds: list[float]
    prompt_tokens: tuple[int, int]  # before and behind the positions
    answer: str


def follow_clip(clip, model, processor) -> ClipWay:
    """Transcribe one clip of at most 30 s and keep the arrays of every step."""
    inputs = processor.apply_transcription_request(str(clip))
    picture = look_at_clip(str(clip), processor, model)
    with torch.no_grad():
        features = {name: inputs[name] for name in ("input_features", "input_features_mask")}
        audio = model.get_audio_features(**features)
        ids = model.generate(**inputs, max_new_tokens=100)
    prompt = inputs["input_ids"][0].tolist()
    place = prompt.index(model.config.audio_token_id)
    return ClipWay(
        seconds=len(picture.samples) / picture.sampling_rate,
        samples=picture.samples,
        log_mel=picture.log_mel,
        encoder=audio.last_hidden_state[0].T.numpy(),
        aligned=audio.aligned_states[0].T.numpy(),
        positions=audio.pooler_output.T.numpy(),
        peaks=list(picture.peaks),
        kept_seconds=list(picture.kept_seconds),
        prompt_tokens=(place, len(prompt) - place - 1),
        answer=processor.batch_decode(ids[:, len(prompt) :], skip_special_tokens=True)[0],
    )


def steps(way: ClipWay) -> list[tuple[str, str]]:
    """Name and shape of each step, in order."""
    before, behind = way.prompt_tokens
    (mel_bins, mel_frames), (width, frames), (llm, aligned) = (
        array.shape for array in (way.log_mel, way.encoder, way.aligned)
    )
    count = way.positions.shape[1]
    return [
        ("samples", f"[{len(way.samples)}]"),
        ("log-mel\n(processor)", f"[{mel_bins}, {mel_frames}]"),
        ("encoder frames\n(Whisper)", f"[{frames}, {width}]"),
        ("aligned frames\n(alignment adapter)\nand CTC labels", f"[{aligned}, {llm}]"),
        ("kept positions\n(shrinking adapter)", f"[{count}, {llm}]\n{count / way.seconds:.2f} a second"),
        ("input of the LLM", f"[{before} + {count} + {behind}, {llm}]"),
    ]


def draw(way: ClipWay):
    """A matplotlib figure with a panel a step, all on the time axis of the clip but the last."""
    figure = new_figure(12, 9)
    panels = figure.subplots(6, 1, gridspec_kw={"height_ratios": [1, 1.2, 1.2, 1.6, 1.2, 0.7]})
    end = way.log_mel.shape[1] * 0.01
    panels[0].plot(np.arange(len(way.samples)) / 16_000, way.samples, linewidth=0.4)
    panels[0].set_xlim(0, end)
    for panel, array in zip(panels[1:4], (way.log_mel, way.encoder, way.aligned), strict=True):
        show(panel, array[:SHOWN_WIDTH], end)
    for peak in way.peaks:
        panels[3].axvline(peak.seconds, color="white", linewidth=0.6)
        panels[3].text(peak.seconds, 1.04 * SHOWN_WIDTH, peak.token, rotation=60, fontsize=8, parse_math=False)
    draw_positions(panels[4], way, end)
    draw_prompt(panels[5], way)
    for panel, (name, shape) in zip(panels, steps(way), strict=True):
        panel.set_ylabel(f"{name}\n{shape}", rotation=0, ha="right", va="center", fontsize=9)
        panel.set_yticks([])
    panels[4].set_xlabel("seconds")
    return figure


def show(panel, array: np.ndarray, end: float) -> None:
    low, high = np.percentile(array, [2, 98])
    panel.imshow(array, aspect="auto", origin="lower", extent=(0, end, 0, len(array)), vmin=low, vmax=high)
    panel.set_xticks([])


def draw_positions(panel, way: ClipWay, end: float) -> None:
    """Each kept position as a column of its values, at its time in the clip."""
    width = 0.03
    low, high = np.percentile(way.positions, [2, 98])
    for column, at in zip(way.positions.T, way.kept_seconds, strict=True):
        extent = (at - width, at + width, 0, SHOWN_WIDTH)
        panel.imshow(column[:SHOWN_WIDTH, None], aspect="auto", origin="lower", extent=extent, vmin=low, vmax=high)
    panel.set(xlim=(0, end), ylim=(0, SHOWN_WIDTH))


def draw_prompt(panel, way: ClipWay) -> None:
    """The prompt as a row of cells: tokens of text, positions of the clip, tokens of text, and the answer."""
    before, behind = way.prompt_tokens
    count = way.positions.shape[1]
    colors = ["tab:gray"] * before + ["tab:orange"] * count + ["tab:gray"] * behind
    panel.bar(range(len(colors)), 1, width=0.9, color=colors)
    panel.set(xlim=(-1, len(colors)), ylim=(0, 1), xticks=[])
    panel.set_xlabel(f"gray: text, orange: the clip    LLM: {way.answer}", parse_math=False)


def save(figure, path) -> None:
    """As a PNG of 128 colors, which is a fifth of the size."""
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=100, format="png")
    Image.open(drawn).convert("RGB").quantize(128).save(path, optimize=True)


def main(arguments=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", default=ROOT / "weights/soundwave-small")
    parser.add_argument("--clip", default=CLIP)
    parser.add_argument("--output", default=ROOT / "docs/images/clip.png")
    given = parser.parse_args(arguments)
    model, processor = load_adapter(given.adapter)
    way = follow_clip(given.clip, model, processor)
    save(draw(way), given.output)
    print("\n".join(f"{name}: {shape}".replace("\n", " ") for name, shape in steps(way)))


if __name__ == "__main__":
    main()
