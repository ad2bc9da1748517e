"""The driver that makes speech on a GPU machine, and the parts of Kokoro in PyTorch that need no weights."""

import json
import multiprocessing
import sys
from pathlib import Path

import numpy as np
import pytest
import torch


sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "soundwave-small"))

import kokoro_gpu
import kokoro_torch
import prepare_kokoro_jobs
import voices
from kokoro_gpu import ReadClip
from kokoro_voices import HELD_OUT_VOICES, KokoroVoice


JOB = {
    "audio": "clips/ab/ab.flac",
    "text": "one two three",
    "voice": "af_heart:0.40+am_adam:0.60",
    "source": "names",
    "speed": 1.0,
    "tokens": [5, 6, 7],
}


def read_clip(durations: list[int]) -> ReadClip:
    return ReadClip(JOB, None, None, None, np.array(durations))


def test_a_mixed_style_is_the_weighted_sum_of_the_rows_for_the_number_of_phonemes():
    styles = {"af_heart": np.arange(4.0)[:, None], "am_adam": 10 * np.arange(4.0)[:, None]}
    assert kokoro_gpu.style_of(JOB, styles) == pytest.approx([0.4 * 2 + 0.6 * 20])  # row 2: three phonemes
    assert kokoro_gpu.style_of(JOB | {"voice": "am_adam"}, styles) == pytest.approx([20])


def test_a_clip_is_spoken_at_a_multiple_of_eight_frames_and_the_last_token_takes_the_rest():
    clip = read_clip([2, 1, 3])
    assert (clip.frames, clip.spoken_frames) == (6, 8)
    assert clip.frame_tokens().tolist() == [0, 0, 1, 2, 2, 2, 2, 2]
    assert read_clip([8]).spoken_frames == 8


def test_clips_of_one_spoken_length_share_a_batch_and_its_size_is_a_power_of_two():
    batches = kokoro_gpu.speech_batches([read_clip([frames]) for frames in (97, 200, 104, 100)])
    assert sorted([clip.frames for clip in batch] for batch in batches) == [[97, 104, 100], [200]]
    assert [kokoro_gpu.batch_size(frames) for frames in (100, 104, 200, 6_400, 9_000)] == [64, 32, 32, 1, 1]


def test_a_row_is_cut_to_the_clips_own_length():
    samples = torch.arange(2 * 3_200, dtype=torch.int16).reshape(2, 3_200)  # eight frames of 400 samples
    ((first, second),) = kokoro_gpu.batch_tasks([read_clip([2, 1, 3]), read_clip([8])], samples, None)
    assert first[1].tolist() == list(range(2_400))
    assert len(second[1]) == 3_200


def test_the_limits_are_those_of_the_voices():
    for name in ("WORDS_A_SECOND", "QUIETEST_PEAK", "SHORTEST_SECONDS", "LONGEST_SECONDS", "SAMPLING_RATE"):
        assert getattr(kokoro_gpu, name) == getattr(voices, name)


def test_a_job_becomes_a_line_of_the_manifest_and_a_held_out_voice_is_refused_by_its_name(monkeypatch):
    monkeypatch.setattr(prepare_kokoro_jobs, "english_phonemes", lambda text, accent: "ab?")
    row = {"text": "one two three", "source": "names"}
    job = prepare_kokoro_jobs.job_of(row, KokoroVoice((("af_heart", 1.0),)), 1.1, {"a": 1, "b": 2})
    assert job["tokens"] == [1, 2] and job["speed"] == 1.1
    line = kokoro_gpu.manifest_row(job, 1.23456)
    assert line == {
        "audio": job["audio"],
        "text": row["text"],
        "seconds": 1.235,
        "voice": "af_heart",
        "source": "names",
    }
    with pytest.raises(ValueError, match=HELD_OUT_VOICES[0]):
        prepare_kokoro_jobs.job_of(row, KokoroVoice(((HELD_OUT_VOICES[0], 1.0),)), 1.0, {"a": 1})


def test_a_text_that_comes_twice_gets_another_voice_or_speed_and_one_that_is_too_long_is_left_out(monkeypatch, capsys):
    monkeypatch.setattr(prepare_kokoro_jobs, "english_phonemes", lambda text, accent: text)
    rows = [{"text": text, "source": "names"} for text in ("ab", "ab", 511 * "a")]
    jobs = list(prepare_kokoro_jobs.jobs_of(rows, 0, {"a": 1, "b": 2}))
    assert len(jobs) == 2 and jobs[0]["audio"] != jobs[1]["audio"]
    assert jobs == list(prepare_kokoro_jobs.jobs_of(rows, 0, {"a": 1, "b": 2}))
    assert "Left out" in capsys.readouterr().err


