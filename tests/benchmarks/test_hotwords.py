"""The benchmark of hotwords counts wrong names and leaks; its splits share no name."""

from argparse import Namespace

import numpy as np

from soundwave_hf.evaluation.shipped import EXAMPLES
from tests.modeling.conftest import folder, model, processor  # noqa: F401


def clip(benchmark, text: str, names: list[str]):
    samples = (3000 * np.random.default_rng(0).standard_normal(8_000)).astype(np.int16)
    return benchmark.Clip(samples, text, names, [*names, "Quillvane"])


def test_names_of_the_splits_are_apart(benchmark):
    choose, test = benchmark.invented_names("choose"), benchmark.invented_names("test")
    assert len(choose) >= 101 and len(test) >= 101 and not set(choose) & set(test)


def test_each_clip_with_names_has_them_and_as_many_others(benchmark, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES / "soundwave-small"))
    found = list(benchmark.sentences("test", clips=3, others=2, distractors=100, seed=0))
    assert [len(hotwords) for _, _, hotwords in found] == [102, 102, 102, 100, 100]
    for text, names, hotwords in found:
        assert [name for name in hotwords if benchmark.has(text, name)] == [name for name in hotwords if name in names]
    assert found == list(benchmark.sentences("test", clips=3, others=2, distractors=100, seed=0))


def test_wrong_names_errors_and_leaks_are_counted(benchmark):
    clips = [clip(benchmark, "Tell Ravmoor now.", ["Ravmoor"]), clip(benchmark, "Tell Fennley.", ["Fennley"])]
    clips += [clip(benchmark, "Tell Ann.", [])]
    texts = ["Tell ravmoor now.", "Tell Quillvane.", "Tell Quillvane."]
    # One name of two is wrong, one word of five, one word of two.
    assert benchmark.report(clips, texts, 0.5, 2.0) == "| 0.5 | 1 of 2 | 20.0 | 50.0 | 1 | 1 | 2.00 |"


def test_clips_are_transcribed_with_their_own_hotwords(benchmark, model, processor):  # noqa: F811
    clips = [clip(benchmark, "Tell Ravmoor now.", ["Ravmoor"]), clip(benchmark, "Tell Ann.", [])]
    options = Namespace(batch_size=2, ctc_weight=0.5, num_beams=1)
    texts = benchmark.transcribe(model, processor, clips, options, weight=1.0)
    assert len(texts) == 2
    table = benchmark.filter_table(model, processor, clips)
    assert len(table) == 3 + len(benchmark.THRESHOLDS) and table[0].startswith("(1 names in 2 clips; ")
