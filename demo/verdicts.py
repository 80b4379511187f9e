"""What a picture of the embedded world shows of its prompt, sentence by sentence."""

from dataclasses import dataclass

from PIL import Image

from tulip_diffusion.evaluation.details import sentences_shown


@dataclass(frozen=True)
class Verdict:
    """One sentence of a prompt; `right` tells whether the picture shows it, None where it says nothing to show."""

    sentence: str
    right: bool | None


def judge(prompt: str, picture: Image.Image) -> list[Verdict]:
    """A verdict on every sentence of a prompt of the embedded world; none for prompts from beyond it."""
    return [Verdict(*shown) for shown in sentences_shown(prompt, picture)]
