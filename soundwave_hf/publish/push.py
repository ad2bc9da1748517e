"""`soundwave-hf push FOLDER REPO`: a model with its card to the Hub, checked before and after."""

import dataclasses
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..atomic import atomic_folder, refuse_used
from ..data.licenses import check_license
from ..data.used import DataUsed
from ..evaluation.generate_options import default_options
from ..modeling.folders_soundwave import model_digest
from ..paths import one_or_more
from ..picture import has_matplotlib
from ..secret_values import holds_secret
from ..training.watch import plot_histories
from .card import PLOT, model_card
from .card_parts import Card, join_own, left_out_metadata, read_card, refuse_edited, write_card
from .errors import hub_errors
from .facts import SCORES, ModelFacts, ScoreFile, read_all_scores, read_data_card, with_licenses
from .files import SHARD_SIZE, Model, check_shard_size, describe_left_out, read_model, write_files
from .reload import check_reload
from .remote import Sent, Target, find_target, make_missing, patient_session, remote_card, send, write_eval_results
from .runs import RECIPE, RECORD, Run, read_runs


README = "README.md"
LICENSE_KEYS = ("license", "license_name")
SHARE_ALIKE = ("cc-by-sa-", "cc-by-nc-sa-")


@dataclass(frozen=True)
class Pushed:
    """What `push_model` did.

    Args:
        address (`str`): of the repository, or the folder of a dry run.
        commit, pull_request (`str`, *optional*): None if nothing had to be sent.
        files (`int`): how many were sent, or written.
    """

    address: str
    commit: str | None = None
    pull_request: str | None = None
    files: int = 0


def push_model(
    folder: str | os.PathLike,
    repo: str,
    *,
    dry_run: str | os.PathLike | None = None,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    message: str | None = None,
    scores: str | os.PathLike | Sequence[str | os.PathLike] = (),
    runs: str | os.PathLike | Sequence[str | os.PathLike] = (),
    data_cards: str | os.PathLike | Sequence[str | os.PathLike] = (),
    license: str | None = None,
    licenses: Mapping[str, str] | str | None = None,
    encoder: str | None = None,
    llm: str | None = None,
    max_shard_size: str = SHARD_SIZE,
    replace_card: bool = False,
) -> Pushed:
    """Push a whole model, or adapters that name their backbones, with a card, to a repository on the Hub.

    What is uploaded is first written to a folder and loaded from there in a fresh process, where its tensors and its
    answer to a clip must be those of `folder`. Files that the Hub has are not sent again.

    Args:
        folder: what `train`, `export`, `merge` or `convert` wrote, or `save_pretrained`.
        repo: `user/model`; it is created if it is missing.
        dry_run: folder to write the upload to; no connection is made.
        private: whether a new repository is private. revision: branch, created if it is missing.
        create_pr: open a pull request; an open one of this user with the same `message` is used again.
        message: of the commit, and title of the pull request.
        scores: files of `soundwave-hf evaluate --output`; by default `evaluation.json` of the folder.
        runs: folders of training runs that the card describes; by default the folder itself. Runs that they started
            from are found by their recipes.
        data_cards: dataset cards of data that the runs do not describe.
        license: of the weights; by default that of the recipe, of the folder's README.md, or of the weights that the
            run started from.
        licenses: of data sources and backbones, `{name: licence}`, or one for all data.
        encoder, llm: hub names of backbones that the folder names by local folders.
        max_shard_size: of each file of a whole model.
        replace_card: drop the own text of README.md, in the folder and on the Hub.

    Returns: [`Pushed`].

    Raises: `ValueError`, `FileNotFoundError` for what cannot be pushed; `FileExistsError` if `dry_run` is used;
        `RuntimeError` if a check fails; `ConnectionError` if the Hub refuses or does not answer.
    """
    check_names(repo, max_shard_size, license, message, revision, create_pr)
    model = read_model(folder, encoder, llm)
    message = message or f"Upload {repo.split('/')[-1]} with soundwave-hf"
    own = _own_card(model.folder / README, replace_card)
    scores, runs, data_cards = (one_or_more(files) for files in (scores, runs, data_cards))
    facts = collect_facts(model, repo, scores, runs, data_cards, license, licenses)
    typed = facts.license is None  # then it is that of the own card
    if (line := describe_left_out(model)) is not None:
        print(line, flush=True)
    if dry_run is not None:
        return _dry_run(model, facts, own, Path(dry_run), max_shard_size, typed)
    with patient_session(), _place_beside(model.folder) as out:
        with hub_errors(repo):
            target = find_target(repo, private, revision, create_pr, message)
            own = _with_remote(target, own, replace_card)
        _write(model, facts, own, out, max_shard_size, typed, linked=True)
        with hub_errors(repo):
            _registered(target, facts, out)
        print(check_reload(model, out, offline=False), flush=True)
        with hub_errors(repo):
            sent = send(make_missing(target), out, message)
    return _sent(target, sent)


