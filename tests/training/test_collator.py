import copy
import json
import math
from types import SimpleNamespace

import pytest
import soundfile
import torch
from datasets import Dataset

from soundwave_hf.data.tiny import MEL_BINS
from soundwave_hf.modeling.modeling_soundwave import SoundwaveForConditionalGeneration
from soundwave_hf.processing.processing_soundwave import SYSTEM_PROMPT
from soundwave_hf.training.augment import Augmentation
from soundwave_hf.training.collator import SoundwaveDataCollator
from tests.training.workspace import EVERY_AUGMENTATION


AUDIO, EOS, PAD = 259, 256, 257  # 256 bytes, <|im_end|>, <|endoftext|>, <|im_start|>, <|audio|>
BOTH = ("ce", "ctc")


@pytest.fixture(scope="module")
def processor(workspace):
    return workspace.processor()


@pytest.fixture
def collator(workspace, processor):
    """Collators of the given losses over the workspace's clips."""

    def make(losses: tuple[str, ...] = BOTH, **options) -> SoundwaveDataCollator:
        return SoundwaveDataCollator(processor, workspace.data, losses, **options)

    return make


@pytest.fixture(scope="module")
def rows(workspace) -> list[dict]:
    lines = (workspace.data / "instruct.jsonl").read_text().splitlines()
    return [json.loads(line) | {"row": index} for index, line in enumerate(lines)]


def prompt(user: str) -> str:
    return (
        f"<|im_start|>system\n{SYSTEM_PROMPT}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"
    )


def test_each_stage_gets_the_inputs_of_its_losses(collator, rows):
    features, text = {"input_features", "input_features_mask"}, {"input_ids", "attention_mask", "labels"}
    assert collator(("ctc",))(rows[:2]).keys() == features | {"ctc_labels", "labels"}
    assert collator(("ce",))(rows[:2]).keys() == features | text
    assert collator(BOTH)(rows[:2]).keys() == features | text | {"ctc_labels"}


def test_ctc_labels_are_the_tokens_of_the_ctc_text(collator, processor):
    rows = [{"audio": "clips/0.wav", "text": "It's 5!", "row": 0}, {"audio": "clips/1.wav", "text": "No.", "row": 1}]
    labels = collator(("ctc",))(rows)["ctc_labels"]
    assert labels.shape == (2, 7)
    assert processor.decode(labels[0]) == " it's 5"
    assert processor.decode(labels[1, :3]) == " no"
    assert labels[1, 3:].tolist() == [-100] * 4


def test_sampled_candidates_are_the_tokens_of_the_transcripts_and_others_drawn_anew(collator, rows, processor):
    plain, sampling = collator(("ctc",)), collator(("ctc",))
    sampling.set_negatives(["Yes.", "A b"], negatives=40)
    first, again, other = sampling(rows[:2]), sampling(rows[:2]), sampling(rows[2:4])
    candidates = first.pop("ctc_candidates")
    spoken = processor.tokenizer(" yes a b").input_ids
    assert set(candidates.tolist()) >= set(spoken)
    assert 40 <= len(candidates) <= 40 + len(set(spoken))
    assert torch.equal(candidates, again["ctc_candidates"])
    assert not torch.equal(candidates, other["ctc_candidates"])
    assert plain(rows[:2]).keys() == first.keys()
    sampling.epoch = 1
    assert not torch.equal(candidates, sampling(rows[:2])["ctc_candidates"])


def test_more_negatives_than_tokens_are_refused(collator):
    with pytest.raises(ValueError, match="`ctc_negatives` is 1000000; give 0 to 260, the LLM's vocabulary"):
        collator(("ctc",)).set_negatives(["Yes."], negatives=1_000_000)


