"""docs/push.md: its commands run on small data, and it names every option."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
import soundfile

from soundwave_hf import cli
from soundwave_hf.data.tiny import make_speech


GUIDE = (Path(__file__).parents[2] / "docs" / "push.md").read_text(encoding="utf-8")


def test_the_commands_run(made, hub, same_process, quick_plot, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made / "run", "runs/mine")
    lines = ["audio,text"]
    for number, text in enumerate(["Go on.", "Well."]):
        soundfile.write(f"{number}.wav", make_speech(1.0, number), 16_000)
        lines.append(f"{number}.wav,{text}")
    Path("test.csv").write_text("\n".join(lines) + "\n")
    (commands,) = re.findall(r"```bash\n(.*?)```", GUIDE, re.DOTALL)
    for command in commands.splitlines():
        words = shlex.split(command)[1:]
        words += ["--max-new-tokens", "3"] if words[0] == "evaluate" else []
        assert cli.main(words) == 0, capsys.readouterr().err
    (code,) = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    exec(code, {})
    assert (tmp_path / "upload-from-python" / "README.md").is_file()
    card = (hub.repositories["me/mine"] / "README.md").read_text()
    assert "| test | 2 | 2 |" in card and "license: cc-by-sa-3.0" in card
    assert card == (tmp_path / "upload" / "README.md").read_text()


def push_options() -> set[str]:
    (verbs,) = [action for action in cli.build_parser()._actions if action.choices and "push" in action.choices]
    return {option for action in verbs.choices["push"]._actions for option in action.option_strings}


def test_the_page_names_each_option():
    assert push_options() - {"-h", "--help", "--debug"} <= set(re.findall(r"--[\w-]+", GUIDE))


def test_there_is_no_option_for_a_token():
    assert not {"--token", "--hub-token"} & push_options()


@pytest.mark.parametrize("message", re.findall(r"^\| `([^`]+)` \|", GUIDE.split("what to do:\n")[1], re.MULTILINE))
def test_the_messages_of_the_page_are_those_of_the_code(message):
    folder = Path(cli.__file__).parent / "publish"
    code = "".join(path.read_text() for path in folder.glob("*.py"))
    for part in re.split(r"\.\.\.|llm", message):
        assert part.strip() in code
