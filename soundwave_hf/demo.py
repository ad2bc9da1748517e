"""The demo: the shipped weights transcribe human speech they never heard, then answer questions about speech."""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from .evaluation.evaluate import Transcripts, ask, read_clips, read_set
from .evaluation.metrics import positions_per_second, word_error_rate
from .evaluation.shipped import ENCODER, EXAMPLES, LLM, load_adapter, load_processor
from .paths import one_or_more
from .processing.processing_soundwave import ASR_QUESTION
from .transcribe import transcribe_clips


CLIP_QUESTION = "What is the last word?"
LONGEST_SECONDS = 20.0  # of the clips that the shipped adapters were trained on
PIECE_SECONDS = 10.0  # of a longer file


def run_demo(audio_paths: str | os.PathLike | Sequence[str | os.PathLike] = (), **placing):
    """Transcribe the given files and the LibriVox clips that ship with the repository; then ask two questions.

    Args: placing: `device` and `dtype` of the model, as in `load_adapter`.

    Raises: FileNotFoundError where a given file is missing, ValueError where it holds no usable audio.
    """
    given = file_rows(one_or_more(audio_paths))
    model, processor = load_shipped(**placing)
    for row in given:
        show = show_transcript if row["seconds"] <= LONGEST_SECONDS else show_long_transcript
        show(model, processor, row)
    rows = read_set("librivox")
    print(f"\n{len(rows)} clips of audiobooks read by humans (LibriVox), never trained on:")
    found = [show_transcript(model, processor, row) for row in rows]
    show_scores(rows, found)
    print("\nA question about a clip:")
    show_answer(model, processor, rows[-1], CLIP_QUESTION)
    print("\nA spoken question, no text with it:")
    for clip in read_clips(EXAMPLES):
        show_answer(model, processor, clip, question="")


def file_rows(paths: Sequence[str]) -> list[dict]:
    """Rows of a user's own audio files, read and checked before any model is loaded: length, no text to compare with.

    Raises: FileNotFoundError where a file is missing, ValueError where it holds no clip that the model can take.
    """
    for path in paths:  # before the download of the backbones, without which nothing reads a clip
        if not Path(path).is_file():
            raise FileNotFoundError(f"There is no audio file `{path}`.")
    return check_files(load_processor(), paths) if paths else []


def check_files(processor, paths: Sequence[str]) -> list[dict]:
    """Rows of audio files that the processor takes.

    Raises: ValueError with its reason where it does not take one.
    """
    clips = processor.load_clips(list(paths))
    rate = processor.feature_extractor.sampling_rate
    return [{"audio": path, "seconds": len(samples) / rate} for path, samples in zip(paths, clips, strict=True)]


def load_shipped(**placing):
    """The shipped adapters on their backbones. Prints what is being loaded."""
    print(f"Loading {ENCODER}, {LLM} and the adapters that join them ...", flush=True)
    start = time.perf_counter()
    model, processor = load_adapter(**placing)
    adapters = (model.model.alignment_adapter, model.model.shrinking_adapter)
    size = sum(parameter.numel() for adapter in adapters for parameter in adapter.parameters())
    print(f"Loaded in {time.perf_counter() - start:.1f} s; the two adapters have {size / 1e6:.1f}M parameters.")
    return model, processor


def show_transcript(model, processor, row: dict) -> Transcripts:
    """Transcribe one clip and print its transcript, with the reference where the row has one."""
    found = ask(model, processor, [row["audio"]], ASR_QUESTION)
    print(
        f"\n{Path(row['audio']).name}: {row['seconds']:.1f} s of speech, {found.num_positions[0]} LLM positions, "
        f"{found.seconds_taken:.1f} s taken"
    )
    print(f"  transcript  {found.texts[0]}", flush=True)
    if "text" in row:
        print(f"  reference   {row['text']}", flush=True)
    return found


def show_long_transcript(model, processor, row: dict):
    """Transcribe a long file piece by piece and print its transcript."""
    start = time.perf_counter()
    (found,) = transcribe_clips(model, processor, [row["audio"]], batch_size=4, chunk_length_s=PIECE_SECONDS)
    print(
        f"\n{Path(row['audio']).name}: {row['seconds']:.1f} s of speech in pieces of up to {PIECE_SECONDS:g} s, "
        f"{time.perf_counter() - start:.1f} s taken"
    )
    print(f"  transcript  {found.text}", flush=True)


def show_scores(rows: Sequence[dict], found: Sequence[Transcripts]):
    """Scores over the clips, by the functions that `soundwave-hf evaluate` uses."""
    seconds = [row["seconds"] for row in rows]
    wer = word_error_rate([row["text"] for row in rows], [one.texts[0] for one in found])
    positions = positions_per_second([one.num_positions[0] for one in found], seconds)
    taken = sum(one.seconds_taken for one in found)
    print(
        f"\nWord error rate {100 * wer:.1f} % over {len(rows)} clips, {positions:.2f} LLM positions a second of "
        f"speech, {taken:.1f} s taken for {sum(seconds):.1f} s of speech."
    )


def show_answer(model, processor, clip: dict, question: str):
    """Ask a question about a clip, or let the clip itself ask, and print the answer."""
    found = ask(model, processor, [clip["audio"]], question)
    print(f"\n{Path(clip['audio']).name}: {found.seconds_taken:.1f} s taken")
    print(f"  spoken      {clip['text']}")
    if question:
        print(f"  question    {question}")
    print(f"  answer      {found.texts[0]}", flush=True)


sys.modules[f"{__name__}.run"] = sys.modules[__name__]  # its name in 0.1.0 goes on working
