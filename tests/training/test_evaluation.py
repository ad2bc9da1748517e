"""Evaluation while a model trains, by recipe and beside plain trainers."""

import json
from pathlib import Path

import pytest
import torch
from datasets import Audio, Dataset
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer

from soundwave_hf.evaluation.metrics import word_error_rate
from soundwave_hf.modeling.modeling_soundwave import SoundwaveForConditionalGeneration, SoundwaveForCTC
from soundwave_hf.training.arguments import SoundwaveTrainingArguments
from soundwave_hf.training.augment import Augmentation
from soundwave_hf.training.collator import SoundwaveDataCollator
from soundwave_hf.training.evaluate_during import (
    SpeechEvaluationCallback,
    answers,
    draw_sample,
    evaluation_collator,
    is_transcription,
    metric_names,
    score_texts,
)
from soundwave_hf.training.recipe import read_recipe
from soundwave_hf.training.run import read_rows, run_recipe
from soundwave_hf.training.sft import SoundwaveSFTConfig, SoundwaveSFTTrainer
from soundwave_hf.training.stages import STAGES
from soundwave_hf.training.trainer import SoundwaveTrainer
from tests.training.workspace import EVERY_AUGMENTATION, everything_in, first_rows, train


def evaluations(trained, key: str) -> list[float]:
    return [entry[key] for entry in trained.trainer.state.log_history if key in entry]


def start_of(stage: str, chain) -> dict:
    return {} if stage == "align" else {"start_from": str(chain["align" if stage == "shrink" else "shrink"].folder)}


EXPECTED = {
    "align": {"eval_loss", "eval_ctc_loss", "eval_ctc_wer"},
    "shrink": {"eval_loss", "eval_ctc_loss", "eval_ce_loss", "eval_ctc_wer", "eval_wer", "eval_cer"},
    "instruct": {"eval_loss", "eval_ce_loss", "eval_ctc_wer", "eval_wer", "eval_cer", "eval_exact_match"},
}
KNOWN = EXPECTED["shrink"] | EXPECTED["instruct"]


@pytest.fixture(scope="module", params=["align", "shrink", "instruct"])
def evaluated(request, workspace, chain, tmp_path_factory):
    """A run of four steps that is augmented, in groups of length, evaluated every two: stage and run."""
    folder = tmp_path_factory.mktemp("evaluated")
    stage = request.param
    data = str(workspace.data / ("instruct.jsonl" if stage == "instruct" else "train.jsonl"))
    ctc = {"ctc_negatives": 20} if stage != "instruct" else {}
    recipe = workspace.recipe(
        stage,
        folder / "out",
        max_steps=4,
        eval_data=data,
        eval_steps=2,
        save_steps=2,
        eval_samples=6,
        metric_for_best_model="ctc_wer",
        load_best_model_at_end=True,
        per_device_eval_batch_size=5,
        augment=EVERY_AUGMENTATION,
        train_sampling_strategy="group_by_length",
        **start_of(stage, chain),
        **ctc,
    )
    return stage, train(recipe), recipe


def test_each_stage_logs_its_losses_and_scores(evaluated):
    stage, trained, _ = evaluated
    names = {name for entry in trained.trainer.state.log_history for name in entry}
    assert names & KNOWN == EXPECTED[stage]
    for name in EXPECTED[stage]:
        assert len(evaluations(trained, name)) == 2, name


def test_an_evaluation_is_of_clips_as_they_are_and_of_all_labels_alike(evaluated):
    stage, trained, _ = evaluated
    trainer = trained.trainer
    plain = SoundwaveDataCollator(
        trainer.processing_class, trainer.data_collator.folder, trainer.data_collator.losses
    )  # no augmentation, no negatives
    batch = plain(list(trainer.eval_dataset))  # the model has the weights of the first evaluation
    with torch.no_grad():
        output = trained.model.eval()(**batch)  # in one batch, where the evaluation had three
    for name in ("ce_loss", "ctc_loss"):
        if (expected := getattr(output, name)) is not None:
            assert evaluations(trained, f"eval_{name}")[0] == pytest.approx(expected.item(), rel=1e-4), name
    assert evaluations(trained, "eval_loss")[0] == pytest.approx(output.loss.item(), rel=1e-4)
    assert trainer.evaluate()["eval_loss"] == trainer.evaluate()["eval_loss"]


