import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from datasets import Audio, Dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import GenerationConfig

from soundwave_hf import SoundwaveForConditionalGeneration, SoundwaveForCTC, SoundwaveProcessor, cli
from soundwave_hf.data.tiny import write_tiny_llm, write_tiny_whisper
from soundwave_hf.evaluation import evaluate, shipped
from soundwave_hf.evaluation.evaluate import Options, run_evaluation
from soundwave_hf.evaluation.sets import named_sources, open_sets, read_set
from soundwave_hf.evaluation.shipped import ADAPTER, load_adapter
from soundwave_hf.evaluation.transcribe import Transcripts
from soundwave_hf.training.stages import ADAPTERS, lora_targets
from tests.tiny_models import save_tiny_soundwave


RATE = 16_000
TEXTS = ["Good morning.", "Dear friends.", "All right.", ""]


@pytest.fixture
def data(tmp_path) -> str:
    """Four clips of half a second and their texts, the last one silence, as JSON lines."""
    lines = []
    for number, text in enumerate(TEXTS):
        path = tmp_path / f"{number}.wav"
        soundfile.write(path, 0.1 * np.random.default_rng(number).standard_normal(RATE // 2), RATE)
        lines.append({"audio": str(path), "text": text})
    return write_lines(tmp_path / "calls.jsonl", lines)


def write_lines(path, lines: list[dict]) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return str(path)


def read_lines(path) -> list[dict]:
    return [json.loads(line) for line in open(path, encoding="utf-8")]


def says(*texts: str):
    """A system that says these texts, whatever is asked; it needs no model."""

    def system(requests) -> Transcripts:
        found = [texts[request.row] for request in requests]
        return Transcripts(found, 1.0, [text.lower() for text in found], [2] * len(requests))

    return system


@pytest.fixture
def systems(monkeypatch) -> dict:
    """Systems by name, in place of models: `mine` has one wrong word, `other` two."""
    known = {
        "mine": says("Good morning.", "dear fiends", "All right.", ""),
        "other": says("Good evening.", "Dear friends.", "All wrong.", "thank you"),
    }
    monkeypatch.setattr(evaluate, "load_system", lambda name, *options, **backbones: known[name])
    monkeypatch.setattr(evaluate, "find_model", lambda name: (name, False))
    return known


# ---- sets ----


def test_the_human_set_leaves_the_audiobook_out(monkeypatch, tmp_path):
    lines = [{"audio": "a.flac", "source": "human-prompt"}, {"audio": "b.flac", "source": "librivox"}]
    folder = tmp_path / "data" / "demo"
    folder.mkdir(parents=True)
    write_lines(folder / "valid_human.jsonl", lines)
    monkeypatch.setenv("SOUNDWAVE_HOME", str(tmp_path))
    assert [row["audio"] for row in read_set("human")] == [str(folder / "a.flac")]


def test_a_set_that_does_not_exist_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("SOUNDWAVE_HOME", str(tmp_path))
    with pytest.raises(ValueError, match="no set `humen`: choose from human, librivox, synthetic"):
        read_set("humen")
    with pytest.raises(FileNotFoundError, match="of the set `synthetic`: build the validation sets with `python exam"):
        read_set("synthetic")


def test_sources_are_named_by_the_caller_or_by_their_file(tmp_path):
    here = tmp_path / "a=b.jsonl"
    here.touch()
    words = ["calls=data/calls.jsonl", "data/podcast.csv", "user/corpus", "runs/lr=1/valid.jsonl", str(here)]
    words += ["test={path: user/speech, split: test}", "{path: user/other, split: test}"]
    assert named_sources(words) == {
        "test": {"path": "user/speech", "split": "test"},
        "other": {"path": "user/other", "split": "test"},
        "calls": "data/calls.jsonl",
        "podcast": "data/podcast.csv",
        "corpus": "user/corpus",
        "valid": "runs/lr=1/valid.jsonl",
        "a=b": str(here),
    }


@pytest.mark.parametrize("form", [str, Path, lambda path: [Path(path)], lambda path: f"calls={path}"])
def test_one_source_needs_no_list(systems, data, tmp_path, form):
    output = str(tmp_path / "scores.json")
    assert list(run_evaluation(checkpoint="mine", data=form(data), output=output)) == ["calls"]


def test_one_validation_set_needs_no_list():
    assert list(open_sets("librivox", (), None)) == ["librivox"]


@pytest.mark.parametrize(
    ("rows", "kind"),
    [
        ([{"audio": "a.wav", "text": "hello"}], "dict"),
        (Dataset.from_dict({"text": ["hello"]}), "dict"),
        ([[]], "list"),
    ],
)
def test_rows_without_a_name_are_refused(rows, kind):
    message = f'`data` holds a {kind}; expected paths .*Give rows and mappings a name: `data={{"calls": rows}}`'
    with pytest.raises(ValueError, match=message):
        run_evaluation(checkpoint="mine", data=rows, output="scores.json")


def test_two_sets_of_one_name_are_refused():
    with pytest.raises(
        ValueError, match="Two sets are called `valid`, `a/valid.jsonl` and `b/valid.jsonl`: name them"
    ):
        named_sources(["a/valid.jsonl", "b/valid.jsonl"])
    with pytest.raises(ValueError, match="`librivox` is a validation set: give `mine.jsonl` another name"):
        open_sets(["librivox"], ["librivox=mine.jsonl"], None)


# ---- systems ----


def test_missing_adapters_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder `.*nowhere` with trained adapters"):
        load_adapter(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("given", "loader", "expected"),
    [
        ({"checkpoint": "joined"}, "load_checkpoint", None),
        ({"checkpoint": "joined", "device": "cpu", "dtype": "bfloat16"}, "load_checkpoint", "placing"),
        ({"adapter": "mine"}, "load_adapter", "backbones"),
        ({}, "load_adapter", "backbones"),
        ({"adapter": "mine", "ctc": True}, "load_adapter", "backbones"),
    ],
)
def test_a_system_is_loaded_where_and_as_the_caller_says(monkeypatch, data, given, loader, expected):
    expected = {
        "placing": {"device": "cpu", "dtype": "bfloat16"},
        "backbones": {
            "encoder": None,
            "llm": None,
            "allow_other_backbones": False,
            "ctc_only": given.get("ctc", False),
        },
    }.get(expected or "", {})
    loaded = []

    def load(name, **options):
        loaded.append((name, options))
        raise ValueError("seen")

    monkeypatch.setattr(shipped, loader, load)
    with pytest.raises(ValueError, match="seen"):
        run_evaluation(data=[data], **given)
    assert loaded == [(given.get("checkpoint") or given.get("adapter") or ADAPTER, expected)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "The batch size is 0"),
        ({"metric": "mer"}, "The metric is `mer`; expected `wer` or `cer`"),
        ({"language": "englich"}, "Unsupported language: 'englich'"),
        ({"max_new_tokens": 0}, "`max_new_tokens` is 0"),
        ({"dtype": "float17"}, "`dtype` is 'float17'; expected a floating point"),
        ({"device": "cuda:99"}, "The device is 'cuda:99'; this machine has cpu"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Options(**options)


@pytest.mark.parametrize("stage", ["align", "shrink"])
def test_the_ctc_head_of_adapters_of_any_stage_is_scored(tmp_path, stage):
    write_tiny_whisper(tmp_path / "whisper")
    write_tiny_llm(tmp_path / "llm")
    encoder, llm = str(tmp_path / "whisper"), str(tmp_path / "llm")
    save_adapters(stage, encoder, llm, tmp_path / "run")
    soundfile.write(tmp_path / "clip.wav", 0.1 * np.random.default_rng(0).standard_normal(RATE), RATE)
    rows = [{"audio": str(tmp_path / "clip.wav"), "text": "hello"}]
    scores = run_evaluation(adapter=str(tmp_path / "run"), data={"calls": rows}, ctc=True)["calls"]
    assert (scores.clips, scores.wer) == (1, scores.ctc_wer) and 1 <= scores.positions_per_second <= 26


def test_a_score_file_says_how_the_model_decodes_by_default(tmp_path):
    write_tiny_whisper(tmp_path / "whisper")
    write_tiny_llm(tmp_path / "llm")
    save_adapters("shrink", str(tmp_path / "whisper"), str(tmp_path / "llm"), tmp_path / "run")
    soundfile.write(tmp_path / "clip.wav", 0.1 * np.random.default_rng(0).standard_normal(RATE), RATE)
    rows = {"calls": [{"audio": str(tmp_path / "clip.wav"), "text": "hello"}]}
    options = {"adapter": str(tmp_path / "run"), "data": rows, "output": str(tmp_path / "scores.json")}
    run_evaluation(**options, max_new_tokens=2)
    assert json.loads((tmp_path / "scores.json").read_text())["generation_config"] == {}
    GenerationConfig(eos_token_id=1, ctc_weight=0.5).save_pretrained(tmp_path / "run")
    run_evaluation(**options, max_new_tokens=2)
    assert json.loads((tmp_path / "scores.json").read_text())["generation_config"] == {"ctc_weight": 0.5}
    run_evaluation(**options, ctc=True)
    assert "generation_config" not in json.loads((tmp_path / "scores.json").read_text())


def save_adapters(stage: str, encoder: str, llm: str, folder):
    """What a run of the stage leaves."""
    if stage == "align":
        model = SoundwaveForCTC.from_backbones(encoder, llm)
        folder.mkdir()
        trained = {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}
        save_file(trained, folder / "trained.safetensors")
    else:
        model = SoundwaveForConditionalGeneration.from_backbones(encoder, llm)
        lora = LoraConfig(r=2, target_modules=lora_targets(model.model.language_model), modules_to_save=list(ADAPTERS))
        get_peft_model(model, lora).save_pretrained(folder)
    model.config.save_pretrained(folder)
    SoundwaveProcessor.from_backbones(encoder, llm).save_pretrained(folder)


# ---- the verb ----


def test_scores_and_lines_of_ones_own_data(systems, data, tmp_path, capsys):
    files = {"output": str(tmp_path / "out" / "scores.json"), "transcripts": str(tmp_path / "out" / "lines.jsonl")}
    scores = run_evaluation(checkpoint="mine", data=[data], **files)
    assert list(scores) == ["calls"] and scores["calls"].wer == 1 / 6
    printed = capsys.readouterr().out
    assert "| calls | 4 | 2 | 16.7 | 0.0 to 50.0 | 33.3 |" in printed
    assert "| set | substitutions | deletions | insertions | words |" in printed
    report = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert (report["weights"], report["metric"], report["language"]) == ("mine", "wer", "en")
    assert "weights_digest" not in report  # no folder
    assert report["sets"]["calls"]["word_errors"] == {"substitutions": 1, "deletions": 0, "insertions": 0, "words": 6}
    lines = read_lines(files["transcripts"])
    assert [line["row"] for line in lines] == [0, 1, 2, 3]
    assert lines[1]["audio"] == "1.wav" and lines[1]["text"] == "dear fiends" and lines[1]["ctc_text"] == "dear fiends"
    assert lines[1]["edits"] == [{"kind": "substitute", "reference": "friends", "hypothesis": "fiends"}]
    assert (lines[1]["word_errors"], lines[1]["words"], lines[1]["word_errors_as_written"]) == (1, 2, 2)
    assert lines[0]["edits"] == []


def test_two_systems_are_compared_clip_by_clip(systems, data, tmp_path, capsys):
    lines = tmp_path / "lines.jsonl"
    scores = run_evaluation(checkpoint="mine", data=[data], against="other", transcripts=str(lines))
    (figure,) = scores["calls"].comparison["figures"]
    assert figure["value"] == pytest.approx(1 / 6) and figure["other_value"] == pytest.approx(4 / 6)
    assert figure["difference"] == pytest.approx(-3 / 6)
    assert (figure["clips_better"], figure["clips_worse"]) == (3, 1)
    assert "| calls | WER | 4 | 16.7 | 66.7 | -50.0 |" in capsys.readouterr().out
    found = read_lines(lines)
    assert found[2]["other_text"] == "All wrong." and found[2]["other_word_errors"] == 1
    assert found[2]["differs_from_other"] == [{"other": "wrong", "text": "right"}]
    assert found[3]["differs_from_other"] == [{"other": "thank you", "text": ""}]


def test_the_lines_of_an_earlier_run_are_a_system_to_compare_with(systems, data, tmp_path):
    lines, report = tmp_path / "lines.jsonl", tmp_path / "report.json"
    run_evaluation(checkpoint="other", data=[data], transcripts=str(lines))
    by_file = run_evaluation(checkpoint="mine", data=[data], against=str(lines), output=str(report))
    by_run = run_evaluation(checkpoint="mine", data=[data], against="other")
    assert by_file["calls"].comparison == by_run["calls"].comparison
    assert json.loads(report.read_text())["against"] == str(lines)


def test_lines_of_earlier_versions_have_no_row_numbers(systems, data, tmp_path):
    lines = [{"set": "calls", "audio": f"{i}.wav", "reference": text, "text": text} for i, text in enumerate(TEXTS)]
    against = write_lines(tmp_path / "old.jsonl", lines)
    scores = run_evaluation(checkpoint="mine", data=[data], against=against)
    assert scores["calls"].comparison["figures"][0]["other_value"] == 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"set": "calls", "row": 0, "reference": "Good night.", "text": "x"}, "the two were scored on different data"),
        ({"set": "podcast", "row": 0, "reference": "x", "text": "x"}, "has the sets podcast and lacks calls"),
        ({"text": "x"}, "line 1 has no set, reference; expected the lines that `--transcripts` wrote"),
        (None, "is empty; expected the lines"),
    ],
)
def test_lines_of_other_data_are_refused(systems, data, tmp_path, line, message):
    against = write_lines(tmp_path / "against.jsonl", [] if line is None else [line])
    with pytest.raises(ValueError, match=message):
        run_evaluation(checkpoint="mine", data=[data], against=against)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (
            {"against": "lins.jsonl"},
            FileNotFoundError,
            "`--against` is `lins.jsonl`, and no file has this name. There",
        ),
        ({"against": "user/mine"}, FileNotFoundError, "`user/mine`, and no file has this name. There is no folder"),
        ({"against": "whisper"}, ValueError, 'has model type "whisper" and "soundwave" was expected'),
        ({"with_baseline": True, "encoder": "wisper"}, FileNotFoundError, "No backbone `wisper`"),
    ],
)
def test_another_system_that_is_not_there_is_named_before_the_first_clip(
    monkeypatch, data, tmp_path, given, error, message
):
    monkeypatch.chdir(tmp_path)
    write_tiny_whisper(tmp_path / "whisper")
    monkeypatch.setattr(evaluate, "load_system", lambda *given, **backbones: pytest.fail("the model was loaded"))
    with pytest.raises(error, match=message):
        run_evaluation(checkpoint="mine", data=[data], **given)


