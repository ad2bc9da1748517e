"""A model repository on the Hub: open it, compare its files with a folder, send what differs, and check it."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import yaml
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    EvalResultEntry,
    HfApi,
    eval_result_entries_to_yaml,
    get_session,
)
from huggingface_hub.errors import RemoteEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile

from ..json_files import read_json_object
from ..keys import read_yaml_file
from ..modeling.configuration_soundwave import SoundwaveConfig
from ..published_files import sha256
from .facts import ScoreFile
from .files import OURS, matches


WAIT_SECONDS = 300  # for one answer of the Hub; its client waits for ever by default
MAIN = "main"
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx", ".h5", ".msgpack")


@contextmanager
def patient_session() -> Iterator[None]:
    """The HTTP client of `huggingface_hub` gives up when the Hub does not answer for `WAIT_SECONDS`."""
    session = get_session()
    before = session.timeout
    session.timeout = WAIT_SECONDS
    try:
        yield
    finally:
        session.timeout = before


@dataclass(frozen=True)
class Target:
    """Where to push.

    Args:
        repo (`str`): `user/model`; user (`str`): who pushes.
        revision (`str`): branch, or `refs/pr/N` of an open pull request.
        opens_pr (`bool`): whether the commit opens a pull request.
        makes_repo, makes_branch (`bool`): whether `make_missing` has to make the repository or the branch.
        private (`bool`): whether a new repository is private.
    """

    api: HfApi
    repo: str
    user: str
    revision: str = MAIN
    opens_pr: bool = False
    makes_repo: bool = False
    makes_branch: bool = False
    private: bool = False

    @property
    def address(self) -> str:
        return f"{self.api.endpoint}/{self.repo}"


def find_target(
    repo: str, private: bool = False, revision: str | None = None, create_pr: bool = False, message: str = ""
) -> Target:
    """Check the token, and look which of the repository and the branch are there. Nothing is written on the Hub.

    An open pull request of this user with the same title is used again.

    Raises: errors of `huggingface_hub`; `ValueError` if a public repository was to be private, or holds another model.
    """
    api = HfApi(library_name="soundwave-hf")
    user = api.whoami()["name"]
    target = Target(api, repo, user, revision or MAIN, private=private)
    found = _find(api, repo)
    if found is None:
        return replace(target, makes_repo=True, opens_pr=create_pr, makes_branch=_is_new_branch(revision))
    if private and not found.private:
        raise ValueError(f"`{repo}` exists and is public, and `--private` was given: give another name.")
    missing = _is_new_branch(revision) and not api.revision_exists(repo, revision)
    target = replace(target, makes_branch=missing)
    _refuse_other_model(target)
    return _pull_request(target, message) if create_pr and not missing else replace(target, opens_pr=create_pr)


def _refuse_other_model(target: Target):
    """Raises: `ValueError` where the repository holds a model of another kind, which a push would overwrite."""
    revision = MAIN if target.makes_branch else target.revision
    there = remote_files(target, revision)
    weights = sorted(name for name in there if name.endswith(WEIGHTS))
    kind = None
    if "config.json" in there:
        path = target.api.hf_hub_download(target.repo, "config.json", revision=revision)
        kind = read_json_object(Path(path)).get("model_type", "unknown")
    if kind == SoundwaveConfig.model_type or not (kind or weights):
        return
    what = f"a model of type {kind!r}" if kind else f"weights without a config ({', '.join(weights[:2])})"
    raise ValueError(
        f"`{target.repo}` holds {what}, and a push would overwrite it: name another repository, or delete its files "
        "on the Hub first."
    )


def _is_new_branch(revision: str | None) -> bool:
    """Whether a revision is a branch that has to be made in a new repository."""
    return revision not in (None, MAIN) and not revision.startswith("refs/")


def make_missing(target: Target) -> Target:
    """Make the repository and the branch, if they are missing.

    Raises: errors of `huggingface_hub`; `ValueError` if the name of the repository is taken.
    """
    if target.makes_repo:
        target.api.create_repo(target.repo, private=target.private or None, exist_ok=True)
        if _find(target.api, target.repo) is None:
            raise ValueError(
                f"`{target.repo}` is taken by something that is no model, or is hidden: take another name."
            )
    if target.makes_branch:
        target.api.create_branch(target.repo, branch=target.revision, exist_ok=True)
    return replace(target, makes_repo=False, makes_branch=False)


def _find(api: HfApi, repo: str):
    try:
        return api.model_info(repo)
    except RepositoryNotFoundError as error:
        if getattr(error.response, "status_code", 404) == 401:
            raise
        return None


def _pull_request(target: Target, message: str) -> Target:
    """The open pull request of this user and title, or one to be opened."""
    same = target.api.get_repo_discussions(
        target.repo, author=target.user, discussion_type="pull_request", discussion_status="open"
    )
    for each in same:
        if each.is_pull_request and each.status == "open" and each.title == message and each.author == target.user:
            return replace(target, revision=f"refs/pr/{each.num}")
    return replace(target, opens_pr=True)


# ---- what is there ----


def remote_files(target: Target, revision: str | None = None) -> dict[str, RepoFile]:
    """The files of a revision, by path; none in an empty repository."""
    try:
        tree = target.api.list_repo_tree(target.repo, recursive=True, revision=revision or target.revision)
        return {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
    except (RemoteEntryNotFoundError, RevisionNotFoundError):
        return {}


def is_same(path: Path, remote: RepoFile) -> bool:
    """Whether a file on the Hub has the content of a local one, by sha256 or the digest of git."""
    if path.stat().st_size != remote.size:
        return False
    if remote.lfs is not None:
        return sha256(path) == remote.lfs.sha256
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == remote.blob_id


def differences(out: Path, remote: Mapping[str, RepoFile]) -> list[str]:
    """Files of a folder that the Hub lacks, or has with another content."""
    names = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    return [name for name in names if name not in remote or not is_same(out / name, remote[name])]


def stale_files(out: Path, remote: Mapping[str, RepoFile]) -> list[str]:
    """Files of an earlier push that this one does not have, such as more shards. A reader's own files are none."""
    return [name for name in remote if matches(name, OURS) and not (out / name).exists()]


