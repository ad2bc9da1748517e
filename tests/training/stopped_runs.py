"""Runs of recipes, each in a process of its own, that are stopped from outside and from inside.

`python -m tests.training.stopped_runs JSON`: a list of `[recipe file, how, steps]`. Each is forked from one process,
which has imported everything once, and its exit code and what it wrote to stderr are printed as JSON.
"""

import functools
import json
import os
import resource
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import TrainerCallback, TrainerState

from soundwave_hf import cli
from soundwave_hf.training import run


class Steps(TrainerCallback):
    """Tells the parent of each step, and breaks the run in the way asked for as soon as `steps` are done."""

    def __init__(self, pipe: int, how: str, steps: int):
        self.pipe, self.how, self.steps = pipe, how, steps

    def on_step_end(self, args, state, control, **kwargs):
        os.write(self.pipe, b".")
        if state.global_step == self.steps:
            if self.how == "interrupted_twice":
                time.sleep(60)  # a step that does not end
            if self.how == "killed_in_optimizer":
                torch.save = write_half(torch.save)
            if self.how == "killed_in_state":
                TrainerState.save_to_json = write_half(TrainerState.save_to_json)
            if self.how.startswith("full_at_"):
                # A file of what the last checkpoint holds no longer fits.
                size = next(Path(args.output_dir).glob(f"checkpoint-*/{self.how.removeprefix('full_at_')}*"))
                limit = size.stat().st_size // 2
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def write_half(write):
    """A function that writes a file, given last -> one that writes half of it and is killed there."""

    def written(*arguments):
        write(*arguments)
        path = Path(arguments[-1])
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        os.kill(os.getpid(), signal.SIGKILL)

    return written


def train(recipe: str, pipe: int, how: str, steps: int):
    """Run a recipe as the command does, and end the process with its exit code."""
    make = run.trainer_class

    def watched(stage):
        return functools.partial(make(stage), callbacks=[Steps(pipe, how, steps)])

    run.trainer_class = watched
    try:
        code = cli.main(["train", recipe])
    except SystemExit as exit:
        code = exit.code
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run_and_stop(recipe: str, how: str, steps: int) -> tuple[int, str]:
    """Returns the exit code, negative after a signal, and what was written to stderr."""
    read, write = os.pipe()
    with tempfile.TemporaryFile("w+") as errors:
        if (child := os.fork()) == 0:
            os.dup2(errors.fileno(), sys.stdout.fileno())
            os.dup2(errors.fileno(), sys.stderr.fileno())
            train(recipe, write, how, steps)
        os.close(write)
        done = 0
        while done < steps and os.read(read, 1):
            done += 1
        if how == "killed":
            time.sleep(0.1)  # into the next step, its checkpoint or the one after
            os.kill(child, signal.SIGKILL)
        if how == "terminated":
            os.kill(child, signal.SIGTERM)
        if how.startswith("interrupted"):
            os.kill(child, signal.SIGINT)
        if how == "interrupted_twice":
            time.sleep(0.05)
            os.kill(child, signal.SIGINT)
        _, status = os.waitpid(child, 0)
        os.close(read)
        errors.seek(0)
        return os.waitstatus_to_exitcode(status), errors.read()


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps([run_and_stop(*each) for each in json.loads(sys.argv[1])]))
