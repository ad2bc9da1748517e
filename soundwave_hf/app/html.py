"""Parts of the page as HTML. Whatever a model or a user wrote is escaped."""

import base64
import io
from html import escape

from ..picture import DOTS_PER_INCH, ClipPicture, describe_peaks, draw_clip
from ..transcripts import Segment, Transcript, Word, one_line, spaced
from .speech import MOST_TOKENS, LiveTalk, Saved


CSS = """
.words { line-height: 2.4; overflow-wrap: anywhere; }
button.word { font: inherit; color: inherit; background: none; border: none; border-bottom: 1px dotted currentColor;
  padding: 0.2rem 0.1rem; min-width: 1.5rem; min-height: 1.5rem; cursor: pointer; }
button.word:hover, button.word:focus-visible { background: #fde68a; color: #111827; outline: 2px solid #b45309; }
.picture { overflow-x: auto; max-width: 100%; }
.picture img { min-width: 56rem; width: 100%; height: auto; }
.peaks { overflow-wrap: anywhere; white-space: pre-wrap; }
.partial { font-style: italic; }
#transcribe, #ask { background: #9a3412; color: #ffffff; }
body:not(.dark) .info-text { color: #52525b; }
h1 { font-size: 1.6rem; font-weight: 600; } h2 { font-size: 1.2rem; font-weight: 600; }
"""

# Runs once when the page is there. A word's button works by click, Enter and Space.
SCRIPT = """
() => {
  document.documentElement.lang = "en";
  for (const id of ["transcript", "live"]) {
    const region = document.getElementById(id);
    if (region) { region.setAttribute("aria-live", "polite"); region.setAttribute("role", "status"); }
  }
  document.addEventListener("click", (event) => {
    const word = event.target.closest("button.word");
    const audio = document.querySelector("#clip audio");
    if (!word || !audio) return;
    audio.currentTime = Number(word.dataset.start);
    audio.play();
  });
}
"""


def text_html(text: str) -> str:
    return f"<p class='words'>{escape(text)}</p>"


def transcript_html(transcript: Transcript) -> str:
    """The words, each with times as a button that plays the clip from there; and which texts were cut off."""
    if not transcript.text:
        return "<p>No speech was found.</p>"
    lines = "".join(f"<p class='words'>{_words_html(segment)}</p>" for segment in transcript.segments if segment.text)
    return lines + "".join(_cut_off(segment) for segment in transcript.segments if not segment.finished)


def _words_html(segment: Segment) -> str:
    if not segment.words:
        return escape(one_line(segment.text))
    return "".join(_word_html(word, text) for word, text in zip(segment.words, spaced(segment), strict=True))


def _word_html(word: Word, text: str) -> str:
    shown = escape(text.strip())
    space = " " if text[:1].isspace() else ""
    if word.start is None:
        return f"{space}<span title='not aligned with the sound'>{shown}</span>"
    times = f"{word.start:.2f} to {word.end:.2f} s"
    return f"{space}<button type='button' class='word' data-start='{word.start}' title='{times}'>{shown}</button>"


def _cut_off(segment: Segment) -> str:
    times = f"{segment.start:.1f} to {segment.end:.1f} s"
    return f"<p>The text from {times} did not end within {MOST_TOKENS} tokens. The rest is missing.</p>"


def facts_html(seconds: float, taken: float, place: str, saved: Saved | None = None) -> str:
    """Device, timing and positions. Args: seconds: of the clip; taken: seconds; saved: when it is known."""
    lines = [f"{seconds:.1f} s of sound were transcribed in {taken:.1f} s on {place}."]
    if saved is not None:
        left_out = saved.whisper_frames - saved.positions
        lines.append(
            f"The LLM reads <strong>{saved.positions:,} positions</strong>, {saved.positions / saved.seconds:.1f} a "
            f"second. Whisper's decoder reads {saved.whisper_frames:,} encoder frames for this clip, which Whisper "
            f"pads to {saved.window_seconds:g} s: {left_out:,} positions are saved "
            f"({100 * left_out / saved.whisper_frames:.1f} %). Without padding, the encoder has "
            f"{saved.unpadded_frames:,} frames of the clip."
        )
    return "".join(f"<p>{line}</p>" for line in lines)


def answer_html(taken: float, place: str, finished: bool) -> str:
    """Timing of an answer, and whether it was cut off. Args: taken: seconds."""
    note = "" if finished else f" The answer did not end within {MOST_TOKENS} tokens for each window of the encoder."
    return f"<p>The answer took {taken:.1f} s on {place}.{note}</p>"


def picture_html(picture: ClipPicture) -> str:
    """The picture of a clip, with its peaks as text for those who do not see it."""
    buffer = io.BytesIO()
    draw_clip(picture).savefig(buffer, dpi=DOTS_PER_INCH, format="png")
    source = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    count = f"{len(picture.peaks)} CTC peaks and {len(picture.kept_seconds)} positions of the LLM"
    peaks = escape(describe_peaks(picture))
    alt = f"Waveform and spectrogram of {picture.clip_seconds:.1f} s with {count}; the same as text below."
    return (
        "<h2>What the model finds</h2>"
        f"<div class='picture' role='region' aria-label='Picture of the clip' tabindex='0'>"
        f"<img src='{source}' alt='{alt}'></div>"
        f"<details><summary>CTC peaks as text</summary><p class='peaks'>{peaks}</p></details>"
    )


def live_html(talk: LiveTalk | None) -> str:
    """Final text of the microphone, then the partial text of the last words; and which texts were cut off."""
    if talk is None:
        return ""
    note = f"<p>The limit of {talk.max_seconds:g} s is reached: later sound is left out.</p>" if talk.is_full else ""
    partial = f" <span class='partial'>{escape(talk.partial)}</span>" if talk.partial else ""
    cut = "".join(_cut_off(segment) for segment in talk.final if not segment.finished)
    return f"<p class='words'>{escape(talk.text)}{partial}</p>{cut}{note}"


__all__ = ["CSS", "SCRIPT", "answer_html", "facts_html", "live_html", "picture_html", "text_html", "transcript_html"]
