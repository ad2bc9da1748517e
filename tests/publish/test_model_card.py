"""The card of a model: each figure in it comes from a recipe, a log or a score file."""

import json
import shutil
from dataclasses import replace

import pytest
import yaml
from huggingface_hub import ModelCard

from soundwave_hf.data.card import DataSource
from soundwave_hf.data.sources import Source
from soundwave_hf.data.used import DataUsed, data_used, read_comment
from soundwave_hf.publish import runs
from soundwave_hf.publish.card import model_card
from soundwave_hf.publish.card_parts import join_own, read_card, refuse_edited, write_card
from soundwave_hf.publish.facts import ModelFacts, read_all_scores, read_scores, with_licenses
from soundwave_hf.publish.runs import RECORD, Run, describe_runs, read_runs
from tests.publish.conftest import HISTORY, RECIPE, SCORES, USED, write_run_records


FACTS = ModelFacts("lora", "openai/whisper-base", "org/llm", name="me/mine")


def card_of(**changes) -> ModelCard:
    return ModelCard(write_card(*model_card(replace(FACTS, **changes))))


@pytest.fixture
def run(tmp_path) -> Run:
    write_run_records(tmp_path)
    (found,) = read_runs([tmp_path])
    return found


def test_without_score_files_the_card_says_not_evaluated():
    card = card_of()
    assert "**Not evaluated**" in card.text and "nobody has evaluated it" in card.text
    assert "model-index" not in card.data.to_dict() and "%" not in card.text


def test_scores_have_their_intervals_and_are_results_of_the_hub(scores):
    card = card_of(scores=[read_scores(scores)])
    heading, _, row = [line for line in card.text.splitlines() if line.startswith("|")][:3]
    cells = dict(zip(heading.split("|"), row.split("|"), strict=True))
    assert cells[" WER % "] == " 14.5 " and cells[" WER 95 % "] == " 11.0 to 18.7 "
    assert cells[" positions a second "] == " 2.50 " and cells[" positions 95 % "] == " 2.25 to 2.75 "
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_name) == ("wer", 14.5, "books")
    assert card.data.language == ["en"] and card.data.metrics == ["wer"]
    assert "books has 200 words: one is 0.5 points." in card.text
    assert "On books, its CTC head alone makes fewer errors: 12.0 against 14.5 % WER." in card.text
    assert "not evaluated" not in card.text.lower()


def test_rows_that_were_not_scored_are_counted(tmp_path):
    values = json.loads(json.dumps(SCORES))
    values["sets"]["books"] |= {"failures": [{"row": 3, "audio": "x.wav", "reason": "broken"}], "unfinished": 2}
    (tmp_path / "scores.json").write_text(json.dumps(values))
    text = card_of(scores=[read_scores(tmp_path / "scores.json")]).text
    assert "- books: 1 rows could not be scored and are not part of the figures." in text
    assert "- books: 2 texts were cut off at the longest length." in text


def test_the_metadata_is_the_hubs(run, scores):
    data = card_of(runs=[run], data=run.data, license="cc-by-sa-4.0", scores=[read_scores(scores)]).data
    assert (data.library_name, data.pipeline_tag) == ("transformers", "automatic-speech-recognition")
    assert data.base_model == ["openai/whisper-base", "org/llm"] and data.get("base_model_relation") == "adapter"
    assert data.datasets == ["openslr/librispeech_asr"] and data.license == "cc-by-sa-4.0"
    assert data.tags == ["soundwave", "speech", "speech-llm", "non-commercial"]
    assert data.model_name == "mine"


def test_data_and_their_licences_are_listed_and_non_commercial_ones_marked(run):
    text = card_of(runs=[run], data=run.data).text
    assert "| books | 12 | 1.50 | cc-by-4.0 |" in text
    assert "| calls | 8 | 0.50 | cc-by-nc-4.0 (non-commercial) |" in text
    assert "**Non-commercial:** the licence of calls forbids commercial use." in text
    assert "It was trained on 2.00 hours of speech" in text