@pytest.mark.parametrize(
    ("extra", "user", "answer"),
    [
        ({}, "<|audio|>What does the person say?", "Yes."),
        ({"question": None, "answer": None}, "<|audio|>What does the person say?", "Yes."),
        ({"question": "Who speaks?", "answer": "A man."}, "<|audio|>Who speaks?", "A man."),
        ({"question": "", "answer": "I am well."}, "<|audio|>", "I am well."),
        ({"question": None, "answer": "I am well."}, "<|audio|>What does the person say?", "I am well."),
        ({"answer": "I am well."}, "<|audio|>What does the person say?", "I am well."),
    ],
    ids=[
        "transcript",
        "transcript, empty columns",
        "question",
        "spoken question",
        "an answer alone, empty column",
        "an answer alone",
    ],
)
def test_a_row_is_the_llms_template_and_then_answer_and_end(collator, processor, extra, user, answer):
    batch = collator(("ce",))([{"audio": "clips/0.wav", "text": "Yes.", "row": 0, **extra}])
    (ids,), (labels,) = batch["input_ids"], batch["labels"]
    assert processor.tokenizer.decode(ids) == prompt(user) + answer + "<|im_end|>"
    assert ids.tolist().count(AUDIO) == 1
    length = len(answer) + 1
    assert processor.tokenizer.decode(labels[-length:]) == answer + "<|im_end|>"
    assert labels[-1] == EOS
    assert labels[:-length].tolist() == [-100] * (len(ids) - length)
    assert batch["attention_mask"].tolist() == [[1] * len(ids)]


def test_prompts_are_those_of_the_processor_at_generation(collator, processor, workspace):
    row = {"audio": "clips/0.wav", "text": "Yes.", "row": 0}
    batch = collator(("ce",))([row])
    asked = processor.apply_transcription_request(str(workspace.data / row["audio"]))
    length = asked["input_ids"].shape[1]
    assert torch.equal(batch["input_ids"][:, :length], asked["input_ids"])
    assert (batch["labels"][:, :length] == -100).all() and (batch["labels"][:, length:] != -100).all()


def test_padding_is_on_the_right_and_is_nothing_to_learn(collator, rows):
    batch = collator()(rows)
    assert batch["input_ids"].shape == batch["labels"].shape == batch["attention_mask"].shape
    lengths = batch["attention_mask"].sum(dim=1)
    assert len(set(lengths.tolist())) > 1
    for ids, labels, mask, length in zip(
        batch["input_ids"], batch["labels"], batch["attention_mask"], lengths, strict=True
    ):
        assert mask[:length].all() and not mask[length:].any()
        assert (ids[length:] == PAD).all() and (labels[length:] == -100).all()
        assert ids[length - 1] == labels[length - 1] == EOS
        learnt = labels != -100
        assert torch.equal(ids[learnt], labels[learnt])


def test_ids_stay_inside_the_vocabulary(collator, processor):
    rows = [
        {"audio": "clips/0.wav", "text": text, "row": index}
        for index, text in enumerate(["plain", "Émile 你好 \U0001f600", "\x00 control", "?!"])
    ]
    batch = collator()(rows)
    for name in ("input_ids", "labels", "ctc_labels"):
        ids = batch[name][batch[name] != -100]
        assert ids.min() >= 0 and ids.max() < len(processor.tokenizer)
    assert (batch["ctc_labels"] != AUDIO).all()


def test_features_without_augmentation_are_the_processors(collator, processor, workspace, rows):
    batch = collator(seed=5, epoch=2)(rows)
    paths = [str(workspace.data / row["audio"]) for row in rows]
    expected = processor(text=["<|audio|>"] * len(rows), audio=paths)
    assert batch["input_features"].shape[1] == MEL_BINS
    assert torch.equal(batch["input_features"], expected["input_features"])
    assert torch.equal(batch["input_features_mask"], expected["input_features_mask"])


def test_augmentation_follows_from_seed_epoch_and_row(collator, rows):
    augmentation = Augmentation(**EVERY_AUGMENTATION | {"noise": 1.0})

    def features(row: dict, seed: int = 1, epoch: int = 0) -> torch.Tensor:
        return collator(("ctc",), augmentation=augmentation, seed=seed, epoch=epoch)([row])["input_features"]

    first = features(rows[0])
    torch.manual_seed(99)
    assert torch.equal(features(rows[0]), first)
    for other in (features(rows[0], seed=2), features(rows[0], epoch=1), features(rows[0] | {"row": 77})):
        assert other.shape != first.shape or not torch.equal(other, first)


def test_augmentation_does_not_depend_on_the_rest_of_the_batch(collator, rows):
    make = collator(("ctc",), augmentation=Augmentation(**EVERY_AUGMENTATION), seed=1)
    together = make(rows[:4])
    for index, row in enumerate(rows[:4]):
        alone = make([row])["input_features"][0]
        assert together["input_features_mask"][index].sum() == alone.shape[1]
        assert torch.equal(together["input_features"][index, :, : alone.shape[1]], alone)