def test_adapters_whole_models_and_lines_are_found_as_another_system(tmp_path):
    write_tiny_whisper(tmp_path / "whisper")
    write_tiny_llm(tmp_path / "llm")
    save_adapters("shrink", str(tmp_path / "whisper"), str(tmp_path / "llm"), tmp_path / "adapters")
    whole = str(save_tiny_soundwave(tmp_path / "whole"))
    assert evaluate.find_model(str(tmp_path / "adapters")) == (str(tmp_path / "adapters"), True)
    assert evaluate.find_model(whole) == (whole, False)
    model = SoundwaveForConditionalGeneration.from_pretrained(whole)
    model.add_adapter(LoraConfig(r=2, target_modules=lora_targets(model.model.language_model)))
    model.save_pretrained(tmp_path / "lora")
    assert evaluate.find_model(str(tmp_path / "lora")) == (str(tmp_path / "lora"), False)
    shutil.move(tmp_path / "llm", tmp_path / "moved")
    with pytest.raises(FileNotFoundError, match="was trained on the llm in `.*llm`, and there is no such folder here"):
        evaluate.find_model(str(tmp_path / "adapters"))


@pytest.mark.parametrize("fails", ["lines", "other", "whisper", "second set"])
def test_what_was_scored_is_kept_if_a_later_part_fails(systems, data, tmp_path, monkeypatch, capsys, fails):
    def broken(*given, **options):
        raise RuntimeError("no memory")

    lines = [{"set": "calls", "row": 0, "reference": "Good night.", "text": "x"}]
    given = {
        "lines": {"against": write_lines(tmp_path / "against.jsonl", lines)},
        "other": {"against": "other"},
        "whisper": {"with_baseline": True, "encoder": str(tmp_path)},
        "second set": {"data": [data, f"longer={write_lines(tmp_path / 'more.jsonl', 2 * read_lines(data))}"]},
    }[fails]
    systems["other"] = broken
    monkeypatch.setattr(evaluate, "whisper_system", broken)
    kept = {"output": str(tmp_path / "scores.json"), "transcripts": str(tmp_path / "lines.jsonl")}
    with pytest.raises((ValueError, RuntimeError, IndexError)):  # `mine` knows four texts
        run_evaluation(**{"checkpoint": "mine", "data": [data], **kept, **given})
    assert "| calls | 4 | 2 | 16.7 |" in (printed := capsys.readouterr().out) and "| p |" not in printed
    report = json.loads((tmp_path / "scores.json").read_text())
    assert list(report["sets"]) == ["calls"] and report["sets"]["calls"]["wer"] == pytest.approx(1 / 6)
    assert [line["text"] for line in read_lines(kept["transcripts"])] == [
        "Good morning.",
        "dear fiends",
        "All right.",
        "",
    ]


