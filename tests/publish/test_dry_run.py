"""`soundwave-hf push --dry-run`: what is written, and what is refused. No connection is made."""

import errno
import json
import socket
import tomllib
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig

from soundwave_hf import cli, push_model
from soundwave_hf.modeling.folders_soundwave import model_digest
from soundwave_hf.publish import files
from soundwave_hf.publish.card import READERS_NEED
from soundwave_hf.publish.files import INDEX, read_model
from soundwave_hf.published_files import list_tensors
from tests.publish.conftest import SCORES


@pytest.fixture(autouse=True)
def no_network(monkeypatch, same_process, quick_plot):
    def refused(*words):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refused)


def names(folder) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_of_a_run_only_the_model_and_its_card_go_out(made, tmp_path, capsys):
    pushed = push_model(made / "run", "me/mine", dry_run=tmp_path / "out")
    found = names(tmp_path / "out")
    assert {"adapter_model.safetensors", "adapter_config.json", "config.json", "README.md", "training.png"} <= found
    assert {"tokenizer.json", "processor_config.json", "processing_soundwave.py"} <= found
    assert not [name for name in found if name.startswith((".", "optimizer", "rng", "runs", "checkpoint", "recipe"))]
    assert pushed.files == len(found) and pushed.commit is None
    printed = capsys.readouterr().out
    left_out = printed.split("Left out, as no part of the model: ")[1].splitlines()[0]
    for name in (".env", "optimizer.pt", "checkpoint-2/", "runs/", "trainer_state.json"):
        assert name in left_out
    assert "Checked in a fresh process: " in printed and "Nothing was sent." in printed


@pytest.fixture
def fine_tuned(folder, tmp_path) -> Path:
    """A run that started from weights which have only a card, under a share-alike licence."""
    run = folder("run")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "README.md").write_text("---\nlicense: cc-by-sa-3.0\n---\n# theirs\n")
    recipe = yaml.safe_load((run / "recipe.yaml").read_text()) | {"start_from": str(tmp_path / "theirs")}
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return run


def test_a_fine_tune_keeps_the_licence_of_the_weights_that_it_started_from(fine_tuned, tmp_path, capsys):
    push_model(fine_tuned, "me/mine", dry_run=tmp_path / "up")
    assert "The licence is cc-by-sa-3.0, that of theirs, which these weights are made from." in capsys.readouterr().out
    card = ModelCard.load(tmp_path / "up" / "README.md")
    assert card.data.license == "cc-by-sa-3.0" and "These weights: cc-by-sa-3.0." in card.text


def test_a_licence_that_a_share_alike_one_does_not_allow_is_refused(fine_tuned, tmp_path):
    with pytest.raises(ValueError, match="is 'mit', and they are made from theirs, which is under cc-by-sa-3.0"):
        push_model(fine_tuned, "me/mine", dry_run=tmp_path / "up", license="mit")
    (fine_tuned / "README.md").write_text("---\nlicense: mit\n---\n")
    with pytest.raises(ValueError, match="what is made from it stays under that licence"):
        push_model(fine_tuned, "me/mine", dry_run=tmp_path / "up")
    push_model(fine_tuned, "me/mine", dry_run=tmp_path / "up", license="cc-by-sa-4.0")
    assert ModelCard.load(tmp_path / "up" / "README.md").data.license == "cc-by-sa-4.0"


def test_adapters_name_themselves_and_their_backbones_by_hub_name(made, tmp_path):
    push_model(made / "run", "me/mine", dry_run=tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["audio_config"]["_name_or_path"] == "me/whisper"
    assert config["text_config"]["_name_or_path"] == "me/llm"
    adapter = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == "me/mine"
    for path in (tmp_path / "out").glob("*.json"):
        assert str(made) not in path.read_text()


def test_adapters_of_stage_one_may_be_pushed(made, tmp_path):
    push_model(made / "align", "me/ctc", dry_run=tmp_path / "out")
    assert "trained.safetensors" in names(tmp_path / "out")
    assert 'load_adapter("me/ctc", ctc_only=True)' in (tmp_path / "out" / "README.md").read_text()


def test_a_lora_of_the_encoder_goes_along_or_is_missed(folder, tmp_path, capsys):
    run = folder("run")
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"encoder_lora": "0123"}))
    assert "lacks encoder_lora.safetensors, which its config names" in refused(run, tmp_path, capsys)
    save_file({"a": torch.ones(2)}, run / "encoder_lora.safetensors")
    assert read_model(run).weights == ("adapter_model.safetensors", "encoder_lora.safetensors")