def test_masked_features_stay_inside_the_clip(collator, rows):
    batch = collator(("ctc",), augmentation=Augmentation(spec_augment=1.0))(rows)
    for features, mask in zip(batch["input_features"], batch["input_features_mask"], strict=True):
        assert (features[:, mask.sum() :] == 0).all()


def test_a_clip_longer_than_the_encoders_window_is_taken_whole(processor, tmp_path):
    soundfile.write(tmp_path / "long.wav", 0.1 * torch.randn(31 * 16_000).numpy(), 16_000)
    row = {"audio": "long.wav", "text": "x", "row": 0}
    assert (
        SoundwaveDataCollator(processor, tmp_path, ("ctc",))([row])["input_features"].shape[2] == 3130
    )  # 0.3 s of silence
    slower = Augmentation(speed=0.15, narrow=1.0)
    lengths = {
        SoundwaveDataCollator(processor, tmp_path, ("ctc",), slower, epoch=epoch)([row])["input_features"].shape[2]
        for epoch in range(3)
    }
    assert all(3130 / 1.15 <= length <= 3130 * 1.15 for length in lengths)
    assert len(lengths) == 3


@pytest.mark.parametrize("losses", [("ctx",), "ce"])
def test_a_loss_that_is_none_is_refused(collator, losses):
    with pytest.raises(ValueError, match='`losses` are .*: give a tuple of "ce", "ctc" or both'):
        collator(losses)


def test_a_missing_clip_is_named(collator):
    with pytest.raises(FileNotFoundError, match="absent.wav"):
        collator()([{"audio": "clips/absent.wav", "text": "x", "row": 0}])


def test_a_tokenizer_without_an_end_is_refused_where_answers_need_one(workspace):
    processor = workspace.processor()
    processor.tokenizer.eos_token = None
    SoundwaveDataCollator(processor, workspace.data, ("ctc",))
    with pytest.raises(ValueError, match="no `eos_token`.*set `processor.tokenizer.eos_token`"):
        SoundwaveDataCollator(processor, workspace.data, BOTH)


# ---- rows of data sets as they are ----


def test_rows_need_no_number_and_no_folder(processor, workspace, monkeypatch):
    monkeypatch.chdir(workspace.data)
    collate = SoundwaveDataCollator(processor)
    batch = collate([{"audio": "clips/0.wav", "text": "Yes."}])
    assert {"ctc_labels", "labels", "input_features"} <= batch.keys()


def test_one_clip_in_any_form_is_one_clip(collator, workspace):
    path = workspace.data / "clips/0.wav"
    samples, rate = soundfile.read(path, dtype="float32")
    forms = ["clips/0.wav", path, {"path": None, "bytes": path.read_bytes()}, {"path": "clips/0.wav", "bytes": None}]
    forms += [{"array": samples, "sampling_rate": rate}, Decoder(samples, rate), path.read_bytes()]
    expected = collator()([{"audio": forms[0], "text": "Yes."}])["input_features"]
    for form in forms:
        assert torch.equal(collator()([{"audio": form, "text": "Yes."}])["input_features"], expected)


class Decoder:
    """What torchcodec's decoder, a decoded row of `datasets`, has to offer."""

    def __init__(self, samples, rate):
        self.samples, self.rate = samples, rate

    def get_all_samples(self):
        return SimpleNamespace(data=torch.from_numpy(self.samples)[None], sample_rate=self.rate)


def test_without_a_number_augmentation_follows_from_the_content_and_the_epoch(collator, workspace, tmp_path):
    augmentation = Augmentation(noise=1.0)

    def features(audio, epoch: int = 0):
        make = collator(("ctc",), augmentation=augmentation, epoch=epoch)
        return make([{"audio": audio, "text": "Yes."}])["input_features"]

    copy = tmp_path / "copy.wav"
    copy.write_bytes((workspace.data / "clips/0.wav").read_bytes())
    first = features("clips/0.wav")
    assert torch.equal(first, features(str(copy)))
    assert torch.equal(first, features({"path": None, "bytes": copy.read_bytes()}))
    assert not torch.equal(first, features("clips/0.wav", epoch=1))