def remote_card(target: Target) -> str | None:
    """The text of README.md on the Hub; that of main where the branch has to be made from it."""
    revision = MAIN if target.makes_branch else target.revision
    if target.makes_repo or "README.md" not in remote_files(target, revision):
        return None
    path = target.api.hf_hub_download(target.repo, "README.md", revision=revision)
    return Path(path).read_text(encoding="utf-8")


# ---- sending ----


@dataclass(frozen=True)
class Sent:
    """What an upload did. Args: commit, pull_request: None if nothing had to be sent."""

    address: str
    commit: str | None = None
    pull_request: str | None = None
    files: int = 0
    removed: tuple[str, ...] = ()


def send(target: Target, out: Path, message: str) -> Sent:
    """Send the files that differ in one commit, and compare the Hub's files with the folder.

    Raises: errors of `huggingface_hub`; `RuntimeError` if the Hub holds other files afterwards.
    """
    remote = remote_files(target)
    changed, removed = differences(out, remote), stale_files(out, remote)
    if not changed and not removed:
        return Sent(target.address)
    operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=out / name) for name in changed]
    operations += [CommitOperationDelete(path_in_repo=name) for name in removed]
    found = target.api.create_commit(
        target.repo, operations, commit_message=message, revision=target.revision, create_pr=target.opens_pr
    )
    after = remote_files(target, found.pr_revision or found.oid)
    if wrong := differences(out, after) + stale_files(out, after):
        raise RuntimeError(f"The Hub does not hold what was sent: {wrong[:3]} differ. Push again.")
    return Sent(target.address, found.oid, found.pr_url, len(changed), tuple(removed))


# ---- registered benchmarks ----


def write_eval_results(target: Target, files: list[ScoreFile], out: Path) -> list[str]:
    """Write `.eval_results/` for data sets that are registered as benchmarks, those with an `eval.yaml`.

    A set of which rows could not be scored is no result of the benchmark. A benchmark gets one result: of the first
    file with the LLM's scores, else of the first one with those of the CTC head. Returns: names of the data sets.
    """
    written = []
    for file in sorted(files, key=lambda file: file.ctc_only):
        for name, source in file.on_hub.items():
            scores = file.sets.get(name)
            value = None if scores is None or scores.failures else getattr(scores, file.metric)
            task = None if value is None else registered_task(target.api, source)
            path = out / ".eval_results" / f"{source['path'].replace('/', '--')}--{task}.yaml"
            if task is None or path.exists():
                continue
            notes = f"{file.metric.upper()} in %", f"{scores.clips} clips", "soundwave-hf evaluate"
            entry = EvalResultEntry(
                dataset_id=source["path"],
                task_id=task,
                value=round(100 * value, 2),
                dataset_revision=source.get("revision"),
                notes=", ".join(part for part in (*notes, file.decoding) if part),
            )
            path.parent.mkdir(exist_ok=True)
            path.write_text(yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False), encoding="utf-8")
            written.append(source["path"])
    return written


def registered_task(api: HfApi, source: Mapping[str, str]) -> str | None:
    """The task in the `eval.yaml` of a data set that reads this config and split; None if it is not registered."""
    try:
        path = api.hf_hub_download(source["path"], "eval.yaml", repo_type="dataset", revision=source.get("revision"))
        tasks = read_yaml_file(Path(path)).get("tasks") or []
    except (RemoteEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError, AttributeError, ValueError):
        return None
    fitting = [
        task["id"]
        for task in tasks
        if all(task.get(key) in (None, source.get(key)) for key in ("config", "split")) and "id" in task
    ]
    return fitting[0] if len(fitting) == 1 else None


__all__ = [
    "Sent",
    "Target",
    "find_target",
    "make_missing",
    "patient_session",
    "remote_card",
    "send",
    "write_eval_results",
]
