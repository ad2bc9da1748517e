"""Fingerprints of recordings: peaks of the spectrogram, and how many of them two recordings share.

The method is that of Wang, "An Industrial-Strength Audio Search Algorithm" (ISMIR 2003), with other sizes. It finds a
recording again after another encoding, a cut, another volume and noise; `benchmarks/leakage.py` measures this.
"""

import numpy as np


RATE = 16_000  # Hz of the samples
WINDOW, HOP = 1024, 128  # samples: 64 ms and 8 ms
LOWEST_BIN, HIGHEST_BIN = 12, 260  # of 15.6 Hz: 190 Hz to 4 kHz, which telephone speech has too
NEAR_FRAMES, NEAR_BINS = 8, 4  # a peak is the largest value so far around it
PEAKS_PER_SECOND, MORE_PEAKS = 20, 8
QUIETEST = -7.0  # natural logarithm, below the loudest value: lower peaks are noise
AT_ONCE = 60 * RATE  # samples whose spectrogram is held in memory
PARTNERS = 5  # pairs of each peak
LEAST_FRAMES, MOST_FRAMES = 2, 128  # between the peaks of a pair
STEP_BINS, STEP_FRAMES = 2, 8  # positions are rounded, so that small shifts do not matter
LEAST_LANDMARKS = 24  # different ones; a clip with fewer (a tone, a click) cannot be recognised
KEYS_SECONDS, KEYS = 3.0, 48  # so many keys for each so many seconds are looked up in an index
PEAK = np.dtype([("frame", "<u4"), ("bin", "<u2")])