def test_rows_that_one_system_lacks_are_told(systems, data, tmp_path, capsys):
    lines = [{"set": "calls", "row": row, "reference": TEXTS[row], "text": TEXTS[row]} for row in (0, 2, 3)]
    against = write_lines(tmp_path / "against.jsonl", lines)
    scores = run_evaluation(checkpoint="mine", data=[data], against=against)
    assert scores["calls"].comparison["figures"][0]["clips"] == 3
    assert "calls: 1 rows have a text of one system only." in capsys.readouterr().out


def test_rows_that_cannot_be_read_are_named_and_the_rest_is_scored(systems, data, tmp_path, capsys):
    rows = read_lines(data)
    rows[2]["audio"] = str(tmp_path / "nowhere.wav")
    broken, lines = write_lines(tmp_path / "broken.jsonl", rows), tmp_path / "lines.jsonl"
    words = ["evaluate", "--model", "mine", "--data", f"calls={broken}", "--transcripts", str(lines)]
    assert cli.main([*words, "--output", str(tmp_path / "scores.json")]) == 2
    printed = capsys.readouterr()
    assert "| not scored |" in printed.out and printed.out.splitlines()[2].startswith("| calls | 3 | 2 | 25.0 |")
    assert "1 rows could not be scored and are not part of the scores" in printed.err
    assert "calls, row 2 (nowhere.wav): " in printed.err
    assert [line.get("failure") is None for line in read_lines(lines)] == [True, True, False, True]
    (failure,) = json.loads((tmp_path / "scores.json").read_text())["sets"]["calls"]["failures"]
    assert (failure["row"], failure["audio"]) == (2, "nowhere.wav")


