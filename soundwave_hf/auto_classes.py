"""Makes the Auto classes of transformers know the model type `soundwave`, without importing transformers or torch.

transformers keeps tables of names ("whisper" -> "WhisperConfig") and imports `transformers.models.whisper` when such a
name is used. Soundwave is entered into the same tables by name, and this package, which resolves its names lazily,
stands where the module of that model type would stand. Tables that are loaded already are filled at once, the others
when transformers loads them.

`AutoConfig.register` and its kin take classes: they would import torch, seconds of it, before `soundwave-hf --help`
prints a line, or, called while transformers is being imported, import the model from a half-finished transformers.
"""

import importlib.abc
import importlib.machinery
import sys
from collections import ChainMap
from types import ModuleType


MODEL_TYPE = "soundwave"
PUBLISHED_MODEL_TYPE = "Soundwave"  # of the authors' checkpoints: our config refuses it, and says how to convert it
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
    """Enter the classes of `package`, which resolves them by attribute, into the tables of transformers."""
    for model_type in (MODEL_TYPE, PUBLISHED_MODEL_TYPE):
        sys.modules[f"transformers.models.{model_type}"] = package
    for name in TABLES:
        if name in sys.modules:
            fill_tables(sys.modules[name])
    if not any(isinstance(finder, AutoModuleFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, AutoModuleFinder())


def fill_tables(module: ModuleType):
    """Enter Soundwave into the tables of one module of transformers."""
    add_names(sys.modules["transformers"])
    if module.__name__ == "transformers.pipelines":
        add_pipeline(module)
    for table, class_name in TABLES[module.__name__].items():
        getattr(module, f"{table}_NAMES")[MODEL_TYPE] = class_name
        if table == "CONFIG_MAPPING":
            getattr(module, f"{table}_NAMES")[PUBLISHED_MODEL_TYPE] = class_name
        # Built from the config names when its module was imported, which may have been before this entry.
        reverse = getattr(getattr(module, table), "_reverse_config_mapping", {})
        reverse[CONFIG_CLASS] = MODEL_TYPE
        if table == "MODEL_MAPPING":
            give_generating_model(getattr(module, table), getattr(module, f"{table}_NAMES"))


def give_generating_model(mapping, names: dict):
    """`AutoModel` gives the model that generates, as in speech models with remote code.

    The names stay those of bare models, from which the library reads which classes take no labels.
    """
    mapping._model_mapping = ChainMap({MODEL_TYPE: MODEL_CLASS}, names)


def add_names(transformers: ModuleType):
    """`transformers.SoundwaveForConditionalGeneration`, where `transformers serve` looks for a model's class.

    `transformers.processing_utils` puts a second `transformers` in the place of the first, which gets the names too.
    """
    for name in (CONFIG_CLASS, MODEL_CLASS, PROCESSOR_CLASS):
        transformers._class_to_module[name] = f"models.{MODEL_TYPE}"


def add_pipeline(pipelines: ModuleType):
    """The task `soundwave-asr`; the class is imported when the task is asked for."""
    pipelines.PIPELINE_REGISTRY.supported_tasks[PIPELINE_TASK] = {
        "impl": PIPELINE_CLASS,
        "pt": (pipelines.AutoModelForMultimodalLM,),
        "type": "multimodal",
    }


class AutoModuleFinder(importlib.abc.MetaPathFinder):
    """Fills the tables of a module of transformers right after the import system has run it."""

    def find_spec(self, fullname, path, target=None):
        if fullname not in TABLES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return None
        run_module = spec.loader.exec_module

        def run_and_fill(module: ModuleType):
            run_module(module)
            fill_tables(sys.modules[module.__name__])  # transformers puts another object in the place of its module

        spec.loader.exec_module = run_and_fill
        return spec
