import os

from soundwave_hf import SoundwaveTrainingArguments
from soundwave_hf.training.arguments import KERNEL_CACHES


def test_training_on_a_cpu_keeps_few_compiled_kernels_unless_the_user_says_otherwise(tmp_path, monkeypatch):
    ours, theirs = KERNEL_CACHES
    monkeypatch.setenv(ours, "removed")
    monkeypatch.delenv(ours)
    monkeypatch.setenv(theirs, "500")
    SoundwaveTrainingArguments(str(tmp_path), use_cpu=True)
    assert (os.environ[ours], os.environ[theirs]) == ("32", "500")
