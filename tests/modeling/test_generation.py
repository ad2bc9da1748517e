import pytest
import torch
from torch._dynamo.utils import counters
from transformers import AutoModelForCausalLM, CompileConfig, GenerationConfig, LogitsProcessor

from soundwave_hf.modeling import generation_soundwave
from tests.tiny import tiny_tokenizer as byte_tokenizer
from tests.tiny_models import (
    AUDIO,
    make_clips,
    pad_batch,
    pad_rows,
    spread_weights,
    tiny_model,
    tiny_text_config,
)


# GPT-2 learns a state for each place in a row, so that a shifted row gives other logits; the others turn by distance.
SETTINGS = [("llama", "paper"), ("llama", "published"), ("qwen3", "paper"), ("qwen3", "published"), ("gpt2", "paper")]
# Two clips in a row, text alone, one clip at the end: 80, 51 and 1 mel frames.
ROWS = [[3, AUDIO, 4, AUDIO, 5, 6], [7, 8, 9], [11, 12, AUDIO]]
CLIPS_OF_ROW = [[0, 1], [], [2]]
MEL_FRAMES = [80, 51, 1]
SLIDING = {
    "gemma2": {},
    "gemma3": {},
    "mistral": {},
    "qwen3": {"use_sliding_window": True, "max_window_layers": 1},
}
# A random model may choose the audio token, which a next forward pass would take for another clip.
GREEDY = {"max_new_tokens": 8, "do_sample": False, "suppress_tokens": [AUDIO]}


def padded_batch() -> dict[str, torch.Tensor]:
    return pad_batch(ROWS, MEL_FRAMES)


def single_row(row: int) -> dict[str, torch.Tensor]:
    batch, clips = padded_batch(), CLIPS_OF_ROW[row]
    inputs = {"input_ids": torch.tensor([ROWS[row]])}
    if clips:
        inputs |= {name: batch[name][clips] for name in ("input_features", "input_features_mask")}
    return inputs


@torch.no_grad()
def greedy_by_hand(model, inputs: dict, num_tokens: int = 8) -> torch.Tensor:
    """New ids by whole forward passes, one a token, `generate` left out: `(1, num_tokens)`."""
    ids = inputs["input_ids"]
    for _ in range(num_tokens):
        logits = model(**{**inputs, "input_ids": ids}).logits[:, -1:]
        ids = torch.cat([ids, logits[..., :AUDIO].argmax(dim=-1)], dim=1)
    return ids[:, inputs["input_ids"].shape[1] :]


def new_ids(model, inputs: dict, **options) -> torch.Tensor:
    ids = model.generate(**inputs, **{**GREEDY, **options})
    return ids[:, inputs["input_ids"].shape[1] :]


@pytest.mark.parametrize(("family", "compat"), SETTINGS)
def test_a_left_padded_batch_gives_what_whole_forward_passes_give(family, compat):
    model = tiny_model(family, compat=compat)
    expected = torch.cat([greedy_by_hand(model, single_row(row)) for row in range(len(ROWS))])
    assert len({tuple(row) for row in expected.tolist()}) == len(ROWS)  # rows that answer alike would prove little
    assert torch.equal(new_ids(model, padded_batch()), expected)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", ["smollm3", "gemma", "gemma2", "gemma3", "mistral", "qwen3"])
def test_every_family_of_llms_gives_what_whole_forward_passes_give(family, tied):
    fields = {"tie_word_embeddings": tied}
    if family in SLIDING:  # over fewer positions than a clip has
        fields |= {"sliding_window": 6, **SLIDING[family]}
    model = tiny_model(family, text_fields=fields)
    assert int(model.get_audio_features(*make_clips(MEL_FRAMES)).num_positions.max()) > 6
    expected = torch.cat([greedy_by_hand(model, single_row(row)) for row in range(len(ROWS))])
    assert torch.equal(new_ids(model, padded_batch()), expected)


@pytest.mark.parametrize("row", range(len(ROWS)))
def test_a_row_alone_gives_what_it_gives_in_the_batch(row):
    model = tiny_model()
    assert torch.equal(new_ids(model, single_row(row)), new_ids(model, padded_batch())[row : row + 1])


def test_the_prompt_comes_back_as_it_went_in():
    batch = padded_batch()
    ids = tiny_model().generate(**batch, **GREEDY)
    assert ids.shape == (3, 6 + 8)
    assert torch.equal(ids[:, :6], batch["input_ids"])


@pytest.mark.parametrize("options", [{"use_cache": False}, {"cache_implementation": "static"}], ids=["none", "static"])
def test_without_a_cache_or_with_a_static_one_the_ids_are_the_same(options):
    model, batch = tiny_model(), padded_batch()
    assert torch.equal(new_ids(model, batch, **options), new_ids(model, batch))


def test_a_quantized_cache_gives_nearly_what_a_whole_one_gives():
    model, batch = tiny_model(), padded_batch()
    expected = model.generate(**batch, **GREEDY, return_dict_in_generate=True, output_logits=True)
    found = model.generate(
        **batch,
        **GREEDY,
        return_dict_in_generate=True,
        output_logits=True,
        cache_implementation="quantized",
        cache_config={"backend": "fp8"},
    )
    assert type(found.past_key_values).__name__ == "QuantizedCache"
    assert torch.equal(found.logits[0], expected.logits[0])  # the prompt is read before anything is quantized
    # The step after it reads quantized keys and values.
    assert 0 < (found.logits[1] - expected.logits[1]).abs().max() < 0.1 * expected.logits[1].abs().max()


def test_max_length_counts_the_callers_ids():
    ids = tiny_model().generate(**padded_batch(), max_length=6 + 5, do_sample=False)
    assert ids.shape == (3, 11)


def test_scores_are_those_of_a_forward_pass():
    model, inputs = tiny_model(), single_row(0)
    output = model.generate(**inputs, **GREEDY, return_dict_in_generate=True, output_logits=True)
    with torch.no_grad():
        whole = model(**{**inputs, "input_ids": output.sequences}).logits[:, 5:-1]
    torch.testing.assert_close(torch.stack(output.logits, dim=1), whole, rtol=1e-4, atol=1e-4)


def test_beams_of_a_batch_are_those_of_each_row_alone():
    model, batch = tiny_model(), padded_batch()
    beams = new_ids(model, batch, num_beams=3)
    assert beams.shape == (3, 8)
    for row in range(len(ROWS)):
        assert torch.equal(new_ids(model, single_row(row), num_beams=3), beams[row : row + 1])


@pytest.mark.parametrize("search", [{}, {"num_beams": 3, "num_return_sequences": 2}], ids=["greedy", "beams"])
def test_a_repetition_penalty_counts_all_ids_of_a_padded_row(search):
    """The merged rows have more padding than the ids, because the clips have other lengths."""
    rows = [[3, 3, 4, AUDIO, 5, 6], [3, 9, 4, AUDIO, 7, 6], [AUDIO, 8]]
    inputs, model = pad_batch(rows, [80, 9, 31]), tiny_model()
    options = {"repetition_penalty": 2.5, **search}
    together = new_ids(model, inputs, **options).view(len(rows), -1, 8)
    for row, ids in enumerate(rows):
        clip = {name: inputs[name][row : row + 1] for name in ("input_features", "input_features_mask")}
        assert together[row].equal(new_ids(model, {"input_ids": torch.tensor([ids]), **clip}, **options))