def peaks_of(samples: np.ndarray) -> np.ndarray:
    """The strongest local maxima of the spectrogram, in order of time.

    Args: samples (`np.ndarray` of shape `(length,)`): mono, 16 kHz.
    Returns: array of `PEAK`: frame (8 ms) and frequency bin (15.6 Hz above 190 Hz) of each.
    """
    parts = [samples[start : start + AT_ONCE + WINDOW - HOP] for start in range(0, max(1, len(samples)), AT_ONCE)]
    found = [_peaks_of_part(part) for part in parts]
    for number, part in enumerate(found):
        part["frame"] += number * (AT_ONCE // HOP)
    return np.concatenate(found)


def _peaks_of_part(samples: np.ndarray) -> np.ndarray:
    padded = np.pad(np.asarray(samples, np.float32), (0, max(0, WINDOW - len(samples))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]  # [frames, window]
    spectrum = np.abs(np.fft.rfft(frames * np.hanning(WINDOW).astype(np.float32), axis=1))
    spectrum = spectrum[:, LOWEST_BIN:HIGHEST_BIN]
    if not spectrum.max() > 0:
        return np.empty(0, PEAK)
    level = np.log(spectrum + 1e-4 * spectrum.max())  # [frames, bins]
    around = _largest_around(_largest_around(level, NEAR_FRAMES, 0), NEAR_BINS, 1)
    frame, bin_ = np.nonzero((level == around) & (level > level.max() + QUIETEST))
    count = int(PEAKS_PER_SECOND * len(samples) / RATE) + MORE_PEAKS
    strongest = np.sort(np.argsort(-level[frame, bin_], kind="stable")[:count])
    peaks = np.empty(len(strongest), PEAK)
    peaks["frame"], peaks["bin"] = frame[strongest], bin_[strongest]
    return peaks


def _largest_around(values: np.ndarray, reach: int, axis: int) -> np.ndarray:
    """The largest value at most `reach` places before or after each, along one axis."""
    padding = [(0, 0), (0, 0)]
    padding[axis] = (reach, reach)
    largest = np.moveaxis(np.pad(values, padding, constant_values=-np.inf), axis, 0)
    width, size = 2 * reach + 1, 1  # each value is now the largest of `size` ones, from its place on
    while size < width:
        step = min(size, width - size)
        largest = np.maximum(largest[:-step], largest[step:])
        size += step
    return np.moveaxis(largest, 0, axis)


def landmarks(peaks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of neighbouring peaks.

    Returns: the frame of each pair's first peak, and a number for its two frequencies and the time between them.
    """
    frame, bin_ = peaks["frame"].astype(np.int64), peaks["bin"].astype(np.int64) // STEP_BINS
    times, codes = [], []
    for ahead in range(1, PARTNERS + 1):
        gap = frame[ahead:] - frame[:-ahead]
        taken = (gap >= LEAST_FRAMES) & (gap < MOST_FRAMES)
        first, second = bin_[:-ahead][taken], bin_[ahead:][taken]
        times.append(frame[:-ahead][taken])
        codes.append((first * 128 + second) * 64 + gap[taken] // STEP_FRAMES)
    times, codes = np.concatenate(times), np.concatenate(codes)
    order = np.argsort(times, kind="stable")
    return times[order], codes[order]


def index_keys(peaks: np.ndarray) -> np.ndarray:
    """Numbers (int64) by which an index finds this recording again: groups of three neighbouring peaks.

    A group is rarer than a landmark, so an index of many recordings finds few others. Of each three seconds the keys
    with the smallest hashes are taken, so that two copies take the same ones.
    """
    frame, bin_ = peaks["frame"].astype(np.int64), peaks["bin"].astype(np.int64) // STEP_BINS
    times, codes = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for ahead in range(1, PARTNERS):
        for further in range(ahead + 1, PARTNERS + 1):
            count = max(0, len(peaks) - further)
            start = np.arange(count)
            near, far = frame[start + ahead] - frame[start], frame[start + further] - frame[start]
            start, near, far = (part[(near >= LEAST_FRAMES) & (far < MOST_FRAMES)] for part in (start, near, far))
            bins = (bin_[start] * 128 + bin_[start + ahead]) * 128 + bin_[start + further]
            times.append(frame[start])
            codes.append((bins * 64 + near // STEP_FRAMES) * 64 + far // STEP_FRAMES)
    hashes = mixed(np.concatenate(codes))
    window = np.concatenate(times) // int(KEYS_SECONDS * RATE / HOP)
    chosen = [np.unique(hashes[window == number])[:KEYS] for number in np.unique(window)]
    return np.unique(np.concatenate(chosen)).view(np.int64) if chosen else np.empty(0, np.int64)


def mixed(numbers: np.ndarray) -> np.ndarray:
    """Hashes (uint64) of whole numbers (splitmix64): close numbers get unrelated ones."""
    mixed = numbers.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def shared_landmarks(one: np.ndarray, other: np.ndarray) -> float:
    """The share of the shorter recording's landmarks that the other has at the same distances in time.

    The shorter recording is cut into three parts with equally many landmarks, and the smallest share of the three
    counts. So two sentences that begin with the same words share nothing.

    Args: one, other: peaks, as from `peaks_of`.
    Returns: 0 to 1; 0 if a recording has too few landmarks.
    """
    (times, codes), (other_times, other_codes) = sorted(
        (landmarks(one), landmarks(other)), key=lambda found: len(found[0])
    )
    if len(np.unique(codes)) < LEAST_LANDMARKS:
        return 0.0
    order = np.argsort(other_codes, kind="stable")
    other_codes, other_times = other_codes[order], other_times[order]
    begin = np.searchsorted(other_codes, codes, "left")
    count = np.searchsorted(other_codes, codes, "right") - begin
    if not count.any():
        return 0.0
    mine = np.repeat(np.arange(len(codes)), count)
    theirs = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + np.repeat(begin, count)
    shift = (times[mine] - other_times[theirs]) // (STEP_FRAMES // 2)
    shifts, votes = np.unique(shift, return_counts=True)
    following = np.append(np.where(np.diff(shifts) == 1, votes[1:], 0), 0)
    best = shifts[np.argmax(votes + following)]
    found = np.unique(mine[(shift == best) | (shift == best + 1)])
    third = np.arange(len(codes)) * 3 // len(codes)
    return float((np.bincount(third[found], minlength=3) / np.bincount(third, minlength=3)).min())


__all__ = ["PEAK", "index_keys", "landmarks", "mixed", "peaks_of", "shared_landmarks"]
