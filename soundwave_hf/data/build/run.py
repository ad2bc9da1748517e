"""`soundwave-hf data build`: carry out a recipe. Rows are written in shards, so that a stopped run goes on."""

import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tqdm.auto import tqdm

from ... import __version__
from ...atomic import atomic_file, refuse_file_name, refuse_used
from ...json_files import read_json_object
from ..card import CardFacts, write_card
from ..locate import digest_source, list_sources
from ..prepared import BUILT
from ..readers import KINDS
from ..rows import RowCheck
from .draws import NotBuilt
from .labelled import split_columns
from .output import ShardWriter
from .recipe import BuildRecipe, read_build_recipe
from .steps import SoundsStep, Step
from .vocabulary import add_sound_tokens


LISTED = 5  # reasons that a message names


@dataclass(frozen=True)
class Built:
    """What became of a step: how many rows were made, and the others with the reason."""

    name: str
    rows: int
    skipped: list[dict]


def build(recipe: str | os.PathLike | Mapping, folder: str | os.PathLike, processes: int = 1) -> list[Built]:
    """Carry out the steps of a recipe. The same command continues a run that was stopped.

    Args:
        recipe: YAML file or dict, see docs/data.md.
        folder: gets `STEP-00000.jsonl` and so on, their clips as FLAC in `audio/`, `build.json`, `skipped.jsonl` and
            a `README.md` with which `load_dataset(folder, STEP)` finds the files.
        processes: the result does not depend on them.
    Raises: `ValueError` for a bad recipe, and if no row of a step could be made; `FileExistsError` if the folder holds
        another run, or other files.
    """
    if type(processes) is not int or processes < 1:
        raise ValueError(f"`--processes` is {processes!r}; give a whole number, 1 or more.")
    refuse_file_name(folder, "OUT", KINDS, "leave its ending out")
    folder = Path(folder).absolute()
    plan = read_build_recipe(recipe, folder)
    _claim(folder, plan)
    built = []
    for step in plan.steps:
        built.append(_build_step(plan, step, folder, processes))
        print(_summary(built[-1]), flush=True)
    _write_report(folder, plan, built)
    return built


# ---- whose folder is it ----


def _claim(folder: Path, plan: BuildRecipe):
    """Write the record of the run, or compare it with the one that is there."""
    record = {"recipe": plan.values, "data": _digests(plan, folder)}
    path = folder / BUILT
    if not path.is_file():
        refuse_used(folder)
        with atomic_file(path) as part:
            part.write_text(json.dumps(record, indent=2, ensure_ascii=False, default=str), encoding="utf-8")
        return
    known = read_json_object(path, "name a new folder")
    record = json.loads(json.dumps(record, default=str))
    changed = ["recipe"] if known.get("recipe") != record["recipe"] else []
    changed += ["data"] if _values(known.get("data", {})) != _values(record["data"]) else []
    if changed:
        what = "another recipe" if "recipe" in changed else "the same recipe on data that have changed since"
        raise FileExistsError(f"`{folder}` holds a run of {what}: name a new folder, or remove this one.")


def _values(digests: Mapping[str, Mapping]) -> dict[str, set[str]]:
    """The digests of each source, without the files' names, which earlier versions wrote in another way."""
    return {source: set(files.values()) for source, files in digests.items()}


def _digests(plan: BuildRecipe, folder: Path) -> dict:
    """Digests of what each step reads from outside."""
    found = {}
    for step in plan.steps:
        for key in step.paths:
            source = getattr(step, key)
            if isinstance(source, str) and source.startswith(f"{folder}{os.sep}"):
                continue  # the rows of an earlier step
            for each in source if isinstance(source, list | tuple) else [source]:
                if isinstance(each, Mapping) and "columns" in each:
                    each = {**each, "columns": split_columns(each["columns"])[0]}
                for one in list_sources([each]):
                    found[f"{step.name}.{key}.{one.path}"] = digest_source(one)
    return found


# ---- a step ----