def test_training_is_what_it_was_without_evaluation(evaluated, tmp_path):
    stage, trained, recipe = evaluated
    keys = ("eval_data", "eval_steps", "eval_samples", "metric_for_best_model", "load_best_model_at_end")
    alone = train(
        {key: value for key, value in recipe.items() if key not in keys} | {"output_dir": str(tmp_path / "o")}
    )
    assert alone.losses() == trained.losses()


def test_the_card_shows_what_was_measured(evaluated):
    stage, trained, _ = evaluated
    card = (trained.folder / "README.md").read_text()
    word = {"align": "CTC loss", "shrink": "word error rate", "instruct": "exact answers"}[stage]
    assert f"| evaluation data | {word} | " in card
    assert "library_name: transformers" in card and "peft" not in card


def test_the_best_weights_are_loaded_and_saved_at_the_end(evaluated):
    stage, trained, _ = evaluated
    assert trained.trainer.state.best_global_step == 2  # no fewer errors came after
    name = "trained.safetensors" if stage == "align" else "adapter_model.safetensors"
    final, best, last = (
        load_file(folder / name)
        for folder in (trained.folder, trained.folder / "checkpoint-2", trained.folder / "checkpoint-4")
    )
    assert all(torch.equal(final[key], value) for key, value in best.items())
    assert any(not torch.equal(final[key], value) for key, value in last.items())


def test_a_run_stops_where_its_metric_gets_no_better(workspace, tmp_path, capsys):
    recipe = workspace.recipe(
        "align",
        tmp_path / "out",
        max_steps=9,
        learning_rate=1e-12,  # nothing changes
        eval_data=str(workspace.data / "train.jsonl"),
        eval_steps=1,
        metric_for_best_model="ctc_wer",
        early_stopping_patience=2,
        save_steps=1,
    )
    trained = train(recipe)
    assert trained.trainer.state.global_step == 3  # the first is the best, and two are no better
    capsys.readouterr()
    run_recipe(tmp_path / "out.yaml")
    assert "is already finished (3 steps)" in capsys.readouterr().out


@pytest.mark.slow
def test_patience_goes_on_where_a_run_does(workspace, tmp_path):
    recipe = workspace.recipe(
        "align",
        tmp_path / "out",
        max_steps=9,
        learning_rate=1e-12,
        eval_data=str(workspace.data / "train.jsonl"),
        eval_steps=1,
        early_stopping_patience=3,
        early_stopping_threshold=1.0,
        save_steps=1,
    )
    with pytest.raises(KeyboardInterrupt):
        train(recipe, stop_after=2)
    assert train(recipe).trainer.state.global_step == 4


def test_named_sets_are_logged_by_name_and_may_be_judged_by(workspace, tmp_path):
    few = first_rows(workspace, 3, tmp_path / "few.jsonl")
    recipe = workspace.recipe(
        "align",
        tmp_path / "out",
        max_steps=1,
        eval_data={"few": few, "all": str(workspace.data / "train.jsonl")},
        eval_steps=1,
        metric_for_best_model="few_ctc_wer",
    )
    trained = train(recipe)
    for name in ("eval_few_loss", "eval_few_ctc_wer", "eval_all_ctc_loss", "eval_all_ctc_wer"):
        assert len(evaluations(trained, name)) == 1, name
    assert trained.trainer.state.best_metric == evaluations(trained, "eval_few_ctc_wer")[0]
    assert "| few | word error rate of the CTC head | " in (trained.folder / "README.md").read_text()


# ---- what a recipe says ----


@pytest.fixture
def read(workspace, tmp_path):
    def make(stage="align", **changes):
        data = str(workspace.data / "train.jsonl")
        recipe = workspace.recipe(stage, tmp_path / "out", **{"eval_data": data, **changes})
        path = tmp_path / "recipe.yaml"
        path.write_text(json.dumps({key: value for key, value in recipe.items() if value is not None}))
        return path

    return make