def test_each_clip_is_encoded_once_for_all_beams():
    model = tiny_model()
    seen = []
    model.model.audio_tower.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    new_ids(model, padded_batch(), num_beams=3)
    assert seen == [3]


def test_several_samples_a_prompt_keep_their_prompts():
    batch = padded_batch()
    torch.manual_seed(0)
    ids = tiny_model().generate(**batch, max_new_tokens=4, do_sample=True, num_return_sequences=3)
    assert ids.shape == (9, 10)
    assert torch.equal(ids[:, :6], batch["input_ids"].repeat_interleave(3, dim=0))


def test_sampling_the_likeliest_token_alone_is_greedy():
    model, batch = tiny_model(), padded_batch()
    samples = new_ids(model, batch, do_sample=True, top_k=1, num_return_sequences=2)
    assert torch.equal(samples, new_ids(model, batch).repeat_interleave(2, dim=0))


def test_a_row_that_ended_is_padded():
    model, batch = tiny_model(), padded_batch()
    expected = new_ids(model, batch)
    end = int(expected[0, 2])
    found = new_ids(model, batch, eos_token_id=end, pad_token_id=0)
    for row in range(len(ROWS)):
        ids = expected[row].tolist()
        kept = ids[: ids.index(end) + 1] if end in ids else ids
        assert found[row].tolist() == (kept + [0] * 8)[: found.shape[1]]


def test_prompt_lookup_gives_the_greedy_ids():
    model, inputs = tiny_model(), single_row(0)
    assert torch.equal(new_ids(model, inputs, prompt_lookup_num_tokens=3), new_ids(model, inputs))


def test_processors_see_the_callers_ids():
    lengths = []

    class NotesLength(LogitsProcessor):
        def __call__(self, input_ids, scores):
            lengths.append(input_ids.shape[1])
            return scores

    new_ids(tiny_model(), padded_batch(), logits_processor=[NotesLength()], max_new_tokens=3)
    assert lengths == [6, 7, 8]


def test_encoder_states_serve_as_well_as_features():
    model, batch = tiny_model(), padded_batch()
    expected = new_ids(model, batch)
    with torch.no_grad():
        states, mask = model.model.encode(batch.pop("input_features"), batch.pop("input_features_mask"))
    assert torch.equal(new_ids(model, {**batch, "encoder_states": states, "encoder_mask": mask}), expected)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_text_alone_is_generated_as_by_the_plain_llm(family):
    model = tiny_model(family)
    plain = AutoModelForCausalLM.from_config(model.config.text_config).eval()
    plain.base_model.load_state_dict(model.model.language_model.state_dict())
    plain.lm_head.load_state_dict(model.lm_head.state_dict())
    ids, mask = pad_rows([[3, 4, 5, 6, 7], [8, 9]])
    inputs = {"input_ids": ids, "attention_mask": mask}
    assert torch.equal(new_ids(model, inputs), new_ids(plain, inputs))


def test_a_prompt_without_an_attention_mask_is_taken_whole():
    model, batch = tiny_model(), padded_batch()
    row = {name: batch[name][:1] for name in ("input_ids", "attention_mask")}
    row |= {name: batch[name][:2] for name in ("input_features", "input_features_mask")}
    expected = new_ids(model, row)
    row.pop("attention_mask")
    assert torch.equal(new_ids(model, row), expected)


@pytest.mark.parametrize("options", [{"prompt_lookup_num_tokens": 3}, {"assistant_model": 1}], ids=["lookup", "draft"])
def test_drafts_for_a_padded_row_change_no_id(options):
    model, inputs = tiny_model(), single_row(0)
    padded = {
        **inputs,
        "input_ids": torch.nn.functional.pad(inputs["input_ids"], (2, 0)),
        "attention_mask": torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1]]),
    }
    if "assistant_model" in options:
        options = {"assistant_model": drafting(options["assistant_model"])}
    assert torch.equal(new_ids(model, padded, **options), new_ids(model, inputs))


def test_padding_at_the_beginning_of_rows_without_a_mask_is_padding():
    model, batch = tiny_model(), padded_batch()
    expected = new_ids(model, batch, pad_token_id=0)
    model.generation_config.pad_token_id = 0
    batch.pop("attention_mask")
    assert torch.equal(new_ids(model, batch), expected)


@pytest.mark.parametrize("own", [None, 5], ids=["no default", "another default"])
def test_padding_of_rows_without_a_mask_is_the_padding_id_of_the_call(own):
    model, batch = tiny_model(), padded_batch()
    expected = new_ids(model, batch, pad_token_id=0)
    model.generation_config.pad_token_id = own
    batch.pop("attention_mask")
    assert torch.equal(new_ids(model, batch, pad_token_id=0), expected)
    assert torch.equal(new_ids(model, batch, generation_config=GenerationConfig(pad_token_id=0)), expected)
    both = {"pad_token_id": 0, "generation_config": GenerationConfig(pad_token_id=5)}
    assert torch.equal(new_ids(model, batch, **both), expected)


def test_scores_are_logits_without_the_suppressed_token():
    output = tiny_model().generate(
        **padded_batch(), **GREEDY, return_dict_in_generate=True, output_scores=True, output_logits=True
    )
    assert len(output.scores) == len(output.logits) == 8
    for scores, logits in zip(output.scores, output.logits, strict=True):
        assert (scores[:, AUDIO] == -torch.inf).all()
        assert torch.equal(scores[:, :AUDIO], logits[:, :AUDIO])


def test_the_best_beams_are_returned_in_order():
    model, batch = tiny_model(), padded_batch()
    options = {"num_beams": 3, "num_return_sequences": 2, "return_dict_in_generate": True, "output_scores": True}
    output = model.generate(**batch, **GREEDY, **options)
    assert output.sequences.shape == (6, 14)
    assert torch.equal(output.sequences[::2, 6:], new_ids(model, batch, num_beams=3))
    assert (output.sequences_scores[::2] >= output.sequences_scores[1::2]).all()
    static = model.generate(**batch, **GREEDY, **options, cache_implementation="static")
    assert torch.equal(static.sequences, output.sequences)


def test_drafts_checked_by_sampling_the_likeliest_alone_are_greedy():
    model, inputs = tiny_model(), single_row(0)
    found = new_ids(model, inputs, do_sample=True, top_k=1, assistant_model=drafting(1))
    assert torch.equal(found, new_ids(model, inputs))


def refused_by_forward_and_generate(model, inputs: dict, message: str):
    for run in (model, model.generate):
        with pytest.raises(ValueError, match=message):
            run(**inputs)


