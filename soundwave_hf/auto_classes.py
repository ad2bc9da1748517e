"""Registers Soundwave with the Auto classes of transformers, without importing transformers or torch.

transformers keeps tables of names ("whisper" -> "WhisperConfig") and imports `transformers.models.whisper` when such a
name is used. This file adds Soundwave's names to these tables. It registers this package, which imports its classes
lazily, as the module of the model type. Tables that are already loaded are filled at once. An import hook fills the
others right after transformers loads them.

Why a hook and not `AutoConfig.register`: `register` needs the classes, and importing them is slow. CPU seconds of a
process, measured with `TIMEFORMAT=%U; time python -c "..."` on two cores that also ran other work (transformers 5.23,
torch 2.13):

    import soundwave_hf, or `soundwave-hf --help`                                       0.1
    from transformers import AutoConfig (the least that `AutoConfig.register` needs)    5.0
    the config, model and processor classes (what all `register` calls need)            9.7

Registering only if transformers is already imported would miss scripts that import it after soundwave_hf.
"""

import importlib.abc
import importlib.machinery
import sys
from collections import ChainMap
from types import ModuleType


MODEL_TYPE = "soundwave"
PUBLISHED_MODEL_TYPE = "Soundwave"  # of the authors' checkpoints; our config's error says how to convert them
CONFIG_CLASS = "SoundwaveConfig"
PROCESSOR_CLASS = "SoundwaveProcessor"
PIPELINE_TASK = "soundwave-asr"
PIPELINE_CLASS = "soundwave_hf.modeling.pipeline_soundwave.SoundwaveSpeechRecognitionPipeline"
MODEL_CLASS = "SoundwaveForConditionalGeneration"
BARE_CLASS = "SoundwaveModel"

# module of transformers -> its table -> our class in that table
TABLES: dict[str, dict[str, str]] = {
    "transformers": {},
    "transformers.processing_utils": {},
    "transformers.pipelines": {},
    "transformers.models.auto.configuration_auto": {"CONFIG_MAPPING": CONFIG_CLASS},
    "transformers.models.auto.modeling_auto": {
        "MODEL_MAPPING": BARE_CLASS,
        "MODEL_FOR_MULTIMODAL_LM_MAPPING": MODEL_CLASS,
        "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING": MODEL_CLASS,
        "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING": MODEL_CLASS,
    },
    "transformers.models.auto.processing_auto": {"PROCESSOR_MAPPING": PROCESSOR_CLASS},
}


def register(package: ModuleType):
    """Add the classes of `package` to the tables of transformers. `package` imports each class when it is accessed."""
    for model_type in (MODEL_TYPE, PUBLISHED_MODEL_TYPE):
        sys.modules[f"transformers.models.{model_type}"] = package
    for name in TABLES:
        if name in sys.modules:
            fill_tables(sys.modules[name])
    if not any(isinstance(finder, AutoModuleFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, AutoModuleFinder())


def fill_tables(module: ModuleType):
    """Add Soundwave to the tables of one module of transformers."""
    add_names(sys.modules["transformers"])
    if module.__name__ == "transformers.pipelines":
        add_pipeline(module)
    for table, class_name in TABLES[module.__name__].items():
        getattr(module, f"{table}_NAMES")[MODEL_TYPE] = class_name
        if table == "CONFIG_MAPPING":
            getattr(module, f"{table}_NAMES")[PUBLISHED_MODEL_TYPE] = class_name
        # The library built this table when the module was imported, maybe before this name was added.
        reverse = getattr(getattr(module, table), "_reverse_config_mapping", {})
        reverse[CONFIG_CLASS] = MODEL_TYPE
        if table == "MODEL_MAPPING":
            give_generating_model(getattr(module, table), getattr(module, f"{table}_NAMES"))


def give_generating_model(mapping, names: dict):
    """Make `AutoModel` load the model that generates, as speech models with remote code do.

    The table of names keeps the bare model, because the library reads there which classes take no labels.
    """
    mapping._model_mapping = ChainMap({MODEL_TYPE: MODEL_CLASS}, names)


def add_names(transformers: ModuleType):
    """Add `transformers.SoundwaveForConditionalGeneration`: `transformers serve` looks for a model's class there.

    `transformers.processing_utils` replaces the module `transformers` by another one, which needs the names too.
    """
    for name in (CONFIG_CLASS, MODEL_CLASS, PROCESSOR_CLASS):
        transformers._class_to_module[name] = f"models.{MODEL_TYPE}"


def add_pipeline(pipelines: ModuleType):
    """Add the task `soundwave-asr`. Its class is imported when the task is used."""
    pipelines.PIPELINE_REGISTRY.supported_tasks[PIPELINE_TASK] = {
        "impl": PIPELINE_CLASS,
        "pt": (pipelines.AutoModelForMultimodalLM,),
        "type": "multimodal",
    }


class AutoModuleFinder(importlib.abc.MetaPathFinder):
    """Fills the tables of a module of transformers right after it was imported."""

    def find_spec(self, fullname, path, target=None):
        if fullname not in TABLES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return None
        run_module = spec.loader.exec_module

        def run_and_fill(module: ModuleType):
            run_module(module)
            fill_tables(sys.modules[module.__name__])  # transformers replaces the module object

        spec.loader.exec_module = run_and_fill
        return spec