def test_licences_may_be_given_by_name_or_for_all_data(run):
    facts = replace(FACTS, data=DataUsed((DataSource("books"),)))
    assert "**No licence is stated** for books." in card_of(data=facts.data).text
    for given in ({"books": "mit"}, "mit"):
        assert "| books | unknown | 0.00 | mit |" in model_card(with_licenses(facts, given))[1]
    text = model_card(with_licenses(facts, {"org/llm": "llama3.1"}))[1]
    assert "org/llm: llama3.1." in text
    with pytest.raises(ValueError, match=r"There are licences for \['boks'\]"):
        with_licenses(facts, {"boks": "mit"})


def test_the_training_is_that_of_the_log_and_shows_no_path_of_the_machine(run):
    text = card_of(runs=[run]).text
    assert "| shrink | 2 | 8 | 0.0002 | 2.0 min | 7.25 | 4.5 |" in text
    assert "gradient_accumulation_steps: 2" in text and "path: openslr/librispeech_asr" in text
    assert "/secret" not in text and "output_dir" not in text
    assert "Versions: torch 2.13.0, soundwave-hf 0.1.0." in text


def test_runs_that_a_run_started_from_come_before_it(tmp_path):
    for stage, start in (("align", None), ("shrink", "align")):
        (tmp_path / stage).mkdir()
        write_run_records(tmp_path / stage)
        lines = [f"stage: {stage}", *([f"start_from: {tmp_path / start}"] if start else [])]
        (tmp_path / stage / "recipe.yaml").write_text("\n".join(lines))
    assert [run.stage for run in read_runs([tmp_path / "shrink"])] == ["align", "shrink"]
    assert [run.stage for run in read_runs([tmp_path / "shrink", tmp_path / "align"])] == ["align", "shrink"]


def write_start(place, license: str | None = "cc-by-sa-3.0"):
    """A run, and the weights of somebody else that it started from: they have a card and no run."""
    for name in ("start", "mine"):
        (place / name).mkdir()
    metadata = f"license: {license}\nlanguage: en" if license else "library_name: peft"
    (place / "start" / "README.md").write_text(f"---\n{metadata}\n---\n\n# their-weights\n")
    write_run_records(place / "mine")
    recipe = RECIPE | {"start_from": str(place / "start")}
    (place / "mine" / "recipe.yaml").write_text(yaml.safe_dump(recipe))


def test_of_weights_without_a_run_their_card_gives_name_and_licence(tmp_path):
    write_start(tmp_path)
    found = read_runs([tmp_path / "mine"])
    assert [(run.weights, run.license) for run in found] == [("their-weights", "cc-by-sa-3.0"), (None, None)]
    text = card_of(runs=found, data=found[1].data).text
    assert "Its training continues the weights their-weights (cc-by-sa-3.0), whose own card says" in text
    assert "2.00 hours of speech, repeats included, not counting the training of their-weights." in text
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported" / RECORD).write_text(describe_runs(tmp_path / "mine"))
    kept = read_runs([tmp_path / "exported"])[0]
    assert (kept.weights, kept.license) == ("their-weights", "cc-by-sa-3.0")


def test_the_shipped_weights_are_known_by_their_card():
    (run,) = runs.known_weights("weights/soundwave-small")
    assert (run.weights, run.license) == ("soundwave-small", "cc-by-sa-3.0")


def test_a_start_whose_card_states_no_licence_is_named(tmp_path, monkeypatch):
    write_start(tmp_path, license=None)
    messages = []
    monkeypatch.setattr(runs.logger, "warning", messages.append)
    assert [run.stage for run in read_runs([tmp_path / "mine"])] == ["shrink"]
    (message,) = messages
    assert "that folder has no recipe.yaml, no training_runs.json, and no README.md that states a licence" in message


def test_short_data_are_counted_in_minutes(run):
    data = DataUsed((DataSource("mine", "mit", rows=2, hours=0.005),))
    text = card_of(runs=[run], data=data).text
    assert "It was trained on 0.3 minutes of speech" in text and "| mine | 2 | 0.005 | mit |" in text


def write_chain(place):
    """Runs of stages I and II, the second of which started from the first."""
    for stage, start in (("align", None), ("shrink", "align")):
        (place / stage).mkdir()
        write_run_records(place / stage)
        recipe = RECIPE | {"stage": stage, "license": "mit"} | ({"start_from": str(place / start)} if start else {})
        (place / stage / "recipe.yaml").write_text(yaml.safe_dump(recipe))