def test_an_audio_token_without_a_clip_is_refused():
    with pytest.raises(ValueError, match="holds audio tokens and no clip was given: pass `input_features` as well"):
        tiny_model().generate(input_ids=torch.tensor([[3, AUDIO, 4]]), **GREEDY)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda features, mask: (features, mask[:, :40]),
            r"mask` has shape \(1, 40\) and `input_features` \(1, 8, 51\)",
        ),
        (
            lambda features, mask: (features[0], mask[0]),
            r"has shape \(8, 51\); expected \(clips, mel_bins, mel",
        ),
        (
            lambda features, mask: (features.numpy(), mask.numpy()),
            "`input_features` arrived as ndarray; expected a tensor",
        ),
        (lambda features, mask: (features, mask.tolist()), "`input_features_mask` arrived as list; expected a tensor"),
    ],
)
def test_clips_that_do_not_fit_are_refused_as_in_forward(change, message):
    model = tiny_model()
    features, mask = change(*make_clips([51]))
    inputs = {"input_ids": torch.tensor([ROWS[2]]), "input_features": features, "input_features_mask": mask}
    refused_by_forward_and_generate(model, inputs, message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda states, mask: (states, mask[:, :9]),
            r"`encoder_mask` has shape \(1, 9\) and `encoder_states` \(1, 26, 12",
        ),
        (
            lambda states, mask: (states[0], mask[0]),
            r"`encoder_states` has shape \(26, 12\); expected \(clips, frames, 12",
        ),
        (lambda states, mask: (states[..., :8], mask), r"`encoder_states` has shape \(1, 26, 8\); expected .* 12\)"),
    ],
)
def test_encoder_states_that_do_not_fit_are_refused_as_in_forward(change, message):
    model = tiny_model()
    states, mask = change(*model.model.encode(*make_clips([51])))
    inputs = {"input_ids": torch.tensor([ROWS[2]]), "encoder_states": states, "encoder_mask": mask}
    refused_by_forward_and_generate(model, inputs, message)


def test_more_clips_than_audio_tokens_are_refused():
    with pytest.raises(ValueError, match="holds 1 audio tokens .* and 2 clips were given"):
        tiny_model().generate(input_ids=torch.tensor([[3, AUDIO]]), input_features=make_clips([80, 80])[0], **GREEDY)


# ---- What runs beyond the LLM's context, guidance


def reminders(monkeypatch) -> list[str]:
    warnings = []
    monkeypatch.setattr(generation_soundwave.logger, "warning_once", warnings.append)
    return warnings


@pytest.mark.parametrize("rows", [[0], [1], [0, 1, 2]])
@pytest.mark.parametrize("use_cache", [True, False])
def test_an_answer_that_runs_beyond_the_context_is_warned_of_with_the_clips_counted(monkeypatch, rows, use_cache):
    positions = int(tiny_model().get_audio_features(*make_clips(MEL_FRAMES)).num_positions[:2].sum())
    longest = 4 + positions if 0 in rows else 3  # true positions of the prompt; the last new id is not read
    assert positions > 10
    model = tiny_model(text_fields={"max_position_embeddings": longest + 4})
    inputs = padded_batch() if len(rows) > 1 else single_row(rows[0])
    warnings = reminders(monkeypatch)
    model.generate(**inputs, **{**GREEDY, "max_new_tokens": 5}, use_cache=use_cache)
    assert warnings == []
    model.generate(**inputs, **{**GREEDY, "max_new_tokens": 6}, use_cache=use_cache)
    assert len(warnings) == 1
    assert f"`max_position_embeddings` is {longest + 4}, and the positions of the clips count" in warnings[0]


def test_padding_is_no_reason_to_warn_of_the_context(monkeypatch):
    model = tiny_model(text_fields={"max_position_embeddings": 3 + 7})
    inputs, warnings = {"input_ids": torch.tensor([[0, 0, 0, 0, 7, 8, 9]])}, reminders(monkeypatch)
    inputs["attention_mask"] = torch.tensor([[0, 0, 0, 0, 1, 1, 1]])
    model.generate(**inputs, **GREEDY)
    assert warnings == []


@torch.no_grad()
def guided_by_hand(model, inputs: dict, away: torch.Tensor, scale: float) -> torch.Tensor:
    """Greedy new ids, guided away from what the LLM says after the ids `away`, by whole forward passes."""
    ids = inputs["input_ids"]
    for _ in range(8):
        new = ids[:, inputs["input_ids"].shape[1] :]
        with_clips = model(**{**inputs, "input_ids": ids}).logits[:, -1].log_softmax(dim=-1)
        without = model(input_ids=torch.cat([away, new], dim=1)).logits[:, -1].log_softmax(dim=-1)
        scores = without + scale * (with_clips - without)
        ids = torch.cat([ids, scores[:, :AUDIO].argmax(dim=-1, keepdim=True)], dim=1)
    return ids[:, inputs["input_ids"].shape[1] :]


@pytest.mark.parametrize("negative", [None, [[7, 8]]])
def test_guidance_leads_away_from_what_is_said_without_the_clips(negative):
    model, inputs = tiny_model(), single_row(0)
    away = torch.tensor([[6]] if negative is None else negative)
    options = {} if negative is None else {"negative_prompt_ids": away}
    found = new_ids(model, inputs, guidance_scale=3.0, **options)
    assert torch.equal(found, guided_by_hand(model, inputs, away, 3.0))
    assert not torch.equal(found, new_ids(model, inputs))


def test_guidance_away_from_an_audio_token_is_refused():
    with pytest.raises(
        ValueError, match="`guidance_scale` was given, but its unconditional pass .* pass `negative_prompt_ids`"
    ):
        new_ids(tiny_model(), single_row(2), guidance_scale=3.0)
    with pytest.raises(ValueError, match="would read an audio token"):
        new_ids(tiny_model(), single_row(0), guidance_scale=3.0, negative_prompt_ids=torch.tensor([[AUDIO, 4]]))


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{}, {"use_cache": False}, {"cache_implementation": "static"}, {"num_beams": 2}])
def test_inputs_may_stay_on_the_cpu(options):
    model, batch = tiny_model().cuda(), padded_batch()
    there = {name: value.cuda() for name, value in batch.items()}
    assert torch.equal(new_ids(model, batch, **options), new_ids(model, there, **options).cpu())


# ---- A next turn on the cache of the one before


def next_turn(model, inputs: dict, new_rows: list[list[int]], **options) -> tuple[dict, object]:
    """Inputs of a second turn (what the first made, and new ids) without a cache, and the first turn's cache."""
    first = model.generate(**inputs, **{**GREEDY, **options}, return_dict_in_generate=True)
    ids = torch.cat([first.sequences, torch.tensor(new_rows)], dim=1)
    mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"]))
    mask = torch.cat([mask, mask.new_ones(len(ids), ids.shape[1] - mask.shape[1])], dim=1)
    return {**inputs, "input_ids": ids, "attention_mask": mask}, first.past_key_values


def without_clips(inputs: dict) -> dict:
    return {name: value for name, value in inputs.items() if not name.startswith("input_features")}


@pytest.mark.parametrize("mask_given", [True, False])
@pytest.mark.parametrize(("family", "compat"), SETTINGS)
def test_a_next_turn_on_the_cache_gives_what_a_fresh_run_gives_and_encodes_no_clip(family, compat, mask_given):
    model = tiny_model(family, compat=compat)
    inputs, cache = next_turn(model, padded_batch(), [[5, 6, 7], [8, 9, 10], [2, 3, 4]])
    expected = new_ids(model, inputs)
    seen = []
    model.model.audio_tower.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    again = without_clips(inputs)
    if not mask_given:
        again.pop("attention_mask")
    assert torch.equal(new_ids(model, again, past_key_values=cache), expected)
    assert seen == []