def test_a_bad_value_is_named_with_its_row(collator):
    good, bad = {"audio": "clips/0.wav", "text": "Yes.", "row": 6}, {"audio": "clips/1.wav", "text": 5, "row": 7}
    with pytest.raises(ValueError, match="Row 7 has `text` 5; expected what the clip says"):
        collator()([good, bad])
    with pytest.raises(ValueError, match=r"Row 6 has `text` 'a<\|im_end\|>', which holds the control token"):
        collator()([good | {"text": "a<|im_end|>"}])


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_numbers_of_an_array_library_are_numbers(collator, workspace, kind):
    row = {"audio": str(workspace.data / "clips/0.wav"), "text": "Yes.", "seconds": 1, "row": 3}
    given = Dataset.from_list([row]).with_format(kind)[0]
    make = collator(("ctc",), augmentation=Augmentation(noise=1.0))
    assert torch.equal(make([given])["input_features"], make([row])["input_features"])
    with pytest.raises(ValueError, match=r"Row 3 has `seconds` .*nan.*; expected a number over 0"):
        make([{**given, "seconds": given["seconds"] * math.nan}])


@pytest.mark.parametrize("number", ["utt-1", -1, 0.5])
def test_a_row_number_that_is_none_is_refused_where_random_draws_follow_from_it(collator, number):
    row = {"audio": "clips/0.wav", "text": "Yes.", "row": number}
    assert "input_features" in collator(("ctc",))([row])
    drawing = collator(("ctc",))
    drawing.set_negatives(["Yes."], 2)
    for make in (collator(("ctc",), augmentation=Augmentation(noise=1.0)), drawing):
        with pytest.raises(ValueError, match=f"A row has `row` {number!r}; .* Rename the column, or leave it out"):
            make([row])


def test_a_column_called_task_id_is_the_users(collator):
    row = {"audio": "clips/0.wav", "text": "Yes.", "task_id": "asr"}
    assert "task_ids" not in collator(("ctc",))([row])


# ---- several clips, several turns, none ----


def turn(role: str, *parts) -> dict:
    clip = {"type": "audio", "path": "clips/0.wav"}
    return {"role": role, "content": [clip if part is CLIP else {"type": "text", "text": part} for part in parts]}


CLIP = object()
TALK = [
    turn("user", "Compare ", CLIP, CLIP),
    turn("assistant", "Same."),
    turn("user", "Sure?"),
    turn("assistant", "Yes."),
]


def learnt(batch, processor, row: int = 0) -> list[str]:
    """The runs of labels of one row as text."""
    runs, labels = [], batch["labels"][row].tolist()
    for before, label in zip([-100, *labels], labels, strict=False):
        if label != -100:
            runs = [*runs, []] if before == -100 else runs
            runs[-1].append(label)
    return [processor.tokenizer.decode(run) for run in runs]


def test_every_turn_of_the_assistant_is_learnt_and_nothing_else(collator, processor):
    batch = collator()([{"messages": TALK, "text": ["One", None]}])
    text = processor.tokenizer.decode(batch["input_ids"][0])
    assert text == (
        prompt("Compare <|audio|><|audio|>")
        + "Same.<|im_end|>\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>"
    )
    assert learnt(batch, processor) == ["Same.<|im_end|>", "Yes.<|im_end|>"]
    assert len(batch["input_features"]) == 2
    assert batch["ctc_mask"].tolist() == [True, False]
    assert processor.decode(batch["ctc_labels"][0]) == " one"


def test_a_conversation_may_begin_with_the_assistant(collator, processor):
    system = f"<|im_start|>system\n{SYSTEM_PROMPT}<|im_end|>\n"
    begun = [turn("assistant", "system"), *TALK]
    for messages in (begun, [turn("assistant", "system")], [turn("system", "Be kind."), turn("assistant", "system")]):
        batch = collator(("ce",))([{"messages": messages}])
        text = processor.tokenizer.decode(batch["input_ids"][0])
        answers = ["system", "Same.", "Yes."] if messages is begun else ["system"]
        assert learnt(batch, processor) == [f"{answer}<|im_end|>" for answer in answers]
        start = system if messages[0]["role"] == "assistant" else "<|im_start|>system\nBe kind.<|im_end|>\n"
        assert text.startswith(f"{start}<|im_start|>assistant\nsystem<|im_end|>")


def test_a_clip_that_no_turn_answers_is_refused_where_answers_are_learnt(collator):
    talk = [turn("user", "Hi."), turn("assistant", "Hello."), turn("user", CLIP, "Bye.")]
    with pytest.raises(ValueError, match="Row 0 has audio after the last turn of the `assistant`, which no turn ans"):
        collator(("ce",))([{"messages": talk}])
    heard = {"messages": talk, "text": "Bye."}
    assert len(collator(("ctc",))([heard])["input_features"]) == 1
    talk = [turn("user", CLIP), turn("assistant", "Hello."), turn("user", "Bye.")]
    batch = collator(("ce",))([{"messages": talk}])
    assert len(batch["input_features"]) == (batch["input_ids"] == AUDIO).sum() == 1


