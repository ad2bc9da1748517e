import inspect
import os
import re
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest
from torch.utils.data import DataLoader, Dataset

from soundwave_hf import __version__, cli, hub
from soundwave_hf.evaluation import evaluate


def replace_module(monkeypatch, name: str, **contents):
    """Put a module with these contents where a verb will import it from."""
    module = ModuleType(name)
    vars(module).update(contents)
    monkeypatch.setitem(sys.modules, name, module)


def test_help_names_every_verb_and_loads_no_library():
    code = (
        "import sys\nfrom soundwave_hf.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as stop: print(stop.code, sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == "0 []"
    verbs = re.findall(r"^    (\w+)", result.stdout, re.MULTILINE)
    first = ["train", "plan", "export", "merge", "convert", "demo", "transcribe", "inspect", "app"]
    assert verbs == [*first, "evaluate", "data", "push"]


def test_recipe_overrides_are_read_in_both_forms():
    assert cli.read_overrides(["--learning_rate", "1e-4", "--max_steps=3", "--shift", "-1"]) == {
        "learning_rate": "1e-4",
        "max_steps": "3",
        "shift": "-1",
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["max_steps", "3"], "`max_steps` arrived where a recipe's key was expected"),
        (["--max_steps"], "`--max_steps` has no value"),
        (["--max_steps", "--seed", "1"], "`--max_steps` has no value"),
        (["--seed", "1", "--seed=2"], "`--seed` is given twice, as `1` and as `2`"),
    ],
)
def test_malformed_overrides_are_refused(words, message):
    with pytest.raises(ValueError, match=message):
        cli.read_overrides(words)


def test_train_hands_recipe_and_overrides_on(monkeypatch):
    seen = []
    replace_module(monkeypatch, "soundwave_hf.training.run", run_recipe=lambda *given: seen.append(given))
    assert cli.main(["train", "recipes/tiny.yaml", "--max_steps", "3"]) == 0
    assert seen == [("recipes/tiny.yaml", {"max_steps": "3"})]


@pytest.mark.parametrize(
    ("given", "backbones"),
    [([], {}), (["--llm", "mine"], {"llm": "mine"}), (["--encoder=a"], {"encoder": "a"})],
)
def test_merge_and_evaluate_take_the_backbones_of_other_adapters(monkeypatch, given, backbones):
    seen = catch_merge_and_evaluate(monkeypatch)
    assert cli.main(["merge", "adapter", "out", *given]) == 0
    assert cli.main(["evaluate", *given]) == 0
    assert seen == [backbones, backbones]
    for function in (hub.merge_adapter, evaluate.run_evaluation):  # by default what the adapters name
        parameters = inspect.signature(function).parameters
        assert {name: parameters[name].default for name in ("encoder", "llm")} == {"encoder": None, "llm": None}


PLACED = {
    "merge": ["merge", "adapter", "out"],
    "evaluate": ["evaluate"],
    "evaluate_whole": ["evaluate", "--model", "folder"],
    "demo": ["demo"],
    "transcribe": ["transcribe", "a.wav"],
}


@pytest.mark.parametrize("verb", PLACED)
def test_verbs_that_run_a_model_take_device_and_dtype(monkeypatch, verb):
    seen = []

    def catch(*positional, **given):
        seen.append({name: given[name] for name in ("device", "dtype") if name in given})
        return SimpleNamespace(failed=0)

    replace_module(monkeypatch, "soundwave_hf.hub", merge_adapter=catch)
    replace_module(monkeypatch, "soundwave_hf.evaluation.evaluate", SETS=("human",), run_evaluation=catch)
    replace_module(monkeypatch, "soundwave_hf.demo", run_demo=catch)
    replace_module(monkeypatch, "soundwave_hf.transcribe_files", transcribe_files=catch, transcribe_live=catch)
    assert cli.main(PLACED[verb]) == 0
    assert cli.main([*PLACED[verb], "--device", "cpu", "--dtype", "bfloat16"]) == 0
    assert seen == [{}, {"device": "cpu", "dtype": "bfloat16"}]


@pytest.mark.parametrize("verb", PLACED)
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--device", "gpu"], "The device is 'gpu'; this machine has cpu"),
        (["--device", "cuda:99"], "The device is 'cuda:99'; this machine has cpu"),
        (["--dtype", "bf16"], "`dtype` is 'bf16'; expected a floating point `torch.dtype`"),
        (["--dtype", "int8"], "`dtype` is 'int8'"),
    ],
)
def test_a_device_or_dtype_that_is_none_is_one_sentence(monkeypatch, capsys, verb, given, message):
    assert cli.main([*PLACED[verb], *given]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_other_backbones_are_asked_for_by_a_flag(monkeypatch):
    seen = []
    replace_module(monkeypatch, "soundwave_hf.hub", merge_adapter=lambda *words, **given: seen.append(given))
    assert cli.main(["merge", "adapter", "out", "--llm", "mine", "--allow-other-backbones"]) == 0
    assert seen == [{"llm": "mine", "allow_other_backbones": True}]


def catch_merge_and_evaluate(monkeypatch) -> list[dict]:
    """A list that gets the backbones which the two verbs hand on."""
    seen = []

    def catch(*positional, **given):
        seen.append({name: given[name] for name in ("encoder", "llm") if name in given})

    replace_module(monkeypatch, "soundwave_hf.hub", merge_adapter=catch)
    replace_module(monkeypatch, "soundwave_hf.evaluation.evaluate", SETS=("human",), run_evaluation=catch)
    return seen


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ["--llm", "mine"],
            "`--llm` says what adapters belong to, and `--model` has its own LLM: leave one of them out",
        ),
        (
            ["--encoder", "mine"],
            "`--encoder` says what adapters belong to, and `--model` has its own encoder: leave one",
        ),
        (["--llm", "mine", "--encoder", "mine", "--baseline"], "`--llm` says what adapters belong to"),
    ],
)
def test_backbones_beside_a_whole_model_are_refused(monkeypatch, capsys, given, message):
    seen = catch_merge_and_evaluate(monkeypatch)
    assert cli.main(["evaluate", "--model", "folder", *given]) == 2
    assert message in capsys.readouterr().err
    assert not seen