def test_a_third_turn_on_the_cache_gives_what_a_fresh_run_gives():
    model = tiny_model()
    inputs, cache = next_turn(model, single_row(0), [[5, 6, 7]])
    second = without_clips(inputs)
    third, cache = next_turn(model, second, [[8, 9]], past_key_values=cache)
    assert torch.equal(new_ids(model, third, past_key_values=cache), new_ids(model, {**inputs, **third}))


def test_a_next_turn_with_all_clips_again_gives_what_a_fresh_run_gives():
    model = tiny_model()
    inputs, cache = next_turn(model, single_row(2), [[5, 6, 7]])
    expected = new_ids(model, inputs)
    assert torch.equal(new_ids(model, inputs, past_key_values=cache), expected)


def watch_encoder(model) -> list[int]:
    """How many clips each call of the encoder was given, from now on."""
    seen = []
    model.model.audio_tower.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    return seen


NEW_FRAMES = [66, 9, 31]  # mel frames of the clips of a second turn: of the first row, and two of the third


def with_new_clips(model, **options) -> tuple[dict, dict, object]:
    """A second turn with clips of its own: the whole conversation with all clips, the new clips alone, the cache."""
    first = padded_batch()
    inputs, cache = next_turn(model, first, [[5, AUDIO, 7, 2], [8, 9, 10, 6], [AUDIO, 3, AUDIO, 4]], **options)
    new = dict(zip(("input_features", "input_features_mask"), make_clips([80, *NEW_FRAMES], seed=5), strict=True))
    new = {name: value[1:] for name, value in new.items()}  # padded to 80 frames, like the first turn's
    # In the order of the tokens: two clips and a new one, none, one clip and two new ones.
    everything = {name: torch.cat([first[name], new[name]])[[0, 1, 3, 2, 4, 5]] for name in new}
    return {**inputs, **everything}, new, cache


@pytest.mark.parametrize("given", ["new", "all"])
@pytest.mark.parametrize(("family", "compat"), SETTINGS)
def test_new_clips_on_the_cache_give_what_a_fresh_run_gives_and_each_clip_is_encoded_once(family, compat, given):
    model = tiny_model(family, compat=compat)
    inputs, new, cache = with_new_clips(model)
    expected = new_ids(model, inputs)
    assert len({tuple(row) for row in expected.tolist()}) == len(ROWS)
    seen = watch_encoder(model)
    again = {**inputs, **new} if given == "new" else inputs
    assert torch.equal(new_ids(model, again, past_key_values=cache), expected)
    assert seen == [3]


def test_a_third_turn_goes_on_from_a_second_with_clips():
    model = tiny_model()
    inputs, new, cache = with_new_clips(model)
    second = {**inputs, **new}
    third, cache = next_turn(model, second, [[AUDIO, 9], [5, 6], [8, 9]], past_key_values=cache)
    clip = dict(zip(new, make_clips([80], seed=9), strict=True))
    everything = {name: torch.cat([inputs[name][:3], clip[name], inputs[name][3:]]) for name in clip}
    expected = new_ids(model, {**third, **everything})
    seen = watch_encoder(model)
    assert torch.equal(new_ids(model, {**third, **clip}, past_key_values=cache), expected)
    assert seen == [1]


def test_clips_may_follow_a_turn_of_text():
    model = tiny_model()
    texts = [[7, 8, 9], [5, 6]]
    ids, mask = pad_rows(texts)
    inputs, cache = next_turn(model, {"input_ids": ids, "attention_mask": mask}, [[AUDIO, 5], [AUDIO, 6]])
    clips = dict(zip(("input_features", "input_features_mask"), make_clips([80, 23]), strict=True))
    expected = new_ids(model, {**inputs, **clips})
    assert torch.equal(new_ids(model, {**inputs, **clips}, past_key_values=cache), expected)


def test_earlier_clips_given_again_are_not_encoded_again():
    model = tiny_model()
    inputs, cache = next_turn(model, single_row(0), [[5, 6, 7]])
    expected = new_ids(model, inputs)
    seen = watch_encoder(model)
    assert torch.equal(new_ids(model, inputs, past_key_values=cache), expected)
    assert seen == []


def test_clips_that_are_neither_the_new_ones_nor_all_are_refused():
    model = tiny_model()
    inputs, _, cache = with_new_clips(model)
    some = {name: inputs[name][:2] for name in ("input_features", "input_features_mask")}
    with pytest.raises(ValueError, match="holds 6 audio tokens, 3 of them not in .* but 2 clips were given: pass"):
        model.generate(**{**inputs, **some}, past_key_values=cache, **GREEDY)


def one_row_with_new_clip(model) -> tuple[dict, dict, object]:
    """As `with_new_clips`, of one row: what assisted decoding takes."""
    first = single_row(0)
    inputs, cache = next_turn(model, first, [[5, AUDIO, 7, 2]])
    new = dict(zip(("input_features", "input_features_mask"), make_clips([80, 66], seed=5), strict=True))
    new = {name: value[1:] for name, value in new.items()}
    return {**inputs, **{name: torch.cat([first[name], new[name]]) for name in new}}, new, cache


@pytest.mark.parametrize("drafts", ["lookup", "words", "clips"])
def test_drafts_for_new_clips_on_the_cache_change_no_id(drafts):
    model = tiny_model()
    inputs, _, cache = one_row_with_new_clip(model)
    expected = new_ids(model, inputs)
    options = {
        "lookup": {"prompt_lookup_num_tokens": 3},
        "words": {"assistant_model": text_llm(1)},
        "clips": {"assistant_model": drafting(1)},
    }[drafts]
    assert torch.equal(new_ids(model, inputs, past_key_values=cache, **options), expected)


def test_a_soundwave_drafts_with_all_clips_or_not_at_all():
    model = tiny_model()
    inputs, new, cache = one_row_with_new_clip(model)
    with pytest.raises(ValueError, match="cannot use the cache: `input_ids` holds 3 audio tokens and 1 clips were"):
        new_ids(model, {**inputs, **new}, past_key_values=cache, assistant_model=drafting(1))


def test_a_cache_that_forward_filled_is_gone_on_from():
    model, inputs = tiny_model(), padded_batch()
    with torch.no_grad():
        cache = model(**inputs, use_cache=True).past_key_values
    ids = torch.cat([inputs["input_ids"], torch.tensor([[5, 6], [8, 9], [2, 3]])], dim=1)
    mask = torch.cat([inputs["attention_mask"], torch.ones(3, 2, dtype=torch.long)], dim=1)
    again = {**inputs, "input_ids": ids, "attention_mask": mask}
    expected = new_ids(model, again)
    assert torch.equal(new_ids(model, without_clips(again), past_key_values=cache), expected)


def test_forward_refuses_clips_behind_a_cache():
    model, inputs = tiny_model(), single_row(0)
    cache = model(**inputs, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="holds a prompt and `input_features` were given, .* Use `generate`"):
        model(**inputs, past_key_values=cache)