def test_the_record_of_exported_weights_gives_the_card_of_the_run_without_its_folder(tmp_path):
    write_chain(tmp_path)
    (tmp_path / "shipped").mkdir()
    record = describe_runs(tmp_path / "shrink")
    (tmp_path / "shipped" / RECORD).write_text(record)
    expected = read_runs([tmp_path / "shrink"])
    assert "/secret" not in record and str(tmp_path) not in record
    shutil.rmtree(tmp_path / "align"), shutil.rmtree(tmp_path / "shrink")
    found = read_runs([tmp_path / "shipped"])
    assert [run.stage for run in found] == ["align", "shrink"] and found[1].recipe["license"] == "mit"
    assert [run.data for run in found] == [USED, USED]
    assert card_of(runs=found, data=found[0].data).text == card_of(runs=expected, data=expected[0].data).text
    # What was exported, used as a start, and exported again: all three runs.
    (tmp_path / "next").mkdir()
    write_run_records(tmp_path / "next")
    recipe = RECIPE | {"stage": "instruct", "start_from": str(tmp_path / "shipped")}
    (tmp_path / "next" / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (tmp_path / "shipped" / RECORD).write_text(describe_runs(tmp_path / "next"))
    assert [run.stage for run in read_runs([tmp_path / "shipped"])] == ["align", "shrink", "instruct"]


def test_weights_without_a_run_have_no_record_and_unknown_hours_stay_unknown(tmp_path):
    assert describe_runs(tmp_path) is None
    write_run_records(tmp_path)
    unknown = DataUsed((DataSource("calls", rows=0, hours=float("nan")),))
    (tmp_path / "data_card.md").write_text(unknown.comment())
    (tmp_path / "recipe.yaml").rename(tmp_path / "kept.yaml")
    assert describe_runs(tmp_path) is None
    (tmp_path / "kept.yaml").rename(tmp_path / "recipe.yaml")
    (tmp_path / "shipped").mkdir()
    (tmp_path / "shipped" / RECORD).write_text(describe_runs(tmp_path))
    (run,) = read_runs([tmp_path / "shipped"])
    assert "| calls | unknown | unknown |" in card_of(runs=[run], data=run.data).text


@pytest.mark.parametrize("text", ["{}", '{"runs": [{"stage": "align"}]}', '{"runs": [{"data": {}}]}', '{"runs": 3}'])
def test_a_broken_record_is_named(tmp_path, text):
    (tmp_path / RECORD).write_text(text)
    with pytest.raises(ValueError, match="training_runs.json` is no record of training runs"):
        read_runs([tmp_path])


def test_a_token_in_a_recipe_does_not_get_into_the_record(tmp_path):
    write_run_records(tmp_path)
    (tmp_path / "recipe.yaml").write_text("stage: align\nrun_note: hf_AbCdEfGhIjKlMnOpQrStUvWx\n")
    with pytest.raises(ValueError, match="what looks like a token") as caught:
        describe_runs(tmp_path)
    assert "hf_AbCd" not in str(caught.value)


def test_without_a_record_the_card_points_to_the_authors_own_text():
    text = card_of(has_own=True).text
    assert text.count("**not stated**. No record of it came with the weights; see the author's own text") == 2
    assert "author's own text" not in card_of().text


def test_a_card_cites_the_paper_and_is_short_of_nothing():
    text = card_of().text
    for heading in ("Use", "Scores", "Limits", "Data", "Training", "Licences", "Citation"):
        assert f"\n## {heading}\n" in text
    assert "arXiv:2502.12900" in text and "**not stated**" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sets": {}}, "is not a score file"),
        ({"sets": {"a": {"wer": 0.1}}}, "is not a score file"),
        ({"sets": {"a": {"clips": 1, "audio_seconds": 1.0, "wer": -0.1}}}, "`wer` of the set `a` in .* is -0.1"),
        ({"sets": {"a": {"clips": 1, "audio_seconds": 1.0, "made_up": 1}}}, "is not a score file"),
    ],
)
def test_a_file_without_scores_is_refused(tmp_path, change, message):
    (tmp_path / "scores.json").write_text(json.dumps({**SCORES, **change}))
    with pytest.raises(ValueError, match=message):
        read_scores(tmp_path / "scores.json")


