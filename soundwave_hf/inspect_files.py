"""`soundwave-hf inspect`: a picture of what a model finds in a recording, as PNG."""

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from .audio_files import STANDARD_INPUT, AudioFile, find_audio
from .picture import ClipPicture, check_matplotlib, describe_peaks, look_at_clip, save_picture
from .transcribe import CLIP_ERRORS
from .transcribe_files import Job, Weights, check_folder, clip_of, message_of, plan_jobs, refuse_collisions, warn


OTHER_PICTURES = (".jpg", ".jpeg", ".gif", ".webp", ".svg", ".pdf", ".eps", ".ps", ".tif", ".tiff", ".bmp")


def inspect_files(
    inputs: Sequence[str],
    *,
    output: str | os.PathLike | None = None,
    force: bool = False,
    start: float | None = None,
    end: float | None = None,
    **weights,
) -> int:
    """Draw recordings of any length. A long one is drawn in strips. Returns: how many could not be drawn.

    If a file cannot be drawn, its name and the reason go to standard error, and the others are drawn.

    Args:
        inputs: files, folders, patterns; `-` is standard input.
        output: for one file a name that ends in `.png`; else a folder, by default the current one.
        force: overwrite files.
        start, end: seconds of the file; only this part is given to the model. By default the whole file.
        weights: fields of `transcribe_files.Weights`; by default the shipped ones.

    Raises: `ValueError` and `OSError` for bad options, inputs and outputs, before a model is loaded.
    """
    check_matplotlib()
    check_part(start, end)
    files = find_audio(inputs)
    jobs = plan_pictures(files, output)
    refuse_existing(jobs, force)
    model, processor = Weights(**weights).load(ctc_only=True)
    failed = 0
    for job in jobs:
        try:
            picture = picture_of(job, processor, model, start, end)
        except CLIP_ERRORS as error:
            failed += 1
            warn(message_of(error, job.audio.path), "inspect")
            continue
        save_picture(picture, job.outputs["png"])
        print(f"{picture.title}\n{describe_peaks(picture)}\nThe picture is in {job.outputs['png']}.", flush=True)
    return failed


def check_part(start: float | None, end: float | None):
    for name, value in (("start", start), ("end", end)):
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise ValueError(f"`--{name}` is {value:g}; expected seconds from the start of the file, 0 or more.")
    if end is not None and end <= (start or 0):
        raise ValueError(f"`--end` is {end:g} s and the part begins at {start or 0:g} s: give a later `--end`.")


def plan_pictures(files: Sequence[AudioFile], output: str | os.PathLike | None) -> list[Job]:
    """A job for each file, with its PNG.

    Raises: `ValueError` if two pictures have the same path; `OSError` for a folder that cannot be written.
    """
    ending = "" if output is None else Path(output).suffix.lower()
    if ending in OTHER_PICTURES and not Path(output).is_dir():
        raise ValueError(
            f"`--output` is `{output}`, but pictures are PNG: give a name that ends in .png, or a folder."
        )
    if ending != ".png":
        return plan_jobs(files, ("png",), output or Path(), beside=False)
    if len(files) > 1:
        raise ValueError(f"`--output` is `{output}`, and there are {len(files)} files: give a folder.")
    check_folder(Path(output).parent)
    jobs = [Job(files[0], {"png": Path(output)})]
    refuse_collisions(jobs)
    return jobs


def refuse_existing(jobs: Sequence[Job], force: bool):
    """Raises: `FileExistsError` if a picture exists, without `force`; `IsADirectoryError` if it is a folder."""
    for path in (job.outputs["png"] for job in jobs):
        if path.is_dir():
            raise IsADirectoryError(f"`{path}` is a folder, and a picture of this name was to be written there.")
        if path.exists() and not force:
            raise FileExistsError(
                f"`{path}` exists: `--force` overwrites it, `--output` writes to another file or folder."
            )


def picture_of(job: Job, processor, model, start: float | None, end: float | None) -> ClipPicture:
    """The picture of one recording, or of a part of it.

    Raises: `ValueError` if the recording ends before the part, and what reading a recording raises.
    """
    name = "Standard input" if job.audio.path == STANDARD_INPUT else Path(job.audio.path).name
    clip = clip_of(job, rate=None)
    if isinstance(clip, Exception):
        raise clip
    rate = processor.feature_extractor.sampling_rate
    (samples,) = processor.load_clips([clip])
    seconds = len(samples) / rate
    for option, value in (("start", start), ("end", end)):
        if value is not None and (value > seconds or value == start == seconds):
            raise ValueError(f"It has {seconds:.2f} s, and `--{option}` is {value:g}: give a time within the file.")
    begin, stop = start or 0.0, seconds if end is None else end
    part = {"array": samples[round(begin * rate) : round(stop * rate)], "sampling_rate": rate}
    title = f"{name}, {begin:.2f} to {stop:.2f} s" if (start, end) != (None, None) else f"{name}, {seconds:.2f} s"
    try:
        return replace(look_at_clip(part, processor, model, title), begin=begin)
    except ValueError as error:
        raise ValueError(str(error).replace("audio[0]", "The part")) from error


__all__ = ["inspect_files"]