def _dry_run(model: Model, facts: ModelFacts, own: Card, folder: Path, shard_size: str, typed: bool) -> Pushed:
    """Write and check the upload without a connection."""
    refuse_used(folder)
    with atomic_folder(folder) as out:
        _write(model, facts, own, out, shard_size, typed)
        print(check_reload(model, out, offline=True), flush=True)
    return _written(folder, facts)


# ---- what came ----


def check_names(
    repo: str, max_shard_size: str, license: str | None, message: str | None, revision: str | None, create_pr: bool
):
    """Raises: `ValueError` for a name, size, licence or message that cannot be."""
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ValueError(f"REPO is {repo!r}: {error}") from error
    if repo.count("/") != 1:
        raise ValueError(f"REPO is {repo!r}; expected USER/MODEL, as in the address of the repository.")
    check_shard_size(max_shard_size)
    if license is not None:
        check_license(license, "--license")
    if message is not None and (not message.strip() or holds_secret(message)):
        raise ValueError("`--message` is empty, or holds what looks like a token: write what the commit does.")
    if revision is not None and (not revision or revision != "".join(revision.split())):
        raise ValueError(f"`--revision` is {revision!r}; expected the name of a branch, or leave it out for main.")
    if create_pr and revision is not None and revision.startswith("refs/"):
        raise ValueError(f"`--revision {revision}` is a pull request already: leave `--create-pr` out.")


def _own_card(path: Path, replace: bool) -> Card:
    """The own text and metadata of the folder's README.md.

    Raises: `ValueError` if the part that this package writes was edited.
    """
    if not path.is_file():
        return Card({})
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"`{path}` is not UTF-8 text ({error}): save it as UTF-8, or remove it.") from error
    card = read_card(text, f"`{path}`")
    if replace:
        return Card({key: value for key, value in card.metadata.items() if key.startswith("license")})
    refuse_edited(card, f"`{path}`")
    if card.block is None and card.after:
        print(f"The text of `{path}` is kept below the text that is written.", flush=True)
    return card


def _with_remote(target: Target, own: Card, replace: bool) -> Card:
    """The own card, with what was added on the Hub."""
    text = remote_card(target)
    if text is None or replace:
        return own
    name = f"README.md of `{target.repo}`"
    return join_own(read_card(text, name), own, name)


def collect_facts(model: Model, repo: str, scores, runs, data_cards, license, licenses) -> ModelFacts:
    """All that the card says."""
    if not runs and any((model.folder / name).is_file() for name in (RECIPE, RECORD)):
        runs = [model.folder]
    found = read_runs(runs)
    are_named = bool(scores)
    if not scores and (model.folder / SCORES).is_file():
        scores = [model.folder / SCORES]
    files = read_all_scores(scores)
    check_scored(model, scores, files, are_named)
    data = sum((run.data for run in found), DataUsed())
    data = sum((read_data_card(card) for card in data_cards), data)
    facts = ModelFacts(
        kind=model.kind,
        encoder=model.encoder,
        llm=model.llm,
        name=repo,
        runs=found,
        data=data,
        scores=files,
        license=license or _recipe_license(found),
    )
    _refuse_other_license(facts)
    return with_licenses(facts, licenses)


def check_scored(model: Model, paths: Sequence, files: Sequence[ScoreFile], are_named: bool):
    """Say which score files are of other weights, such as those before a merge, or of other defaults of decoding.

    Raises: `ValueError` if that is so for a file that the user did not name.
    """
    digest, defaults = model_digest(str(model.folder)), default_options(str(model.folder))
    for path, file in zip(paths, files, strict=True):
        if file.digest not in (None, digest):
            other = f"`{path}` has the scores of other weights (`{file.weights}`) than those of `{model.folder}`"
        elif file.defaults not in (None, defaults):
            other = (
                f"`{path}` was scored when generation_config.json set {file.defaults or 'nothing'}, and in "
                f"`{model.folder}` it sets {defaults or 'nothing'}"
            )
        else:
            continue
        if not are_named:
            raise ValueError(
                f"{other}: score these with `soundwave-hf evaluate --output`, remove the file, or name it with "
                "`--scores` if the weights are the same in another form."
            )
        print(f"{other}. The card shows them.", flush=True)


def _license_of(metadata: Mapping) -> str | None:
    """The licence in the metadata of a card, as text."""
    license = metadata.get("license")
    if license == "other":
        license = metadata.get("license_name", license)
    return ", ".join(map(str, license)) if isinstance(license, list) else license


def _recipe_license(runs: Sequence[Run]) -> str | None:
    return next((run.recipe["license"] for run in reversed(runs) if run.recipe.get("license")), None)


def _start_license(runs: Sequence[Run]) -> Run | None:
    """The weights that the runs started from, with the licence that their card states."""
    return next((run for run in reversed(runs) if run.license), None)


