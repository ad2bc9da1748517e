"""Weights like the shipped ones, from speech to scores: `python train_shipped.py` (`make train` calls it).

Finished steps are not repeated, and a step that was stopped continues. Two runs of one step train side by side. The
next step goes on from the mean of their weights, which hears more than either. All of it is below `$SOUNDWAVE_HOME`.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from training_sets import small_folder

from soundwave_hf.modeling.folders_soundwave import LORA_FILES, TRAINED_FILE
from soundwave_hf.paths import soundwave_home


HERE = Path(__file__).resolve().parent
RECIPES = HERE / "recipes"
EXPORTED = "exported_6"  # with the number of the shipped weights: other steps, another folder
COMMAND = (sys.executable, "-m", "soundwave_hf.cli")


@dataclass(frozen=True)
class Step:
    """One part of the training.

    Args:
        what: says what is made.
        done: the file that the last command writes at its end.
        commands: lists of commands; those of one list run side by side.
    """

    what: str
    done: Path
    commands: list[list[list[str]]]


def run_folder(name: str) -> Path:
    return soundwave_home() / "runs" / name


def script(name: str, *words: object) -> list[str]:
    """The command that runs a script of this folder."""
    return [sys.executable, str(HERE / name), *map(str, words)]


def training(recipe: str, name: str, start: str | None = None, **options: object) -> list[str]:
    """The command that trains a recipe of this folder. Args: start: the run to go on from, if not the recipe's."""
    options = {"output_dir": run_folder(name)} | ({"start_from": run_folder(start)} if start else {}) | options
    words = [str(word) for key, value in options.items() for word in (f"--{key}", value)]
    return [*COMMAND, "train", str(RECIPES / recipe), *words]


def joined(name: str, head: str, llm: str | None = None, toward: str | None = None, share: float = 0.5) -> list[str]:
    """The command that joins a head of Stage I and an LLM, or means of two runs (see `join_weights.py`).

    Args: toward: the other run of a mean, of two heads if `llm` is None, else of two LLMs; `share` is its part of the
        mean. A mean of two LoRAs of the encoder keeps rank 32.
    """
    words = [run_folder(head), run_folder(name)]
    words += ["--llm", run_folder(llm)] if llm else ["--rank", 32]
    words += ["--toward", run_folder(toward), "--share", share] if toward else []
    return script("join_weights.py", *words)


def join_step(what: str, name: str, head: str, llm: str, toward: str | None = None, share: float = 0.5) -> Step:
    """A head joined to an LLM, or to the mean of two; see `joined`."""
    return Step(what, run_folder(name) / LORA_FILES[1], [[joined(name, head, llm, toward, share)]])


def two_runs(
    what: str,
    recipe: str,
    seeds: tuple[int, int],
    mean: str,
    start: str | None = None,
    head: str | None = None,
    **options,
) -> Step:
    """Two runs of a recipe side by side, then their mean.

    Args:
        mean: the folder of the mean; those of the runs end with their seed.
        head: the head that the mean of two LLMs gets: Stages II and III keep that of Stage I. None in Stage I.
    """
    names = one, other = [f"{mean}_{seed}" for seed in seeds]
    runs = [training(recipe, name, start, seed=seed, **options) for name, seed in zip(names, seeds, strict=True)]
    join = joined(mean, head, one, other) if head else joined(mean, one, toward=other)
    return Step(what, run_folder(mean) / (LORA_FILES[1] if head else TRAINED_FILE), [runs, [join]])


def data_steps() -> list[Step]:
    small = small_folder()
    build = [*COMMAND, "data", "build", str(HERE / "data.yaml"), str(small / "built"), "--processes", "2"]
    texts = [[script("build_data.py")], [script("training_sets.py", "texts")]]
    speech = [[build], [script("game_speech.py", "--listen", 500)], [script("chat_questions.py")]]
    return [
        Step("validation sets and texts", small / "questions_to_speak.jsonl", texts),
        Step("speech and answers", small / "instruct_more.jsonl", [*speech, [script("training_sets.py", "write")]]),
    ]


