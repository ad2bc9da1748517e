"""The model card: `README.md` of a run, and first page of a repository. Each figure comes from `ModelFacts`."""

import os

import yaml
from huggingface_hub import EvalResult, ModelCardData

from ..data.card import NONE, DataSource
from ..data.licenses import is_non_commercial, license_fields
from ..evaluation.reporting import markdown_table, percent, score_table
from ..evaluation.scoring import UNIT_OF, Scores
from .card_parts import known_values
from .facts import ModelFacts, ScoreFile, on_hub
from .measured import WORD_OF, last_measured
from .runs import Run, shown_recipe


TAGS = ["soundwave", "speech", "speech-llm"]
PLOT = "training.png"
TASK = "automatic-speech-recognition"
SHOWN_VERSIONS = ("soundwave-hf", "torch", "transformers")
PAPER = "[arXiv 2502.12900](https://arxiv.org/abs/2502.12900)"
CITATION = """```bibtex
@article{zhang2025soundwave,
  title={Soundwave: Less is More for Speech-Text Alignment in LLMs},
  author={Zhang, Yuhao and Liu, Zhiheng and Bu, Fan and Zhang, Ruiyu and Wang, Benyou and Li, Haizhou},
  journal={arXiv preprint arXiv:2502.12900},
  year={2025}
}
```"""
READERS_NEED = '"transformers>=5.23" torch soundfile soxr'  # of a whole model, whose code is in the repository
FEW_WORDS = 1000  # of a set: below this, one word is more than a tenth of a point


def model_card(facts: ModelFacts) -> tuple[dict, str]:
    """Metadata and Markdown of a card."""
    parts = [_title(facts), _use(facts), _scores(facts), _limits(facts), _data(facts), _training(facts)]
    text = "\n\n".join(part for part in [*parts, _licenses(facts), _citation()] if part)
    return metadata_of(facts), text + "\n"


# ---- metadata ----


def metadata_of(facts: ModelFacts) -> dict:
    """Metadata in the form of the Hub's model cards. What is not known is left out."""
    bases = [name for name in (facts.encoder, facts.llm) if on_hub(name)]
    languages = dict.fromkeys([*facts.data.languages, *(file.language for file in facts.scores)])
    is_asking = any(run.stage == "instruct" for run in facts.runs)
    restricted = _restricted(facts)
    measured = {name for run in facts.runs for _, name, _ in last_measured(run.history)}
    measured |= {file.metric for file in facts.scores}
    results = [result for file in facts.scores for result in _results(file)]
    values = {
        "library_name": "transformers",
        "pipeline_tag": TASK,
        "tags": [*TAGS, *(["audio-text-to-text"] if is_asking else []), *(["non-commercial"] if restricted else [])],
        "base_model": bases or None,
        "base_model_relation": ("finetune" if facts.kind == "whole" else "adapter") if bases else None,
        "datasets": list(facts.data.datasets) or None,
        "language": list(languages) or None,
        "metrics": sorted(measured & {"wer", "cer"}) or None,
        **(license_fields([facts.license]) if facts.license else {}),
    }
    if results:
        values |= {"eval_results": results, "model_name": (facts.name or "soundwave").split("/")[-1]}
    return {key: value for key, value in ModelCardData(**values).to_dict().items() if value is not None}


def _results(file: ScoreFile) -> list[EvalResult]:
    """Error rates in percent for `model-index`; their names say the decoding. Sets of this machine have their own name
    as type.
    """
    found = []
    for name, scores in file.sets.items():
        value, source = getattr(scores, file.metric), file.on_hub.get(name, {})
        if value is not None:
            found.append(
                EvalResult(
                    task_type=TASK,
                    dataset_type=source.get("path", name),
                    dataset_name=name,
                    dataset_config=source.get("config"),
                    dataset_split=source.get("split"),
                    dataset_revision=source.get("revision"),
                    metric_type=file.metric,
                    metric_name=", ".join(part for part in (f"{file.metric.upper()} %", file.decoding) if part),
                    metric_args={**({"ctc_only": True} if file.ctc_only else {}), **file.settings} or None,
                    metric_value=round(100 * value, 2),
                )
            )
    return found


# ---- what it is, and how to use it ----


