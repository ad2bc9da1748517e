"""The wheel and the sdist, installed in an environment of their own outside a checkout: complete, and they train."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import soundwave_hf


REPOSITORY = Path(__file__).resolve().parents[1]
BUILD = "import sys; from setuptools import build_meta; build_meta.build_{kind}(sys.argv[1])"

pytestmark = pytest.mark.slow


def run(command: list, folder: Path, home: Path | None = None) -> str:
    """The output of a command in a folder, without the packages and variables of this checkout."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if home is not None:
        environment |= {"SOUNDWAVE_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    ran = subprocess.run([str(word) for word in command], cwd=folder, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, f"{ran.stdout[-2000:]}\n{ran.stderr[-4000:]}"
    return ran.stdout


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    """A folder with the files in git that are built."""
    folder = tmp_path_factory.mktemp("sources")
    files = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True)
    if files.returncode != 0:
        pytest.skip("The wheel is built of the files in git, and this is no checkout.")
    for name in files.stdout.splitlines():
        if name.startswith(("soundwave_hf/", "recipes/", "weights/")) or "/" not in name:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def wheel(sources, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run([sys.executable, "-c", BUILD.format(kind="wheel"), folder], sources)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def sdist(sources, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    run([sys.executable, "-c", BUILD.format(kind="sdist"), folder], sources)
    return next(folder.glob("*.tar.gz"))


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory) -> Path:
    """A virtual environment with the wheel. The libraries come from here; its own packages come first."""
    folder = tmp_path_factory.mktemp("environment")
    run([sys.executable, "-m", "venv", "--without-pip", folder], folder)
    place = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    (place / "libraries.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "--disable-pip-version-check"]
    run([*pip, "install", "--no-deps", "--ignore-installed", wheel], folder)
    return folder


@pytest.fixture(scope="module")
def installed(environment) -> Path:
    """The folder of the installed package."""
    return Path(sysconfig.get_path("purelib", vars={"base": str(environment)})) / "soundwave_hf"


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_it_holds_each_recipe_and_the_shipped_weights(installed):
    for folder in ("recipes", "weights/soundwave-small"):
        there = [path for path in (REPOSITORY / folder).rglob("*") if path.is_file()]
        assert len(there) > 5
        for path in there:
            assert (installed / path.relative_to(REPOSITORY)).read_bytes() == path.read_bytes()


def test_it_holds_the_licences_and_nothing_but_the_package(wheel):
    names = contents(wheel)
    info = f"soundwave_hf-{soundwave_hf.__version__}.dist-info"
    assert {f"{info}/licenses/{name}" for name in ("LICENSE", "NOTICE", "THIRD_PARTY_LICENSES.md")} <= names.keys()
    assert {name.split("/")[0] for name in names} == {"soundwave_hf", info}


def test_the_wheel_of_the_sdist_is_the_wheel_of_the_checkout(wheel, sdist, tmp_path):
    shutil.unpack_archive(sdist, tmp_path, filter="data")
    (unpacked,) = tmp_path.iterdir()
    run([sys.executable, "-c", BUILD.format(kind="wheel"), tmp_path], unpacked)
    (rebuilt,) = tmp_path.glob("*.whl")
    assert contents(rebuilt) == contents(wheel)
    assert (unpacked / "constraints.txt").is_file() and not (unpacked / "tests").exists()


def test_its_commands_run_and_name_the_recipes(environment, tmp_path):
    command = environment / "bin" / "soundwave-hf"
    assert "train" in run([command, "--help"], tmp_path)
    assert run([command, "--version"], tmp_path) == f"soundwave-hf {soundwave_hf.__version__}\n"
    with pytest.raises(AssertionError, match="give a YAML file, or one of finetune, tiny, whisper-large-v3"):
        run([command, "train", "nowhere"], tmp_path)


def test_it_trains_the_tiny_recipe_in_all_stages(environment, tmp_path):
    command = environment / "bin" / "soundwave-hf"
    run([command, "train", "tiny", "--max_steps", "1", "--use_cpu", "true"], tmp_path, home=tmp_path / "home")
    assert (tmp_path / "home" / "runs" / "tiny" / "3_instruct" / "adapter_model.safetensors").is_file()


def test_the_recipe_for_own_data_finds_the_shipped_weights(environment, installed, tmp_path):
    (tmp_path / "train.csv").write_text("audio,text\nspeech.wav,Hello.\n")
    code = (
        "import soundwave_hf; from soundwave_hf.training.recipe import load_recipes\n"
        "from soundwave_hf import resolve_adapter\n"
        "((recipe, arguments),) = load_recipes('finetune', {'data': 'train.csv', 'output_dir': 'runs/mine'})\n"
        "print(soundwave_hf.__file__, recipe.start_folder, recipe.llm, sep='\\n')\n"
        "print(resolve_adapter('weights/soundwave-small'))"
    )
    python = environment / "bin" / "python"
    package, start, llm, adapter = run([python, "-c", code], tmp_path, home=tmp_path / "home").splitlines()
    assert Path(package).parent == installed
    assert Path(start) == Path(adapter) == installed / "weights" / "soundwave-small"
    assert llm == "HuggingFaceTB/SmolLM2-135M-Instruct"
