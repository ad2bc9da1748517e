from pathlib import Path

import pytest
import yaml

from soundwave_hf import cli
from soundwave_hf.paths import expand_path, one_or_more
from soundwave_hf.training.recipe import read_recipe


@pytest.fixture
def home(monkeypatch, tmp_path):
    """A `$SOUNDWAVE_HOME` of its own, and an empty current folder."""
    monkeypatch.setenv("SOUNDWAVE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "home"


@pytest.fixture
def read(tmp_path, home):
    """Reads a recipe of stage `align` with these changes."""

    def make(**changes):
        recipe = {"stage": "align", "encoder": "e", "llm": "l", "data": "d.jsonl", "output_dir": "out", **changes}
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        return read_recipe(tmp_path / "recipe.yaml")

    return make


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("runs/x", "runs/x"),
        ("./x", "./x"),
        ("../x", "../x"),
        ("/a/b", "/a/b"),
        ("~/x", "ME/x"),
        ("$SOUNDWAVE_HOME/runs/x", "HOME/runs/x"),
        ("${SOUNDWAVE_HOME}/x", "HOME/x"),
        ("$SCRATCH/$JOB.d/x", "/scratch/7.d/x"),
        ("$ROOT_OF_ME/x", "ME/x"),  # what a variable holds may begin with ~
        ("openai/whisper-base", "openai/whisper-base"),
        ("price-5$", "price-5$"),
        ("data/*.jsonl", "data/*.jsonl"),
    ],
)
def test_a_path_is_relative_to_the_current_folder_and_may_name_variables(home, monkeypatch, written, meant):
    for name, value in {"SCRATCH": "/scratch", "JOB": "7", "ROOT_OF_ME": "~"}.items():
        monkeypatch.setenv(name, value)
    expected = meant.replace("HOME", str(home)).replace("ME", str(home.parent / "me"))
    assert expand_path(written, "`data`") == expected


def test_the_home_of_this_package_has_a_default(home, monkeypatch):
    monkeypatch.delenv("SOUNDWAVE_HOME")
    assert expand_path("$SOUNDWAVE_HOME/x", "`data`") == str(home.parent / "me" / ".cache" / "soundwave-hf" / "x")
    monkeypatch.setenv("SOUNDWAVE_HOME", "~/sw")
    assert expand_path("$SOUNDWAVE_HOME/x", "`data`") == str(home.parent / "me" / "sw" / "x")


@pytest.mark.parametrize("written", ["ke$ha.wav", "calls$old", "calls$old/ke$ha.wav", "calls$old/*.wav", "${x}.wav"])
def test_what_exists_as_it_is_written_is_left_as_it_is(home, monkeypatch, written):
    monkeypatch.setenv("old", "other")
    (home.parent / "here" / "calls$old").mkdir()
    for name in ("ke$ha.wav", "calls$old/ke$ha.wav", "${x}.wav"):
        (home.parent / "here" / name).touch()
    assert expand_path(written, "`audio`") == written


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("$NOT_SET_HERE/x", r"`data` names `\$NOT_SET_HERE`, and that variable is not set: set it, or write"),
        ("a/${NOT_SET_HERE}/x", r"names `\$NOT_SET_HERE`, and that variable is not set"),
        ("${SOUNDWAVE_HOM}/x", r"names `\$SOUNDWAVE_HOM`"),
        ("", "`data` is ''; give a path"),
        (5, "`data` is 5; give a path"),
        ("~nobody-of-this-name/x", "begins with `~nobody-of-this-name`, and there is no such user"),
    ],
)
def test_a_path_that_stands_for_nothing_is_refused(home, monkeypatch, written, message):
    monkeypatch.delenv("NOT_SET_HERE", raising=False)
    with pytest.raises(ValueError, match=message):
        expand_path(written, "`data`")