def _title(facts: ModelFacts) -> str:
    names = _backbones(facts)
    unnamed = "Soundwave speech model" if facts.kind == "whole" else "Soundwave speech adapters"
    title = f"# {facts.name.split('/')[-1] if facts.name else unnamed}"
    stage = facts.runs[-1].stage if facts.runs else None
    trained = f" that `soundwave-hf train` trained{f' in stage `{stage}`' if stage else ''}"
    what = {
        "whole": f"A speech language model after Soundwave ({PAPER}): {names[0]} joined to {names[1]}. "
        "This repository holds the whole model and its code.",
        "lora": f"The adapters and LoRA{trained}. They join {names[0]} to {names[1]}, as in Soundwave "
        f"({PAPER}). Those two are not in this repository.",
        "align": f"The alignment adapter and CTC head{trained}. They join {names[0]} to {names[1]}, as "
        f"in Soundwave ({PAPER}). Those two are not in this repository. The model transcribes with its CTC head "
        "alone and answers no questions.",
    }
    bases = [name for name in known_values(facts.own, "base_model") if name not in (facts.encoder, facts.llm)]
    made_from = f" Made from {', '.join(bases)}, as its author states." if bases else ""
    return f"{title}\n\n{what[facts.kind]}{made_from}{_continued(facts)}"


def _continued(facts: ModelFacts) -> str:
    """The weights that the runs started from, where only their card is known."""
    starts = [f"{run.weights} ({run.license})" for run in facts.runs if run.weights]
    if not starts:
        return ""
    verb = "Its training continues" if any(run.recipe for run in facts.runs) else "It was made from"
    return f" {verb} the weights {', '.join(starts)}, whose own card says what they were trained on."


def _backbones(facts: ModelFacts) -> tuple[str, str]:
    """Encoder and LLM as a sentence names them. A folder of this machine goes by its own name."""
    encoder, llm = (
        name if on_hub(name) else "" if name.startswith("an unnamed ") else os.path.basename(name.rstrip("/"))
        for name in (facts.encoder, facts.llm)
    )
    return f"the encoder of {encoder}" if encoder else "a speech encoder", llm or "an LLM"


def _use(facts: ModelFacts) -> str:
    name = facts.name
    if name is None:  # a run's own folder
        model = "SoundwaveForCTC" if facts.kind == "align" else "SoundwaveForConditionalGeneration"
        code = [
            f"from soundwave_hf import {model}, SoundwaveProcessor",
            "",
            "folder = ...  # this repository: a folder, or its name on the Hub",
            f"model = {model}.from_pretrained(folder)",
            "processor = SoundwaveProcessor.from_pretrained(folder)",
        ]
    elif facts.kind == "align":
        code = [
            "from soundwave_hf import load_adapter, transcribe_clips",
            "",
            f'model, processor = load_adapter("{name}", ctc_only=True)',
            'for transcript in transcribe_clips(model, processor, ["speech.wav"], ctc_only=True):',
            "    print(transcript.text)",
        ]
    else:
        code = [
            *_loading(facts.kind, name),
            'inputs = processor.apply_transcription_request("speech.wav")',
            "ids = model.generate(**inputs, max_new_tokens=100)",
            'print(processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0])',
        ]
    needs = f"`pip install {READERS_NEED}`" if facts.kind == "whole" else "Install `soundwave-hf`"
    return "\n".join(["## Use", "", f"{needs}, then:", "", "```python", *code, "```"])


def _loading(kind: str, name: str) -> list[str]:
    library, model, processor, trusted = {
        "whole": ("transformers", "AutoModelForMultimodalLM", "AutoProcessor", ", trust_remote_code=True"),
        "lora": ("soundwave_hf", "SoundwaveForConditionalGeneration", "SoundwaveProcessor", ""),
    }[kind]
    return [
        f"from {library} import {model}, {processor}",
        "",
        f'model = {model}.from_pretrained("{name}"{trusted})',
        f'processor = {processor}.from_pretrained("{name}"{trusted})',
    ]


# ---- how good it is ----


def _scores(facts: ModelFacts) -> str:
    measured = [row for run in facts.runs[-1:] for row in last_measured(run.history)]
    lines = ["## Scores", ""]
    if facts.scores:
        lines += [line for file in facts.scores for line in _score_file(file)]
    else:
        lines += ["**Not evaluated**: there is no score file of `soundwave-hf evaluate` for this model.", ""]
    if measured:
        rows = [[place or "evaluation data", WORD_OF[name], f"{value:.4g}"] for place, name, value in measured]
        lines += ["## Measured", "", "At the last evaluation during training:", ""]
        lines += [markdown_table(["data", "metric", "value"], rows), ""]
    return "\n".join(lines).rstrip()


