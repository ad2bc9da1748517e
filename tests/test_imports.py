"""The floors of the package: who may import whom, and what the hub can upload."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest


PACKAGE = Path(__file__).resolve().parents[1] / "soundwave_hf"
# What transformers brings along, and libraries that are imported where a function needs them.
UPLOADED = {
    "torch",
    "transformers",
    "numpy",
    "safetensors",
    "huggingface_hub",
    "peft",
    "accelerate",
    "soundfile",
    "soxr",
    "av",
    "fsspec",
    "num2words",
}
UPLOADED |= set(sys.stdlib_module_names)
# Functions of texts and numbers, for whoever scores, and what they import of the package: the one form of texts.
PURE = {"evaluation.metrics": ["..processing.languages_soundwave", "..processing.text_soundwave"]}
NOT_UPLOADED = {"__init__.py"}
UPLOADED_FILES = sorted(
    path
    for folder in ("modeling", "processing")
    for path in (PACKAGE / folder).glob("*.py")
    if path.name not in NOT_UPLOADED
)


def imports(path: Path) -> list[str]:
    """Every import of a file, as written: `.sibling`, `..training.run`, `torch.nn`."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append("." * node.level + (node.module or ""))
    return found


def test_what_any_floor_may_import_stands_alone():
    for name, allowed in PURE.items():
        path = PACKAGE / f"{name.replace('.', '/')}.py"
        assert [one for one in imports(path) if one.startswith((".", "soundwave_hf"))] == allowed


def test_uploaded_files_end_in_soundwave():
    assert UPLOADED_FILES
    assert [path.name for path in UPLOADED_FILES if not path.name.endswith("_soundwave.py")] == []


def test_uploaded_files_have_names_of_their_own():
    # The hub puts both folders into one: the second of two equal names would overwrite the first.
    names = [path.name for path in UPLOADED_FILES]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("path", UPLOADED_FILES, ids=lambda path: path.name)
def test_uploaded_files_import_libraries_and_their_own_folder(path):
    for name in imports(path):
        if name.startswith("."):
            assert not name.startswith(".."), f"{path.name} imports {name}, which is not uploaded with it"
            sibling = path.parent / f"{name[1:]}.py"
            assert sibling.is_file(), f"{path.name} imports {name}: write `from .file import ...`"
        else:
            assert name.split(".")[0] in UPLOADED, f"{path.name} imports {name}, which a user may not have"


@pytest.mark.parametrize("path", UPLOADED_FILES, ids=lambda path: path.name)
def test_no_line_of_text_in_an_uploaded_file_looks_like_a_relative_import(path):
    # The hub's copier reads text, docstrings included, and looks for the file that such a line names.
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    looks = [line for line in lines if line.startswith(("from .", "import ."))]
    assert len(looks) == sum(name.startswith(".") for name in imports(path))


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        ("evaluation", {"training", "demo", "cli"}),
        ("demo", {"training", "cli"}),
        ("data", {"training", "evaluation", "demo", "cli"}),
        ("training", {"evaluation", "demo", "cli"}),
    ],
)
def test_floors(folder, forbidden):
    for path in [*(PACKAGE / folder).rglob("*.py"), *PACKAGE.glob(f"{folder}.py")]:
        for name in imports(path):
            if name.lstrip(".") in PURE:
                continue
            name = name.removeprefix("soundwave_hf.") if name.startswith("soundwave_hf") else name
            first = name.lstrip(".").split(".")[0]
            outside = name.startswith("..") or name in forbidden
            assert not (outside and first in forbidden), f"{folder}/{path.name} imports {name}"


def test_no_module_is_imported_again_by_what_it_imports():
    modules = {
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")
    }
    modules = {name.removesuffix(".__init__"): path for name, path in modules.items()}
    waiting = {name: set(imported_at_once(name, path)) & modules.keys() for name, path in modules.items()}
    while leaves := [name for name, found in waiting.items() if not found]:
        for leaf in leaves:
            del waiting[leaf]
        for found in waiting.values():
            found.difference_update(leaves)
    assert not waiting, f"a circle of imports is among these: {waiting}"