def test_messages_of_one_turn_are_the_ids_of_question_and_answer(collator):
    asked = {"audio": "clips/0.wav", "question": "Who?", "answer": "I."}
    said = {"messages": [turn("user", CLIP, "Who?"), turn("assistant", "I.")]}
    for name in ("input_ids", "labels", "input_features"):
        assert torch.equal(collator()([asked])[name], collator()([said])[name])


def test_marks_of_the_template_say_what_is_learnt(collator, processor):
    marked = copy.copy(processor)
    marked.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
        "{% if message['role'] == 'assistant' %}"
        "{% generation %}{{ message['content'] }}<|im_end|>{% endgeneration %}\n"
        "{% else %}{{ message['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    plain, by_marks = collator()([{"messages": TALK}]), collator()
    by_marks.processor = marked
    batch = by_marks([{"messages": TALK}])
    assert learnt(batch, processor) == ["Same.<|im_end|>", "Yes.<|im_end|>"]
    # A block's line break is left out by Jinja: but for these, both read the same.
    assert processor.decode(batch["input_ids"][0]).replace("\n", "") == processor.decode(
        plain["input_ids"][0]
    ).replace("\n", "")


def test_a_template_that_rewrites_earlier_answers_is_refused(collator, processor):
    rewriting = copy.copy(processor)
    rewriting.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
        "{{ message['content'] if loop.last or message['role'] != 'assistant' else '(left out)' }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    make = collator()
    make.processor = rewriting
    with pytest.raises(ValueError, match="changes an earlier turn when.*give each answer its own row"):
        make([{"messages": TALK}])


def test_rows_of_text_alone_share_a_batch_with_clips(collator, processor):
    text, chat = {"question": "2 + 2?", "answer": "4"}, {"messages": [turn("user", "Hi"), turn("assistant", "Ho")]}
    batch = collator()([text, {"audio": "clips/0.wav", "text": "Yes."}, chat])
    assert len(batch["input_ids"]) == 3
    assert len(batch["input_features"]) == len(batch["ctc_labels"]) == 1
    assert (batch["input_ids"] == AUDIO).sum(dim=1).tolist() == [0, 1, 0]
    assert [learnt(batch, processor, row) for row in range(3)] == [
        ["4<|im_end|>"],
        ["Yes.<|im_end|>"],
        ["Ho<|im_end|>"],
    ]
    assert "ctc_mask" not in batch
    alone = collator()([text, chat])
    assert alone.keys() == {"input_ids", "attention_mask", "labels"}


def test_clips_without_a_transcript_are_left_out_of_the_ctc_mean(collator, workspace):
    torch.manual_seed(0)
    model = SoundwaveForConditionalGeneration.from_backbones(workspace.encoder, workspace.llm)
    labelled = {"audio": "clips/0.wav", "text": "Yes.", "question": "Who?", "answer": "I."}
    bare = {"audio": "clips/1.wav", "question": "Who?", "answer": "I."}
    with torch.no_grad():
        alone, mixed = model(**collator()([labelled])), model(**collator()([labelled, bare]))
    assert mixed.ctc_loss.item() == pytest.approx(alone.ctc_loss.item(), rel=1e-5)


def test_a_clip_without_speech_is_all_blanks_and_an_answer_that_ends_at_once(collator, processor, workspace):
    speech = {"audio": "clips/0.wav", "text": "Yes."}
    silence = {"audio": "clips/1.wav", "text": ""}
    batch = collator()([speech, silence])
    assert batch["ctc_labels"][1].eq(-100).all() and "ctc_mask" not in batch
    assert learnt(batch, processor, row=1) == ["<|im_end|>"]
    assert collator(("ctc",))([silence])["ctc_labels"].shape == (1, 0)
    torch.manual_seed(0)
    model = SoundwaveForConditionalGeneration.from_backbones(workspace.encoder, workspace.llm)
    for rows in ([speech, silence], [silence]):
        output = model(**collator()(rows))
        output.loss.backward()
        assert 0 < output.ctc_loss.item() < float("inf") and 0 < output.loss.item() < float("inf")
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