def _refuse_other_license(facts: ModelFacts):
    """Raises: `ValueError` for a licence other than the share-alike one of the weights that the runs started from."""
    start = _start_license(facts.runs)
    if start is None or facts.license is None or not start.license.startswith(SHARE_ALIKE):
        return
    family = start.license.rpartition("-")[0]
    if not facts.license.strip().lower().startswith(family):
        raise ValueError(
            f"The licence of these weights is {facts.license!r}, and they are made from {start.weights}, which is "
            f"under {start.license}: what is made from it stays under that licence. Give "
            f"`--license {start.license}`, or leave the licence out."
        )


# ---- what goes out ----


def _write(model: Model, facts: ModelFacts, own: Card, out: Path, shard_size: str, typed: bool, linked: bool = False):
    """Write the upload. Args: typed: whether the licence is that of the own card, which is kept as it is.

    Raises: `OSError` if the disk is full; `ValueError` if the card would hold a secret.
    """
    if typed:
        facts = dataclasses.replace(facts, license=_license_of(own.metadata))
        _refuse_other_license(facts)
    if facts.license is None and (start := _start_license(facts.runs)) is not None:
        print(
            f"The licence is {start.license}, that of {start.weights}, which these weights are made from.", flush=True
        )
        facts, typed = dataclasses.replace(facts, license=start.license), False
    try:
        write_files(model, out, facts.name, shard_size, linked)
        facts = dataclasses.replace(_plot(facts, out), has_own=bool(own.own), own=own.metadata)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free = shutil.disk_usage(out).free / 1e6
        raise OSError(
            f"The disk of `{out.parent}` is full ({free:.0f} MB free), and nothing was pushed: make room, or name "
            "another place (`--dry-run`)."
        ) from error
    metadata, block = model_card(facts)
    if typed:
        metadata = {key: value for key, value in metadata.items() if key not in LICENSE_KEYS}
    if lost := left_out_metadata(own, metadata):
        print(f"Of your metadata, {lost} are left out: scores come from score files, other values from the model.")
    text = write_card(metadata, block, own)
    if holds_secret(text):
        raise ValueError("The card would hold what looks like a token or password: look in the recipe and README.md.")
    (out / README).write_text(text, encoding="utf-8")


def _plot(facts: ModelFacts, out: Path) -> ModelFacts:
    """Draw the curves of the runs, and say so in the facts."""
    histories = {}
    for number, run in enumerate(facts.runs, 1):
        if run.history:
            name = run.stage or "run"
            histories[f"{name} ({number})" if name in histories else name] = run.history
    if not histories:
        return facts
    if not has_matplotlib():
        print("The card has no plot of the training: it needs matplotlib, `pip install 'soundwave-hf[train]'`.")
        return facts
    plot_histories(histories, out / PLOT)
    return dataclasses.replace(facts, has_plot=True)


def _registered(target: Target, facts: ModelFacts, out: Path):
    """Write `.eval_results`, and say which data sets are no benchmarks."""
    written = write_eval_results(target, list(facts.scores), out)
    others = {source["path"] for file in facts.scores for source in file.on_hub.values()} - set(written)
    if others:
        print(f"No `.eval_results` for {sorted(others)}: they are not registered, or not all rows were scored.")


def _written(out: Path, facts: ModelFacts) -> Pushed:
    if any(file.on_hub for file in facts.scores):
        print("Whether the data sets are registered benchmarks is asked at the push.", flush=True)
    files = [path for path in out.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files) / 1e6
    print(f"Written to {out}: {len(files)} files, {size:.1f} MB. Nothing was sent.", flush=True)
    return Pushed(str(out), files=len(files))


def _sent(target: Target, sent: Sent) -> Pushed:
    where = f" ({target.revision})" if target.revision != "main" else ""
    if sent.commit is None:
        print(f"{sent.address}{where} has all of this already: nothing was sent.", flush=True)
        return Pushed(sent.address)
    if sent.removed:
        print(f"Removed there, as this model has no such files: {', '.join(sent.removed)}.", flush=True)
    done = f"Pull request {sent.pull_request}" if sent.pull_request else f"Pushed to {sent.address}{where}"
    print(f"{done}: {sent.files} files in commit {sent.commit[:8]}, compared with the Hub's.", flush=True)
    return Pushed(sent.address, sent.commit, sent.pull_request, sent.files)


@contextmanager
def _place_beside(folder: Path) -> Iterator[Path]:
    """A folder for the upload that is removed again: on the same disk, so that weights can be linked, if possible."""
    parent = folder.resolve().parent
    place = tempfile.mkdtemp(prefix=".push-", dir=parent if os.access(parent, os.W_OK) else None)
    try:
        yield Path(place)
    finally:
        shutil.rmtree(place, ignore_errors=True)


__all__ = ["Pushed", "push_model"]