def test_a_cache_that_was_reset_serves_another_prompt():
    model = tiny_model()
    options = {"cache_implementation": "static", "return_dict_in_generate": True}
    cache = model.generate(**single_row(0), **GREEDY, **options).past_key_values
    cache.reset()
    assert torch.equal(new_ids(model, single_row(2), past_key_values=cache), new_ids(model, single_row(2)))


def test_new_ids_alone_are_refused_on_the_cache_of_a_text():
    model = tiny_model()
    cache = model.generate(**single_row(1), **GREEDY, return_dict_in_generate=True).past_key_values
    clip = make_clips([80])[0]
    with pytest.raises(ValueError, match=r"holds 10 positions and `input_ids` has shape \(1, 2\): pass all ids"):
        model.generate(torch.tensor([[AUDIO, 4]]), input_features=clip, past_key_values=cache, **GREEDY)


def test_padding_counts_for_nothing_in_the_context():
    model = tiny_model(text_fields={"max_position_embeddings": 72})
    ids, mask = pad_rows([list(range(1, 29)) + list(range(1, 13)), [5, 6]])
    inputs, cache = next_turn(model, {"input_ids": ids, "attention_mask": mask}, [[3, 3, 3], [AUDIO, 3, AUDIO]])
    features, features_mask = make_clips([80, 80])
    inputs |= {"input_features": features, "input_features_mask": features_mask}
    added = int(model.get_audio_features(features, features_mask).num_positions.sum())
    assert ids.shape[1] + 8 + 1 + added > 72  # columns, though no row has so many true ones
    assert torch.equal(new_ids(model, inputs, past_key_values=cache), new_ids(model, inputs))


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([[5, 6, 7]], r"holds a prompt of 3 ids with clips .* `input_ids` of shape \(1, 3\) does not continue"),
        ([[11, 12, AUDIO]], r"`input_ids` of shape \(1, 3\) does not continue them: pass all"),
        (
            [[11, 12, AUDIO, *range(1, 10), AUDIO]],
            "holds audio tokens that are not in `past_key_values`, and no clip was",
        ),
    ],
)
def test_a_next_turn_that_does_not_fit_the_cache_is_refused(ids, message):
    model = tiny_model()
    cache = model.generate(**single_row(2), **GREEDY, return_dict_in_generate=True).past_key_values
    with pytest.raises(ValueError, match=message):
        model.generate(input_ids=torch.tensor(ids), past_key_values=cache, **GREEDY)


def test_audio_tokens_on_the_cache_of_a_text_are_refused():
    model = tiny_model()
    cache = model.generate(**single_row(1), **GREEDY, return_dict_in_generate=True).past_key_values
    ids = torch.tensor([[*range(1, 13), AUDIO]])
    with pytest.raises(ValueError, match="holds audio tokens and no clip was given: pass `input_features` as well"):
        model.generate(input_ids=ids, past_key_values=cache, **GREEDY)


def test_a_next_turn_without_the_cache_that_it_names_is_refused():
    model = tiny_model()
    inputs, cache = next_turn(model, single_row(2), [[5, 6, 7]])
    with pytest.raises(ValueError, match="`past_key_values` holds the clips, and `use_cache` is False: leave one"):
        model.generate(**without_clips(inputs), past_key_values=cache, use_cache=False, **GREEDY)


def test_a_prefill_in_chunks_is_refused_for_a_prompt_with_clips():
    with pytest.raises(
        ValueError, match="`prefill_chunk_size` is 4, but it cuts ids, .* more positions than ids: leave it"
    ):
        tiny_model().generate(**padded_batch(), prefill_chunk_size=4, **GREEDY)


def text_llm(seed: int):
    return spread_weights(AutoModelForCausalLM.from_config(tiny_text_config()), seed).eval()


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("row", range(len(ROWS)))
def test_an_assistant_that_reads_the_words_changes_no_id(row, seed):
    model, inputs = tiny_model(), single_row(row)
    assert torch.equal(new_ids(model, inputs, assistant_model=text_llm(seed)), new_ids(model, inputs))


def test_an_assistant_on_a_next_turn_changes_no_id():
    model, inputs = tiny_model(), single_row(0)
    first = model.generate(**inputs, **GREEDY, return_dict_in_generate=True)
    ids = torch.cat([first.sequences, torch.tensor([[7, 8]])], dim=1)
    fresh = new_ids(model, {**inputs, "input_ids": ids})
    cached = new_ids(model, {"input_ids": ids}, past_key_values=first.past_key_values, assistant_model=text_llm(1))
    assert torch.equal(cached, fresh)