@pytest.mark.parametrize(
    ("option", "name", "ending"), [("--output", "out.csv", ".json"), ("--transcripts", "out.txt", ".jsonl")]
)
def test_a_file_of_another_form_is_refused_before_any_clip_is_read(systems, data, capsys, option, name, ending):
    assert cli.main(["evaluate", "--model", "mine", "--data", str(data), option, name]) == 2
    assert f"`{option}` is `{name}`; give a file that ends in {ending}" in capsys.readouterr().err


def test_questions_are_scored_as_answers_and_compared_as_such(systems, data, capsys):
    rows = [{**row, "question": "What is said?", "answer": row["text"]} for row in read_lines(data)[:3]]
    scores = run_evaluation(checkpoint="mine", data={"asked": rows}, against="other")["asked"]
    assert (scores.answers, scores.exact_match, scores.contained_answer, scores.wer) == (3, 2 / 3, 2 / 3, None)
    assert [figure["metric"] for figure in scores.comparison["figures"]] == ["exact_match"]
    printed = capsys.readouterr().out
    assert "| set | clips | seconds | answers | exact match % | exact match 95 % | contained answer % |" in printed
    assert "| asked | exact match | 3 | 66.7 | 33.3 | +33.3 |" in printed


def test_several_sets_are_scored_apart_and_columns_are_renamed(systems, data, tmp_path):
    rows = [{"file": row["audio"], "sentence": row["text"]} for row in read_lines(data)]
    one, two = (write_lines(tmp_path / f"{name}.jsonl", part) for name, part in (("one", rows[:2]), ("two", rows[:1])))
    words = ["evaluate", "--model", "mine", "--data", f"first={one}", "--data", two]
    output = tmp_path / "scores.json"
    assert cli.main([*words, "--columns", "{sentence: text, file: audio}", "--output", str(output)]) == 0
    sets = json.loads(output.read_text())["sets"]
    assert {name: (found["clips"], found["wer"]) for name, found in sets.items()} == {
        "first": (2, 0.25),
        "two": (1, 0),
    }


