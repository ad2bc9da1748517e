"""python benchmarks/ctc.py [--batch 4 --frames 375 --vocabulary 128256 --width 1024 --targets 60 --repeats 3]

Peak memory and time of one CTC loss and its backward: the plain way, `log_softmax` of all scores and
`torch.nn.functional.ctc_loss`, against `large_vocabulary_ctc`, with a frozen head (its rows are the LLM's embeddings)
and with one that trains. It prints one Markdown table; the ratios are ours over the plain way's.

Each run is a process of its own, and runs of the two ways alternate, so that other work on the machine meets both
alike: the medians of a row are over its runs, its ratios are medians over pairs of neighbours. Where that work is
much, the CPU seconds (of all threads) say more than the seconds. Memory is the growth
of the process's resident memory, at its highest, over what was there when frames, head and targets were made (Linux:
`VmHWM`, set back just before), so it counts all that torch and its libraries hold for loss and gradients; on CUDA it
is the growth of torch's own allocator. The head's gradient, which both ways make and neither can do without, is taken
off both.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import nn

from soundwave_hf.modeling.ctc_soundwave import large_vocabulary_ctc


WAYS, HEADS = ("plain", "ours"), ("frozen", "trained")
MEBIBYTE = 2**20
BLANK = 0


def plain_losses(frames, lengths, weight, targets) -> torch.Tensor:
    """CTC losses `(clips,)` from a score for every frame and token."""
    log_probs = (frames @ weight.T).log_softmax(dim=-1, dtype=torch.float32).transpose(0, 1)
    target_lengths = torch.full_like(lengths, targets.shape[1])
    return nn.functional.ctc_loss(log_probs, targets, lengths, target_lengths, BLANK, reduction="none")


def our_losses(frames, lengths, weight, targets) -> torch.Tensor:
    """The same from `large_vocabulary_ctc`."""
    return large_vocabulary_ctc(frames, lengths, weight, BLANK, targets=targets).losses


def make_problem(sizes: argparse.Namespace, trained: bool):
    """Frames of unit variance, rows of about unit norm, targets; all clips have all frames."""
    torch.manual_seed(0)
    options = {"device": sizes.device, "dtype": getattr(torch, sizes.dtype)}
    frames = torch.randn(sizes.batch, sizes.frames, sizes.width, **options).requires_grad_()
    weight = torch.randn(sizes.vocabulary, sizes.width, **options).mul_(sizes.width**-0.5).requires_grad_(trained)
    lengths = torch.full((sizes.batch,), sizes.frames, device=sizes.device)
    targets = torch.randint(1, sizes.vocabulary, (sizes.batch, sizes.targets), device=sizes.device)
    return frames, lengths, weight, targets


class Memory:
    """Growth of memory in use, at its highest, in bytes, since this was made."""

    def __init__(self, device: str):
        self.on_cuda = device.startswith("cuda")
        if self.on_cuda:
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back to what is resident now
            self.before = self._resident("VmRSS")

    def growth(self) -> int:
        return (torch.cuda.max_memory_allocated() if self.on_cuda else self._resident("VmHWM")) - self.before

    @staticmethod
    def _resident(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))


def measure(sizes: argparse.Namespace, way: str, head: str) -> dict[str, float]:
    """Mebibytes, seconds, CPU seconds and loss of one loss and backward, in this process."""
    losses = {"plain": plain_losses, "ours": our_losses}[way]
    small = argparse.Namespace(**{**vars(sizes), "frames": 8, "vocabulary": 64, "targets": 2})
    losses(*make_problem(small, head == "trained")).sum().backward()  # starts threads and libraries
    frames, lengths, weight, targets = make_problem(sizes, head == "trained")
    memory, start, cpu_start = Memory(sizes.device), time.perf_counter(), time.process_time()
    loss = losses(frames, lengths, weight, targets).sum()
    loss.backward()
    found = loss.item()  # waits for the device
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    of_head = weight.grad.numel() * weight.grad.element_size() if head == "trained" else 0
    mebibytes = (memory.growth() - of_head) / MEBIBYTE
    return {"mebibytes": mebibytes, "seconds": seconds, "cpu_seconds": cpu_seconds, "loss": found}


def measure_apart(arguments: list[str], way: str, head: str) -> dict[str, float]:
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, *arguments, "--alone", way, head]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def row(head: str, pairs: list[dict[str, dict[str, float]]]) -> str:
    """One line of the table, from runs of both ways."""
    cells = [head]
    for name, digits in (("mebibytes", 0), ("seconds", 2), ("cpu_seconds", 2)):
        cells += [f"{statistics.median(pair[way][name] for pair in pairs):,.{digits}f}" for way in WAYS]
        cells.append(f"{statistics.median(pair['ours'][name] / pair['plain'][name] for pair in pairs):.3f}")
    apart = max(abs(pair["ours"]["loss"] / pair["plain"]["loss"] - 1) for pair in pairs)
    return f"| {' | '.join([*cells, f'{apart:.1e}'])} |"


def main(arguments: list[str]):
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4, help="clips")
    parser.add_argument("--frames", type=int, default=375, help="frames a clip; 375 are 30 s")
    parser.add_argument("--vocabulary", type=int, default=128_256, help="tokens; 128,256 are Llama 3's")
    parser.add_argument("--width", type=int, default=1024, help="of frames and of the head's rows")
    parser.add_argument("--targets", type=int, default=60, help="tokens of a clip's transcript")
    parser.add_argument("--dtype", default="float32", help="of frames and head")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--repeats", type=int, default=3, help="pairs of runs a head")
    parser.add_argument("--alone", nargs=2, metavar=("WAY", "HEAD"), help="measure one run in this process, as JSON")
    sizes = parser.parse_args(arguments)
    if sizes.alone is not None:
        print(json.dumps(measure(sizes, *sizes.alone)))
        return
    print(
        f"{sizes.batch} clips x {sizes.frames} frames, vocabulary {sizes.vocabulary:,}, width {sizes.width}, "
        f"{sizes.targets} targets, {sizes.dtype} on {sizes.device}, {torch.get_num_threads()} threads, "
        f"medians of {sizes.repeats} pairs\n"
    )
    print(
        "| head | " + " | ".join(f"plain {u} | ours {u} | ratio" for u in ("MiB", "s", "CPU s")) + " | losses apart |"
    )
    print("|---" * 11 + "|")
    for head in HEADS:
        pairs = [{way: measure_apart(arguments, way, head) for way in WAYS} for _ in range(sizes.repeats)]
        print(row(head, pairs), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