def drafting(seed: int):
    """Another Soundwave that drafts two tokens at a time; that of seed 0 is the model itself."""
    assistant = tiny_model(seed=seed)
    assistant.generation_config.num_assistant_tokens = 2
    assistant.generation_config.num_assistant_tokens_schedule = "constant"
    assistant.generation_config.assistant_confidence_threshold = 0.0  # a random model is sure of nothing
    return assistant


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("row", range(len(ROWS)))
def test_an_assistant_that_hears_the_clips_changes_no_id(row, seed):
    model, inputs = tiny_model(), single_row(row)
    options = {"return_dict_in_generate": True, "output_logits": True}
    expected = model.generate(**inputs, **GREEDY, **options)
    found = model.generate(**inputs, **GREEDY, **options, assistant_model=drafting(seed))
    assert torch.equal(found.sequences, expected.sequences)
    torch.testing.assert_close(torch.stack(found.logits), torch.stack(expected.logits), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("row", [0, 2])
def test_drafts_of_the_model_itself_are_all_taken_and_its_clips_encoded_once(row):
    model, assistant, inputs = tiny_model(), drafting(0), single_row(row)
    calls, encoded = [], watch_encoder(assistant)
    model.lm_head.register_forward_hook(lambda *_: calls.append(1))
    new_ids(model, inputs, max_new_tokens=9, assistant_model=assistant)
    assert len(calls) == 3  # two drafted tokens and one of its own a pass
    assert encoded == [len(CLIPS_OF_ROW[row])]


def test_a_cache_cropped_behind_its_clips_serves_a_turn_that_takes_another_way():
    model, inputs = tiny_model(), single_row(0)
    first = model.generate(**inputs, **GREEDY, return_dict_in_generate=True)
    first.past_key_values.crop(-8)  # the answer, and the prompt's last id with it
    ids = torch.cat([inputs["input_ids"], torch.tensor([[9, 8, 7]])], dim=1)
    expected = new_ids(model, {**inputs, "input_ids": ids})
    assert torch.equal(new_ids(model, {"input_ids": ids}, past_key_values=first.past_key_values), expected)


def test_an_answer_that_the_caller_changed_is_read_anew_and_no_clip_is():
    model, inputs = tiny_model(), padded_batch()
    again, cache = next_turn(model, inputs, [[5, 6], [8, 9], [2, 3]])
    again["input_ids"][1, 6 + 3] = 1 + again["input_ids"][1, 6 + 3] % 20  # the fourth id of one row's answer
    expected = new_ids(model, again)
    seen, read = watch_encoder(model), []
    model.lm_head.register_forward_pre_hook(lambda module, args: read.append(cache.get_seq_length()))
    assert torch.equal(new_ids(model, without_clips(again), past_key_values=cache), expected)
    assert seen == []
    added = int(cache.prompt.num_added)
    assert read[0] == again["input_ids"].shape[1] + added


def test_another_answer_to_the_same_prompt_reads_its_last_id_alone():
    model, inputs = tiny_model(), single_row(0)
    cache = model.generate(**inputs, **GREEDY, return_dict_in_generate=True).past_key_values
    assert torch.equal(new_ids(model, without_clips(inputs), past_key_values=cache), new_ids(model, inputs))


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_an_answer_that_was_changed_is_refused_where_the_cache_cannot_be_cropped(family):
    model = tiny_model(family, text_fields={"sliding_window": 16} if family == "gemma2" else {})
    options = {} if family == "gemma2" else {"cache_implementation": "static"}
    inputs, cache = next_turn(model, single_row(0), [[5, 6]], **options)
    inputs["input_ids"][0, 6 + 3] = 1 + inputs["input_ids"][0, 6 + 3] % 20
    with pytest.raises(ValueError, match="does not continue them: pass all ids"):
        new_ids(model, without_clips(inputs), past_key_values=cache)


class Recorder:
    """A streamer that keeps what it is given."""

    def __init__(self):
        self.given = []

    def put(self, ids):
        self.given += ids.flatten().tolist()

    def end(self):
        self.given.append("end")


def test_a_streamer_sees_the_callers_prompt_and_then_each_id():
    model, inputs, streamer = tiny_model(), single_row(0), Recorder()
    ids = model.generate(**inputs, **GREEDY, streamer=streamer)
    assert streamer.given == [*ids[0].tolist(), "end"]


def test_a_stop_string_ends_a_row():
    tokenizer = byte_tokenizer()
    audio = len(tokenizer) - 1
    model = tiny_model(text_fields={"vocab_size": len(tokenizer)})
    inputs = {**single_row(0), "input_ids": torch.tensor([[3, audio, 4, audio, 5]])}
    options = {"max_new_tokens": 12, "do_sample": False, "suppress_tokens": [audio]}
    whole = model.generate(**inputs, **options)
    stop = tokenizer.decode(whole[0, 8:9])
    stopped = model.generate(**inputs, **options, stop_strings=[stop], tokenizer=tokenizer)
    assert stopped.shape[1] < whole.shape[1]
    assert torch.equal(stopped, whole[:, : stopped.shape[1]])
    assert tokenizer.decode(stopped[0, 5:]).count(stop) == 1


def test_stop_strings_end_each_row_of_a_padded_batch():
    tokenizer = byte_tokenizer()
    audio, pad = len(tokenizer) - 1, tokenizer.pad_token_id
    letters = set(tokenizer("abcdefghijklmnopqrstuvwxyz")["input_ids"])
    model, batch = tiny_model(text_fields={"vocab_size": len(tokenizer)}), padded_batch()
    batch["input_ids"][batch["input_ids"] == AUDIO] = audio
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": pad, "eos_token_id": tokenizer.eos_token_id}
    options["suppress_tokens"] = [token for token in range(len(tokenizer)) if token not in letters]
    whole = tokenizer.batch_decode(model.generate(**batch, **options)[:, 6:])
    stops = [whole[0][2:4], whole[1][3:5]]
    found = model.generate(**batch, **options, stop_strings=stops, tokenizer=tokenizer)[:, 6:]
    ends = [min((text.index(stop) + 2 for stop in stops if stop in text), default=12) for text in whole]
    assert tokenizer.batch_decode(found, skip_special_tokens=True) == [
        text[:end] for text, end in zip(whole, ends, strict=True)
    ]
    assert max(ends[:2]) < 12 and len(set(ends)) > 1


@pytest.mark.slow
def test_a_compiled_decode_step_is_one_graph_and_changes_no_id():
    model, batch = tiny_model(), padded_batch()
    expected = new_ids(model, batch)
    torch._dynamo.reset()
    counters.clear()
    # "eager" captures the graph and leaves out the compiler behind it, which the LLM alone concerns.
    compile_config = CompileConfig(backend="eager", fullgraph=True)
    compile_config._compile_all_devices = True
    options = {"cache_implementation": "static", "compile_config": compile_config}
    assert torch.equal(new_ids(model, batch, **options), expected)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


# ---- A cache and other clips than those it holds


def another_clip(inputs: dict, seed: int = 8, frames: tuple = (80, 62)) -> dict:
    """The same ids about other recordings."""
    clips = dict(zip(("input_features", "input_features_mask"), make_clips(list(frames), seed=seed), strict=True))
    return {**inputs, **clips}


def first_scores(model, inputs: dict, **options) -> torch.Tensor:
    """Scores of the first new id, `(rows, vocabulary)`: they tell recordings apart whose greedy ids are alike."""
    options = {**GREEDY, "max_new_tokens": 2, "return_dict_in_generate": True, "output_logits": True, **options}
    return model.generate(**inputs, **options).logits[0]


def assert_hears(model, inputs: dict, cache, stale: dict):
    """Generating from a cache of other clips gives what a fresh run gives, which the stale inputs do not."""
    expected = first_scores(model, inputs)
    assert (expected - first_scores(model, stale)).abs().max() > 1e-2
    torch.testing.assert_close(first_scores(model, inputs, past_key_values=cache), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("as_states", [False, True], ids=["features", "states"])
def test_a_kept_cache_does_not_answer_about_another_recording(as_states):
    model, first = tiny_model(), single_row(0)
    second = another_clip(first)
    if as_states:
        first, second = states_of(model, first), states_of(model, second)
    cache = model.generate(**first, **GREEDY, return_dict_in_generate=True).past_key_values
    assert_hears(model, second, cache, first)
    assert_hears(model, first, cache, second)  # and back again


def states_of(model, inputs: dict) -> dict:
    """Inputs with encoder states in place of features."""
    rest = without_clips(inputs)
    with torch.no_grad():
        states, mask = model.model.encode(inputs["input_features"], inputs["input_features_mask"])
    return {**rest, "encoder_states": states, "encoder_mask": mask}


def test_a_recording_replaced_while_the_talk_goes_on_is_heard():
    model = tiny_model()
    inputs, cache = next_turn(model, single_row(0), [[5, 6, 7]])
    replaced = another_clip(inputs)
    assert_hears(model, replaced, cache, inputs)


def test_a_recording_of_a_later_turn_that_was_replaced_is_heard():
    model = tiny_model()
    inputs, _, cache = with_new_clips(model)
    third, cache = next_turn(model, inputs, [[5, 6], [7, 8], [9, 2]], past_key_values=cache)
    features = third["input_features"].clone()
    features[-1] = make_clips([80], seed=11)[0][0]  # the last clip of the third row's second turn
    assert_hears(model, {**third, "input_features": features}, cache, third)


def test_clips_swapped_between_rows_are_heard():
    model = tiny_model()
    features, mask = make_clips([80, 62])
    rows = {"input_ids": torch.tensor([[3, AUDIO, 4], [3, AUDIO, 4]])}
    first = {**rows, "input_features": features, "input_features_mask": mask}
    swapped = {**rows, "input_features": features.flip(0), "input_features_mask": mask.flip(0)}
    cache = model.generate(**first, **GREEDY, return_dict_in_generate=True).past_key_values
    assert_hears(model, swapped, cache, first)


def test_padding_and_company_make_no_other_clip_of_one():
    features, mask = make_clips([40, 62])
    digests = generation_soundwave.digest_clips(features, mask)
    alone = generation_soundwave.digest_clips(features[:1, :, :40])
    longer = torch.nn.functional.pad(features, (0, 9), value=3.0), torch.nn.functional.pad(mask, (0, 9))
    assert digests[0] == alone[0]
    assert torch.equal(generation_soundwave.digest_clips(*longer), digests)
    assert digests[0] != digests[1]
    one_bit = features.clone()
    one_bit[1, 3, 5] = torch.nextafter(one_bit[1, 3, 5], torch.tensor(9.0))
    assert (generation_soundwave.digest_clips(one_bit, mask) != digests).tolist() == [False, True]
    assert (generation_soundwave.digest_clips(features.flip(2), mask) != digests).all()  # frames in another order


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"num_return_sequences": 2, "do_sample": True, "top_k": 1}])
def test_beams_and_samples_begin_from_the_recording_that_is_given(options):
    model, first = tiny_model(), single_row(0)
    second = another_clip(first)
    cache = model.generate(**first, **GREEDY, return_dict_in_generate=True).past_key_values
    expected = new_ids(model, second, **options)
    assert torch.equal(new_ids(model, second, past_key_values=cache, **options), expected)


