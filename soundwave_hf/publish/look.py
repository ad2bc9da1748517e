"""What a model gives for one clip, run by `reload` as a script in a fresh process: `python -c THIS FOLDER OUT HOW`.

HOW is "whole" (as a stranger: the remote code alone, without this package), "package", "lora" or "align".
"""

import sys


def hear(folder: str, how: str) -> dict:
    """Scores and generated ids for a short sound, by name."""
    import numpy as np
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(1)  # sums in one order
    model, processor = load(folder, how)
    seconds = np.arange(16000, dtype=np.float32) / 16000
    clip = (0.3 * np.sin(2 * np.pi * (200 + 900 * seconds) * seconds)).astype(np.float32)
    inputs = processor.apply_transcription_request(clip, sampling_rate=16000)
    with torch.no_grad():
        if how == "align":
            heard = {name: inputs[name] for name in ("input_features", "input_features_mask")}
            return {"logits": model(**heard, output_ctc_logits=True).logits}
        words = {name: value for name, value in inputs.items() if name != "is_transcription"}
        ids = model.generate(**inputs, max_new_tokens=8, do_sample=False)
        return {"logits": model(**words).logits, "ids": ids}


def load(folder: str, how: str):
    if how == "align":
        from soundwave_hf import SoundwaveForCTC, SoundwaveProcessor

        return SoundwaveForCTC.from_pretrained(folder).eval(), SoundwaveProcessor.from_pretrained(folder)
    if how == "lora":
        from soundwave_hf import load_adapter

        return load_adapter(folder, dtype="auto")
    if how == "package":
        import soundwave_hf  # noqa: F401 (registers its classes)
    from transformers import AutoModelForMultimodalLM, AutoProcessor

    trusted = {"trust_remote_code": True} if how == "whole" else {}
    model = AutoModelForMultimodalLM.from_pretrained(folder, dtype="auto", **trusted).eval()
    return model, AutoProcessor.from_pretrained(folder, **trusted)


if __name__ == "__main__":
    if sys.argv[3] == "whole":
        sys.modules["soundwave_hf"] = None  # as where it is not installed
    from safetensors.torch import save_file

    save_file({name: value.contiguous() for name, value in hear(sys.argv[1], sys.argv[3]).items()}, sys.argv[2])
