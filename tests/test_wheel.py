"""The wheel, installed outside of a checkout, has what its commands need and trains."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


REPOSITORY = Path(__file__).resolve().parents[1]
CODE = "import sys; from soundwave_hf.cli import main; sys.exit(main({words!r}))"

pytestmark = pytest.mark.slow


def run(arguments: list[str], folder: Path, installed: Path | None = None) -> str:
    """The output of Python with these arguments in a folder, with the package of another folder alone."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if installed is not None:
        environment |= {"PYTHONPATH": str(installed), "SOUNDWAVE_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1"}
    ran = subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, f"{ran.stdout[-2000:]}\n{ran.stderr[-4000:]}"
    return ran.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with what `pip install` puts there, from a wheel that is built of the files in git."""
    sources, wheels, target = (tmp_path_factory.mktemp(name) for name in ("sources", "wheels", "installed"))
    files = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True)
    if files.returncode != 0:
        pytest.skip("The wheel is built of the files in git, and this is no checkout.")
    for name in files.stdout.splitlines():
        if name.startswith(("soundwave_hf/", "recipes/", "weights/")) or "/" not in name:
            (sources / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, sources / name)
    pip = ["-m", "pip", "--disable-pip-version-check"]
    run([*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels), str(sources)], wheels)
    (wheel,) = wheels.glob("*.whl")
    run([*pip, "install", "--no-deps", "--target", str(target), str(wheel)], wheels)
    return target


def command(words: list[str], folder: Path, installed: Path) -> str:
    return run(["-c", CODE.format(words=words)], folder, installed)


def test_it_holds_each_recipe_and_the_shipped_weights(installed):
    for folder in ("recipes", "weights/soundwave-small"):
        there = [path for path in (REPOSITORY / folder).rglob("*") if path.is_file()]
        assert len(there) > 5
        for path in there:
            assert (installed / "soundwave_hf" / path.relative_to(REPOSITORY)).read_bytes() == path.read_bytes()


def test_its_commands_run_and_name_the_recipes(installed, tmp_path):
    assert "train" in run(["-m", "soundwave_hf.cli", "--help"], tmp_path, installed)
    with pytest.raises(AssertionError, match="give a YAML file, or one of finetune, tiny, whisper-large-v3"):
        command(["train", "nowhere"], tmp_path, installed)


def test_it_trains_the_tiny_recipe_in_all_stages(installed, tmp_path):
    command(["train", "tiny", "--max_steps", "1", "--use_cpu", "true"], tmp_path, installed)
    assert (tmp_path / "home" / "runs" / "tiny" / "3_instruct" / "adapter_model.safetensors").is_file()


def test_the_recipe_for_own_data_finds_the_shipped_weights(installed, tmp_path):
    (tmp_path / "train.csv").write_text("audio,text\nspeech.wav,Hello.\n")
    code = (
        "import soundwave_hf; from soundwave_hf.training.recipe import load_recipes\n"
        "((recipe, arguments),) = load_recipes('finetune', {'data': 'train.csv', 'output_dir': 'runs/mine'})\n"
        "print(soundwave_hf.__file__, recipe.start_folder, recipe.llm, sep='\\n')"
    )
    package, start, llm = run(["-c", code], tmp_path, installed).splitlines()
    assert Path(package).parent == installed / "soundwave_hf"
    assert Path(start) == installed / "soundwave_hf" / "weights" / "soundwave-small"
    assert llm == "HuggingFaceTB/SmolLM2-135M-Instruct"