def test_a_cache_that_forward_filled_does_not_answer_about_another_recording():
    model, first = tiny_model(), padded_batch()
    second = another_clip(first, frames=(80, 51, 1))
    with torch.no_grad():
        cache = model(**first, use_cache=True).past_key_values
    assert_hears(model, second, cache, first)


def test_a_cache_that_cannot_be_cropped_refuses_another_recording_with_the_way_out():
    model, first = tiny_model(), single_row(0)
    second, options = another_clip(first), {"cache_implementation": "static", "return_dict_in_generate": True}
    cache = model.generate(**first, **GREEDY, **options).past_key_values
    with pytest.raises(ValueError, match=r"other clips than those given, and cannot be cropped: call its `reset\(\)`"):
        new_ids(model, second, past_key_values=cache)
    cache.reset()
    assert_hears(model, second, cache, first)


def test_a_cache_of_other_rows_is_refused():
    model, inputs = tiny_model(), padded_batch()
    cache = model.generate(**inputs, **GREEDY, return_dict_in_generate=True).past_key_values
    with pytest.raises(ValueError, match="holds 3 rows .* and `input_ids` has 1: pass the same rows"):
        new_ids(model, single_row(0), past_key_values=cache)


def test_a_repeated_row_of_a_cache_answers_several_questions_about_its_clips():
    model, inputs = tiny_model(), single_row(0)
    first = model.generate(**inputs, **GREEDY, return_dict_in_generate=True)
    questions = [[7, 8, 9], [10, 11, 12]]
    rows = [torch.tensor([[*first.sequences[0].tolist(), *question]]) for question in questions]
    first.past_key_values.batch_repeat_interleave(2)
    found = new_ids(model, {"input_ids": torch.cat(rows)}, past_key_values=first.past_key_values)
    for row, ids in enumerate(rows):
        assert torch.equal(found[row : row + 1], new_ids(model, {**inputs, "input_ids": ids}))


def test_a_repeated_cache_of_several_rows_is_refused_with_its_rows():
    model, inputs = tiny_model(), padded_batch()
    first = model.generate(**inputs, **GREEDY, return_dict_in_generate=True)
    first.past_key_values.batch_repeat_interleave(2)
    ids = torch.nn.functional.pad(first.sequences, (0, 2), value=7)
    for given in (ids, ids.repeat_interleave(2, dim=0)):
        with pytest.raises(ValueError, match=rf"holds 6 rows \(3 in its prompt .* has {len(given)}"):
            model.generate(given, **GREEDY, past_key_values=first.past_key_values)


def test_embeddings_and_clips_together_are_refused():
    model, inputs = tiny_model(), single_row(0)
    embeds = model.get_input_embeddings()(inputs.pop("input_ids"))
    with pytest.raises(ValueError, match="got `inputs_embeds` and clips, but can merge clips only into `input_ids`"):
        model.generate(inputs_embeds=embeds, **inputs, **GREEDY)


# ---- What no answer holds, and rows without speech


def test_no_answer_holds_the_audio_token_whatever_the_generation_config_says():
    model, inputs = tiny_model(), single_row(0)
    with torch.no_grad():
        model.lm_head.weight[AUDIO] = 100 * model.lm_head.weight[int(new_ids(model, inputs)[0, 0])]
    assert model.generation_config.suppress_tokens is None
    for options in ({}, {"num_beams": 3}, {"do_sample": True}, {"prompt_lookup_num_tokens": 2}):
        ids = model.generate(**inputs, **{"max_new_tokens": 6, "do_sample": False, **options})
        assert not (ids[:, 6:] == AUDIO).any()


END, PAD = 2, 0
ENDING = {"eos_token_id": END, "pad_token_id": PAD}


def silent_clips(batch: dict, clips: list[int]) -> dict:
    """The batch with some of its clips silenced: nothing in them changes, so that none may be a word."""
    features = batch["input_features"].clone()
    features[clips] = 0.0
    return {**batch, "input_features": features}


def hearing_model(threshold: float | None = 0.5, **fields):
    """A model whose CTC head hears something in every random clip, and nothing in one of zeros."""
    model = tiny_model(no_speech_threshold=threshold, **fields)
    zeros = torch.zeros(1, 8, 80)
    with torch.no_grad():
        state = model.get_audio_features(zeros).aligned_states[0].mean(dim=0)
        model.model.ctc_head.blank_weight.copy_(3 * state)  # the blank's row looks like what silence gives
        model.model.ctc_head.blank_bias.fill_(0.0)
    return model


def test_the_no_speech_probability_is_the_blanks_least_one_over_true_frames():
    model = hearing_model()
    features, mask = make_clips([80, 51])
    with torch.no_grad():
        audio = model.get_audio_features(features, mask, output_ctc_logits=True)
    for clip, frames in enumerate(audio.num_frames.tolist()):
        blank = audio.ctc_logits[clip, :frames].float().softmax(dim=-1)[:, AUDIO]
        assert float(audio.no_speech_probs[clip]) == pytest.approx(float(blank.min()), rel=1e-4)