def test_a_whole_model_may_be_scored_beside_a_whisper_of_ones_choice(monkeypatch):
    seen = catch_merge_and_evaluate(monkeypatch)
    assert cli.main(["evaluate", "--model", "folder", "--encoder", "mine", "--baseline"]) == 0
    assert seen == [{"encoder": "mine"}]


def failing_convert(source, destination):
    raise FileNotFoundError(f"`{source}` has no config.json")


def test_a_users_mistake_is_one_line_and_exit_code_2(monkeypatch, capsys):
    replace_module(monkeypatch, "soundwave_hf.convert", convert_published=failing_convert)
    assert cli.main(["convert", "nowhere", "out"]) == 2
    printed = capsys.readouterr()
    assert printed.err == "soundwave-hf convert: `nowhere` has no config.json\n"
    assert printed.out == ""


class BadClip(Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise ValueError("audio[0] (a.wav) arrived with 2 channels.\nAverage them.")


def test_a_mistake_that_a_worker_finds_is_told_without_its_traceback(monkeypatch, capsys):
    def load(recipe, overrides):
        next(iter(DataLoader(BadClip(), num_workers=1)))

    replace_module(monkeypatch, "soundwave_hf.training.run", run_recipe=load)
    assert cli.main(["train", "recipe.yaml"]) == 2
    expected = "soundwave-hf train: audio[0] (a.wav) arrived with 2 channels.\nAverage them.\n"
    assert capsys.readouterr().err == expected


def test_debug_shows_the_traceback(monkeypatch):
    replace_module(monkeypatch, "soundwave_hf.convert", convert_published=failing_convert)
    with pytest.raises(FileNotFoundError, match="has no config.json"):
        cli.main(["convert", "nowhere", "out", "--debug"])


def test_a_fault_of_the_package_keeps_its_traceback(monkeypatch):
    def faulty(source, destination):
        raise KeyError("layer")

    replace_module(monkeypatch, "soundwave_hf.convert", convert_published=faulty)
    with pytest.raises(KeyError):
        cli.main(["convert", "here", "out"])


def test_an_option_that_no_verb_has_is_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["demo", "--lr", "1"])
    assert "`demo` does not know --lr" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["transcribe", "c.wav", "--wordtimes"],
            "`transcribe` does not know --wordtimes. Did you mean `--word-times`?",
        ),
        (["evaluate", "--batchsize", "3"], "Did you mean `--batch-size`?"),
        (
            ["data", "chek", "a.jsonl"],
            "there is no verb `chek`. Did you mean `check`? The verbs are check, clean, merge",
        ),
        (["data", "--debug", "statistics"], "there is no verb `statistics`. Did you mean `stats`?"),
        (["trian", "finetune"], "there is no verb `trian`. Did you mean `train`? The verbs are train, plan"),
    ],
)
def test_a_misspelt_verb_or_option_gets_the_closest_one(words, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(words)
    printed = capsys.readouterr().err
    assert message in printed and "demo, check" not in printed and "backbones" not in printed


def test_data_without_a_verb_lists_its_verbs(capsys):
    assert cli.main(["data"]) == 2
    assert "read every clip of SOURCE" in capsys.readouterr().out
    assert cli.main(["data", "demo"]) == 2
    assert "The validation sets are built by their example now" in capsys.readouterr().err


def test_a_file_of_hotwords_that_does_not_exist_is_named(capsys):
    assert cli.main(["transcribe", "c.wav", "--hotwords", "@none.txt"]) == 2
    assert "`--hotwords @none.txt` names the file `none.txt`, which does not exist" in capsys.readouterr().err


def test_the_package_runs_as_the_command():
    result = subprocess.run([sys.executable, "-m", "soundwave_hf", "--version"], capture_output=True, text=True)
    assert result.stdout == f"soundwave-hf {__version__}\n"


def test_the_name_of_the_shipped_weights_is_taken_anywhere_by_each_option(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    arguments = cli.build_parser().parse_args(["evaluate", "--model", "weights/soundwave-small"])
    cli.expand_options(arguments)
    assert os.path.isfile(os.path.join(arguments.model, "adapter_config.json"))


def test_a_verb_of_earlier_says_what_replaced_it(capsys):
    assert cli.main(["backbones", "openai/whisper-base"]) == 2
    assert "`python examples/soundwave-small/pypi_backbones.py`" in capsys.readouterr().err


def test_a_verb_is_needed(capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main([])
    assert "VERB" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["data", "--debug", "check", "none.jsonl"], ["data", "check", "--debug", "none.jsonl"]]
)
def test_debug_of_a_verb_of_data_counts_on_both_sides(words):
    with pytest.raises(FileNotFoundError, match="none.jsonl"):
        cli.main(words)


def test_errors_name_the_verb_of_data(capsys):
    assert cli.main(["data", "check", "none.jsonl"]) == 2
    assert capsys.readouterr().err == (
        f"soundwave-hf data check: There is no file `none.jsonl` (current folder: {os.getcwd()}): check the path.\n"
    )
