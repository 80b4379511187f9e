"""What a picture of the embedded world shows of its prompt, sentence by sentence."""

from dataclasses import dataclass

from PIL import Image

from tulip_diffusion.scenes.grammar import parse_caption
from tulip_diffusion.scenes.oracle import read_scene


@dataclass(frozen=True)
class Verdict:
    """One sentence of a prompt; `right` tells whether the picture shows it, None where it says nothing to show."""

    sentence: str
    right: bool | None


def judge(prompt: str, picture: Image.Image) -> list[Verdict]:
    """A verdict on every sentence of a prompt of the embedded world; none for prompts from beyond it.

    A thing whose colour is told by a later sentence ("It is pink.") counts where that sentence stands.
    """
    try:
        caption = parse_caption(prompt)
    except ValueError:
        return []
    things = read_scene(picture).things
    rights: dict[int, bool] = {}
    for claim in caption.claims:
        rights[claim.sentence] = rights.get(claim.sentence, True) and things[claim.place] == claim.thing
    return [Verdict(sentence.text, rights.get(index)) for index, sentence in enumerate(caption.sentences)]
