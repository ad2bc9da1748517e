"""`soundwave-hf push` to a local server that speaks the hub's protocol over HTTP."""

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForMultimodalLM, AutoProcessor

from soundwave_hf import SoundwaveForConditionalGeneration, SoundwaveProcessor, cli, push_model
from soundwave_hf.publish import reload, remote
from tests.local_hub import Fault
from tests.publish.conftest import SCORES


ROOT = Path(__file__).parents[2]
WRONG = "hf_AbCdEfGhIjKlMnOpQrStUvWx"


@pytest.fixture(autouse=True)
def fast(monkeypatch, made, quick_plot):
    """Retries do not wait, and `test_dry_run` tests the check before the upload."""
    monkeypatch.setenv("SOUNDWAVE_HOME", str(made / "home"))
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    monkeypatch.setattr(reload, "run_fresh", lambda *words: {"logits": torch.zeros(1)})


@pytest.fixture
def clip(tmp_path, monkeypatch) -> dict:
    monkeypatch.chdir(tmp_path)
    soundfile.write("speech.wav", 0.3 * np.sin(np.arange(16_000) / 9), 16_000)
    return {}


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


# ---- a push, and what readers get ----


def test_a_whole_model_is_pushed_and_loads_by_its_name(made, hub, capsys):
    pushed = push_model(made / "whole", "me/whole", private=True)
    assert hub.commits == [("me/whole", "main")] and hub.private_made == {"me/whole"}
    there = hub.repositories["me/whole"]
    content = (made / "whole" / "model.safetensors").read_bytes()
    assert (there / "model.safetensors").read_bytes() == content
    assert hub.puts.count(hashlib.sha256(content).hexdigest()) == 1
    assert f"Pushed to {hub.address}/me/whole: {pushed.files} files in commit {pushed.commit[:8]}" in (
        capsys.readouterr().out
    )
    hub.private.clear()
    for door in (AutoModelForMultimodalLM, SoundwaveForConditionalGeneration):
        found = door.from_pretrained("me/whole", trust_remote_code=True)
        expected = SoundwaveForConditionalGeneration.from_pretrained(made / "whole")
        for name, value in expected.state_dict().items():
            assert torch.equal(found.state_dict()[name], value)
    assert type(AutoProcessor.from_pretrained("me/whole", trust_remote_code=True)).__name__ == "SoundwaveProcessor"


def test_adapters_are_pushed_and_load_by_every_door(made, hub):
    push_model(made / "run", "me/mine")
    expected = SoundwaveForConditionalGeneration.from_pretrained(made / "run").state_dict()
    for door in (SoundwaveForConditionalGeneration, AutoModelForMultimodalLM):
        found = door.from_pretrained("me/mine").state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert SoundwaveProcessor.from_pretrained("me/mine").trailing_silence == 0.1


def test_the_librarys_own_push_to_hub_reaches_the_same_hub(made, hub):
    SoundwaveForConditionalGeneration.from_pretrained(made / "whole").push_to_hub("me/theirs")
    SoundwaveProcessor.from_pretrained(made / "whole").push_to_hub("me/theirs")
    assert {path.name for path in (made / "whole").iterdir()} <= names(hub.repositories["me/theirs"])
    found = AutoModelForMultimodalLM.from_pretrained("me/theirs", trust_remote_code=True)
    assert found.config.label_embeddings


@pytest.mark.parametrize("name", ["run", "align", "whole"])
def test_the_lines_of_the_card_transcribe(made, hub, clip, name):
    push_model(made / name, "me/mine")
    card = (hub.repositories["me/mine"] / "README.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len([line for line in block.splitlines() if line]) <= 6
    found = {}
    exec(block.replace("max_new_tokens=100", "max_new_tokens=3"), found)
    assert found["transcript"].text is not None if name == "align" else found["ids"].shape[0] == 1


@pytest.mark.slow
def test_a_stranger_loads_a_pushed_model_by_its_name_without_this_package(made, hub, tmp_path):
    push_model(made / "whole", "me/whole")
    script = (
        "import sys; sys.modules['soundwave_hf'] = None\n"
        "from transformers import AutoModelForMultimodalLM, AutoProcessor\n"
        "model = AutoModelForMultimodalLM.from_pretrained('me/whole', trust_remote_code=True)\n"
        "processor = AutoProcessor.from_pretrained('me/whole', trust_remote_code=True)\n"
        "print(type(model).__module__, type(processor).__module__)"
    )
    environment = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "HF_TOKEN")}
    environment |= {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "elsewhere")}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("transformers_modules.") == 2