def test_a_whole_model_is_written_in_shards_of_the_given_size(made, tmp_path):
    push_model(made / "whole", "me/whole", dry_run=tmp_path / "out", max_shard_size="20KB")
    out = tmp_path / "out"
    index = json.loads((out / INDEX).read_text())
    shards = sorted(set(index["weight_map"].values()))
    assert len(shards) > 1 and not (out / "model.safetensors").exists()
    before = load_file(made / "whole" / "model.safetensors")
    after = {name: value for shard in shards for name, value in load_file(out / shard).items()}
    assert after.keys() == before.keys() == index["weight_map"].keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in before.values())
    for shard in shards:
        sizes = [tensor.num_bytes for tensor in list_tensors(out / shard).values()]
        assert sum(sizes) <= 20_000 or len(sizes) == 1
    # Small enough shards are pushed as they are.
    push_model(out, "me/again", dry_run=tmp_path / "again")
    assert {path.name for path in (tmp_path / "again").glob("model-*")} == set(shards)


def test_a_dry_run_holds_copies_and_leaves_the_folder_as_it_was(made, tmp_path):
    before = names(made / "whole")
    push_model(made / "whole", "me/whole", dry_run=tmp_path / "out")
    assert names(made / "whole") == before
    written = (tmp_path / "out" / "model.safetensors").stat()
    assert (written.st_nlink, written.st_ino) == (1, written.st_ino)
    assert written.st_ino != (made / "whole" / "model.safetensors").stat().st_ino


# ---- what is refused ----