@pytest.mark.parametrize("columns", ["sentence", "[a, b]", "{a: "])
def test_columns_are_a_mapping(columns, capsys):
    assert cli.main(["evaluate", "--data", "a.jsonl", "--columns", columns]) == 2
    assert "`--columns`" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["csv", "parquet", "saved", "dataset", "stream"])
def test_any_form_of_data_gives_the_same_scores(systems, data, tmp_path, form):
    rows = Dataset.from_list(read_lines(data)[:3])  # CSV cannot tell an empty text from a missing one
    source = {"csv": tmp_path / "calls.csv", "parquet": tmp_path / "calls.parquet", "saved": tmp_path / "calls"}.get(
        form
    )
    if form == "csv":
        rows.to_csv(source)
    elif form == "parquet":
        rows.to_parquet(source)
    elif form == "saved":
        rows.cast_column("audio", Audio(decode=False)).save_to_disk(source)
    else:
        source = rows.cast_column("audio", Audio()) if form == "dataset" else rows.to_iterable_dataset()
    given = {"calls": source} if form in ("dataset", "stream") else [str(source)]
    scores = run_evaluation(checkpoint="mine", data=given, against="other")["calls"]
    assert (scores.clips, scores.wer, scores.word_errors["words"]) == (3, 1 / 6, 6)
    assert scores.comparison["figures"][0]["other_value"] == pytest.approx(2 / 6)