@pytest.mark.slow
def test_the_command_checks_in_a_new_process_and_keeps_the_token_to_itself(made, hub, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-m", "soundwave_hf.cli", "push", str(made / "whole"), "me/whole"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Checked in a fresh process: " in done.stdout and "Pushed to " in done.stdout
    assert hub.token not in done.stdout + done.stderr
    for path in hub.repositories["me/whole"].rglob("*"):
        assert not path.is_file() or hub.token.encode() not in path.read_bytes(), path


# ---- once more ----


def test_a_second_push_of_the_same_sends_nothing(made, hub, capsys):
    push_model(made / "run", "me/mine")
    puts = len(hub.puts)
    again = push_model(made / "run", "me/mine")
    assert (again.commit, again.files) == (None, 0)
    assert len(hub.commits) == 1 and len(hub.puts) == puts
    assert "has all of this already: nothing was sent." in capsys.readouterr().out


def test_a_second_push_sends_what_changed_and_removes_what_is_gone(folder, hub, capsys):
    whole = folder("whole")
    push_model(whole, "me/whole", max_shard_size="20KB")
    there = hub.repositories["me/whole"]
    shards = {path.name for path in there.glob("model-*")}
    (there / "by-hand.txt").write_text("a reader's own file")
    (there / ".eval_results").mkdir()
    (there / ".eval_results" / "hle.yaml").write_text("[]")  # of the community
    push_model(whole, "me/whole")
    assert "Removed there, as this model has no such files: " in capsys.readouterr().out
    assert not shards & names(there) and "model.safetensors.index.json" not in names(there)
    assert {"model.safetensors", "by-hand.txt", ".eval_results/hle.yaml"} <= names(there)


@pytest.mark.parametrize("given", [{}, {"revision": "next"}, {"create_pr": True}, {"private": True}])
def test_a_check_that_fails_leaves_no_repository(made, hub, monkeypatch, given):
    answers = iter([{"logits": torch.zeros(1)}, {"logits": torch.ones(1)}])
    monkeypatch.setattr(reload, "run_fresh", lambda *words: next(answers))
    with pytest.raises(RuntimeError, match="gives other logits than .* Nothing was pushed"):
        push_model(made / "run", "me/mine", **given)
    assert not hub.repositories and not hub.branches and not hub.discussions and not hub.private_made


def test_a_check_that_fails_leaves_no_branch(made, hub, monkeypatch):
    push_model(made / "run", "me/mine")
    answers = iter([{"logits": torch.zeros(1)}, {"logits": torch.ones(1)}])
    monkeypatch.setattr(reload, "run_fresh", lambda *words: next(answers))
    with pytest.raises(RuntimeError, match="gives other logits than"):
        push_model(made / "run", "me/mine", revision="next")
    assert not hub.branches and len(hub.commits) == 1


def test_an_interrupted_upload_goes_on_where_it_stopped(made, hub, capsys):
    content = (made / "run" / "adapter_model.safetensors").read_bytes()
    weights = hashlib.sha256(content).hexdigest()
    hub.faults.append(Fault("POST", "/commit/", 500))
    assert cli.main(["push", str(made / "run"), "me/mine"]) == 2
    printed = capsys.readouterr()
    assert "`me/mine` could not be pushed to the hub: " in printed.err
    assert "it continues where it stopped" in printed.err
    assert "Pushed" not in printed.out and hub.commits == []
    assert hub.puts.count(weights) == 1 and weights in hub.objects
    assert cli.main(["push", str(made / "run"), "me/mine"]) == 0
    assert hub.puts.count(weights) == 1  # it was there
    assert (hub.repositories["me/mine"] / "adapter_model.safetensors").read_bytes() == content


def test_a_branch_is_made_and_main_stays_as_it_is(made, hub, capsys):
    push_model(made / "run", "me/mine", revision="next")
    assert hub.commits == [("me/mine", "next")]
    assert names(hub.repositories["me/mine"]) == set()
    assert "config.json" in names(hub.branches["me/mine", "next"])
    assert "me/mine (next): " in capsys.readouterr().out
    push_model(made / "run", "me/mine", revision="next")
    assert len(hub.commits) == 1


def test_a_pull_request_is_opened_once_and_then_used_again(folder, hub, capsys):
    run = folder("run")
    hub.repositories["them/mine"] = hub.writable / "them" / "mine"
    hub.repositories["them/mine"].mkdir(parents=True)
    first = push_model(run, "them/mine", create_pr=True)
    assert first.pull_request == f"{hub.address}/them/mine/discussions/1"
    assert push_model(run, "them/mine", create_pr=True).commit is None
    assert [each["num"] for each in hub.discussions] == [1]
    (run / "LICENSE").write_text("mine")
    push_model(run, "them/mine", create_pr=True)
    assert [revision for _, revision in hub.commits] == ["refs/pr/1", "refs/pr/1"]
    assert (hub.branches["them/mine", "refs/pr/1"] / "LICENSE").read_text() == "mine"
    push_model(run, "them/mine", create_pr=True, message="Another title")
    assert [each["title"] for each in hub.discussions] == ["Upload mine with soundwave-hf", "Another title"]
    hub.discussions[0]["status"] = "closed"
    push_model(run, "them/mine", create_pr=True)
    assert len(hub.discussions) == 3


def test_a_pull_request_against_a_missing_branch_makes_the_branch(folder, hub):
    run = folder("run")
    push_model(run, "me/mine")
    (run / "LICENSE").write_text("mine")
    first = push_model(run, "me/mine", revision="next", create_pr=True)
    assert first.pull_request == f"{hub.address}/me/mine/discussions/1"
    assert hub.commits[1:] == [("me/mine", "refs/pr/1")]
    assert names(hub.branches["me/mine", "next"]) == names(hub.repositories["me/mine"])
    push_model(run, "me/mine", revision="next", create_pr=True)
    assert len(hub.discussions) == 1 and len(hub.commits) == 2


# ---- text of users ----


def test_own_text_of_the_folder_and_of_the_hub_is_kept(folder, hub):
    run = folder("run")
    (run / "README.md").write_text("---\nlicense: mit\nthumbnail: x.png\ntags: [mine]\n---\n# My model\n\nHello.\n")
    push_model(run, "me/mine")
    there = hub.repositories["me/mine"] / "README.md"
    card = ModelCard.load(there)
    assert "# My model\n\nHello." in card.text and "These weights: mit." in card.text
    assert (card.data.license, card.data.get("thumbnail")) == ("mit", "x.png")
    assert {"mine", "soundwave"} <= set(card.data.tags)
    # Written by hand on the Hub, where the folder has none.
    (run / "README.md").unlink()
    there.write_text(there.read_text() + "\n## News\n\nA prize.\n")
    push_model(run, "me/mine")
    assert "A prize." in there.read_text() and "Hello." in there.read_text()
    assert there.read_text().count("## Citation") == 1


def test_text_that_would_be_lost_on_the_hub_is_refused(folder, hub, capsys):
    run = folder("run")
    push_model(run, "me/mine")
    there = hub.repositories["me/mine"] / "README.md"
    there.write_text(there.read_text() + "\n## News\n\nA prize.\n")
    (run / "README.md").write_text("My own words.\n")
    assert cli.main(["push", str(run), "me/mine"]) == 2
    assert "has text that the README.md of the folder lacks, and it would be lost" in capsys.readouterr().err
    assert "A prize." in there.read_text() and len(hub.commits) == 1
    assert cli.main(["push", str(run), "me/mine", "--replace-card"]) == 0
    assert "A prize." not in there.read_text() and "My own words." not in there.read_text()


def test_edits_between_the_marks_are_refused(folder, hub, capsys):
    run = folder("run")
    push_model(run, "me/mine")
    there = hub.repositories["me/mine"] / "README.md"
    (run / "README.md").write_text(there.read_text().replace("## Limits", "## No limits"))
    assert cli.main(["push", str(run), "me/mine"]) == 2
    assert "was edited between the marks of soundwave-hf" in capsys.readouterr().err


# ---- scores on registered benchmarks ----


@pytest.mark.parametrize(("split", "registered"), [("test", True), ("validation", False)])
def test_a_registered_data_set_gets_its_results(made, hub, tmp_path, capsys, split, registered):
    bench = tmp_path / "bench"
    bench.mkdir()
    (bench / "eval.yaml").write_text("name: B\ntasks:\n- {id: clean, config: en, split: test}\n")
    hub.repositories["datasets/org/bench"] = bench
    values = json.loads(json.dumps(SCORES))
    values["data"] = {"books": {"path": "org/bench", "config": "en", "split": split}}
    (tmp_path / "scores.json").write_text(json.dumps(values))
    push_model(made / "run", "me/mine", scores=[tmp_path / "scores.json"])
    path = hub.repositories["me/mine"] / ".eval_results" / "org--bench--clean.yaml"
    assert path.is_file() == registered
    if registered:
        assert path.read_text().startswith("- dataset:\n    id: org/bench\n    task_id: clean\n  value: 14.5\n")
    else:
        assert "No `.eval_results` for ['org/bench']" in capsys.readouterr().out


# ---- a hub that refuses, fails or is not there ----


def refused(made, capsys, *words) -> str:
    assert cli.main(["push", str(made / "run"), *(words or ["me/mine"])]) == 2
    printed = capsys.readouterr()
    assert "Pushed to" not in printed.out and "Pull request" not in printed.out
    assert len([line for line in printed.err.splitlines() if line.startswith("soundwave-hf push: ")]) == 1
    assert "Traceback" not in printed.err and "hf_mine" not in printed.err
    assert not list(made.glob(".push-*"))
    return printed.err


def test_a_wrong_token_is_one_line_that_does_not_repeat_it(made, hub, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", WRONG)
    printed = refused(made, capsys)
    assert "could not be pushed to the hub: " in printed and "log in with `hf auth login`" in printed
    assert WRONG not in printed and not hub.repositories


def test_without_a_token_the_log_in_is_named(made, hub, monkeypatch, capsys):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "/nothing/there")
    assert "log in with `hf auth login`, or set the variable `HF_TOKEN`" in refused(made, capsys)


@pytest.mark.parametrize("exists", [False, True])
def test_a_repository_of_another_is_refused(made, hub, tmp_path, capsys, exists):
    if exists:
        hub.repositories["them/mine"] = tmp_path / "theirs"
        hub.repositories["them/mine"].mkdir()
    printed = refused(made, capsys, "them/mine")
    assert "`them/mine` could not be pushed to the hub: 403" in printed
    assert "This account may not write there" in printed


def test_a_name_that_is_taken_by_something_else_is_refused(made, hub, capsys):
    hub.taken.add("me/mine")
    assert "`me/mine` is taken by something that is no model" in refused(made, capsys)


@pytest.mark.parametrize(
    "files", [{"config.json": '{"model_type": "qwen2"}'}, {"model-00001-of-00009.safetensors": "x"}]
)
@pytest.mark.parametrize("given", [{}, {"revision": "next"}, {"create_pr": True}])
def test_another_model_is_not_overwritten(made, hub, files, given):
    folder = hub.repositories["me/other"] = hub.writable / "me" / "other"
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    what = "a model of type 'qwen2'" if "config.json" in files else "weights without a config"
    with pytest.raises(ValueError, match=f"`me/other` holds {what}"):
        push_model(made / "run", "me/other", **given)
    assert hub.commits == [] and names(folder) == set(files)


@pytest.mark.parametrize("revision", ["", " ", "a b", "next\n"])
def test_a_revision_that_is_no_name_is_refused(made, hub, revision):
    with pytest.raises(ValueError, match="`--revision` is"):
        push_model(made / "run", "me/mine", revision=revision)
    assert hub.commits == []


def test_a_licence_that_was_set_on_the_hub_is_that_of_the_text_too(folder, hub):
    run = folder("run")
    push_model(run, "me/mine")
    there = hub.repositories["me/mine"] / "README.md"
    card = ModelCard.load(there)
    card.data.license = "cc-by-nc-4.0"
    card.save(there)
    push_model(run, "me/mine")
    card = ModelCard.load(there)
    assert card.data.license == "cc-by-nc-4.0" and "non-commercial" in card.data.tags
    assert "These weights: not stated" not in card.text and "cc-by-nc-4.0" in card.text


def test_a_public_repository_does_not_become_private_without_a_word(made, hub, capsys):
    push_model(made / "run", "me/mine")
    printed = capsys.readouterr()
    assert cli.main(["push", str(made / "run"), "me/mine", "--private"]) == 2
    printed = capsys.readouterr()
    assert "`me/mine` exists and is public, and `--private` was given" in printed.err


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault("GET", "/whoami", 500), "The Hub has an internal error"),
        (Fault("GET", "/whoami", 429), "The Hub limits the number of requests"),
        (Fault("POST", "/repos/create", 403), "This account may not write there"),
        (Fault("POST", "/repos/create", 409), "the answer is not JSON, so the server is not a Hub"),
        (Fault("POST", "/preupload/", 404), "There is no such repository or revision"),
        (Fault("POST", "/lfs/objects", 429, times=9), "The Hub limits the number of requests"),
        (Fault("PUT", "/lfs/", 503, times=99), "The Hub has an internal error"),
        (Fault("PUT", "/lfs/", "drop", times=99), "Check the connection"),
        (Fault("POST", "/commit/", 401), "log in with `hf auth login`"),
        (Fault("POST", "/commit/", 412), "could not be pushed to the hub: "),
    ],
    ids=lambda value: f"{value.path} {value.status}" if isinstance(value, Fault) else "",
)
def test_a_fault_of_the_hub_is_one_line_that_says_what_to_do(made, hub, capsys, fault, message):
    hub.faults.append(fault)
    assert message in refused(made, capsys)
    assert hub.commits == []


