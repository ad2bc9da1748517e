"""From the processor's prompts to new ids: random mixes of clips and text, conversations rendered anew each turn."""

import random

import numpy as np
import pytest
import torch

from soundwave_hf import SoundwaveConfig, SoundwaveForConditionalGeneration
from tests.tiny import CHATML, tiny_processor
from tests.tiny_models import MEL_BINS, spread_weights, tiny_audio_config, tiny_text_config


RATE = 16_000
# A template that does not show its generation prompt's hint once the answer is there, as those that drop thoughts do.
FORGETFUL = CHATML.replace("assistant\\n' }}{% endif %}", "assistant\\n<hint>' }}{% endif %}")


def tiny_pair(family: str = "llama", **tokenizer_options):
    """A `SoundwaveProcessor`, and a model for its vocabulary whose encoder hears 30 s at once."""
    processor = tiny_processor(MEL_BINS, **tokenizer_options)
    config = SoundwaveConfig(
        audio_config=tiny_audio_config(max_source_positions=1500),
        text_config=tiny_text_config(family, vocab_size=len(processor.tokenizer), max_position_embeddings=8192),
        audio_token_id=processor.audio_token_id,
    )
    model = spread_weights(SoundwaveForConditionalGeneration(config))
    model.model.ctc_head.blank_bias.data.fill_(9.0)
    return processor, model.eval()


def noise(generator: random.Random, seconds: float) -> np.ndarray:
    """A clip whose loudness changes every tenth of a second, so that frames differ."""
    rng = np.random.default_rng(generator.randrange(2**32))
    samples = rng.standard_normal(round(seconds * RATE), dtype=np.float32)
    return samples * np.repeat(rng.uniform(0.01, 1, len(samples) // 1600 + 1), 1600)[: len(samples)].astype(np.float32)


def random_mix(generator: random.Random) -> list[tuple[str, list[np.ndarray]]]:
    """Prompts with one to eight clips of 0.3 s to 30 s in all, and one or two of text alone, in any order."""
    prompts = [("", []) for _ in range(generator.randint(1, 2))]
    left = generator.randint(1, 8)
    while left:
        clips = generator.randint(1, min(left, 3))
        prompts.append((tiny_processor().audio_token, [0.3 * 100 ** generator.random() for _ in range(clips)]))
        left -= clips
    generator.shuffle(prompts)
    return [prompt_of(generator, token, seconds) for token, seconds in prompts]


def prompt_of(generator: random.Random, token: str, seconds: list[float]) -> tuple[str, list[np.ndarray]]:
    words = ["".join(generator.choices("abcdefgh ", k=generator.randint(1, 9))) for _ in range(len(seconds) + 1)]
    return token.join(words), [noise(generator, length) for length in seconds]


def generate(processor, model, prompts):
    """Ids and scores of greedy generation from prompts: `(rows, 3)` and `(rows, 3, vocabulary)`."""
    clips = [clip for _, own in prompts for clip in own]
    inputs = processor(text=[text for text, _ in prompts], audio=clips or None, sampling_rate=RATE, padding=True)
    options = {"max_new_tokens": 3, "do_sample": False, "suppress_tokens": [processor.audio_token_id]}
    output = model.generate(**inputs, **options, return_dict_in_generate=True, output_logits=True)
    return output.sequences[:, inputs["input_ids"].shape[1] :], torch.stack(output.logits, dim=1)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(10))
@torch.no_grad()
def test_random_mixes_of_clips_and_text_give_what_each_prompt_gives_alone(part):
    (processor, model), generator = tiny_pair(["llama", "qwen3"][part % 2]), random.Random(part)
    for _ in range(10):
        prompts = random_mix(generator)
        ids, logits = generate(processor, model, prompts)
        for row, prompt in enumerate(prompts):
            own_ids, own_logits = generate(processor, model, [prompt])
            assert torch.equal(ids[row], own_ids[0])
            torch.testing.assert_close(logits[row], own_logits[0], rtol=0, atol=1e-4)


def test_clips_of_the_mixes_have_runs_and_blanks():
    processor, model = tiny_pair()
    inputs = processor(text="<|audio|>", audio=noise(random.Random(0), 10), sampling_rate=RATE)
    audio = model.get_audio_features(inputs["input_features"], inputs["input_features_mask"])
    assert 25 < int(audio.num_positions) < int(audio.num_frames) == 250
    assert (audio.ctc_best == processor.audio_token_id).any()


def turn(*parts) -> dict:
    """A user's turn of texts and clips."""
    kinds = [{"type": "text", "text": p} if isinstance(p, str) else {"type": "audio", "audio": p} for p in parts]
    return {"role": "user", "content": kinds}


@pytest.mark.parametrize("template", [CHATML, FORGETFUL], ids=["chatml", "forgetful"])
@torch.no_grad()
def test_a_conversation_rendered_anew_each_turn_goes_on_from_its_cache_and_encodes_each_clip_once(template):
    processor, model = tiny_pair(chat_template=template)
    letters = set(processor.tokenizer("abcdefghijklmnopqrstuvwxyz")["input_ids"])
    options = {"max_new_tokens": 6, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    options["suppress_tokens"] = [token for token in range(len(processor.tokenizer)) if token not in letters]
    generator, encoded = random.Random(0), []
    model.model.audio_tower.register_forward_pre_hook(lambda module, args: encoded.append(len(args[0])))
    turns = [turn(noise(generator, 1.5), "What?"), turn("And?"), turn("Here:", *(noise(generator, s) for s in (4, 1)))]
    conversation, cache, answers = [], None, []
    for user in turns:
        conversation.append(user)
        inputs = processor.apply_chat_template(
            conversation, add_generation_prompt=True, tokenize=True, return_dict=True, sampling_rate=RATE
        )
        output = model.generate(**inputs, **options, past_key_values=cache)
        new_clips = encoded.copy()
        fresh = model.generate(**inputs, **options)
        encoded[:] = new_clips
        assert torch.equal(output.sequences, fresh.sequences)
        torch.testing.assert_close(output.logits, fresh.logits, rtol=0, atol=1e-4)
        cache = output.past_key_values
        answers.append(processor.decode(output.sequences[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
        conversation.append({"role": "assistant", "content": answers[-1]})
    assert encoded == [1, 2]
    assert len(set(answers)) == 3
    assert all(answer.isalpha() and len(answer) == 6 for answer in answers)