def imported_at_once(module: str, path: Path):
    """Modules of the package that are imported when a module is, not later in a function."""
    parts = module.split(".")[: None if path.name == "__init__.py" else -1]
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.level:
            base = ".".join([*parts[: len(parts) - node.level + 1], *filter(None, [node.module])])
            yield from (
                (base, *(f"{base}.{name.name}" for name in node.names))
                if node.module
                else (f"{base}.{name.name}" for name in node.names)
            )


def run_python(code: str) -> str:
    """Output of a fresh interpreter."""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


LOADED = "import sys; print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"


AUTO_NAMES = """
from transformers import AutoConfig, AutoModel, AutoModelForMultimodalLM, AutoModelForSeq2SeqLM
from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor
"""
LOOK_UP = """
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING, processor_class_from_name
config = AutoConfig.for_model("soundwave")
autos = (AutoModel, AutoModelForMultimodalLM, AutoModelForSeq2SeqLM, AutoModelForSpeechSeq2Seq)
models = {auto._model_mapping[type(config)] for auto in autos}
assert models == {soundwave_hf.SoundwaveForConditionalGeneration}, models
assert type(config) is soundwave_hf.SoundwaveConfig
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES
assert MODEL_MAPPING_NAMES["soundwave"] == "SoundwaveModel"  # by name, the classes that take no labels
assert AutoModel._model_mapping.get(type(config), None) is soundwave_hf.SoundwaveForConditionalGeneration
assert PROCESSOR_MAPPING[type(config)] is soundwave_hf.SoundwaveProcessor
assert processor_class_from_name("SoundwaveProcessor") is soundwave_hf.SoundwaveProcessor
print("found")
"""


# `transformers serve` looks there for the class that a config names.
IN_TRANSFORMERS = """
import transformers, transformers as again
for module in (transformers, again):
    assert module.SoundwaveForConditionalGeneration is soundwave_hf.SoundwaveForConditionalGeneration
print("in transformers")
"""
PUBLISHED = f"""
for auto in (AutoConfig, AutoModel, AutoModelForMultimodalLM):
    try: auto.from_pretrained({str(Path(__file__).parent / "fixtures" / "published")!r})
    except ValueError as error: print(error)
"""


@pytest.fixture(scope="module", params=["before", "after"])
def interpreter(request) -> str:
    """What a fresh interpreter prints that imports soundwave_hf before transformers' classes, or after them."""
    first, second = [f"import soundwave_hf\n{LOADED}", AUTO_NAMES][:: 1 if request.param == "before" else -1]
    return run_python(f"{first}\n{second}\n{LOOK_UP}{IN_TRANSFORMERS}{PUBLISHED}")


@pytest.mark.parametrize("interpreter", ["before"], indirect=True)
def test_import_of_the_package_loads_neither_torch_nor_transformers(interpreter):
    assert interpreter.splitlines()[0] == "[]"


def test_auto_classes_know_soundwave_whichever_is_imported_first(interpreter):
    assert interpreter.splitlines()[1] == "found"


def test_transformers_itself_has_the_classes(interpreter):
    assert interpreter.splitlines()[2] == "in transformers"


def test_auto_classes_say_how_a_published_checkpoint_is_converted(interpreter):
    assert interpreter.count("Convert the folder first: `soundwave-hf convert SRC DST`") == 3


def test_every_public_name_resolves():
    import soundwave_hf

    for name in soundwave_hf.__all__:
        assert getattr(soundwave_hf, name) is not None
    assert set(soundwave_hf.__all__) <= set(dir(soundwave_hf))


def test_the_version_is_that_of_the_installed_package():
    import tomllib
    from importlib.metadata import version

    import soundwave_hf

    assert soundwave_hf.__version__ == version("soundwave-hf")
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "soundwave_hf.__version__"}


def test_an_unknown_name_is_an_attribute_error():
    import soundwave_hf

    with pytest.raises(AttributeError, match="has no attribute `SoundwaveModle`"):
        _ = soundwave_hf.SoundwaveModle
