"""Push a run's folder to the Hub, at saves as `hub_strategy` says, and at the end. A failing hub stops no training."""

from concurrent.futures import Future
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.utils import HFValidationError, validate_repo_id
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy
from transformers.utils import logging

from ..data.check import SKIPPED_CLIPS
from ..modeling.folders_soundwave import LORA_CONFIG, has_whole_weights, read_json, refuse_other_kind_on_hub
from ..secret_values import first_line
from .arguments import SoundwaveTrainingArguments
from .checkpoints import last_checkpoint


logger = logging.get_logger(__name__)

# Not pushed: states of training, and what holds paths of this machine: pickled arguments, names of bad clips.
LEFT_OUT = [f"{PREFIX_CHECKPOINT_DIR}-*", ".*", "_*", "training_args.bin", SKIPPED_CLIPS]
STATES = ["optimizer*", "scheduler*", "scaler*", "rng_state*", "stream_state*", "trainer_state.json"]


def repository_of(arguments: SoundwaveTrainingArguments) -> str:
    """`hub_model_id`, or the name of the output folder in the account of the logged-in user.

    Raises: `ValueError` if no repository can have this name.
    """
    name = arguments.hub_model_id or Path(arguments.output_dir).absolute().name
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(f"`hub_model_id` is {name!r}: {error}") from error
    return name


class HubPush(TrainerCallback):
    """Pushes a run. A failure before the end is a warning; at the end it is an error, and the weights are on disk.

    `Trainer` would end the run if the hub does not answer before the first step, does not push adapters of stage
    `align`, and ignores a push that failed.

    Args: arguments: of a run with `push_to_hub`.
    """

    def __init__(self, arguments: SoundwaveTrainingArguments):
        self.arguments = arguments
        self.name = repository_of(arguments)
        self.api = HfApi(library_name="soundwave-hf")
        self._pending: list[Future] = []

    def open(self) -> str:
        """The full name of the repository, which is created if it is missing."""
        arguments = self.arguments
        return self.api.create_repo(self.name, private=arguments.hub_private_repo, exist_ok=True).repo_id

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self._try(self.open, "the run goes on, and tries again at its end")

    def on_save(self, args, state, control, **kwargs):
        strategy = HubStrategy(self.arguments.hub_strategy)
        if not state.is_world_process_zero or strategy == HubStrategy.END:
            return
        self._report_failures()
        if self._pending and not self.arguments.hub_always_push:
            return  # the previous push is not finished
        self._try(lambda: self._push_checkpoint(args.output_dir, state.global_step, strategy), "the run goes on")

    def _push_checkpoint(self, folder: str, step: int, strategy: HubStrategy):
        checkpoint, name = last_checkpoint(folder), self.open()
        self._pending.append(self._upload(name, checkpoint, f"Step {step}", ignore=STATES))
        if strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            place = "last-checkpoint" if strategy == HubStrategy.CHECKPOINT else Path(checkpoint).name
            self._pending.append(self._upload(name, checkpoint, f"Step {step}, checkpoint", place))

    def _upload(self, name: str, folder: str, message: str, place: str | None = None, ignore=(), wait: bool = False):
        if place is None:
            self._refuse_other_kind(name, folder)
        return self.api.upload_folder(
            repo_id=name,
            folder_path=folder,
            path_in_repo=place,
            commit_message=message,
            revision=self.arguments.hub_revision,
            ignore_patterns=[*LEFT_OUT, *ignore],
            run_as_future=not wait,
        )

    def _refuse_other_kind(self, name: str, folder: str):
        """Raise `FileExistsError` if the repository holds a model with which loading would mix that of the folder."""
        base = read_json(folder, LORA_CONFIG).get("base_model_name_or_path")
        bases = None if has_whole_weights(folder) else [base]
        refuse_other_kind_on_hub(self.api, name, bases, self.arguments.hub_revision)

    def _report_failures(self):
        done = [future for future in self._pending if future.done()]
        self._pending = [future for future in self._pending if not future.done()]
        for future in done:
            self._try(future.result, "the run goes on")

    def _try(self, call, then: str):
        try:
            call()
        except Exception as error:  # the hub's client raises errors of several libraries
            logger.warning(f"`{self.name}` could not be pushed to the hub ({first_line(error)}): {then}.")

    def finish(self) -> str:
        """Push the output folder and wait for it. Returns the address.

        Raises: `ConnectionError` if that fails.
        """
        folder = self.arguments.output_dir
        try:
            for future in self._pending:
                future.exception()  # a push before the last one may have failed
            name = self.open()
            self._upload(name, folder, "End of training", wait=True)
        except Exception as error:
            raise ConnectionError(
                f"The run is finished and its weights are safe in `{folder}`, but `{self.name}` could not be pushed "
                f"to the hub: {first_line(error)}. Check `hf auth whoami` and the connection; the same command pushes "
                "again without training."
            ) from error
        address = f"{self.api.endpoint}/{name}"
        print(f"Pushed to {address}.", flush=True)
        return address


__all__ = ["HubPush", "repository_of"]
