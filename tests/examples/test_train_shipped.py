"""The chain of `make train`: `examples/soundwave-small/train_shipped.py`."""

import sys

import join_weights
import pytest
import train_shipped

from soundwave_hf.training.run import read_recipe


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("SOUNDWAVE_HOME", str(tmp_path))
    return tmp_path


def options_of(words: list[str]) -> dict[str, str]:
    return dict(zip((word.removeprefix("--") for word in words[::2]), words[1::2], strict=True))


def commands_of(commands: list[list[str]], kind: str) -> list[list[str]]:
    """The arguments of each command of a kind (`train` or a script)."""
    return [
        command[number + 1 :]
        for command in commands
        for number, word in enumerate(command)
        if word == kind or word.endswith(f"/{kind}")
    ]


def all_commands() -> list[list[str]]:
    return [command for step in train_shipped.all_steps() for side in step.commands for command in side]


def test_each_run_starts_from_what_an_earlier_step_made(home):
    made: set[str] = set()
    for step in train_shipped.training_steps():
        for commands in step.commands:
            new = set()
            for recipe, *words in commands_of(commands, "train"):
                settings, arguments = read_recipe(recipe, options_of(words))
                assert settings.start_from is None or settings.start_from in made
                new.add(arguments.output_dir)
            for head, out, *words in commands_of(commands, "join_weights.py"):
                options = options_of(words)
                assert {head, options.get("toward", head), options.get("llm", head)} <= made
                new.add(out)
            made |= new
        assert str(step.done.parent) in made


def test_runs_of_one_step_differ_in_seed_and_folder(home):
    seeds, folders = [], []
    for _, *words in commands_of(all_commands(), "train"):
        options = options_of(words)
        seeds.append(options.get("seed"))
        folders.append(options["output_dir"])
    assert len(set(seeds)) == len(seeds) == len(set(folders)) == 22


def test_the_last_runs_have_the_shipped_margin_and_their_length(home):
    for recipe, *words in commands_of(all_commands(), "train")[-2:]:
        settings, arguments = read_recipe(recipe, options_of(words))
        assert (settings.model, arguments.max_steps) == ({"blank_margin": 0.65}, 450)


def test_joins_have_the_arguments_of_the_script(home, monkeypatch):
    joined = []
    monkeypatch.setattr(join_weights, "write", lambda args, out: (joined.append(args), out.mkdir(parents=True)))
    for words in commands_of(all_commands(), "join_weights.py"):
        monkeypatch.setattr(sys, "argv", ["join_weights.py", *words])
        join_weights.main()
    assert [(args.out.name, args.llm and args.llm.name, args.toward and args.toward.name) for args in joined] == [
        ("1_mean", None, "1_mean_72"),
        ("head", None, "head_74"),
        ("2_mean", "2_mean_82", "2_mean_83"),
        ("2_llm", "2_llm_84", "2_llm_85"),
        ("3_first", "3_first_91", "3_first_92"),
        ("3_half", "3_first", "2_llm"),
        ("3_mean", "3_mean_93", "3_mean_94"),
        ("new_head", None, "new_head_76"),
        ("3_new_head", "3_mean", None),
        ("3_new", "3_new_95", "3_new_96"),
        ("3_third", "3_new", "3_mean"),
        ("every_head", None, "every_head_78"),
        ("fifth_head", None, "new_head"),
        ("3_fifth_head", "3_third", None),
        ("3_fourth", "3_fourth_97", "3_fourth_98"),
    ]
    assert [args.share for args in joined if args.toward] == [*9 * [0.5], 0.4, 0.5, 0.6, 0.5]
    assert {args.rank for args in joined if args.llm is None} == {32}


def test_finished_steps_are_left_out_and_each_says_what_is_left(home, monkeypatch, capsys):
    ran = []
    steps = [
        train_shipped.Step("texts", home / "texts", [[["write", "texts"]]]),
        train_shipped.Step("speech", home / "speech", [[["a"], ["b"]], [["c"]]]),
        train_shipped.Step("scores", home / "scores", [[["d"]]]),
    ]
    (home / "texts").touch()
    monkeypatch.setattr(train_shipped, "all_steps", lambda: steps)
    monkeypatch.setattr(train_shipped, "side_by_side", ran.append)
    train_shipped.main()
    assert ran == [[["a"], ["b"]], [["c"]], [["d"]]]
    said = capsys.readouterr().out.splitlines()
    assert said[:2] == ["Part 1 of 3 is done: texts.", "Part 2 of 3: speech. Left after it: scores."]


def test_commands_of_one_list_run_at_the_same_time_and_a_failure_ends_the_chain(home):
    wait = (
        "import sys, time, pathlib\na, b = map(pathlib.Path, sys.argv[1:])\na.touch()\n"
        "while not b.exists(): time.sleep(0.01)"
    )
    pair = [[sys.executable, "-c", wait, str(home / one), str(home / other)] for one, other in ("ab", "ba")]
    train_shipped.side_by_side(pair)  # each waits for the other
    after = [sys.executable, "-c", f"open({str(home / 'c')!r}, 'w')"]
    with pytest.raises(SystemExit, match="This command failed: .*exit\\(3\\)"):
        train_shipped.side_by_side([[sys.executable, "-c", "raise SystemExit(3) if True else exit(3)"], after])
    assert (home / "c").exists()  # the other one was not cut short
