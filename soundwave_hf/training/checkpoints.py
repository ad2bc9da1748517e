"""Complete checkpoints, also when a run is killed, pre-empted or out of disk space."""

import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator
from safetensors import SafetensorError
from transformers import TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR


SIGNALS = (signal.SIGTERM, signal.SIGINT)


def last_checkpoint(folder: str | os.PathLike) -> str | None:
    """The newest complete checkpoint of a run."""
    whole = [path for path in Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*") if _is_whole(path)]
    return str(max(whole, key=lambda path: int(path.name.split("-")[-1]))) if whole else None


def _is_whole(checkpoint: Path) -> bool:
    # `Trainer` writes its own state last.
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


@contextmanager
def writing_checkpoint(checkpoint: str | os.PathLike) -> Iterator[None]:
    """If a checkpoint cannot be written completely, remove it and say which one is left.

    Raises: `OSError`, instead of what the writing libraries raise on a full disk.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if _is_whole(Path(checkpoint)):
            raise
        shutil.rmtree(checkpoint, ignore_errors=True)
        run = Path(checkpoint).parent
        last = last_checkpoint(run)
        kept = "there is none before it" if last is None else f"the last complete one is `{last}`"
        begins = "from the start" if last is None else "there"
        raise OSError(
            f"`{checkpoint}` could not be written and was removed; {kept}. {shutil.disk_usage(run).free / 1e6:.0f} MB "
            f"are free there: make room and start the run again; it continues {begins}. The error was: {error}"
        ) from error


class PreemptionCallback(TrainerCallback):
    """In its context, SIGTERM and Ctrl-C end a run after the current step, with a checkpoint.

    Then `stopped` is true and `exit_code` 143 or 130, as a shell says of a process that the signal ended. A second
    Ctrl-C stops at once.

    The library's `enable_jit_checkpoint` may save between the two halves of a step, whose random numbers are then
    gone: a resumed run would be another one. And it lets the run end as if it were complete.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.stopped = False
        self._signal: signal.Signals | None = None

    def __enter__(self) -> "PreemptionCallback":
        # Elsewhere than in the main thread Python does not allow signal handlers.
        self._takes = threading.current_thread() is threading.main_thread()
        self._process = os.getpid()
        if self._takes:
            self._before = {number: signal.signal(number, self._take) for number in SIGNALS}
        return self

    def __exit__(self, *error):
        if self._takes:
            for number, handler in self._before.items():
                signal.signal(number, handler)

    @property
    def signal_name(self) -> str:
        """The name of the signal; another process may have received it."""
        return "A signal" if self._signal is None else "Ctrl-C" if self._signal == signal.SIGINT else "SIGTERM"

    @property
    def exit_code(self) -> int:
        return 128 + (self._signal or signal.SIGTERM)

    def _take(self, number, frame):
        if os.getpid() != self._process:  # a data loader's worker: a terminal sends Ctrl-C to it too
            return
        if number == signal.SIGINT and self._signal == signal.SIGINT:
            raise KeyboardInterrupt
        self._signal = signal.Signals(number)
        if number == signal.SIGINT:
            # Not `print`: the signal may interrupt one.
            os.write(2, b"\nCtrl-C: a checkpoint is saved after this step; again stops at once.\n")

    def on_step_end(self, args, state, control, **kwargs):
        if self._any_signalled() and state.global_step < state.max_steps:
            self.stopped = True
            # Log too: a resumed run does not know the steps since the last log.
            control.should_log = control.should_save = control.should_training_stop = True

    def _any_signalled(self) -> bool:
        if self.accelerator.num_processes == 1:
            return self._signal is not None
        # Processes get the signal at different times, and all must stop after the same step.
        if self._signal is not None:
            self.accelerator.set_trigger()
        return self.accelerator.check_trigger()


__all__ = ["PreemptionCallback", "last_checkpoint", "writing_checkpoint"]