def test_data_to_evaluate_on_is_evaluated_when_the_run_saves(read):
    _, arguments = read_recipe(read())
    assert (arguments.eval_strategy, arguments.eval_steps) == ("steps", 500)
    _, arguments = read_recipe(read(save_steps=7))
    assert (arguments.eval_strategy, arguments.eval_steps) == ("steps", 7)
    _, arguments = read_recipe(read(save_strategy="epoch"))
    assert arguments.eval_strategy == "epoch"
    _, arguments = read_recipe(read(eval_steps=3, save_steps=6))
    assert arguments.eval_steps == 3


@pytest.mark.parametrize(
    ("metric", "greater"),
    [("wer", False), ("eval_cer", False), ("ctc_wer", False), ("clean_wer", False), ("loss", False)]
    + [("ce_loss", False), ("exact_match", True), ("eval_qa_exact_match", True)],
)
def test_fewer_errors_are_better_and_more_exact_answers(tmp_path, metric, greater):
    for wanted in ({"metric_for_best_model": metric}, {"metric_for_best_model": metric, "greater_is_better": greater}):
        assert SoundwaveTrainingArguments(str(tmp_path), **wanted).greater_is_better is greater
    with pytest.raises(ValueError, match=f"`greater_is_better` is {not greater}, and a .* `{metric}` is better"):
        SoundwaveTrainingArguments(str(tmp_path), metric_for_best_model=metric, greater_is_better=not greater)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"eval_data": None, "eval_steps": 5},
            "sets `eval_steps` and there is no `eval_data`: say what to evaluate on",
        ),
        ({"eval_data": None, "load_best_model_at_end": True}, "sets `load_best_model_at_end` and there is no `eval_d"),
        ({"eval_data": None, "early_stopping_patience": 1}, "sets `early_stopping_patience` and there is no"),
        ({"eval_strategy": "no"}, "has `eval_data` and `eval_strategy` is `no`: leave one of them out"),
        ({"eval_strategy": False}, "has `eval_data` and `eval_strategy` is `no`"),  # as YAML reads `no`
        ({"eval_samples": 0}, "`eval_samples` is 0; give a whole number, 1 or more"),
        ({"early_stopping_patience": 0}, "`early_stopping_patience` is 0; give a whole number"),
        ({"eval_data": {"a b": "x"}}, "names a set 'a b': give letters, digits and underscores"),
        ({"eval_data": {"ctc": "x"}}, "names a set 'ctc': .*with which the names of metrics begin"),
        ({"metric_for_best_model": "wer"}, r"`metric_for_best_model` is `wer`, and what is measured is \['ctc_loss',"),
        ({"metric_for_best_model": "accuracy"}, "`metric_for_best_model` is `accuracy`, and what is measured is"),
    ],
)
def test_a_mistake_about_evaluation_is_refused_before_the_first_step(read, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        run_recipe(read(**changes))
    assert not (tmp_path / "out").exists()


def test_with_names_the_metric_has_the_name_too(read, workspace):
    data = {"clean": str(workspace.data / "train.jsonl")}
    with pytest.raises(
        ValueError, match=r"is `ctc_wer`, and what is measured is \['clean_ctc_loss', 'clean_ctc_wer', "
    ):
        run_recipe(read(eval_data=data, metric_for_best_model="ctc_wer"))


# ---- parts ----


def test_a_sample_is_the_same_each_time_and_in_order():
    rows = [{"row": index} for index in range(50)]
    first, again, other = (draw_sample(rows, 5, seed) for seed in (1, 1, 2))
    assert first == again != other
    assert [row["row"] for row in first] == sorted(row["row"] for row in first)
    assert draw_sample(rows, 99, 1) == rows
    assert draw_sample(iter(rows), 2, 1) == rows[:2]


def test_a_collator_that_evaluates_leaves_that_of_training_alone(workspace):
    collator = SoundwaveDataCollator(workspace.processor(), workspace.data, ("ctc",), Augmentation(noise=1.0))
    collator.set_negatives(["a"], 3)
    collator.epoch = 2
    quiet = evaluation_collator(collator)
    assert not any(vars(quiet.augmentation).values()) and quiet.spoken_ids is None and quiet.negatives == 0
    assert collator.augmentation.noise == 1.0 and collator.spoken_ids is not None and collator.epoch == 2


def test_answers_are_what_generate_writes_for_each_row_alone(workspace, chain):
    model = SoundwaveForConditionalGeneration.from_backbones(workspace.encoder, workspace.llm)
    collator = SoundwaveDataCollator(workspace.processor(), workspace.data, ("ce",))
    rows = list(read_rows(workspace.data / "instruct.jsonl", {}).select(range(4)))
    together = answers(model, collator, rows)
    assert [said for said, _ in together] == [row["answer"] or row["text"] for row in rows]
    for row, (_, text) in zip(rows, together, strict=True):
        batch = collator([row])
        prompt = batch["input_ids"][:, : int((batch["labels"][0] == -100).sum())]
        ids = model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            input_features=batch["input_features"],
            input_features_mask=batch["input_features_mask"],
            max_new_tokens=2 * max(len(row["answer"] or row["text"]) + 1 for row in rows) + 16,
            do_sample=False,
        )
        alone = collator.processor.tokenizer.decode(ids[0, prompt.shape[1] :], skip_special_tokens=True).strip()
        assert text == alone


