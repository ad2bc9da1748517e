"""The 15 tasks of Stage III (paper, Table 12): from labelled rows to messages.

A task asks in one of at least 50 wordings and is answered in one of three forms: the bare label, a choice among
options A to D, or a full sentence. With chain of thought the answer quotes the transcript first. A text-only row has
the transcript in place of the clip.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ...processing.languages_soundwave import language_name
from .draws import NotBuilt
from .grounding import ABSENT_ANSWER, Word, draw_phrase, find_phrase, fold, say_intervals, words_of
from .sounds import kept
from .wordings import choice_lines, fill, read_wordings


FORMS = ("bare", "choice", "sentence")
LETTERS = "ABCD"
NUMBERS = ("no one", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
ABSENT_SHARE = 0.1  # of grounding rows: they ask for a phrase that is not said
ALONE_SHARE = 0.5  # of spoken instructions: the clip without a written request
SAMPLED = 16  # labels of a long list of which the options are drawn
DRAWS = 20  # tries to find a phrase of another row that is not said in this one


@dataclass(frozen=True)
class Task:
    """One task.

    Args:
        columns: those that a row needs besides the clip, the label first.
        placeholders: of its wordings, with the column that fills each.
        forms: in which it can be answered.
        labels: options if the data name fewer than two; empty for labels that differ from set to set.
        of_kind: column that separates the options, such as the kind of an entity.
        reads_text: whether the transcript is enough to answer, so that a row may be text only.
        quotes: whether the answer may quote the transcript first.
        read_label: how the column's value becomes a label.
    """

    columns: tuple[str, ...]
    placeholders: Mapping[str, str]
    forms: tuple[str, ...] = FORMS
    labels: tuple[str, ...] = ()
    of_kind: str | None = None
    reads_text: bool = False
    quotes: bool = True
    read_label: Callable[[object, str], str] | None = None


# ---- labels ----


def text_label(value, name: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise NotBuilt(f"{name} is {value!r}; expected a label, as text or a whole number.")
    return str(value).strip()


def language_label(value, name: str) -> str:
    """The English name of a language or code; a language that Whisper does not know stays as it is written."""
    label = text_label(value, name)
    try:
        found = language_name(label)
    except ValueError:
        return label
    if found is None:
        raise NotBuilt(f"{name} is {value!r}, which names no language.")
    return found.title()


def number_label(value, name: str) -> str:
    """`2` or `"2"` -> `"two"`"""
    if isinstance(value, str) and value.strip().lower() in NUMBERS[1:]:
        return value.strip().lower()
    if isinstance(value, bool) or not str(value).strip().isdecimal() or not 1 <= int(value) < len(NUMBERS):
        raise NotBuilt(f"{name} is {value!r}; expected a number of speakers from 1 to {len(NUMBERS) - 1}.")
    return NUMBERS[int(value)]


def voice_label(value, name: str) -> str:
    """`true` -> `"synthesized"`, `false` -> `"real"`"""
    known = {"true": "synthesized", "false": "real", "synthesized": "synthesized", "real": "real"}
    if (label := known.get(str(value).strip().lower())) is None:
        raise NotBuilt(f"{name} is {value!r}; expected true for a synthesized voice or false for a real one.")
    return label


TASKS = {
    "asr": Task(("text",), {}, ("bare", "sentence"), quotes=False),
    "translation": Task(
        ("translation", "target_language"), {"language": "target_language"}, ("bare", "sentence"), reads_text=True
    ),
    "grounding": Task(("words",), {"phrase": "phrase"}),
    "language": Task(("language",), {}, read_label=language_label),
    "gender": Task(("gender",), {}, labels=("female", "male")),
    "emotion": Task(("emotion",), {}),
    "age": Task(("age",), {}),
    "entity": Task(("entity", "entity_kind"), {"kind": "entity_kind"}, of_kind="entity_kind", reads_text=True),
    "intent": Task(("intent",), {}, reads_text=True),
    "number_of_speakers": Task(
        ("speakers",), {}, labels=NUMBERS[1:5], quotes=False, read_label=number_label
    ),
    "synthesized_voice": Task(("synthesized",), {}, labels=("real", "synthesized"), read_label=voice_label),
    "vocal_sound": Task(("vocal_sound",), {}, quotes=False),
    "acoustic_scene": Task(("scene",), {}, quotes=False),
    "chat": Task(("answer", "question"), {"question": "question"}, ("bare",), reads_text=True),
    "spoken_instruction": Task(("answer",), {}, ("bare",), reads_text=True),
}  # fmt: skip


def task_wordings(task: str):
    """The wordings of a task, checked. Raises: `ValueError` for an unknown task."""
    return read_wordings(task, tuple(_task(task).placeholders))


def _task(name: str) -> Task:
    if name not in TASKS:
        raise ValueError(f"The task is {name!r}; expected one of {', '.join(TASKS)}.")
    return TASKS[name]


def label_of(row: Mapping, task: str, name: str = "A row") -> str:
    """The label of a row for a task, as answers write it.

    Raises: `NotBuilt` for a column that is missing, empty or no label.
    """
    for column in _task(task).columns:
        if row.get(column) is None or row[column] == "":
            raise NotBuilt(f"{name} has no `{column}`, which the task {task} needs. Its columns are {sorted(row)}.")
    column, read = _task(task).columns[0], _task(task).read_label or text_label
    return read(row[column], f"`{column}` of {name}")


def pool_key(row: Mapping, task: str) -> str | None:
    """What separates the options of this row from others: the kind of an entity."""
    column = _task(task).of_kind
    return None if column is None else fold(str(row.get(column)))


# ---- options ----


def draw_options(label: str, pool: Sequence[str], rng: random.Random, name: str = "A row") -> tuple[list[str], int]:
    """Two to four options in random order, the label once among them, and its place.

    Args: pool: labels of the task. Those that differ from another only in case or marks are left out.
    Raises: `NotBuilt` if the pool has no label besides the right one.
    """
    few = rng.sample(pool, SAMPLED) if len(pool) > 4 * SAMPLED else pool
    others = {_key(other): other for other in reversed(few)}
    others.pop(_key(label), None)
    if len(others) < len(LETTERS) and few is not pool:  # they differ only in case or marks
        others = {_key(other): other for other in reversed(pool)}
        others.pop(_key(label), None)
    if not others:
        raise NotBuilt(
            f"{name} has the label {label!r}, and the only options are {list(pool)}; a choice needs another label. "
            "Name more in `labels`, or leave the form `choice` out."
        )
    names = sorted(others.values())
    options = [label, *rng.sample(names, min(len(LETTERS) - 1, len(names)))]
    rng.shuffle(options)
    return options, options.index(label)


def _key(label: str) -> str:
    return fold(label) or label.strip().lower()


def option_list(options: Sequence[str]) -> str:
    """`["happy", "sad"]` -> `"A. happy\\nB. sad"`"""
    return "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))


# ---- a row ----


def task_row(
    row: Mapping,
    task: str,
    number: int = 0,
    form: str = "bare",
    pool: Sequence[str] = (),
    chain_of_thought: bool = False,
    text_only: bool = False,
    rng: random.Random | None = None,
    other: Mapping | None = None,
    name: str = "A row",
) -> dict:
    """A labelled row as messages.

    Args:
        row: with `audio` and the columns of the task (`TASKS`).
        number: index of the wording in the task's file, counted on from the first again after the last.
        form: of the answer: "bare", "choice" or "sentence".
        pool: the labels of the task, for "choice".
        chain_of_thought: whether the answer quotes the transcript first.
        text_only: whether the transcript stands in place of the clip.
        rng: draws options, answer sentences and phrases; `random.Random(number)` by default.
        other: a row with `words`, for grounding: sometimes its phrase is asked for, which is not said here.
        name: what an error calls the row.
    Returns: a row with `messages`, `task`, and, unless it is text only, `audio`, `text` and `seconds`; `source`.
    Raises: `NotBuilt` if the row lacks what is needed; `ValueError` for a form that the task does not have.
    """
    rng = rng or random.Random(number)
    _check_request(task, form, chain_of_thought, text_only)
    text_only = text_only or (row.get("audio") is None and _task(task).reads_text)
    if not text_only and row.get("audio") is None:
        raise NotBuilt(f"{name} has no `audio`, which the task {task} needs. Its columns are {sorted(row)}.")
    asked = _Asked.of(row, task, pool, other, rng, name)
    wordings = task_wordings(task)
    question = fill(wordings.wordings[number % len(wordings.wordings)], asked.values, name)
    reply = asked.label
    if form == "choice":
        options, right = draw_options(asked.label, asked.pool, rng, name)
        question += "\n" + fill(rng.choice(choice_lines()), {"options": option_list(options)}, name)
        reply = f"{LETTERS[right]}. {asked.label}"
    if form == "sentence":
        sentences = wordings.absent if asked.label == ABSENT_ANSWER else wordings.sentences
        reply = fill(rng.choice(sentences), {**asked.values, "label": asked.label}, name)
    if chain_of_thought:
        reply = f"{quoted(_transcript(row, task, name))} {reply}"
    if task == "spoken_instruction" and rng.random() < ALONE_SHARE:
        question = ""
    return _as_row(row, task, _user_parts(row, task, question, text_only, name), reply, text_only)


@dataclass(frozen=True)
class _Asked:
    """What a row is asked: the label, the labels of a choice, and the values of placeholders."""

    label: str
    pool: Sequence[str]
    values: dict[str, str]

    @classmethod
    def of(cls, row: Mapping, task: str, pool, other: Mapping | None, rng: random.Random, name: str) -> "_Asked":
        if task == "grounding":
            return cls.interval(row, other, rng, name)
        label = label_of(row, task, name)
        values = {place: str(row.get(column) or "").strip() for place, column in _task(task).placeholders.items()}
        if task == "translation":
            values["language"] = language_label(row["target_language"], f"`target_language` of {name}")
        return cls(label, pool, values)

    @classmethod
    def interval(cls, row: Mapping, other: Mapping | None, rng: random.Random, name: str) -> "_Asked":
        """The interval of a phrase of the row, or, for one row in ten, of a phrase of the other row that is not said
        in this one. Other options are intervals of other phrases."""
        words = words_of(row, name)
        phrase = None
        if other is not None and rng.random() < ABSENT_SHARE:
            phrase = _absent_phrase(words, words_of(other, f"the other row of {name}"), rng)
        phrase = phrase or draw_phrase(words, rng)
        label = say_intervals(find_phrase(words, phrase))
        spans = [find_phrase(words, draw_phrase(words, rng)) for _ in range(3 * len(LETTERS))]
        others = sorted({say_intervals(span) for span in spans} - {label})
        if label != ABSENT_ANSWER and rng.random() < 0.5:  # so that this option does not tell that it is right
            others = [ABSENT_ANSWER, *rng.sample(others, min(2, len(others)))]
        return cls(label, others, {"phrase": phrase})


def _absent_phrase(words: Sequence[Word], others: Sequence[Word], rng: random.Random) -> str | None:
    for _ in range(DRAWS):
        phrase = draw_phrase(others, rng, 2)
        if not find_phrase(words, phrase):
            return phrase
    return None


def _check_request(task: str, form: str, chain_of_thought: bool, text_only: bool):
    kind = _task(task)
    if form not in kind.forms:
        raise ValueError(f"The task {task} has no answers of the form {form!r}; it has {', '.join(kind.forms)}.")
    if chain_of_thought and not kind.quotes:
        raise ValueError(f"The task {task} has no chain of thought: a transcript does not help to answer.")
    if text_only and not kind.reads_text:
        raise ValueError(f"The task {task} needs the sound: its rows cannot be text only.")


def quoted(text: str) -> str:
    """The opening of an answer that quotes the transcript."""
    return f'The speaker says: "{text.strip()}"'


def _transcript(row: Mapping, task: str, name: str) -> str:
    if not isinstance(text := row.get("text"), str) or not text.strip():
        raise NotBuilt(f"{name} has `text` {text!r}; the task {task} quotes the transcript here.")
    return text.strip()


def _user_parts(row: Mapping, task: str, question: str, text_only: bool, name: str) -> list[dict]:
    """The parts of the user's turn."""
    if not text_only:
        return [{"type": "audio"}, *([{"type": "text", "text": question}] if question else [])]
    if task == "spoken_instruction":
        return [{"type": "text", "text": _transcript(row, task, name)}]
    if task == "chat" and not row.get("text"):
        return [{"type": "text", "text": row["question"].strip()}]
    return [{"type": "text", "text": f"{quoted(_transcript(row, task, name))}\n{question}"}]


def _as_row(row: Mapping, task: str, content: list[dict], reply: str, text_only: bool) -> dict:
    messages = [
        {"role": "user", "content": content},
        {"role": "assistant", "content": [{"type": "text", "text": reply}]},
    ]
    columns = ("source",) if text_only else ("audio", "text", "seconds", "source")
    return {**kept(row, *columns), "task": task, "messages": messages}


__all__ = [
    "ABSENT_SHARE",
    "ALONE_SHARE",
    "FORMS",
    "LETTERS",
    "TASKS",
    "Task",
    "draw_options",
    "label_of",
    "option_list",
    "pool_key",
    "quoted",
    "task_row",
    "task_wordings",
]