def without(folder, name):
    (folder / name).unlink()
    return folder


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{whole}", "a/b/c"], "REPO is 'a/b/c'"),
        (["{whole}", "mine"], "REPO is 'mine'; expected USER/MODEL"),
        (["{whole}", "me/bad name"], "REPO is 'me/bad name'"),
        (["{nothing}", "me/x"], "There is no folder"),
        (["{home}", "me/x"], "There is no Soundwave model to push."),
        (["{whole}", "me/x", "--max-shard-size", "5"], "`--max-shard-size` is `5`; expected a size such as 5GB"),
        (["{whole}", "me/x", "--max-shard-size", "0GB"], "`--max-shard-size` is `0GB`"),
        (["{whole}", "me/x", "--license", "apache2.0"], "Did you mean `apache-2.0`?"),
        (["{whole}", "me/x", "--message", " "], "`--message` is empty"),
        (["{whole}", "me/x", "--scores", "{nothing}"], "There is no file"),
        (["{whole}", "me/x", "--run", "{whole}"], "has no recipe.yaml"),
        (["{whole}", "me/x", "--data-card", "{nothing}"], "There is no dataset card"),
        (["{run}", "me/x", "--licenses", "{boks: mit}"], "There are licences for ['boks']; the data and backbones"),
        (["{run}", "me/x", "--licenses", "{books: apache2.0}"], "Did you mean `apache-2.0`?"),
        (["{run}", "me/x", "--llm", "/a/folder"], "`--llm` is `/a/folder`; expected its name on the Hub"),
        (["{run}", "me/x", "--create-pr", "--revision", "refs/pr/1"], "is a pull request already"),
    ],
)
def test_what_cannot_be_pushed_is_one_line_and_leaves_nothing(made, tmp_path, capsys, words, message):
    places = {name: str(made / name) for name in ("whole", "run", "home", "nothing")}
    for name, place in places.items():
        words = [word.replace(f"{{{name}}}", place) for word in words]
    assert cli.main(["push", *words, "--dry-run", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr().err
    assert message in printed and len(printed.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))


def refused(folder, tmp_path, capsys) -> str:
    assert cli.main(["push", str(folder), "me/x", "--dry-run", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()
    return capsys.readouterr().err


def test_local_backbones_are_refused_and_said_how_to_name(folder, tmp_path, capsys):
    run = folder("run")
    config = json.loads((run / "config.json").read_text())
    config["text_config"]["_name_or_path"] = str(tmp_path / "my-llm")
    (run / "config.json").write_text(json.dumps(config))
    printed = refused(run, tmp_path, capsys)
    assert f"names its llm as the local folder `{tmp_path / 'my-llm'}`" in printed
    assert "give `--llm USER/MODEL`" in printed and "soundwave-hf merge" in printed


def test_a_shard_that_is_missing_is_named(made, tmp_path, capsys):
    push_model(made / "whole", "me/whole", dry_run=tmp_path / "sharded", max_shard_size="20KB")
    shard = sorted((tmp_path / "sharded").glob("model-*"))[1]
    shard.unlink()
    assert f"lacks ['{shard.name}']" in refused(tmp_path / "sharded", tmp_path, capsys)


def test_a_shard_without_a_weight_of_the_index_is_refused(made, tmp_path, capsys):
    push_model(made / "whole", "me/whole", dry_run=tmp_path / "sharded", max_shard_size="20KB")
    shard = max((tmp_path / "sharded").glob("model-*"), key=lambda path: len(list_tensors(path)))
    weights = load_file(shard)
    lost = sorted(weights)[0]
    save_file({name: value for name, value in weights.items() if name != lost}, shard)
    assert f"lacks ['{lost}']" in refused(tmp_path / "sharded", tmp_path, capsys)


def test_a_file_of_weights_that_breaks_off_is_refused(folder, tmp_path, capsys):
    whole = folder("whole")
    path = whole / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert "model.safetensors` cannot be read (" in refused(whole, tmp_path, capsys)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.safetensors", "There is nothing to push."),
        ("processor_config.json", "has no processor_config.json"),
        ("modeling_soundwave.py", "lacks the code ['modeling_soundwave.py']"),
    ],
)
def test_a_part_that_is_missing_is_named(folder, tmp_path, capsys, name, message):
    assert message in refused(without(folder("whole"), name), tmp_path, capsys)


def test_pickled_weights_are_refused(folder, tmp_path, capsys):
    whole = without(folder("whole"), "model.safetensors")
    (whole / "pytorch_model.bin").write_bytes(b"pickle")
    assert "holds pickled weights, and the Hub wants safetensors" in refused(whole, tmp_path, capsys)


def test_a_token_in_a_config_is_refused_and_not_repeated(folder, tmp_path, capsys):
    whole = folder("whole")
    config = json.loads((whole / "generation_config.json").read_text())
    (whole / "generation_config.json").write_text(json.dumps(config | {"x": "hf_AbCdEfGhIjKlMnOpQrStUvWx"}))
    printed = refused(whole, tmp_path, capsys)
    assert "holds what looks like a token" in printed and "hf_AbCd" not in printed


@pytest.mark.parametrize("secret", [{"api_key": "plainpassword"}, {"hub": [{"token": "s3cret-word"}]}])
def test_a_key_of_a_secret_in_a_config_is_refused(folder, tmp_path, capsys, secret):
    whole = folder("whole")
    config = json.loads((whole / "generation_config.json").read_text())
    (whole / "generation_config.json").write_text(json.dumps(config | secret))
    printed = refused(whole, tmp_path, capsys)
    assert "which looks like a secret" in printed and "password" not in printed and "s3cret" not in printed


def test_a_card_that_is_not_utf8_is_named(folder, tmp_path, capsys):
    whole = folder("whole")
    (whole / "README.md").write_bytes(b"caf\xe9")
    assert "README.md` is not UTF-8 text" in refused(whole, tmp_path, capsys)


def test_readers_of_a_whole_model_install_the_oldest_version_that_this_package_takes():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    (bounds,) = [each for each in project["dependencies"] if each.startswith("transformers")]
    assert f'"{bounds.split(",")[0]}"' in READERS_NEED


def test_scores_of_other_weights_are_told(folder, tmp_path, capsys):
    whole = folder("whole")
    place = whole / "evaluation.json"
    place.write_text(json.dumps(SCORES | {"weights_digest": "of others"}))
    assert "has the scores of other weights (`runs/mine`)" in refused(whole, tmp_path, capsys)
    push_model(whole, "me/mine", dry_run=tmp_path / "named", scores=place)
    assert "has the scores of other weights (`runs/mine`)" in capsys.readouterr().out
    place.write_text(json.dumps(SCORES | {"weights_digest": model_digest(str(whole))}))
    push_model(whole, "me/mine", dry_run=tmp_path / "same")
    assert "other weights" not in capsys.readouterr().out
    assert "14.5" in (tmp_path / "same" / "README.md").read_text()


def test_scores_with_other_defaults_of_decoding_are_told(folder, tmp_path, capsys):
    whole = folder("whole")
    GenerationConfig(eos_token_id=1, ctc_weight=0.5, transcription_num_beams=4).save_pretrained(whole)
    place = whole / "evaluation.json"
    place.write_text(json.dumps(SCORES | {"generation_config": {"ctc_weight": 0.3}}))
    told = refused(whole, tmp_path, capsys)
    assert "was scored when generation_config.json set {'ctc_weight': 0.3}, and in" in told
    assert "it sets {'ctc_weight': 0.5, 'transcription_num_beams': 4}: score these with" in told
    now = {"ctc_weight": 0.5, "transcription_num_beams": 4}
    place.write_text(json.dumps(SCORES | {"generation_config": now}))
    push_model(whole, "me/mine", dry_run=tmp_path / "same")
    card = (tmp_path / "same" / "README.md").read_text()
    assert "the LLM's text, `ctc_weight: 0.5`, `transcription_num_beams: 4`. Language" in card
    place.write_text(json.dumps(SCORES | {"generation_config": now, "generate": {"num_beams": 1}}))
    push_model(whole, "me/mine", dry_run=tmp_path / "greedy")
    assert "text, `ctc_weight: 0.5`, `num_beams: 1`. Language" in (tmp_path / "greedy" / "README.md").read_text()
    place.write_text(json.dumps(SCORES | {"generation_config": now, "generate": {"ctc_weight": 0}}))
    push_model(whole, "me/mine", dry_run=tmp_path / "alone")
    assert "the LLM's text, `ctc_weight: 0`. Language" in (tmp_path / "alone" / "README.md").read_text()


def test_a_folder_in_use_is_not_written_to(made, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    assert cli.main(["push", str(made / "whole"), "me/x", "--dry-run", str(tmp_path / "out")]) == 2
    assert "exists and is not an empty folder" in capsys.readouterr().err
    assert names(tmp_path / "out") == {"mine.txt"}


@pytest.mark.parametrize("what", ["copy", "shard"])
def test_a_full_disk_is_one_line_and_leaves_nothing(made, tmp_path, capsys, monkeypatch, what):
    def full(*words, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    if what == "copy":
        monkeypatch.setattr(files.shutil, "copyfile", full)
    else:
        monkeypatch.setattr(files, "save_file", full)
    words = ["push", str(made / "whole"), "me/x", "--dry-run", str(tmp_path / "out"), "--max-shard-size", "20KB"]
    assert cli.main(words) == 2
    printed = capsys.readouterr().err
    assert "is full (" in printed and "nothing was pushed: make room" in printed
    assert list(tmp_path.iterdir()) == []


def test_weights_that_changed_on_the_way_are_found(made, tmp_path, capsys, monkeypatch):
    def change(model, out, *rest):
        weights = load_file(model.folder / "model.safetensors")
        name = sorted(weights)[0]
        save_file({**weights, name: weights[name] + 1}, out / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(files, "write_weights", change)
    printed = refused(made / "whole", tmp_path, capsys)
    assert "The written folder has other values in [" in printed and "Nothing was pushed" in printed


def test_code_that_computes_something_else_is_found(made, tmp_path, capsys, monkeypatch):
    from soundwave_hf.publish import reload

    answers = iter([{"logits": torch.zeros(1)}, {"logits": torch.ones(1)}])
    monkeypatch.setattr(reload, "run_fresh", lambda *words: next(answers))
    assert "The written folder gives other logits than" in refused(made / "whole", tmp_path, capsys)


def test_backbones_that_are_not_here_are_said_not_to_have_been_run(made, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SOUNDWAVE_HOME", str(tmp_path / "empty"))
    push_model(made / "run", "me/mine", dry_run=tmp_path / "out")
    assert "The model was not run, because `me/whisper` is not on this machine." in capsys.readouterr().out