def test_a_language_without_spaces_is_scored_by_characters(monkeypatch, data, capsys):
    rows = [{**row, "text": text} for row, text in zip(read_lines(data), ["你好，世界。", "早安"], strict=False)]
    monkeypatch.setattr(evaluate, "load_system", lambda *given, **backbones: says("你好世届", "早安"))
    scores = run_evaluation(checkpoint="mine", data={"zh": rows}, language="zh")["zh"]
    assert scores.cer == 1 / 6
    assert "| set | clips | seconds | CER % | CER 95 % | CER as written % | WER % | CTC head CER % |" in (
        printed := capsys.readouterr().out
    )
    assert "| set | substitutions | deletions | insertions | characters |" in printed


def test_options_that_the_model_refuses_stop_before_the_first_clip(data, tmp_path, capsys):
    folder = str(save_tiny_soundwave(tmp_path / "saved"))
    words = ["evaluate", "--model", folder, "--data", data, "--generate"]
    assert cli.main([*words, "{min_positions_per_second: 90}"]) == 2
    assert "but a second has only 25 frames" in (err := capsys.readouterr().err) and "clip/s" not in err
    assert cli.main([*words, "{ctc_draft: fast, num_beams: 2}"]) == 2
    assert "`ctc_draft` is 'fast' and `num_beams` is 2" in capsys.readouterr().err
    assert cli.main([*words, "{drop_unsupported: true}", "--max-new-tokens", "2"]) == 0