def test_rows_that_ask_for_a_transcript_of_silence_end_at_once():
    model = hearing_model()
    batch = silent_clips(padded_batch(), [2])  # the clip of the third row
    audio = model.get_audio_features(batch["input_features"], batch["input_features_mask"])
    assert model.model.judge_silence(audio, batch["input_features"], batch["input_features_mask"]).tolist() == [
        False,
        False,
        True,
    ]
    plain = new_ids(model, batch, **ENDING)
    marked = new_ids(model, {**batch, "is_transcription": torch.tensor([True, True, True])}, **ENDING)
    assert marked[2].tolist() == [END] + [PAD] * 7
    assert torch.equal(marked[:2], plain[:2])  # the others as they were, the row of text too
    questions = new_ids(model, {**batch, "is_transcription": torch.tensor([True, True, False])}, **ENDING)
    assert torch.equal(questions, plain)  # a question about silence is answered


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3},
        {"num_beams": 3, "num_return_sequences": 2},
        {"do_sample": True, "num_return_sequences": 3, "temperature": 0.7, "top_p": 0.9},
        {"min_new_tokens": 3},
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"prompt_lookup_num_tokens": 2},
        {"assistant_model": 1},
        {"assistant_model": "text"},
    ],
    ids=str,
)
def test_every_way_of_generating_ends_rows_of_silence_at_once(options):
    model = hearing_model()
    inputs = {**silent_clips(single_row(2), [0]), "is_transcription": [True]}
    if "assistant_model" in options:
        options = {"assistant_model": text_llm(1) if options["assistant_model"] == "text" else drafting(1)}
    ids = new_ids(model, inputs, **options, **ENDING)
    assert ids[:, 0].tolist() == [END] * len(ids)
    assert (ids[:, 1:] == PAD).all()
    assert len(ids) == options.get("num_return_sequences", 1)


def test_a_kept_cache_knows_which_clips_are_silent():
    model = hearing_model()
    inputs = {**silent_clips(single_row(2), [0]), "is_transcription": torch.tensor([True])}
    inputs["input_ids"] = torch.tensor([[11, AUDIO, 12]])
    cache = model.generate(**inputs, **GREEDY, **ENDING, return_dict_in_generate=True).past_key_values
    assert new_ids(model, inputs, past_key_values=cache, **ENDING).tolist() == [[END]]
    assert new_ids(model, without_clips(inputs), past_key_values=cache, **ENDING).tolist() == [[END]]


@pytest.mark.parametrize("threshold", [None, 0, 0.0])
def test_without_a_threshold_silence_is_answered(threshold):
    model = hearing_model(threshold)
    inputs = silent_clips(single_row(2), [0])
    marked = {**inputs, "is_transcription": torch.tensor([True])}
    assert torch.equal(new_ids(model, marked, **ENDING), new_ids(model, inputs, **ENDING))


@pytest.mark.parametrize("marked", [True, torch.tensor([True, False]), torch.tensor([[True]])])
@pytest.mark.parametrize("option", [{}, {"return_timestamps": "word"}, {"ctc_weight": 0.3}, {"ctc_draft": "ctc"}])
def test_marks_of_another_shape_are_refused_before_anything_else(marked, option):
    with pytest.raises(ValueError, match=r"`is_transcription` has shape \(.*\); expected one value a row, \(1,\)"):
        tiny_model().generate(**single_row(2), is_transcription=marked, **option, **GREEDY)


@pytest.mark.parametrize("ends", [END, [END], (END, 3), torch.tensor(END), torch.tensor([END, 3])], ids=repr)
def test_an_empty_answer_ends_by_the_first_of_end_tokens_in_any_form(ends):
    inputs = {**silent_clips(single_row(2), [0]), "is_transcription": torch.tensor([True])}
    assert new_ids(hearing_model(), inputs, eos_token_id=ends, pad_token_id=PAD).tolist() == [[END]]


def test_marks_are_one_a_row_and_need_an_end_token():
    model = hearing_model()
    inputs = silent_clips(single_row(2), [0])
    with pytest.raises(ValueError, match=r"`is_transcription` has shape \(2,\); expected one value a row, \(1,\)"):
        model.generate(**inputs, is_transcription=torch.tensor([True, False]), **GREEDY)
    with pytest.raises(
        ValueError, match="there is no end token for its empty answer: set `generation_config.eos_token_id`"
    ):
        model.generate(**inputs, is_transcription=torch.tensor([True]), **GREEDY)


def test_forward_takes_the_mark_and_does_nothing_with_it():
    model, inputs = hearing_model(), silent_clips(single_row(2), [0])
    marked = {**inputs, "is_transcription": torch.tensor([True])}
    labels = inputs["input_ids"]
    assert torch.equal(model(**marked, labels=labels).loss, model(**inputs, labels=labels).loss)
    assert torch.equal(model.model(**marked).last_hidden_state, model.model(**inputs).last_hidden_state)


# ---- a loop over `forward` ----


@pytest.mark.parametrize("mask_of", ["caller", "positions", "nothing"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])  # turns by distance, and a state for each place
@torch.no_grad()
def test_a_pass_after_clips_takes_the_mask_of_the_callers_ids(family, mask_of):
    model, batch = tiny_model(family), padded_batch()
    new = torch.tensor([[3, 5], [4, 6], [5, 7]])
    whole = batch | {"input_ids": torch.cat([batch["input_ids"], new], dim=1)}
    whole["attention_mask"] = torch.cat([batch["attention_mask"], torch.ones_like(new)], dim=1)
    expected = model(**whole).logits
    cache = model(**batch, use_cache=True).past_key_values
    masks = {"caller": batch["attention_mask"], "positions": cache.prompt.attention_mask, "nothing": None}
    for place in range(2):  # one new token a pass
        one = new[:, place : place + 1]
        if masks[mask_of] is not None:
            masks[mask_of] = torch.cat([masks[mask_of], torch.ones_like(one)], dim=1)
        found = model(input_ids=one, attention_mask=masks[mask_of], past_key_values=cache).logits
        torch.testing.assert_close(found[:, 0], expected[:, place - 2], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_pass_after_clips_with_other_rows_or_another_mask_is_refused():
    model, batch = tiny_model(), padded_batch()
    cache = model(**batch, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="holds 3 rows with clips, and 2 were given"):
        model(input_ids=torch.tensor([[3], [4]]), past_key_values=cache)
    with pytest.raises(ValueError, match=r"`attention_mask` has shape \(3, 2\); expected \(3, 7\)"):
        model(input_ids=torch.tensor([[3], [4], [5]]), attention_mask=torch.ones(3, 2), past_key_values=cache)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_the_mask_may_have_any_type(dtype):
    model, batch = tiny_model(), padded_batch()
    expected = model.generate(**batch, **GREEDY)
    batch["attention_mask"] = batch["attention_mask"].to(dtype)
    assert torch.equal(model.generate(**batch, **GREEDY), expected)


def test_the_targets_of_a_training_batch_change_no_answer():
    model, batch = tiny_model(), padded_batch()
    targets = {"ctc_labels": torch.tensor([[3], [4], [5]]), "num_ctc_clips": 3, "labels": batch["input_ids"]}
    assert torch.equal(model.generate(**batch, **targets, **GREEDY), model.generate(**batch, **GREEDY))


@torch.no_grad()
def test_a_cache_that_was_emptied_or_cut_is_continued_by_what_it_holds():
    model, batch = tiny_model(), padded_batch()
    new = torch.tensor([[3], [4], [5]])
    cache = model(**batch, use_cache=True).past_key_values
    after = model(input_ids=new, past_key_values=cache).logits
    cache.crop(-1)
    torch.testing.assert_close(model(input_ids=new, past_key_values=cache).logits, after)
    cache.crop(-int(cache.get_seq_length()))
    expected = model(input_ids=new).logits
    torch.testing.assert_close(model(input_ids=new, past_key_values=cache).logits, expected)
