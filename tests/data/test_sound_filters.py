"""Filters of recordings, on waves whose levels are known."""

import numpy as np
import pytest

from soundwave_hf.data.clean.filter import Clip
from soundwave_hf.data.clean.sound_filters import SOUND_FILTERS, Clipping, Level, Seconds, Silence, frame_levels


RATE = 16_000


def tone(seconds: float, amplitude: float = 0.1, hertz: float = 440.0) -> np.ndarray:
    return (amplitude * np.sin(2 * np.pi * hertz * np.arange(int(seconds * RATE)) / RATE)).astype("float32")


def value(judge, samples) -> float:
    samples = np.asarray(samples, dtype="float32")
    (found,) = judge.measure([Clip(row={}, text="x", seconds=len(samples) / RATE, samples=samples)])
    return found


def test_seconds_are_those_of_the_recording_and_need_no_samples():
    judge = Seconds()
    assert not judge.reads_samples
    assert judge.measure([Clip(row={}, text="", seconds=2.9), Clip(row={}, text="x", seconds=31.0)]) == [2.9, 31.0]
    assert [judge.keeps(seconds) for seconds in (2.9, 3, 30, 30.1)] == [False, True, True, False]


def test_levels_of_frames_in_decibels_below_full_scale():
    # A sine of amplitude 0.1 has the mean square 0.005: -23.01 dBFS. 400 Hz has 8 whole periods in a frame of 20 ms.
    assert frame_levels(tone(0.1, hertz=400)) == pytest.approx([-23.01] * 5, abs=0.01)
    assert frame_levels(np.zeros(640, "float32")).tolist() == [-120, -120]
    assert len(frame_levels(tone(0.05))) == 3  # 50 ms: two frames and a half
    assert frame_levels(np.full(640, 0.5, "float32")).tolist() == [-120, -120]  # a constant is no sound


def test_share_of_silent_frames_below_the_loud_ones():
    speech = np.concatenate([tone(1), np.zeros(3 * RATE)])
    assert value(Silence(), speech) == pytest.approx(0.75, abs=0.01) and not Silence().keeps(0.75)
    assert value(Silence(), 0.05 * speech) == pytest.approx(0.75, abs=0.01)  # whatever the recording's level
    # The pause is 40 dB below the speech, then 20 dB.
    for factor, share in ((0.01, 0.75), (0.1, 0.0)):
        noisy = np.concatenate([tone(1), factor * tone(3)])
        assert value(Silence(), noisy) == pytest.approx(share, abs=0.01)
    assert value(Silence(), tone(2)) == 0
    assert value(Silence(), np.zeros(RATE)) == 1 and value(Silence(), []) == 1
    assert value(Silence(), tone(1, amplitude=1e-5)) == 1  # below the floor of -70 dBFS
    assert value(Silence(below_peak_db=45), np.concatenate([tone(1), 0.01 * tone(3)])) == 0


def test_share_of_clipped_samples():
    judge = Clipping()
    assert value(judge, tone(1, 0.5)) == 0 and value(judge, np.zeros(100)) == 0 and value(judge, []) == 0
    # |sin| is above 1 / 2 for two thirds of the time.
    clipped = np.clip(tone(1, amplitude=2.0), -1, 1)
    assert value(judge, clipped) == pytest.approx(2 / 3, abs=0.01) and not judge.keeps(2 / 3)
    assert value(judge, 0.3 * clipped) == pytest.approx(2 / 3, abs=0.02)  # clipped first, made quieter then
    one = tone(1, 0.5)
    one[100:104] = 1.0
    assert value(judge, one) == 4 / RATE and judge.keeps(4 / RATE)
    assert value(judge, [0.5]) == 0 and value(judge, [0.5, 0.5]) == 0


def test_the_level_of_a_quiet_recording_and_of_none():
    judge = Level()
    assert value(judge, tone(1, hertz=400)) == pytest.approx(-23.01, abs=0.01) and judge.keeps(-23)
    # Speech in the first tenth of a recording counts.
    assert value(judge, np.concatenate([tone(1, hertz=400), np.zeros(9 * RATE)])) == pytest.approx(-23.01, abs=0.5)
    assert value(judge, np.zeros(RATE)) == -120 and value(judge, []) == -120 and not judge.keeps(-120)
    assert value(judge, np.full(RATE, 0.3)) == -120
    assert value(judge, tone(1, amplitude=0.001, hertz=400)) == pytest.approx(-63.01, abs=0.05)


def test_values_do_not_depend_on_the_other_clips_and_samples_are_not_changed():
    samples = [tone(1), np.zeros(500, "float32"), np.clip(tone(0.5, 3), -1, 1)]
    clips = [Clip(row={}, text="x", seconds=len(each) / RATE, samples=each) for each in samples]
    before = [each.copy() for each in samples]
    for own in SOUND_FILTERS:
        assert own().measure(clips) == [own().measure([each])[0] for each in clips]
    assert all(np.array_equal(*pair) for pair in zip(samples, before, strict=True))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Seconds(min_seconds=-1), "`min_seconds: -1`; expected 0 or more"),
        (lambda: Seconds(min_seconds=20, max_seconds=10), "`min_seconds: 20.0` above `max_seconds: 10.0`"),
        (lambda: Level(min_db=10), "`min_db: 10`; expected a number from -120 to 0"),
        (lambda: Silence(below_peak_db=0), "`below_peak_db: 0`; expected a number from 1 to 120"),
    ],
)
def test_thresholds_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
