"""What a user sees of a run: its pace, a warning if CTC collapses, and a plot of the losses."""

import os
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec

from transformers import TrainerCallback
from transformers.utils import logging

from ..atomic import atomic_file
from ..picture import new_figure


logger = logging.get_logger(__name__)

LOGS_OF_COLLAPSE = 3  # in the first steps every CTC head says blank
STEPS_TIMED = 5
LOSSES = ("loss", "ce_loss", "ctc_loss", "eval_loss", "eval_ce_loss", "eval_ctc_loss")
SHARES = ("blank_share", "positions_per_second", "targets_per_frame")
RATES = ("learning_rate",)


class CollapseCallback(TrainerCallback):
    """Warns once if the CTC head says blank for nearly all frames in several logs in a row."""

    def __init__(self):
        self.logs = 0

    def on_log(self, args, state, control, logs=None, **kwargs):
        share = (logs or {}).get("blank_share")
        if share is None:
            return
        self.logs = self.logs + 1 if share >= args.max_blank_share else 0
        if self.logs == LOGS_OF_COLLAPSE and state.is_world_process_zero:
            logger.warning(
                f"Step {state.global_step}: {share:.1%} of the frames are blank in the last {LOGS_OF_COLLAPSE} logs "
                f"(`max_blank_share` {args.max_blank_share:g}): the CTC head has collapsed. Check that the "
                "transcripts belong to the clips; else lower `learning_rate`, or warm it up for longer."
            )


class PaceCallback(TrainerCallback):
    """Says once, after the first steps, how long the others will take."""

    def on_train_begin(self, args, state, control, **kwargs):
        self.first, self.since = state.global_step, None

    def on_step_end(self, args, state, control, **kwargs):
        done = state.global_step - self.first
        if done == 1:  # the first step starts workers and allocates memory: it is not timed
            self.since = time.perf_counter()
        if done == 1 + STEPS_TIMED and state.is_world_process_zero:
            seconds = (time.perf_counter() - self.since) / STEPS_TIMED
            left = state.max_steps - state.global_step
            print(
                f"{left} steps left, about {describe_duration(left * seconds)}: {seconds:.2g} s each, measured over "
                f"{STEPS_TIMED}.",
                flush=True,
            )


def describe_duration(seconds: float) -> str:
    """`42 s`, `7 min`, `3.5 h` or `10.4 days`."""
    for unit, length, digits in (("s", 1, 0), ("min", 60, 0), ("h", 3600, 1)):
        if seconds < 120 * length:
            return f"{seconds / length:.{digits}f} {unit}"
    return f"{seconds / 86400:.1f} days"


class PlotCallback(TrainerCallback):
    """Plots the logged losses and shares as `loss.png` in the output folder, at each save and at the end."""

    def __init__(self):
        self.says_missing = True

    def on_save(self, args, state, control, **kwargs):
        self._draw(args, state)

    def on_train_end(self, args, state, control, **kwargs):
        self._draw(args, state)

    def _draw(self, args, state):
        if not state.is_world_process_zero or not args.plot_loss:
            return
        if find_spec("matplotlib") is not None:
            plot_history(state.log_history, os.path.join(args.output_dir, "loss.png"))
        elif self.says_missing:
            self.says_missing = False
            logger.warning("No `loss.png`: it needs matplotlib, `pip install 'soundwave-hf[train]'`.")


def curves(history: Sequence[Mapping], names: tuple[str, ...]) -> dict[str, list[tuple[int, float]]]:
    """Steps and values of the metrics of these names; those that were never logged are left out."""
    found = {name: [(entry["step"], entry[name]) for entry in history if name in entry] for name in names}
    return {name: points for name, points in found.items() if points}


def plot_history(history: list[dict], path: str | os.PathLike):
    """A trainer's `log_history` -> PNG: losses on a logarithmic scale, the CTC head's shares, learning rate."""
    plot_histories({"": history}, path)


def plot_histories(histories: Mapping[str, Sequence[Mapping]], path: str | os.PathLike):
    """`plot_history` of several stages, by name, side by side. The same histories give the same bytes."""
    figure = new_figure(max(8, 5 * len(histories)), 9)
    grid = figure.subplots(3, len(histories), sharex="col", squeeze=False)
    for column, (stage, history) in enumerate(histories.items()):
        panels = grid[:, column]
        for panel, names in zip(panels, (LOSSES, SHARES, RATES), strict=True):
            for name, points in curves(history, names).items():
                panel.plot(*zip(*points, strict=True), label=name, linewidth=1)
            if panel.has_data():
                panel.legend()
            panel.grid(alpha=0.3)
        if any(value > 0 for points in curves(history, LOSSES).values() for _, value in points):
            panels[0].set_yscale("log")
        panels[0].set_title(stage, parse_math=False)
        panels[-1].set_xlabel("step")
    for panel, label in zip(grid[:, 0], ("loss, nats", "CTC head", "learning rate"), strict=True):
        panel.set_ylabel(label)
    with atomic_file(path) as part:
        figure.savefig(part, dpi=120, format="png", metadata={"Software": None})


__all__ = [
    "CollapseCallback",
    "PaceCallback",
    "PlotCallback",
    "curves",
    "describe_duration",
    "plot_histories",
    "plot_history",
]
