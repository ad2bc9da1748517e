"""docs/draw_clip_way.py draws what a model does with a clip. docs/architecture.md has the shapes of the picture."""

import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
import soundfile
from transformers import AutoModelForMultimodalLM, AutoProcessor

from soundwave_hf import load_adapter
from soundwave_hf.evaluation.shipped import ADAPTER, ENCODER, LLM
from tests.evaluation.test_shipped import backbone_on_disk
from tests.tiny_models import save_tiny_soundwave


DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def script():
    pytest.importorskip("matplotlib")
    spec = spec_from_file_location("draw_clip_way", DOCS / "draw_clip_way.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_follows_a_clip_of_one_second(script, tmp_path):
    folder = save_tiny_soundwave(tmp_path / "saved")
    model, processor = (auto.from_pretrained(folder) for auto in (AutoModelForMultimodalLM, AutoProcessor))
    soundfile.write(tmp_path / "clip.wav", 0.1 * np.random.default_rng(0).standard_normal(16_000), 16_000)
    way = script.follow_clip(tmp_path / "clip.wav", model.eval(), processor)
    # 1 s and 0.1 s of silence behind it: 110 log-mel frames of 10 ms, 55 of 20 ms, and 28 of 40 ms (the last is half)
    assert (way.samples.shape, way.log_mel.shape) == ((16_000,), (80, 110))
    assert (way.encoder.shape, way.aligned.shape) == ((12, 55), (16, 28))
    assert way.positions.shape == (16, len(way.kept_seconds)) and way.kept_seconds
    script.save(script.draw(way), tmp_path / "clip.png")
    assert (tmp_path / "clip.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow  # the real backbones
def test_the_page_has_the_shapes_of_the_shipped_weights(script):
    for name in (ENCODER, LLM):
        backbone_on_disk(name)
    way = script.follow_clip(script.CLIP, *load_adapter(ADAPTER))
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    told = re.findall(r"^\| [\w -]+ \| `(\[[^`]+\])` \|", page, re.MULTILINE)
    assert told == [shape.split("\n")[0] for _, shape in script.steps(way)]