# ---- beside the library's trainers ----


def plain(trainer_class, workspace, tmp_path, model, losses, rows, **more):
    kind = {Trainer: TrainingArguments, SFTTrainer: SFTConfig, SoundwaveTrainer: SoundwaveTrainingArguments}
    kind[SoundwaveSFTTrainer] = SoundwaveSFTConfig
    options = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "dataloader_pin_memory": False}
    if trainer_class is SFTTrainer:
        options |= {"dataset_kwargs": {"skip_prepare_dataset": True}, "max_length": None, "bf16": False}
    arguments = kind[trainer_class](
        str(tmp_path / "out"), remove_unused_columns=False, per_device_eval_batch_size=3, **options
    )
    return trainer_class(
        model=model,
        args=arguments,
        eval_dataset=rows,
        train_dataset=rows if issubclass(trainer_class, SFTTrainer) else None,
        data_collator=SoundwaveDataCollator(workspace.processor(), workspace.data, losses),
        processing_class=workspace.processor(),
        **more,
    )


@pytest.mark.parametrize("trainer_class", [Trainer, SFTTrainer, SoundwaveTrainer])
@pytest.mark.parametrize("losses", [("ce",), ("ce", "ctc")], ids="-".join)
def test_every_trainer_reports_a_loss_and_with_the_callback_word_errors(workspace, tmp_path, trainer_class, losses):
    model = SoundwaveForConditionalGeneration.from_backbones(workspace.encoder, workspace.llm)
    rows = read_rows(workspace.data / "train.jsonl", {}).select(range(5))
    trainer = plain(trainer_class, workspace, tmp_path, model, losses, rows)
    trainer.add_callback(SpeechEvaluationCallback(trainer, samples=4))
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] > 0
    assert {"eval_wer", "eval_cer", "eval_ctc_wer"} <= metrics.keys()
    assert any("eval_wer" in entry for entry in trainer.state.log_history)
    sample = sorted(draw_sample(rows, 4, trainer.args.seed), key=lambda row: row["seconds"])
    expected = []
    for batch in (sample[:3], sample[3:]):
        expected += answers(model, SoundwaveDataCollator(workspace.processor(), workspace.data, ("ce",)), batch)
    assert metrics["eval_wer"] == word_error_rate(*map(list, zip(*expected, strict=True)))


class Seen:
    """A `compute_metrics` that keeps what it was given."""

    def __call__(self, prediction) -> dict:
        self.predictions, self.labels = prediction.predictions, prediction.label_ids
        return {"rows": float(len(self.predictions))}