def test_texts_that_were_cut_off_are_told(monkeypatch, data, capsys):
    def cut(requests) -> Transcripts:
        return Transcripts(["Good"] * len(requests), 1.0, finished=[request.row > 0 for request in requests])

    monkeypatch.setattr(evaluate, "load_system", lambda *given, **backbones: cut)
    run_evaluation(checkpoint="mine", data=[data])
    assert "calls: 1 texts were cut off at 120 tokens" in capsys.readouterr().out
    run_evaluation(checkpoint="mine", data=[data], generate={"max_time": 2})
    assert "calls: 1 texts were cut off at 2 s for each batch, or 120 tokens" in capsys.readouterr().out


def test_whisper_is_scored_beside_any_data(systems, data, tmp_path, monkeypatch, capsys):
    given = []

    def whisper_system(folder, language, device):
        given.append((folder, language, device))
        return says(*TEXTS)

    monkeypatch.setattr(evaluate, "whisper_system", whisper_system)
    lines = tmp_path / "lines.jsonl"
    options = {"encoder": str(tmp_path), "with_baseline": True, "language": "en", "transcripts": str(lines)}
    scores = run_evaluation(checkpoint="mine", data=[data], **options)
    assert given == [(str(tmp_path), "en", "cpu")] and scores["calls"].whisper_wer == 0
    assert "| Whisper WER % |" in capsys.readouterr().out
    assert [line["whisper_text"] for line in read_lines(lines)] == TEXTS


def test_nothing_to_score_is_refused(systems):
    with pytest.raises(ValueError, match="There is nothing to score"):
        run_evaluation(checkpoint="mine", sets=())


def test_without_data_the_validation_sets_are_scored(systems, monkeypatch):
    opened = []

    def open_sets(sets, data, columns):
        opened.append(tuple(sets))
        raise ValueError("seen")

    monkeypatch.setattr(evaluate, "open_sets", open_sets)
    for given in ({}, {"data": ["a.jsonl"]}, {"data": ["a.jsonl"], "sets": ["human"]}):
        with pytest.raises(ValueError, match="seen"):
            run_evaluation(**given)
    assert opened == [("human", "librivox", "synthetic"), (), ("human",)]


# ---- files that are written ----


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"output": "rows.csv"}, ValueError, "`--output` is `rows.csv`, which is read by this command"),
        ({"transcripts": "./rows.csv"}, ValueError, "`--transcripts` is `./rows.csv`, which is read"),
        ({"output": "folder"}, IsADirectoryError, "`--output` is `folder`, which is a folder: give a file"),
        ({"output": "."}, IsADirectoryError, "`--output` is `.`, which is a folder"),
        ({"output": "rows.csv/x.json"}, NotADirectoryError, "rows.csv` is a file, not a folder"),
        ({"output": "one.json", "transcripts": "one.json"}, ValueError, "are both `one.json`: give two files"),
        ({"against": "earlier.jsonl", "transcripts": "earlier.jsonl"}, ValueError, "which is read by this command"),
    ],
)
def test_files_that_cannot_be_written_are_refused_before_clips_are_read(monkeypatch, tmp_path, given, error, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "rows.csv").write_text("audio,text\na.wav,hello\n", encoding="utf-8")
    (tmp_path / "earlier.jsonl").write_text("{}\n", encoding="utf-8")
    with pytest.raises(error, match=message):
        run_evaluation(data=["rows.csv"], **given)
    assert (tmp_path / "rows.csv").read_text(encoding="utf-8").startswith("audio,text")


@pytest.mark.parametrize(
    "form", [Path, lambda name: [name], lambda name: {"path": name}, lambda name: [{"path": name}]]
)
def test_data_are_not_overwritten_in_any_form_in_which_they_are_named(tmp_path, form):
    path = str(tmp_path / "rows.csv")
    Path(path).write_text("audio,text\na.wav,hello\n", encoding="utf-8")
    with pytest.raises(ValueError, match="which is read by this command"):
        run_evaluation(data={"mine": form(path)}, output=path)


def test_a_mapping_that_is_no_yaml_is_refused():
    with pytest.raises(ValueError, match="A mapping of `--data` cannot be read as YAML: .* in line 1"):
        named_sources(["{path: rows.csv"])
