"""The pages as a whole: links, navigation, the site, and which test runs each block of commands or Python."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import soundwave_hf


ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)
READ = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")] + PAGES
FENCED = re.compile(r"^(`{3,})(\w*)[^\n]*\n(.*?)^\1\s*$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!\w)!?\[[^\]]*\]\(([^()\s]+)\)")

# Which test runs the blocks of a page.
RUN_BY = {
    ("README.md", "bash"): "tests/test_start_guides.py",
    ("README.md", "python"): "tests/test_readme.py",
    ("docs/app.md", "bash"): "tests/test_app_guide.py",
    ("docs/backbones.md", "bash"): "tests/test_start_guides.py",
    ("docs/backbones.md", "python"): "tests/test_start_guides.py",
    ("docs/convert.md", "bash"): "tests/test_convert.py",
    ("docs/convert.md", "python"): "tests/test_convert.py",
    ("docs/data.md", "bash"): "tests/data/test_data_guide.py",  # and test_clean_guide.py, test_build_guide.py
    ("docs/data.md", "python"): "tests/data/test_clean_guide.py",  # and test_build_guide.py
    ("docs/decoding.md", "python"): "tests/test_decoding_guide.py",
    ("docs/evaluation.md", "bash"): "tests/evaluation/test_guide.py",
    ("docs/evaluation.md", "python"): "tests/evaluation/test_guide.py",
    ("docs/fine_tune.md", "bash"): "tests/test_start_guides.py",
    ("docs/native.md", "bash"): "tests/test_serve.py",
    ("docs/native.md", "python"): "tests/test_serve.py",
    ("docs/push.md", "bash"): "tests/publish/test_push_guide.py",
    ("docs/push.md", "python"): "tests/publish/test_push_guide.py",
    ("docs/quickstart.md", "bash"): "tests/test_start_guides.py",
    ("docs/quickstart.md", "python"): "tests/test_start_guides.py",
    ("docs/stages.md", "bash"): "tests/test_start_guides.py",
    ("docs/training.md", "bash"): "tests/training/test_guide.py",
    ("docs/training.md", "python"): "tests/training/test_guide.py",  # and test_plain_trainers.py
    ("docs/transcribe.md", "bash"): "tests/test_transcribe_guide.py",
    ("docs/transcribe.md", "python"): "tests/test_transcribe_guide.py",
}
# Lines that no test runs, and why.
NOT_RUN = {
    "pip install -e '.[backbones,evaluate]'": "changes the environment; tests/test_wheel.py installs the package",
    "make demo": "the same functions as tests/test_demo.py, with downloads",
    "make test": "runs the tests themselves",
    "make check": "the linter: no part of the package",
    "make docs": "test_the_site_builds runs its command",
    "make test TRANSFORMERS=5.24.0": "downloads; runs the tests themselves",
    "python examples/soundwave-small/pypi_backbones.py": "downloads; test_pypi_backbones.py has its parts",
    "soundwave-hf train whisper-small_qwen2.5-0.5b/": "hours; tests/training runs the same stages",
    "soundwave-hf evaluate --adapter ~/.cache/soundwave-hf/runs/": "scores the run of the lines before it",
    "accelerate launch --config_file recipes/accelerate/fsdp2.yaml": "several GPUs; test_distributed.py has two",
    "hf upload USER/SPACE": "uploads to the hub; tests/app/test_serve.py starts the folder's app.py",
    "ffmpeg -i talk.mp4 -f wav - | soundwave-hf transcribe -": "needs FFmpeg; tests/test_transcribe.py feeds the pipe",
}
# Pages whose blocks no test runs, and why.
NOT_RUN_PAGES = {
    "CONTRIBUTING.md": "each line is in NOT_RUN",
    "docs/results/cleaning.md": "repeats an experiment of hours; tests/data and tests/benchmarks have its parts",
    "docs/results/ctc_targets.md": "repeats an experiment of hours; test_compare_targets.py has its parts",
}


def prose(page: Path) -> str:
    """The page without its fenced blocks, in which brackets are code."""
    return FENCED.sub("", page.read_text(encoding="utf-8"))


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of each fenced block of commands or Python."""
    found = [(match[2], match[3]) for match in FENCED.finditer(page.read_text(encoding="utf-8"))]
    return [(language, text) for language, text in found if language in ("bash", "python")]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MyST make them."""
    headings = re.findall(r"^#{1,6} (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", READ, ids=lambda page: str(page.relative_to(ROOT)))
def test_each_relative_link_leads_to_a_file_and_a_heading(page):
    for link in LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{link}: no such file"
        assert not anchor or anchor in anchors(target), f"{link}: no such heading"


def test_the_navigation_names_each_page():
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    lists = re.findall(r"```\{toctree\}\n(.*?)```", index, re.DOTALL)
    named = {line for text in lists for line in text.splitlines() if line and not line.startswith(":")}
    for page in PAGES:
        name = page.relative_to(DOCS).with_suffix("").as_posix()
        assert name in named | {"index"} or f"{page.parent.name}/*" in named, name


def test_the_reference_names_each_public_name():
    reference = (DOCS / "api.md").read_text(encoding="utf-8")
    assert all(re.search(rf"\b{name}\b", reference) for name in soundwave_hf.__all__)


def test_a_test_is_named_for_each_block_and_reads_the_page():
    found = {(str(page.relative_to(ROOT)), language) for page in READ for language, _ in blocks(page)}
    assert found == RUN_BY.keys() | {(page, "bash") for page in NOT_RUN_PAGES}
    for (page, _), test in RUN_BY.items():
        assert Path(page).name in (ROOT / test).read_text(encoding="utf-8"), f"{test} does not read {page}"


def test_what_is_not_run_stands_in_a_page():
    lines = {
        line for page in READ for language, text in blocks(page) if language == "bash" for line in text.splitlines()
    }
    for command in NOT_RUN:
        assert any(line.startswith(command) for line in lines), f"no page has `{command}`: take it out of NOT_RUN"


def test_each_other_line_is_a_command_of_this_package():
    for page in READ:
        if str(page.relative_to(ROOT)) in NOT_RUN_PAGES.keys() - {"CONTRIBUTING.md"}:
            continue
        lines = [line for language, text in blocks(page) if language == "bash" for line in text.splitlines() if line]
        for line in lines:
            known = any(line.startswith(command) for command in NOT_RUN)
            assert known or re.search(r"(^|\| )soundwave-hf |^python -c .import soundwave_hf", line), (
                f"{page.name}: {line}"
            )


@pytest.mark.slow  # imports and renders everything
def test_the_site_builds_without_a_warning_and_needs_no_network(tmp_path):
    pytest.importorskip("sphinx")
    site = tmp_path / "html"
    (line,) = [line for line in (ROOT / "Makefile").read_text().splitlines() if "-m sphinx" in line]
    options = line.split("-m sphinx ")[1].split(" docs ")[0].split()
    command = [sys.executable, "-m", "sphinx", *options, str(DOCS), str(site)]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert ran.returncode == 0, ran.stderr
    for page in PAGES:
        html = (site / page.relative_to(DOCS)).with_suffix(".html").read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe)[^>]* src=\"([^\"]+)\"|<link[^>]* href=\"([^\"]+)\"", html)
        assert not [found for pair in loaded for found in pair if re.match(r"https?:|//", found)]