def test_a_plausible_clip_is_written_and_a_silent_one_is_left_out(tmp_path):
    tone = (8_000 * np.sin(np.arange(16_000) / 10)).astype(np.int16)
    audio, row = kokoro_gpu.made_clip(tmp_path, JOB, tone, None)
    assert (tmp_path / audio).is_file() and row["seconds"] == 1.0
    assert kokoro_gpu.made_clip(tmp_path, JOB | {"audio": "b.flac"}, tone // 100, None) == ("b.flac", None)
    assert not (tmp_path / "b.flac").exists()


def test_a_second_run_keeps_rows_whose_clip_is_there_and_no_line_that_was_cut_off(tmp_path):
    rows = [{"audio": "a.flac"}, {"audio": "missing.flac"}]
    (tmp_path / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)) + '\n{"audio": "a.fl')
    (tmp_path / "a.flac").write_bytes(b"")
    assert kokoro_gpu.earlier_rows(tmp_path) == {"a.flac": {"audio": "a.flac"}}


def test_tasks_that_no_process_has_begun_are_dropped_when_it_is_time_to_stop():
    tasks = multiprocessing.get_context("spawn").Queue()
    for _ in range(3):
        tasks.put([(JOB, None)])
    assert kokoro_gpu.dropped_tasks(tasks) == 3


def test_resampling_keeps_a_tone_below_7_kilohertz_and_removes_one_above_8():
    time_24, time_16 = torch.arange(2_400) / 24_000, torch.arange(1_600) / 16_000
    low = kokoro_gpu.resampled_tensor(torch.sin(2 * torch.pi * 7_000 * time_24)[None])[0]
    high = kokoro_gpu.resampled_tensor(torch.sin(2 * torch.pi * 9_000 * time_24)[None])[0]
    middle = slice(200, -200)
    torch.testing.assert_close(low[middle], torch.sin(2 * torch.pi * 7_000 * time_16)[middle], atol=1e-3, rtol=0)
    assert high[middle].abs().max() < 1e-3


def test_names_of_onnx_outputs_become_the_modules_names():
    names = {
        "/encoder/F0.1/conv1/Conv_output_0_output_quantized": "encoder.predictor.F0.1.conv1",
        "/encoder/N_proj/Conv_output_0_output_quantized": "encoder.predictor.N_proj",
        "/encoder/shared/LSTM_output_0": "encoder.predictor.shared",
        "/encoder/text_encoder/cnn.2/cnn.2.0/Conv_output_0": "encoder.text_encoder.cnn.2.0",
        "/decoder/decoder/asr_res/asr_res.0/Conv_output_0": "decoder.decoder.asr_res.0",
    }
    assert {output: kokoro_torch.module_path(output) for output in names} == names


def test_an_int8_weight_becomes_float_by_its_zero_point_and_scale():
    tensors = {
        "w_quantized": np.array([[130, 126]], dtype=np.uint8),
        "w_scale": np.array([0.5, 2.0], dtype=np.float32),
        "zero": np.array(128, dtype=np.uint8),
    }
    assert kokoro_torch.float_weight(tensors, "w_quantized", "zero").tolist() == [[1.0, -4.0]]


def test_an_lstm_takes_its_gates_in_the_order_of_onnx():
    size = 4 * kokoro_torch.LSTM_UNITS
    bias = np.repeat([1.0, 2.0, 3.0, 4.0], kokoro_torch.LSTM_UNITS).astype(np.float32)  # input, output, forget, cell
    weights = np.zeros((2, 3, size), np.float32), np.zeros((2, kokoro_torch.LSTM_UNITS, size), np.float32)
    lstm = kokoro_torch.torch_lstm(*weights, np.tile(np.concatenate([bias, 0 * bias]), (2, 1)))
    gates = {"input": 1.0, "output": 2.0, "forget": 3.0, "cell": 4.0}
    sigmoid = {name: 1 / (1 + np.exp(-value)) for name, value in gates.items()}
    cell = sigmoid["input"] * np.tanh(gates["cell"])
    first = lstm(torch.zeros(1, 1, 3))[0]
    torch.testing.assert_close(first, torch.full_like(first, sigmoid["output"] * np.tanh(cell)))


def test_lengthening_is_a_transposed_convolution_of_each_channel():
    hidden, weight, bias = torch.randn(2, 5, 7), torch.randn(5, 1, 3), torch.randn(5)
    expected = torch.nn.functional.conv_transpose1d(hidden, weight, bias, 2, 1, 1, groups=5)
    torch.testing.assert_close(kokoro_torch.lengthened(hidden, weight, bias), expected)


def test_snake_adds_the_squared_sine_over_alpha():
    hidden, alpha = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[0.5]]])
    expected = hidden + torch.sin(0.5 * hidden) ** 2 / 0.5
    torch.testing.assert_close(kokoro_torch.snake(hidden.clone(), alpha), expected)


def test_the_phase_of_a_negative_number_is_pi_and_of_zero_zero():
    spectrum = torch.complex(torch.tensor([-1.0, -1.0, 0.0, 0.0]), torch.tensor([0.0, -0.0, 0.0, 2.0]))
    torch.testing.assert_close(kokoro_torch.angle(spectrum), torch.tensor([torch.pi, torch.pi, 0.0, torch.pi / 2]))