@pytest.mark.parametrize("kind", [SoundwaveTrainer, SoundwaveSFTTrainer])
def test_losses_are_those_of_all_rows_whatever_the_batch_and_the_metrics(workspace, tmp_path, kind):
    losses = ("ce", "ctc") if kind is SoundwaveTrainer else ("ce",)
    model = SoundwaveForConditionalGeneration.from_backbones(workspace.encoder, workspace.llm)
    rows = read_rows(workspace.data / "train.jsonl", {}).select(range(5))
    collator = SoundwaveDataCollator(workspace.processor(), workspace.data, losses)
    with torch.no_grad():
        output = model.eval()(**collator(list(rows)))  # in one batch
    for seen, batch_size in ((None, 3), (Seen(), 3), (Seen(), 5), (Seen(), 1)):
        options = {"compute_metrics": seen} if seen else {}
        trainer = plain(kind, workspace, tmp_path, model, losses, rows, **options)
        trainer.args.per_device_eval_batch_size = batch_size
        found = trainer.evaluate()
        assert found["eval_loss"] == pytest.approx(output.loss.item(), rel=1e-5), batch_size
        assert found["eval_ce_loss"] == pytest.approx(output.ce_loss.item(), rel=1e-5), batch_size
        assert ("eval_ctc_loss" in found) == (kind is SoundwaveTrainer)
        if kind is SoundwaveTrainer:
            assert found["eval_ctc_loss"] == pytest.approx(output.ctc_loss.item(), rel=1e-5), batch_size
        if seen:
            assert found["eval_rows"] == 5 and seen.predictions.shape[2] == model.config.text_config.vocab_size
            assert seen.labels.shape[0] == 5


def test_metrics_of_a_model_without_an_llm_are_of_its_ctc_labels(workspace, tmp_path):
    model, seen = SoundwaveForCTC.from_backbones(workspace.encoder, workspace.llm), Seen()
    rows = read_rows(workspace.data / "train.jsonl", {}).select(range(5))
    plain(SoundwaveTrainer, workspace, tmp_path, model, ("ctc",), rows, compute_metrics=seen).evaluate()
    collator = SoundwaveDataCollator(workspace.processor(), workspace.data, ("ctc",))
    for row, found, labels in zip(rows, seen.predictions, seen.labels, strict=True):
        batch = collator([row])  # alone, without padding
        with torch.no_grad():
            (best,) = model(**batch).ctc_best.tolist()
        assert found[found != -100].tolist() == best
        assert found[len(best) :].tolist() == [-100] * (len(found) - len(best))
        assert labels[labels != -100].tolist() == batch["ctc_labels"][0].tolist()


def test_rows_without_labels_are_predicted_without_a_loss(workspace, tmp_path):
    model = SoundwaveForCTC.from_backbones(workspace.encoder, workspace.llm)
    rows = read_rows(workspace.data / "train.jsonl", {}).select(range(5))
    found = plain(SoundwaveTrainer, workspace, tmp_path, model, (), rows).predict(rows)
    assert found.predictions.shape[0] == 5 and found.label_ids is None
    assert not [name for name in found.metrics if "loss" in name]


@pytest.mark.parametrize("streamed", [False, True], ids=["memory", "stream"])
def test_a_data_set_with_clips_inside_can_be_evaluated_and_predicted_later(workspace, tmp_path, streamed):
    given = read_rows(workspace.data / "train.jsonl", {}).select(range(5))
    inside = [
        {"audio": {"path": None, "bytes": Path(row["audio"]).read_bytes()}, "text": row["text"]} for row in given
    ]
    rows = Dataset.from_list(inside).cast_column("audio", Audio())
    model = SoundwaveForCTC.from_backbones(workspace.encoder, workspace.llm)
    trainer = plain(SoundwaveTrainer, workspace, tmp_path, model, ("ctc",), given)
    trainer.add_callback(SpeechEvaluationCallback(trainer, samples=5))
    expected = trainer.evaluate()
    rows = rows.to_iterable_dataset() if streamed else rows
    for found, prefix in (
        (trainer.evaluate(rows), "eval_"),
        (trainer.evaluate({"held": rows}), "eval_held_"),
        (trainer.predict(rows).metrics, "test_"),
    ):
        assert found[f"{prefix}loss"] == pytest.approx(expected["eval_loss"], rel=1e-5)
        if prefix != "test_":
            assert found[f"{prefix}ctc_wer"] == expected["eval_ctc_wer"]


