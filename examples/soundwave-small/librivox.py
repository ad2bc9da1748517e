"""The five LibriVox clips that ship in `examples/librivox`: validation, never trained on."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LibrivoxClip:
    """One clip: its name in the Debian package `pocketsphinx-testdata` and what is said."""

    name: str
    text: str  # the package's transcript with case and punctuation restored


CLIPS = (
    LibrivoxClip(
        "sense_and_sensibility_01_austen_64kb-0870",
        "And Mister John Dashwood had then leisure to consider how much there might be prudently in his power "
        "to do for them.",
    ),
    LibrivoxClip("sense_and_sensibility_01_austen_64kb-0880", "He was not an ill-disposed young man."),
    LibrivoxClip(
        "sense_and_sensibility_01_austen_64kb-0890",
        "Unless to be rather cold-hearted and rather selfish is to be ill-disposed.",
    ),
    LibrivoxClip(
        # "a more a amiable" is the package's transcript; the book, and what Whisper hears, is "a more amiable".
        "sense_and_sensibility_01_austen_64kb-0920",
        "Had he married a more a amiable woman, he might have been made still more respectable than he was.",
    ),
    LibrivoxClip(
        "sense_and_sensibility_01_austen_64kb-0930",
        "He might even have been made amiable himself.",
    ),
)