def test_a_set_in_two_files_is_refused(scores, tmp_path):
    (tmp_path / "again.json").write_text(scores.read_text())
    with pytest.raises(ValueError, match="The set `books` is in "):
        read_all_scores([scores, tmp_path / "again.json"])


# ---- own text ----


def test_own_text_stays_around_the_written_text():
    own = read_card("---\nlicense: mit\ntags: mine\n---\n# Mine\n", "README.md")
    text = write_card({"tags": ["soundwave"]}, "# Written", own)
    card = read_card(text, "README.md")
    assert (card.block, card.own, card.is_edited, card.is_as_written) == ("# Written", "# Mine", False, True)
    assert card.metadata == {"license": "mit", "tags": ["mine"]}
    assert ModelCard(text).data.to_dict() == {"license": "mit", "tags": ["soundwave", "mine"]}
    moved = read_card(text.replace("# Mine", "# Mine and more"), "README.md")
    assert (moved.is_edited, moved.is_as_written) == (False, False)
    with pytest.raises(ValueError, match="README.md was edited between the marks"):
        refuse_edited(read_card(text.replace("# Written", "# Better"), "README.md"), "README.md")


def test_an_earlier_pushs_own_text_may_be_replaced_by_the_folders():
    pushed = read_card(write_card({}, "# Written", read_card("# Old", "a")), "b")
    assert join_own(pushed, read_card("# New", "a"), "b").own == "# New"
    by_hand = read_card(write_card({}, "# Written", read_card("# Old", "a")).replace("# Old", "# Hand"), "b")
    with pytest.raises(ValueError, match="b has text that the README.md of the folder lacks"):
        join_own(by_hand, read_card("# New", "a"), "b")


def test_scores_that_a_user_typed_are_not_taken():
    own = read_card("---\nmodel-index: [{name: x}]\nmetrics: [wer]\nthumbnail: x.png\n---\nMine", "a")
    text = write_card({"tags": []}, "# Written", own)
    assert yaml.safe_load(text.split("---")[1]) == {"thumbnail": "x.png", "tags": []}


# ---- what a run knows of its data ----


def test_what_a_run_knows_of_its_data_is_read_back_from_its_card(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: cc-by-4.0\nlanguage: [en, de]\n---\n# Set\n")
    (tmp_path / "rows.jsonl").write_text("")
    sources = [Source(str(tmp_path / "rows.jsonl"))]
    used = data_used(sources, {("a>b",): (3, 7200.0)}, [tmp_path / "README.md"])
    assert used == DataUsed((DataSource("a>b", "cc-by-4.0", rows=3, hours=2.0),), (), ("en", "de"))
    comment = used.comment()
    assert comment.count(">") == 1 and read_comment(f"text\n\n{comment}\n") == used
    assert data_used([Source("org/set", split="train")], {}, []).datasets == ("org/set",)


def test_stages_that_share_data_count_it_once():
    assert (USED + USED).sources == USED.sources
    more = replace(USED, sources=(DataSource("books", rows=20, hours=3.0),))
    found = {source.name: (source.rows, source.license) for source in (USED + more).sources}
    assert found == {"books": (20, "cc-by-4.0"), "calls": (8, "cc-by-nc-4.0")}


def test_the_plot_of_the_same_log_has_the_same_bytes(tmp_path):
    from soundwave_hf.training.watch import plot_histories

    for name in ("a.png", "b.png"):
        plot_histories({"align": HISTORY, "shrink": HISTORY}, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_start_below_a_variable_is_found_and_a_missing_one_is_named(tmp_path, monkeypatch):
    write_chain(tmp_path)
    monkeypatch.setenv("SOUNDWAVE_HOME", str(tmp_path))
    recipe = yaml.safe_load((tmp_path / "shrink" / "recipe.yaml").read_text())
    for start, stages in (("$SOUNDWAVE_HOME/align", ["align", "shrink"]), ("$SOUNDWAVE_HOME/gone", ["shrink"])):
        (tmp_path / "shrink" / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"start_from": start}))
        messages = []
        monkeypatch.setattr(runs.logger, "warning", messages.append)
        assert [run.stage for run in read_runs([tmp_path / "shrink"])] == stages
        assert [f"started from `{start}`" in message for message in messages] == ([] if len(stages) > 1 else [True])