def test_a_hub_that_falls_silent_in_an_upload_is_given_up(made, hub, capsys, monkeypatch):
    monkeypatch.setattr(remote, "WAIT_SECONDS", 0.3)
    hub.hang_seconds = 0.6
    hub.faults.append(Fault("PUT", "/lfs/", "hang", times=99))
    assert "Check the connection" in refused(made, capsys)


def test_a_hub_that_is_not_there_is_one_line(made, hub, capsys):
    hub.shutdown()
    hub.server_close()
    printed = refused(made, capsys)
    assert "Check the connection, `HF_ENDPOINT` and `HF_HUB_OFFLINE`" in printed


def test_a_hub_that_keeps_something_else_is_found_out(made, hub, capsys, monkeypatch):
    commit, answer = hub.RequestHandlerClass.commit, hub.RequestHandlerClass.answer

    def lose(self, name, *rest):
        def answer_late(*given, **named):  # the file is lost before the answer, so that the check cannot be earlier
            (hub.repositories[name] / "config.json").write_text("{}")
            answer(self, *given, **named)

        self.answer = answer_late
        commit(self, name, *rest)
        del self.answer

    monkeypatch.setattr(hub.RequestHandlerClass, "commit", lose)
    assert "The Hub does not hold what was sent: ['config.json'] differ. Push again." in refused(made, capsys)


def test_a_new_branch_is_compared_with_the_text_that_main_has_on_the_hub(folder, hub):
    run = folder("run")
    (run / "README.md").write_text("My own words.\n")
    push_model(run, "me/mine")
    there = hub.repositories["me/mine"] / "README.md"
    there.write_text(there.read_text() + "\n## News\n\nA prize.\n")
    with pytest.raises(ValueError, match="would be lost"):  # the folder has other text of its own
        push_model(run, "me/mine", revision="next")
    assert ("me/mine", "next") not in hub.branches
