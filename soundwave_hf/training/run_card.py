"""The model card of a run: README.md beside its weights, and the first page of its repository on the Hub."""

from dataclasses import dataclass, field

from ..data.used import read_comment
from ..publish.measured import last_measured


# What loads a run's folder, and what does if PEFT's files in it name no model.
LOADING = "model = SoundwaveForConditionalGeneration.from_pretrained(folder)"
LOADING_ONTO = (
    "from peft import PeftModel\n\n"
    "model = ...  # a `SoundwaveForConditionalGeneration`: the one that was trained, as it was before\n"
    "model = PeftModel.from_pretrained(model, folder)"
)


@dataclass
class RunCard:
    """What a card says beside backbones and measurements.

    Args:
        stage (`str`, *optional*), data (`str`): the recipe's stage, and Markdown that counts its data.
        license (`str`, *optional*): of the trained weights.
        starts (`list[Run]`): the weights that it started from, where only their card is known.
        recipe (`dict`), versions (`dict[str, str]`): keys of the recipe, and versions of the packages.
    """

    stage: str | None = None
    data: str = ""
    license: str | None = None
    recipe: dict = field(default_factory=dict)
    versions: dict = field(default_factory=dict)
    starts: list = field(default_factory=list)

    def text(self, config, history: list[dict], kind: str) -> str:
        """Markdown with metadata.

        Args: config: the model's; history: a trainer's `log_history`; kind: that of `ModelFacts`, or "peft" for files
        of PEFT that name no model.
        """
        # Imported late: the scores in a card come from the package's own evaluation.
        from ..publish.card import model_card
        from ..publish.card_parts import write_card
        from ..publish.facts import ModelFacts
        from ..publish.runs import Run

        data = read_comment(self.data)
        facts = ModelFacts(
            kind="lora" if kind == "peft" else kind,
            encoder=str(config.audio_config.name_or_path),
            llm=str(config.text_config.name_or_path),
            runs=[*self.starts, Run(self.stage, self.recipe, history, data, self.versions)],
            data=data,
            license=self.license or next((run.license for run in self.starts), None),
        )
        metadata, text = model_card(facts)
        return write_card(metadata, text.replace(LOADING, LOADING_ONTO) if kind == "peft" else text)


__all__ = ["RunCard", "last_measured"]