def _build_step(plan: BuildRecipe, step: Step, folder: Path, processes: int) -> Built:
    step.open()
    count = -(-step.size // plan.shard_rows)
    writer = ShardWriter(folder, step.name, plan.format, step.output_columns)
    lacking = [shard for shard in range(count) if not writer.marker(shard).is_file()]
    with tqdm(total=count, initial=count - len(lacking), desc=step.name, unit="shard", disable=count < 2) as bar:
        for _ in _shards(plan, step, writer, lacking, processes):
            bar.update()
    advice = "remove it: its rows are made again"
    markers = [read_json_object(writer.marker(shard), advice, ("rows", "skipped")) for shard in range(count)]
    built = Built(step.name, sum(m["rows"] for m in markers), [skip for m in markers for skip in m["skipped"]])
    if not built.rows:
        for shard in range(count):
            writer.marker(shard).unlink()
        raise ValueError(
            f"None of the {step.size} rows of step `{step.name}` could be made. {_reasons(built.skipped)}"
        )
    if isinstance(step, SoundsStep) and step.add_tokens_to and not (folder / f"{step.name}_llm").exists():
        add_sound_tokens(step.add_tokens_to, step.labels(), folder / f"{step.name}_llm")
    return built


def _shards(plan: BuildRecipe, step: Step, writer: ShardWriter, lacking: list[int], processes: int) -> Iterator[int]:
    if processes == 1 or len(lacking) < 2:
        if lacking:
            step.load()
        for shard in lacking:
            write_shard(step, writer, shard, plan.shard_rows)
            yield shard
        return
    place = plan.steps.index(step)
    start = (plan.values, writer.folder, place, writer, plan.shard_rows)
    with ProcessPoolExecutor(min(processes, len(lacking)), initializer=_start_worker, initargs=start) as pool:
        try:
            yield from pool.map(_work, lacking)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


_worker: dict = {}  # of a process of the pool: what it works on, and its step, opened once


def _start_worker(values: dict, folder: Path, place: int, writer: ShardWriter, shard_rows: int):
    _worker.clear()
    _worker.update(values=values, folder=folder, place=place, writer=writer, shard_rows=shard_rows)


def _work(shard: int) -> int:
    if "step" not in _worker:  # here, because an error in `_start_worker` would not reach the user
        step = read_build_recipe(_worker["values"], _worker["folder"]).steps[_worker["place"]]
        step.open()
        step.load()
        _worker["step"] = step
    write_shard(_worker["step"], _worker["writer"], shard, _worker["shard_rows"])
    return shard


def write_shard(step: Step, writer: ShardWriter, shard: int, shard_rows: int):
    """Make the rows of one shard and write them. The marker, which says that the shard is whole, comes last."""
    rows, skipped, check = [], [], RowCheck()
    for number in range(shard * shard_rows, min((shard + 1) * shard_rows, step.size)):
        try:
            row = step.row(number)
            _check(row, step, number, check)
        except NotBuilt as error:
            skipped.append({"step": step.name, "row": number, "reason": str(error)})
            continue
        rows.append((number, row))
    writer.write(shard, rows, skipped)


def _check(row: dict, step: Step, number: int, check: RowCheck):
    try:
        check(row, f"Row {number} of step `{step.name}`")
    except ValueError as error:
        raise NotBuilt(str(error)) from error


# ---- the report ----


def _summary(built: Built) -> str:
    skipped = f", {len(built.skipped)} could not be made. {_reasons(built.skipped)}" if built.skipped else "."
    return f"{built.name}: {built.rows} rows{skipped}"


def _reasons(skipped: list[dict]) -> str:
    lines = [f"\n  row {skip['row']}: {skip['reason']}" for skip in skipped[:LISTED]]
    more = f"\n  and {len(skipped) - LISTED} more" if len(skipped) > LISTED else ""
    return f"The first reasons:{''.join(lines)}{more}" if lines else ""


def _write_report(folder: Path, plan: BuildRecipe, built: list[Built]):
    with atomic_file(folder / "skipped.jsonl") as part:
        skipped = [json.dumps(skip, ensure_ascii=False) + "\n" for each in built for skip in each.skipped]
        part.write_text("".join(skipped), encoding="utf-8")
    if any(each.rows for each in built):
        made = {each.name: len(each.skipped) for each in built if each.skipped}
        facts = CardFacts(
            title="Built rows",
            dropped=made,
            rows_before=sum(each.rows + len(each.skipped) for each in built),
            seed=plan.seed,
            versions={"soundwave_hf": __version__},
            made_by="soundwave-hf data build",
        )
        write_card(folder, facts)


__all__ = ["Built", "build", "write_shard"]
