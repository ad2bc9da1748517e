"""The Python of docs/decoding.md runs, on a tiny model and a clip of noise."""

import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from soundwave_hf import SoundwaveForConditionalGeneration, SoundwaveProcessor
from soundwave_hf.modeling.decoding_soundwave import CTC_OPTIONS
from soundwave_hf.modeling.positions_soundwave import POSITION_OPTIONS
from tests.tiny_models import save_tiny_soundwave


GUIDE = (Path(__file__).parents[1] / "docs" / "decoding.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
OPTIONS = (*CTC_OPTIONS, "return_timestamps", "drop_unsupported", *POSITION_OPTIONS)


@pytest.fixture(scope="module")
def known(tmp_path_factory) -> dict:
    """What the guide takes as given: a model, and the parts of another CTC model and its LLM."""
    home = tmp_path_factory.mktemp("guide")
    soundfile.write(home / "speech.wav", 0.1 * np.random.default_rng(0).standard_normal(16_000), 16_000)
    folder = str(save_tiny_soundwave(home / "saved"))
    processor = SoundwaveProcessor.from_pretrained(folder)
    vocabulary = len(processor.tokenizer)
    torch.manual_seed(0)
    llm = LlamaForCausalLM(
        LlamaConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=vocabulary)
    )
    other = {"states": torch.randn(1, 6, 8), "num_frames": torch.tensor([6]), "head": torch.randn(vocabulary, 8)}
    other |= {"blank_id": vocabulary - 1, "tokenizer": processor.tokenizer, "llm": llm.eval()}
    model = SoundwaveForConditionalGeneration.from_pretrained(folder)
    return {"home": home, "folder": folder, "model": model, "processor": processor, **other}


def test_its_python_runs_from_top_to_bottom(known, monkeypatch, capsys):
    monkeypatch.chdir(known["home"])
    names = dict(known) | {"input_ids": torch.tensor([[5, 6, 7]])}
    for block in BLOCKS:
        exec(block.replace("max_new_tokens=100", "max_new_tokens=6"), names)
    assert names["ids"].shape[1] > 3 and "'probability'" in capsys.readouterr().out
    assert names["timed"][0]["text"] == "hello there" and set(names["found"]) == {"text", "chunks"}


def test_it_names_what_a_chunk_holds(known):
    clips = known["model"].get_ctc_clips(
        **known["processor"].apply_transcription_request(str(known["home"] / "speech.wav"))
    )
    (chunk,) = known["processor"].align_word_timestamps("hello", clips)["chunks"]
    table = GUIDE.split("| key of a chunk |")[1].split("\n\n")[0]
    first = " ".join(re.findall(r"^\| (.*?) \|", table, re.MULTILINE))
    assert set(re.findall(r"`(\w+)`", first)) == chunk.keys()


def test_it_tells_of_each_option():
    assert all(f"`{name}`" in GUIDE for name in OPTIONS)