def test_words_for_a_clip_without_speech_are_insertions_and_no_rate_of_their_own():
    silence, speech = {"audio": "a.wav", "text": ""}, {"audio": "a.wav", "text": "one two"}
    assert is_transcription(silence) and not is_transcription({"question": "Who?", "answer": "I."})
    rates = {"ctc_wer", "wer", "cer"}
    assert metric_names(STAGES["instruct"], Dataset.from_list([silence])) & {*rates, "exact_match"} == set()
    assert metric_names(STAGES["instruct"], Dataset.from_list([silence, speech])) >= rates
    heard = [("", "you"), ("hello there", "hello there")]  # one insertion, two words said
    assert score_texts({"ctc": heard, "transcripts": heard[:1], "answers": []}) == {"ctc_wer": 0.5}


def test_the_librarys_trainer_reports_the_loss_of_a_model_without_an_llm(workspace, tmp_path):
    model = SoundwaveForCTC.from_backbones(workspace.encoder, workspace.llm)
    rows = read_rows(workspace.data / "train.jsonl", {}).select(range(5))
    trainer = plain(Trainer, workspace, tmp_path, model, ("ctc",), rows)
    trainer.add_callback(SpeechEvaluationCallback(trainer))
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] > 0 and metrics["eval_ctc_wer"] > 0 and "eval_wer" not in metrics


def test_the_callback_wants_to_know_what_a_row_asks(workspace, tmp_path):
    model = SoundwaveForCTC.from_backbones(workspace.encoder, workspace.llm)
    trainer = Trainer(model=model, args=TrainingArguments(str(tmp_path), report_to="none", use_cpu=True))
    with pytest.raises(ValueError, match="`data_collator` is a .*, and a `SoundwaveDataCollator` was expected"):
        SpeechEvaluationCallback(trainer)


def test_a_moved_folder_still_has_its_best_weights(workspace, tmp_path):
    recipe = workspace.recipe(
        "align",
        tmp_path / "out",
        max_steps=2,
        learning_rate=5.0,
        max_grad_norm=0.0,
        eval_data=str(workspace.data / "train.jsonl"),
        eval_steps=1,
        save_steps=1,
        load_best_model_at_end=True,
    )
    with pytest.raises(KeyboardInterrupt):
        train(recipe, stop_after=1)
    Path(tmp_path / "out").rename(tmp_path / "moved")
    trained = train({**recipe, "output_dir": str(tmp_path / "moved")})
    best = f"checkpoint-{trained.trainer.state.best_global_step}"
    kept = load_file(tmp_path / "moved" / best / "trained.safetensors")
    weights = everything_in(trained.model)
    assert best == "checkpoint-1"
    assert all(torch.equal(weights[name], value) for name, value in kept.items())


def test_references_of_sounds_alone_have_no_rate():
    sounds = [("[laughter]", "ha"), ("Hmm.", "")]
    assert score_texts({"ctc": sounds, "transcripts": sounds, "answers": []}) == {}
    rows = [{"audio": "a.wav", "text": text, "question": None, "answer": None} for text, _ in sounds]
    assert metric_names(STAGES["instruct"], Dataset.from_list(rows)) & {"wer", "cer", "ctc_wer"} == set()
    spoken = {"ctc": [*sounds, ("go on", "go on")], "transcripts": [], "answers": []}
    assert score_texts(spoken) == {"ctc_wer": 0.5}


def test_rows_of_several_clips_have_metrics_too():
    two = {"audio": ["a.wav", "b.wav"], "text": ["x", "y"], "question": "Which?", "answer": "The first."}
    names = metric_names(STAGES["instruct"], Dataset.from_list([two]))
    assert names == {"loss", "ce_loss", "exact_match"}
