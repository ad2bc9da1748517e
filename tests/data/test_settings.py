"""The YAML file of the filters."""

import pytest

from soundwave_hf.data.clean.settings import filter_classes, read_settings


DEFAULTS = {
    "empty_text": {"allow_empty": False},
    "words": {"min_words": 1, "max_words": 200},
    "characters": {"min_characters": 1, "max_characters": 1200},
    "frames_per_character": {"max_frames": 100},
    "characters_per_second": {"min_rate": 1, "max_rate": 30},
    "repeated_ngrams": {"words": 4, "max_share": 0.3},
    "long_words": {"max_characters": 40},
    "frequent_word": {"max_share": 0.4, "min_words": 8},
    "seconds": {"min_seconds": 3, "max_seconds": 30},
    "silence": {"max_share": 0.6, "below_peak_db": 35, "floor_db": -70},
    "clipping": {"max_share": 0.001},
    "level": {"min_db": -50},
    "leaked_audio": {"shared": 0.1},
    "near_duplicate_audio": {"shared": 0.1},
    "leaked_text": {"words": 4},
}


def by_name(settings=None) -> dict:
    return {each.name: vars(each) for each in read_settings(settings)}


def test_without_settings_all_filters_that_need_no_model_run_with_the_papers_values():
    assert by_name() == by_name({}) == DEFAULTS
    assert [*by_name()] == [name for name in filter_classes() if name in DEFAULTS]


def test_a_file_changes_keys_turns_filters_off_and_names_models(tmp_path, monkeypatch):
    path = tmp_path / "filters.yaml"
    path.write_text(
        "seconds: {min_seconds: 1}\nclipping: false\nlevel: true\nempty_text:\n  allow_empty: true\n"
        "whisper: {model: openai/whisper-base, max_wer: 0.2}\nctc: false\n"
    )
    monkeypatch.setenv("HERE", str(tmp_path))
    for given in (path, str(path), "$HERE/filters.yaml"):
        found = by_name(given)
        assert found.pop("whisper") == {
            "model": "openai/whisper-base",
            "max_wer": 0.2,
            "batch_size": 8,
            "device": "cpu",
        }
        changed = {"seconds": {"min_seconds": 1, "max_seconds": 30}, "empty_text": {"allow_empty": True}}
        assert found == {**{name: keys for name, keys in DEFAULTS.items() if name != "clipping"}, **changed}
    path.write_text("# all defaults\n")
    assert by_name(path) == DEFAULTS


def test_all_filters_can_be_named_and_turned_off():
    assert read_settings(dict.fromkeys(filter_classes(), False)) == []
    named = {name: {"model": "folder"} for name in ("whisper", "language", "ctc")}
    named["near_duplicate_text"] = {"similarity": 0.8}
    assert [*by_name(named)] == [*filter_classes()]


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"second": {}}, ValueError, "there is no filter `second`. Did you mean `seconds`"),
        ({"wisper": False}, ValueError, "there is no filter `wisper`. Did you mean `whisper`"),
        ({"zzz": False}, ValueError, "there is no filter `zzz`. Known are empty_text, words"),
        ({3: False}, ValueError, "there is no filter `3`"),
        ({"seconds": {"min_second": 1}}, ValueError, "`seconds` has no key `min_second`. Did you mean `min_seconds`"),
        ({"ctc": {"model": "x", "min_logprob": 1}}, ValueError, "`ctc` has no key `min_logprob`. .*`min_log_prob`"),
        ({"seconds": None}, TypeError, "`seconds` is null; expected keys such as .*, or `false` to turn"),
        ({"seconds": 3}, TypeError, "`seconds` is 3; expected keys"),
        ({"seconds": {"min_seconds": "3"}}, TypeError, "`seconds` has `min_seconds: '3'`; expected a number"),
        ({"seconds": {"min_seconds": None}}, TypeError, "`seconds` has `min_seconds: None`; expected a number"),
        ({"seconds": {"max_seconds": float("inf")}}, ValueError, "`max_seconds: inf`; expected 0 or more"),
        ({"silence": {"max_share": 60}}, ValueError, "`silence` has `max_share: 60`; expected a number from 0 to 1"),
        ({"whisper": True}, ValueError, "`whisper` needs `model`: give it, such as `whisper: {model: NAME}`"),
        ({"ctc": {"min_log_prob": -2}}, ValueError, "`ctc` needs `model`"),
        (
            {"ctc": {"model": "x", "min_log_prob": 2}},
            ValueError,
            "`min_log_prob: 2`; expected a number from -100 to 0",
        ),
        ({"language": {"model": "x", "wanted": "gernam"}}, ValueError, "'gernam'. Did you mean 'german'"),
        ({"language": {"model": "x", "wanted": "auto"}}, ValueError, "`wanted: auto`; expected a language"),
        ({"whisper": {"model": ""}}, TypeError, "`whisper` has `model: ''`; expected text"),
    ],
)
def test_what_cannot_be_done_is_refused_with_value_and_remedy(settings, error, message):
    with pytest.raises(error, match=message):
        read_settings(settings)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seconds: {", "`.*filters.yaml` cannot be read as YAML"),
        ("- seconds", r"`.*filters.yaml` holds \['seconds'\]; expected lines such as"),
        ("seconds: {min_seconds: 1}\nseconds: false\n", "`seconds` is written twice"),
        ("seconds: {min_seconds: 1, min_seconds: 2}\n", "`min_seconds` is written twice"),
        ("level: {min_db: 7}\n", "`.*filters.yaml`: `level` has `min_db: 7`"),
    ],
)
def test_a_file_that_is_not_such_yaml_is_named(tmp_path, text, message):
    path = tmp_path / "filters.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_settings(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no file `.*none.yaml` with the settings"):
        read_settings(tmp_path / "none.yaml")
