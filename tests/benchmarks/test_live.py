"""The benchmark hands a stream on at the speed of speech and measures from the moment that audio came."""

import numpy as np

from soundwave_hf import live
from tests.test_live import RATE, loaded  # noqa: F401


def test_partial_text_is_as_old_as_the_audio_that_was_waited_for(benchmark, loaded, monkeypatch):  # noqa: F811
    monkeypatch.setattr(live, "texts_of", lambda *given: (["hello"], [True]))
    samples = np.random.default_rng(0).normal(scale=0.1, size=round(1.2 * RATE)).astype(np.float32)
    measured = benchmark.play(benchmark.Watched(*loaded, RATE, partial_seconds=0.5, pause_seconds=2.0), samples)
    assert len(measured.partial) in (1, 2) and min(measured.partial) >= 0.5
    assert measured.texts == ["hello"] and measured.final[0] >= 0
    assert all(0.5 <= new <= 1.2 for new in measured.new_audio) and min(measured.passes) > 0
    assert measured.cpu_seconds > 0 and len(measured.new_audio) == len(measured.partial)
    row = benchmark.report("clips", 1.2, measured, 0.5, 0.25).splitlines()[2]
    assert row.startswith("| clips | 1 | ") and row.endswith(" | 50.0 | 25.0 |")
