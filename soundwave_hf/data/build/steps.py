"""The steps of a recipe: each says which rows it reads, and makes row `number` of its output from them.

A step's fields are the keys of the recipe. Row `number` depends only on the seed, the step's name, the number and the
rows that are read, so that any process may make it at any time.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from ..rows import clips_of
from .conversations import ORDINALS, QUESTIONS, splice_speakers
from .draws import NotBuilt, Shares, cycled, is_weight, row_random
from .grounding import with_word_times
from .labelled import KNOWN_COLUMNS, LabelledRows
from .sounds import splice_sound
from .spoken import Synthesizer, speak
from .tasks import FORMS, TASKS, label_of, pool_key, task_row, task_wordings


@dataclass
class Step(ABC):
    """What all steps have.

    Args:
        data: where the rows come from: any value of `data` in a training recipe.
        columns: `their_name: our_name`; our names are those of training and of labels.
        rows: how many to make; by default one for each row of the data. Rows are then taken in random order, each
            once before any comes again.
        task: name of the task in the rows, for a mixture; by default that of the row, or the step's name.
    """

    data: Any
    columns: dict = field(default_factory=dict)
    rows: int | None = None
    task: str | None = None
    name: str = field(default="", kw_only=True)
    seed: int = field(default=0, kw_only=True)

    needs: ClassVar[tuple[str, ...]] = ("audio", "text")  # columns of `data`
    makes: ClassVar[tuple[str, ...]] = ()  # columns of the output; empty for those of the data and `adds`
    adds: ClassVar[tuple[str, ...]] = ()
    paths: ClassVar[tuple[str, ...]] = ("data",)  # keys that name sources

    def __post_init__(self):
        if self.rows is not None and (not isinstance(self.rows, int) or isinstance(self.rows, bool) or self.rows < 1):
            raise ValueError(f"`rows` of step `{self.name}` is {self.rows!r}; give a whole number, 1 or more.")
        if self.task is not None and (not isinstance(self.task, str) or not self.task):
            raise ValueError(f"`task` of step `{self.name}` is {self.task!r}; give a name.")
        if self.data is None:
            raise ValueError(f"Step `{self.name}` has neither `data` nor `from`: say which rows it reads.")

    def open(self):
        """Open what the step reads, once in each process. Raises: the errors of `LabelledRows`."""
        self.opened.need(*self.needs)

    def load(self):  # noqa: B027 - most steps have nothing to load
        """Load a model, once in each process that makes rows."""

    @cached_property
    def opened(self) -> LabelledRows:
        return LabelledRows(self.data, self.columns, f"`data` of step `{self.name}`")

    @property
    def size(self) -> int:
        return len(self.opened) if self.rows is None else self.rows

    def place_of(self, number: int) -> int:
        """Which row of the data row `number` is made from."""
        return number if self.rows is None else cycled(len(self.opened), number, self.seed, self.name, "rows")

    def random(self, number: int):
        return row_random(self.seed, self.name, number)

    def row(self, number: int) -> dict:
        """Row `number` of the output. Raises: `NotBuilt`."""
        made = self.make(number, f"Row {self.place_of(number)} of {self.opened.what}")
        return {"task": self.name, **made, **({} if self.task is None else {"task": self.task})}

    @abstractmethod
    def make(self, number: int, name: str) -> dict:
        """Row `number`; errors call it `name`."""

    @property
    def output_columns(self) -> list[str]:
        names = self.makes or (*self.adds, *(name for name in self.opened.column_names if name in KNOWN_COLUMNS))
        return sorted({"task", *names})


@dataclass
class SoundsStep(Step):
    """`build: sounds`: a sound between two utterances.

    Args:
        sounds: a source of rows with `audio` and `label`; each comes once before any comes again.
        sound_columns: `their_name: our_name` of the sounds.
        add_tokens_to: an LLM, by hub name or folder. A copy of it with a token for each label is written.
    """

    sounds: Any = None
    sound_columns: dict = field(default_factory=dict)
    add_tokens_to: str | None = None

    makes = ("audio", "text", "seconds", "source", "label")
    paths = ("data", "sounds")

    def __post_init__(self):
        super().__post_init__()
        if self.sounds is None:
            raise ValueError(f"Step `{self.name}` has no `sounds`: name a source of rows with `audio` and `label`.")

    def open(self):
        super().open()
        self.opened_sounds.need("audio", "label")
        if len(self.opened) < 2:
            raise ValueError(
                f"{self.opened.what} has one row, and a sound stands between two: give at least two rows."
            )

    @cached_property
    def opened_sounds(self) -> LabelledRows:
        return LabelledRows(self.sounds, self.sound_columns, f"`sounds` of step `{self.name}`")

    def make(self, number: int, name: str) -> dict:
        place, rows = self.place_of(number), self.opened
        other = self.random(number).randrange(len(rows))
        if other == place:
            other = (place + 1) % len(rows)
        sound = self.opened_sounds[cycled(len(self.opened_sounds), number, self.seed, self.name, "sounds")]
        return splice_sound(rows[place], sound, rows[other], name)

    def labels(self) -> list[str]:
        """The labels of all sounds."""
        return sorted({row["label"] for row in self.opened_sounds.of_columns("label") if row})


@dataclass
class ConversationsStep(Step):
    """`build: conversations`: utterances of different speakers in one clip.

    Args:
        speakers: how many: a number from 2 to 8, or the lowest and the highest.
        pause_seconds: shortest and longest pause between two utterances. A negative one is an overlap.
    """

    speakers: Any = 2
    pause_seconds: Sequence[float] = (0.0, 0.5)

    needs = ("audio", "text", "speaker")
    makes = ("audio", "text", "question", "answer", "seconds", "source", "speakers", "turns")

    def __post_init__(self):
        super().__post_init__()
        bounds = [self.speakers] * 2 if isinstance(self.speakers, int) else self.speakers
        good = isinstance(bounds, list | tuple) and len(bounds) == 2 and all(type(bound) is int for bound in bounds)
        if not good or not 2 <= bounds[0] <= bounds[1] <= len(ORDINALS):
            raise ValueError(
                f"`speakers` of step `{self.name}` is {self.speakers!r}; give a number from 2 to {len(ORDINALS)}, or "
                "the lowest and the highest, such as [2, 3]."
            )
        self.bounds = tuple(bounds)
        self.pause_seconds = _two_numbers(self.pause_seconds, f"`pause_seconds` of step `{self.name}`")

    def open(self):
        super().open()
        if len(self.by_speaker) < self.bounds[1]:
            raise ValueError(
                f"{self.opened.what} has {len(self.by_speaker)} speakers, and a conversation needs {self.bounds[1]}: "
                f"{list(self.by_speaker)[:5]}."
            )

    @cached_property
    def by_speaker(self) -> dict[str, list[int]]:
        """Numbers of the rows of each speaker."""
        found: dict[str, list[int]] = {}
        for number, row in enumerate(self.opened.of_columns("speaker")):
            if speaker := str(row.get("speaker") or "").strip():
                found.setdefault(speaker, []).append(number)
        return found

    @cached_property
    def names(self) -> list[str]:
        return list(self.by_speaker)

    def make(self, number: int, name: str) -> dict:
        rng, first = self.random(number), self.opened[self.place_of(number)]
        count = rng.randint(*self.bounds)
        rows, chosen = [first], {str(first.get("speaker") or "").strip()}
        for speaker in rng.sample(self.names, min(count, len(self.names))):
            if speaker not in chosen and len(rows) < count:
                chosen.add(speaker)
                rows.append(self.opened[rng.choice(self.by_speaker[speaker])])
        pauses = [round(rng.uniform(*self.pause_seconds), 2) for _ in rows[1:]]
        return splice_speakers(rows, pauses, QUESTIONS[cycled(len(QUESTIONS), number, self.seed, self.name)], name)


@dataclass
class TasksStep(Step):
    """`build: tasks`: labelled rows as messages.

    Args:
        tasks: names of `TASKS`, or a weight for each.
        forms: weights of the forms of answers; each task has those that it allows.
        chain_of_thought, text_only: share of the rows of a task that allows it, or a share for each task.
        labels: the options of a task, for choices; by default the labels that the data have.
    """

    tasks: Any = None
    forms: Any = field(default_factory=lambda: dict.fromkeys(FORMS, 1))
    chain_of_thought: Any = 0.0
    text_only: Any = 0.0
    labels: dict = field(default_factory=dict)

    needs = ()
    makes = ("audio", "text", "seconds", "source", "messages")

    def __post_init__(self):
        super().__post_init__()
        where = f"of step `{self.name}`"
        self.tasks = _weights(self.tasks, TASKS, f"`tasks` {where}")
        self.forms = _weights(self.forms, FORMS, f"`forms` {where}")
        self.dealt_tasks = Shares(self.tasks, self.seed, self.name, "tasks")
        self.dealt = {task: self._dealers(task, where) for task in self.tasks}
        if not isinstance(self.labels, Mapping) or any(task not in self.tasks for task in self.labels):
            raise ValueError(f"`labels` {where} is {self.labels!r}; give a list of labels for tasks of the step.")
        for task, labels in self.labels.items():
            if not isinstance(labels, list | tuple) or len({str(label).casefold() for label in labels}) < 2:
                raise ValueError(f"`labels` {where} has {labels!r} for {task}; a choice needs at least two labels.")
        for task in self.tasks:
            task_wordings(task)

    def _dealers(self, task: str, where: str) -> dict[str, Shares]:
        """What deals the form, chain of thought and text-only rows of a task."""
        forms = {form: weight for form, weight in self.forms.items() if form in TASKS[task].forms}
        if not forms:
            raise ValueError(
                f"`forms` {where} is {self.forms}, and the task {task} has only {', '.join(TASKS[task].forms)}."
            )
        dealt = {"form": Shares(forms, self.seed, self.name, task, "form")}
        for key, allowed in (("chain_of_thought", TASKS[task].quotes), ("text_only", TASKS[task].reads_text)):
            share = _share(getattr(self, key), task, allowed, self.tasks, f"`{key}` {where}")
            weights = {True: share, False: 1 - share}
            weights = {choice: weight for choice, weight in weights.items() if weight}
            dealt[key] = Shares(weights, self.seed, self.name, task, key)
        return dealt

    def open(self):
        rows = self.opened
        for task in self.tasks:
            rows.need(*TASKS[task].columns, *([] if TASKS[task].reads_text else ["audio"]))
        self.pools = {
            task: self._pools(task) for task in self.tasks if "choice" in self.dealt[task]["form"].choices
        }  # fmt: skip

    def _pools(self, task: str) -> dict[str | None, list[str]]:
        """The labels of a task; of entities, those of each kind."""
        read = TASKS[task].read_label
        if task in self.labels:
            return {None: [read(label, task) if read else str(label) for label in self.labels[task]]}
        if task == "grounding":
            return {}
        found: dict[str | None, set[str]] = {}
        for row in self.opened.of_columns(*TASKS[task].columns):
            try:
                found.setdefault(pool_key(row, task), set()).add(label_of(row, task))
            except NotBuilt:
                continue  # reported when its row is made
        for labels in found.values():
            labels |= set(TASKS[task].labels) if labels & set(TASKS[task].labels) else set()
        return {key: sorted(labels) for key, labels in found.items()}

    def make(self, number: int, name: str) -> dict:
        task, rank = self.dealt_tasks.deal(number)
        dealt = {key: dealer.deal(rank)[0] for key, dealer in self.dealt[task].items()}
        row, rng = self.opened[self.place_of(number)], self.random(number)
        if (clips := len(clips_of(row))) > 1:
            raise NotBuilt(f"{name} has {clips} clips; a task is about one.")
        other = self.opened[rng.randrange(len(self.opened))] if task == "grounding" else None
        if dealt["form"] == "choice":
            self._refuse_unlisted(row, task, name)
        pools = self.pools.get(task, {})
        wordings = len(task_wordings(task).wordings)
        return task_row(
            row,
            task,
            number=cycled(wordings, rank, self.seed, self.name, task, "wordings"),
            pool=pools.get(None) or pools.get(pool_key(row, task), ()),
            rng=rng,
            other=other if other is not None and other.get("words") else None,
            name=name,
            **dealt,
        )

    def _refuse_unlisted(self, row: Mapping, task: str, name: str):
        """Raises: `NotBuilt` if the recipe lists the labels of a task, and this row has another one."""
        if task in self.labels and (label := label_of(row, task, name)) not in self.pools[task][None]:
            raise NotBuilt(f"{name} has the label {label!r}, which is not in `labels`: {self.pools[task][None]}.")


@dataclass
class WordTimesStep(Step):
    """`build: word_times`: the column `words`, by aligning each transcript with its clip.

    Args: model: folder or hub name of trained adapters, or of a merged model.
    """

    model: str = "weights/soundwave-small"

    adds = ("words", "seconds")

    def load(self):
        import torch

        from ...modeling.modeling_soundwave import SoundwaveForConditionalGeneration
        from ...paths import checkpoint_named, find_weights
        from ...processing.processing_soundwave import SoundwaveProcessor

        torch.set_num_threads(1)  # the processes share the cores
        folder = find_weights(self.model)
        with checkpoint_named(folder):
            self.loaded = SoundwaveForConditionalGeneration.from_pretrained(folder).eval()
            self.processor = SoundwaveProcessor.from_pretrained(folder)

    def make(self, number: int, name: str) -> dict:
        return with_word_times(_known(self.opened[self.place_of(number)]), self.loaded, self.processor, name)


@dataclass
class SpokenStep(Step):
    """`build: spoken`: texts read aloud. Args: as in `Synthesizer`."""

    command: str | None = None
    function: str | None = None
    voices: Any = ()
    speed: Sequence[float] = (1.0, 1.0)

    needs = ("text",)
    adds = ("audio", "text", "seconds", "voice", "speed")

    def __post_init__(self):
        super().__post_init__()
        self.synthesizer = Synthesizer(self.command, self.function, self.voices, self.speed)

    def open(self):
        super().open()
        self.say = self.synthesizer.load()

    def make(self, number: int, name: str) -> dict:
        row = {key: value for key, value in _known(self.opened[self.place_of(number)]).items() if key != "audio"}
        return speak(row, self.say, *self.synthesizer.draw(self.random(number)), name)


STEPS: dict[str, type[Step]] = {
    "sounds": SoundsStep,
    "conversations": ConversationsStep,
    "word_times": WordTimesStep,
    "spoken": SpokenStep,
    "tasks": TasksStep,
}


def _known(row: Mapping) -> dict:
    return {key: value for key, value in row.items() if key in KNOWN_COLUMNS}


def _two_numbers(value, name: str) -> tuple[float, float]:
    good = isinstance(value, list | tuple) and len(value) == 2
    if not good or not all(type(each) in (int, float) and np.isfinite(each) for each in value) or value[0] > value[1]:
        raise ValueError(f"{name} is {value!r}; give the lowest and the highest number, such as [0, 0.5].")
    return tuple(value)


def _weights(value, known: Sequence[str], name: str) -> dict[str, float]:
    """A list of names, or a weight for each, as weights. Raises: `ValueError` for an unknown name."""
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list | tuple | Mapping) or not value:
        raise ValueError(f"{name} is {value!r}; give names, or a weight for each, of {', '.join(known)}.")
    weights = dict(value) if isinstance(value, Mapping) else dict.fromkeys(value, 1)
    if unknown := [key for key in weights if key not in known]:
        raise ValueError(f"{name} has {unknown[0]!r}; known are {', '.join(known)}.")
    if bad := [key for key, weight in weights.items() if not is_weight(weight)]:
        raise ValueError(f"{name} has the weight {weights[bad[0]]!r} for {bad[0]!r}; give a number over 0.")
    return weights


def _share(value, task: str, allowed: bool, tasks: Mapping, name: str) -> float:
    """The share of a task, from one share for all tasks that allow it, or a share for each task."""
    if isinstance(value, Mapping):
        if unknown := [key for key in value if key not in tasks]:
            raise ValueError(f"{name} has {unknown[0]!r}, which is no task of the step: {', '.join(tasks)}.")
        if value.get(task) and not allowed:
            raise ValueError(f"{name} has {task}, for which there are no such rows: leave it out.")
        value = value.get(task, 0.0)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1:
        raise ValueError(f"{name} is {value!r}; give a share from 0 to 1, or one for each task.")
    return float(value) if allowed else 0.0


__all__ = ["STEPS", "Step"]
