"""python benchmarks/live.py [--adapter weights/soundwave-small] [--set librivox] [--clips 20] [--threads 2]

How far live text is behind the audio, and what live transcription costs in accuracy. The clips of a validation set,
with a second of silence behind each, are one stream, which comes at the speed of speech. It prints one Markdown row:

- partial: age of the oldest audio that the CTC head had not heard, when it has heard it (median, 95 %, most);
- new audio: what one pass of the CTC head waited for, a part of this age that no machine can shorten (median);
- CTC pass: wall clock of one pass (median, 95 %, most);
- final: time from the end of a segment to its final text (the same three);
- CPU s: time of all threads of the process, for each second of audio, the LLM included;
- WER of the final texts, and of `transcribe_clips` for the same stream as a file, in pieces as long as live segments.

Times are those of the wall clock: other work on the machine makes them longer.
"""

import argparse
import time
from dataclasses import dataclass, field

import numpy as np
import torch

from soundwave_hf import StreamingTranscriber, transcribe_clips
from soundwave_hf.evaluation.evaluate import SETS, read_set
from soundwave_hf.evaluation.metrics import word_error_rate
from soundwave_hf.evaluation.shipped import ADAPTER, load_adapter
from soundwave_hf.live import LONGEST_SECONDS
from soundwave_hf.transcripts import Segment


BLOCK_SECONDS = 0.1  # least audio that is handed on at once
PAUSE_SECONDS = 1.0  # of silence behind each clip


@dataclass
class Measured:
    """What happened in a stream; all in seconds."""

    partial: list[float] = field(default_factory=list)
    new_audio: list[float] = field(default_factory=list)
    passes: list[float] = field(default_factory=list)
    final: list[float] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    cpu_seconds: float = 0.0

    def add(self, events, moment: float):
        for event in events:
            if isinstance(event, Segment):
                self.texts.append(event.text)
                self.final.append(moment - event.end)


class Watched(StreamingTranscriber):
    """Notes up to where the CTC head has heard, and how long its passes take."""

    heard = 0.0  # seconds of the stream
    last_pass = 0.0  # seconds

    def _ctc(self):
        self.heard = (self._start + len(self._waiting)) / self.rate
        begin = time.perf_counter()
        found = super()._ctc()
        self.last_pass = time.perf_counter() - begin
        return found


def play(transcriber: Watched, samples: np.ndarray) -> Measured:
    """Hand on a stream `(samples,)` at the speed of speech."""
    measured, place, heard, rate = Measured(), 0, 0.0, transcriber.sampling_rate
    begin, cpu_begin = time.perf_counter(), time.process_time()
    while place < len(samples):
        time.sleep(max(0.0, begin + place / rate + BLOCK_SECONDS - time.perf_counter()))
        come = min(round((time.perf_counter() - begin) * rate), len(samples))
        events = transcriber.feed(samples[place:come])
        place, moment = come, time.perf_counter() - begin
        measured.add(events, moment)
        if transcriber.heard > heard:
            measured.partial.append(moment - heard)
            measured.new_audio.append(transcriber.heard - heard)
            measured.passes.append(transcriber.last_pass)
            heard = transcriber.heard
    measured.add(transcriber.finish(), time.perf_counter() - begin)
    measured.cpu_seconds = time.process_time() - cpu_begin
    return measured


def stream_of(rows: list[dict], processor) -> np.ndarray:
    """The clips of a set, with silence behind each: `(samples,)` at the encoder's rate."""
    rate = processor.feature_extractor.sampling_rate
    pause = np.zeros(round(PAUSE_SECONDS * rate), np.float32)
    return np.concatenate([part for row in rows for part in (processor.load_clips([row["audio"]])[0], pause)])


def report(name: str, seconds: float, measured: Measured, live_wer: float, file_wer: float) -> str:
    """A Markdown table of one row."""
    partial, passes, final = (
        " / ".join(f"{np.quantile(values, share):.2f}" for share in (0.5, 0.95, 1))
        for values in (measured.partial, measured.passes, measured.final)
    )
    cells = (
        *(name, f"{seconds:.0f}", partial, f"{np.median(measured.new_audio):.2f}", passes, final),
        *(f"{measured.cpu_seconds / seconds:.2f}", f"{100 * live_wer:.1f}", f"{100 * file_wer:.1f}"),
    )
    columns = (
        *("stream", "seconds", "partial text behind, s", "new audio, s", "CTC pass, s", "final text behind, s"),
        *("CPU s a second", "WER % live", "WER % file"),
    )
    return f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|\n| {' | '.join(cells)} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", default=str(ADAPTER))
    parser.add_argument("--set", choices=SETS, default="librivox")
    parser.add_argument("--clips", type=int, help="the first of the set; default: all")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ctc-only", action="store_true", help="final text by the CTC head too: its CPU time alone")
    parser.add_argument("--partial-seconds", type=float, default=0.5)
    parser.add_argument("--pause-seconds", type=float, default=0.8)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = read_set(arguments.set)[: arguments.clips]
    model, processor = load_adapter(arguments.adapter)
    samples = stream_of(rows, processor)
    rate = processor.feature_extractor.sampling_rate
    given = {"partial_seconds": arguments.partial_seconds, "pause_seconds": arguments.pause_seconds}
    given["ctc_only"] = arguments.ctc_only
    play(Watched(model, processor, rate, **given), samples[: 3 * rate])  # warms up
    measured = play(Watched(model, processor, rate, **given), samples)
    reference = [" ".join(row["text"] for row in rows)]
    clip = {"array": samples, "sampling_rate": rate}
    (file,) = transcribe_clips(
        model,
        processor,
        [clip],
        chunk_length_s=LONGEST_SECONDS,
        ctc_only=arguments.ctc_only,
        generate=None if arguments.ctc_only else {"num_beams": 1},
    )
    wers = [word_error_rate(reference, [text]) for text in (" ".join(measured.texts), file.text)]
    print(f"{arguments.threads} threads, torch {torch.__version__}")
    print(report(arguments.set, len(samples) / rate, measured, *wers))


if __name__ == "__main__":
    main()