def _score_file(file: ScoreFile) -> list[str]:
    how = "the CTC head alone, without the LLM" if file.ctc_only else "the LLM's text"
    settings = "".join(f", `{key}: {value}`" for key, value in file.settings.items())
    decoding = settings or ("" if file.ctc_only else ", default decoding of `evaluate`")
    lines = [
        f"Written by `soundwave-hf evaluate` for `{file.weights}`: {how}{decoding}. Language: {file.language}. "
        "Ranges are 95 % bootstrap intervals over clips.",
        "",
        score_table(dict(file.sets), file.metric),
        "",
    ]
    for name, scores in file.sets.items():
        if scores.failures:
            lines += [f"- {name}: {len(scores.failures)} rows could not be scored and are not part of the figures."]
        if scores.unfinished:
            lines += [f"- {name}: {scores.unfinished} texts were cut off at the longest length."]
    return lines if lines[-1] == "" else [*lines, ""]


def _limits(facts: ModelFacts) -> str:
    lines = []
    if not facts.scores:
        lines.append("How well it transcribes is not known: nobody has evaluated it.")
    if not any(file.sets and not file.ctc_only for file in facts.scores) and facts.scores:
        lines.append("Only the CTC head was evaluated.")
    for file in facts.scores:
        for name, scores in file.sets.items():
            lines += _limits_of_set(name, scores, file)
    languages = list(dict.fromkeys([*facts.data.languages, *(file.language for file in facts.scores)]))
    named = [language for language in known_values(facts.own, "language") if language not in languages]
    if languages or not named:
        known = f"{', '.join(languages)}; others are untested" if languages else "not stated"
        lines.append(f"Languages of its data and scores: {known}.")
    if named:
        lines.append(f"Languages that its author states, without data or scores here: {', '.join(named)}.")
    hours = sum(source.hours for source in facts.data.sources)
    if facts.data.sources and hours == hours:
        length = f"{hours:.2f} hours" if hours >= 1 else f"{60 * hours:.1f} minutes"
        starts = [run.weights for run in facts.runs if run.weights]
        before = f", not counting the training of {', '.join(starts)}" if starts else ""
        lines.append(f"It was trained on {length} of speech, repeats included{before}.")
    lines.append("Like other LLMs, it may write fluent text that nobody said.")
    return "\n".join(["## Limits", "", *(f"- {line}" for line in dict.fromkeys(lines))])


def _limits_of_set(name: str, scores: Scores, file: ScoreFile) -> list[str]:
    lines, counts = [], scores.word_errors if file.metric == "wer" else scores.character_errors
    unit = UNIT_OF[file.metric]
    if counts and 0 < counts[unit] < FEW_WORDS:
        lines.append(f"{name} has {counts[unit]} {unit}: one is {100 / counts[unit]:.1f} points.")
    value, ctc = getattr(scores, file.metric), getattr(scores, f"ctc_{file.metric}")
    if value is not None and ctc is not None and ctc < value and not file.ctc_only:
        both = f"{percent(ctc)} against {percent(value)} % {file.metric.upper()}"
        lines.append(f"On {name}, its CTC head alone makes fewer errors: {both}.")
    return lines


# ---- what it was made of ----


def _data(facts: ModelFacts) -> str:
    data = facts.data
    stated = [f"`{name}`" for name in known_values(facts.own, "datasets") if name not in data.datasets]
    if not data.sources and not data.datasets:
        if stated:
            return f"## Data\n\nNo record of the data came with the weights. Its author states {', '.join(stated)}."
        return f"## Data\n\nThe data of the training is **not stated**.{_see_own(facts)}" if facts.name else ""
    rows = [
        [_source_name(source), str(source.rows or "unknown"), _hours(source), _license(source.license), source.url]
        for source in data.sources
    ]
    table = markdown_table(["source", "clips", "hours", "licence", "address"], rows)
    lines = ["## Data", "", "Rows as often as the recipe repeats them:", "", table]
    if data.datasets:
        lines += ["", "Data sets of the Hub: " + ", ".join(f"`{name}`" for name in data.datasets) + "."]
    if stated:
        lines += ["", f"Its author also states {', '.join(stated)}."]
    if unknown := [_source_name(source) for source in data.sources if not source.license]:
        lines += ["", f"**No licence is stated** for {', '.join(unknown)}."]
    return "\n".join(lines)