def training_steps() -> list[Step]:
    """Stages I to III; then twice I and III again, first with the clips that the LLM heard, then with all."""
    stage2 = [str(small_folder() / f"{name}.jsonl") for name in ("stage2", "questions")]
    every = [str(small_folder() / "stage1.jsonl"), *stage2]
    falling = {"lr_scheduler_type": "cosine", "max_steps": 1050}
    longer = {"max_steps": 450, "model": "{blank_margin: 0.65}"}
    align, shrink, instruct = "1_align_more.yaml", "2_shrink_more.yaml", "3_instruct_more.yaml"
    fifth_head = run_folder("fifth_head")
    return [
        Step("Stage I", run_folder("1_align") / TRAINED_FILE, [[training("1_align.yaml", "1_align")]]),
        two_runs("Stage I with a LoRA on the encoder, two runs", "1_align_encoder.yaml", (71, 72), "1_mean"),
        two_runs("Stage I, two more runs", align, (73, 74), "head"),
        Step("Stage II", run_folder("2_shrink") / LORA_FILES[1], [[training("2_shrink.yaml", "2_shrink", seed=81)]]),
        two_runs("Stage II, two runs", shrink, (82, 83), "2_mean", head="head"),
        two_runs("Stage II, two more runs", shrink, (84, 85), "2_llm", "2_mean", "head", **falling),
        two_runs("Stage III, two runs", "3_instruct.yaml", (91, 92), "3_first", head="head"),
        join_step("mean of Stages II and III", "3_half", "head", "3_first", "2_llm"),
        two_runs("Stage III, two more runs", instruct, (93, 94), "3_mean", head="head"),
        two_runs("Stage I with the clips of Stage II", align, (75, 76), "new_head", "head", data=json.dumps(stage2)),
        join_step("the new head", "3_new_head", "new_head", "3_mean"),
        two_runs("Stage III with the new head", instruct, (95, 96), "3_new", "3_new_head", "new_head"),
        join_step("mean of the last two pairs", "3_third", "new_head", "3_new", "3_mean", 0.4),
        two_runs("Stage I with all clips", align, (77, 78), "every_head", "new_head", data=json.dumps(every)),
        Step(
            "mean of both heads",
            fifth_head / TRAINED_FILE,
            [[joined("fifth_head", "every_head", None, "new_head", 0.6)]],
        ),
        join_step("the last head", "3_fifth_head", "fifth_head", "3_third"),
        two_runs("Stage III, last two runs", instruct, (97, 98), "3_fourth", "3_fifth_head", "fifth_head", **longer),
    ]


def score_steps() -> list[Step]:
    exported = run_folder(EXPORTED)
    scores = exported / "evaluation.json"
    export = [*COMMAND, "export", str(run_folder("3_fourth")), str(exported)]
    evaluate = [*COMMAND, "evaluate", "--adapter", str(exported), "--baseline", "--output", str(scores)]
    return [Step("scores", scores, [[export], [evaluate]])]


def all_steps() -> list[Step]:
    return data_steps() + training_steps() + score_steps()


def side_by_side(commands: list[list[str]]) -> None:
    """Run commands at the same time, with an equal part of the cores each.

    Raises: SystemExit if one fails, once all have ended.
    """
    threads = max(1, (os.cpu_count() or 1) // len(commands))
    paths = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]  # `data.yaml` names a function of `voices.py`
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    if len(commands) > 1:
        environment |= {"OMP_NUM_THREADS": str(threads)}
    running = [subprocess.Popen(command, env=environment) for command in commands]
    failed = [command for command, process in zip(commands, running, strict=True) if process.wait() != 0]
    if failed:
        raise SystemExit(f"This command failed: {' '.join(failed[0])}\nRun `make train` again to continue.")


def main() -> None:
    steps = all_steps()
    for number, step in enumerate(steps, start=1):
        left = ", ".join(later.what for later in steps[number:]) or "nothing"
        if step.done.is_file():
            print(f"Part {number} of {len(steps)} is done: {step.what}.", flush=True)
            continue
        print(f"Part {number} of {len(steps)}: {step.what}. Left after it: {left}.", flush=True)
        for commands in step.commands:
            side_by_side(commands)
    print(f"The weights and their scores are in {run_folder(EXPORTED)}.")


if __name__ == "__main__":
    main()