def test_every_path_of_a_recipe_is_expanded(read, home, monkeypatch):
    monkeypatch.setenv("PLACE", "/place")
    (home / "s").mkdir(parents=True)  # adapters of stage `align`, as far as a recipe looks at them
    (home / "s" / "config.json").write_text('{"model_type": "soundwave"}')
    (home / "s" / "trained.safetensors").touch()
    recipe, arguments = read(
        encoder="~/e", llm="$PLACE/l", data="$PLACE/d.jsonl", start_from="$SOUNDWAVE_HOME/s", output_dir="~/out"
    )
    me = str(home.parent / "me")
    assert (recipe.encoder, recipe.llm, str(recipe.manifest)) == (f"{me}/e", "/place/l", "/place/d.jsonl")
    assert (recipe.start_folder, arguments.output_dir) == (str(home / "s"), f"{me}/out")
    assert recipe.written["output_dir"] == "~/out"  # what is written down trains elsewhere too


@pytest.mark.parametrize("key", ["data", "start_from", "output_dir"])
def test_a_relative_path_that_is_only_at_home_is_told_what_to_write(read, home, key):
    (home / "runs" / "old").mkdir(parents=True)
    with pytest.raises(ValueError, match=rf"`{key}` is `runs/old`, .* write `\$SOUNDWAVE_HOME/runs/old`"):
        read(**{key: "runs/old"})
    read(**{key: "./runs/old"})  # a new one here
    (home.parent / "here" / "runs" / "old").mkdir(parents=True)
    read(**{key: "runs/old"})


def test_a_variable_that_is_not_set_is_named_by_the_command(read, tmp_path, capsys):
    read()
    assert cli.main(["train", str(tmp_path / "recipe.yaml"), "--output_dir", "$NOT_SET_HERE/x"]) == 2
    assert "`output_dir` names `$NOT_SET_HERE`" in capsys.readouterr().err
    assert cli.main(["export", "$NOT_SET_HERE/x", "y"]) == 2
    assert "`run_folder` names `$NOT_SET_HERE`, and that variable is not set" in capsys.readouterr().err


def stub(arguments):
    """Let a verb do nothing."""
    arguments.run = lambda arguments: None


def test_options_of_the_command_are_paths_too(home, monkeypatch):
    seen = []
    monkeypatch.setenv("PLACE", "/place")
    add = cli.expand_options
    monkeypatch.setattr(cli, "expand_options", lambda found: (add(found), seen.append(found), stub(found)))
    me = str(home.parent / "me")
    for words in (
        ["export", "~/run", "$PLACE/x"],
        ["evaluate", "--adapter", "$SOUNDWAVE_HOME/a", "--output", "~/o", "--llm", "$PLACE/l", "--against", "~/b"],
        ["demo", "~/a.wav", "$PLACE/b.wav"],
    ):
        assert cli.main(words) == 0
    export, evaluate, demo = seen
    assert (export.run_folder, export.destination) == (f"{me}/run", "/place/x")
    assert (evaluate.adapter, evaluate.output, evaluate.llm) == (f"{home}/a", f"{me}/o", "/place/l")
    assert evaluate.against == f"{me}/b"
    assert demo.audio == [f"{me}/a.wav", "/place/b.wav"]


@pytest.mark.parametrize(
    "words",
    [
        ["evaluate", "--sets", "librivox", "--model", "none/such"],
        ["data", "show", "clips.json", "0", "--model", "none/such"],
    ],
)
def test_a_checkpoint_that_is_not_there_is_named(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clips.json").write_text('[{"question": "Who?", "answer": "Ann."}]')
    assert cli.main(words) == 2
    assert "There is no folder `none/such` with a checkpoint, and none of that name" in capsys.readouterr().err


def test_a_name_with_brackets_is_looked_for_as_it_is_written(read, home):
    home.mkdir()
    (home / "rows[1].jsonl").write_text("")
    with pytest.raises(ValueError, match=r"`data` is `rows\[1\].jsonl`, which is not in the current folder but in"):
        read(data="rows[1].jsonl")
    Path("rows[1].jsonl").write_text("")
    assert read(data="rows[1].jsonl")[0].data == "rows[1].jsonl"


def test_one_path_is_not_read_letter_by_letter():
    assert one_or_more("a.wav") == ["a.wav"]
    assert one_or_more(Path("a.wav")) == [Path("a.wav")]
    assert one_or_more(name for name in ("a", "b")) == ["a", "b"]