def _see_own(facts: ModelFacts) -> str:
    """Where a record is missing, the author's own text on the same page may have it."""
    return " No record of it came with the weights; see the author's own text on this page." if facts.has_own else ""


def _source_name(source: DataSource) -> str:
    return source.name.replace("|", "\\|").replace("\n", " ")


def _hours(source: DataSource) -> str:
    if source.hours != source.hours:
        return "unknown"
    return f"{source.hours:.2g}" if 0 < source.hours < 0.1 else f"{source.hours:.2f}"


def _license(license: str | None) -> str:
    if not license:
        return "not stated"
    return f"{license} (non-commercial)" if is_non_commercial(license) else license


def _training(facts: ModelFacts) -> str:
    runs = [run for run in facts.runs if run.history]
    if not runs:
        unknown = f"## Training\n\nThe figures of the training are **not stated**.{_see_own(facts)}"
        return unknown if facts.name else ""
    headings = ["stage", "steps", "clips a step and process", "highest learning rate", "time"]
    headings += ["last loss", "last CTC loss"]
    lines = ["## Training", "", markdown_table(headings, [_figures(run) for run in runs])]
    if facts.has_plot:
        lines += ["", f"![Loss, CTC head and learning rate by step]({PLOT})"]
    for run in runs:
        if written := shown_recipe(run.recipe, run.data.datasets):
            lines += ["", f"Recipe of stage `{run.stage}`, without the paths of the machine:", "", "```yaml"]
            lines += [yaml.safe_dump(written, sort_keys=False).rstrip(), "```"]
    versions = {name: version for run in runs for name, version in run.versions.items() if name in SHOWN_VERSIONS}
    if versions:
        lines += ["", "Versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()) + "."]
    return "\n".join(lines)


def _figures(run: Run) -> list[str | None]:
    def last(key: str):
        return next((entry[key] for entry in reversed(run.history) if key in entry), None)

    rates = [entry["learning_rate"] for entry in run.history if "learning_rate" in entry]
    seconds, loss = last("train_runtime"), last("loss")
    clips = run.recipe.get("per_device_train_batch_size")
    if clips is not None:
        clips = int(clips) * int(run.recipe.get("gradient_accumulation_steps") or 1)
    ctc = loss if run.stage == "align" else last("ctc_loss")
    return [
        run.stage or NONE,
        None if last("step") is None else str(last("step")),
        None if clips is None else str(clips),
        f"{max(map(float, rates)):.3g}" if rates else None,
        None if seconds is None else f"{float(seconds) / 60:.1f} min",
        None if loss is None else f"{float(loss):.4g}",
        None if ctc is None else f"{float(ctc):.4g}",
    ]


# ---- licences and citation ----


def _restricted(facts: ModelFacts) -> list[str]:
    """Names of the data sources, backbones and weights whose licence forbids commercial use."""
    named = [(_source_name(source), source.license) for source in facts.data.sources]
    named += [(name, facts.licenses.get(name)) for name in (*facts.data.datasets, facts.encoder, facts.llm)]
    named += [("these weights", facts.license)]
    return list(dict.fromkeys(name for name, license in named if license and is_non_commercial(license)))


def _licenses(facts: ModelFacts) -> str:
    if facts.name is None and not facts.license and not _restricted(facts):
        return ""
    lines = ["## Licences", "", f"These weights: {facts.license or '**not stated**'}."]
    stated = [name for name in (facts.encoder, facts.llm) if name in facts.licenses]
    lines += [f"{name}: {_license(facts.licenses[name])}." for name in stated]
    if len(stated) < 2:
        lines.append("The licences of the backbones hold too: see their pages.")
    if restricted := _restricted(facts):
        lines += ["", f"**Non-commercial:** the licence of {', '.join(restricted)} forbids commercial use."]
    return "\n".join(lines)


def _citation() -> str:
    return f"## Citation\n\n{CITATION}"


__all__ = ["PLOT", "metadata_of", "model_card", "shown_recipe"]
