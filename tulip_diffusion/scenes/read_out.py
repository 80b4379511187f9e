"""Reads place, kind and colour off a text encoder's states: what an encoder knows, apart from what a UNet draws."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from .captions import Caption, Sentence
from .render import PLACES
from .sprites import COLOURS, KINDS

IGNORED = -100  # a target that a sentence does not tell


class ReadOut(nn.Module):
    """Place, kind and colour, read linearly from states of the given width."""

    def __init__(self, width: int):
        super().__init__()
        self.place = nn.Linear(width, PLACES)
        self.kind = nn.Linear(width, len(KINDS) + 1)  # the last: nothing
        self.colour = nn.Linear(width, len(COLOURS))

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(…, width) states to logits of place, kind and colour, (…, classes) each."""
        return self.place(states), self.kind(states), self.colour(states)


def load_read_out(path: Path) -> ReadOut:
    """Heads from a file, as wide as the states that they were fitted to."""
    weights = {name: weight.float() for name, weight in load_file(path).items()}
    heads = ReadOut(weights["place.weight"].shape[1])
    heads.load_state_dict(weights)
    return heads


def sentence_targets(captions: list[Caption]) -> tuple[Tensor, Tensor]:
    """Where sentences end, and what is known there.

    Returns (sentences, 2) of caption index and token index, and (sentences, 3) of place, kind and colour, `IGNORED`
    where the sentence does not tell.
    """
    where, what = [], []
    colours = list(COLOURS)
    for row, caption in enumerate(captions):
        complete = {(claim.sentence, claim.place): claim for claim in caption.claims}
        for index, sentence in enumerate(caption.sentences):
            if not sentence.places:
                continue
            thing = caption.scene.things[sentence.places[0]]
            assert thing is not None
            known = (index, sentence.places[0]) in complete
            place = sentence.places[0] if len(sentence.places) == 1 else IGNORED
            if sentence.role in ("place", "it") and not known:
                continue  # it leads nowhere
            where.append((row, caption.token_spans[index][1] - 1))
            what.append((place, KINDS.index(thing.kind), colours.index(thing.colour) if known else IGNORED))
    return torch.tensor(where).view(-1, 2), torch.tensor(what).view(-1, 3)


def head_accuracies(heads: ReadOut, states: Tensor, captions: list[Caption]) -> dict[str, float]:
    """Share of places, kinds and colours read correctly off `states` (captions, tokens, width) at the sentences' ends.

    `referred colour` and `referred place` are those of the sentences that take their colour from another one.
    """
    where, what = sentence_targets(captions)
    refers = torch.tensor([sentence_at(captions[row], token).role == "colour" for row, token in where.tolist()])
    read = [logits.argmax(-1).cpu() for logits in heads(states[where[:, 0], where[:, 1]])]
    found = {}
    for name, guess, target in zip(("place", "kind", "colour"), read, what.unbind(1), strict=True):
        told = target != IGNORED
        found[name] = (guess == target)[told].float().mean().item()
        found[f"referred {name}"] = (guess == target)[told & refers].float().mean().item()
    return found


def sentence_at(caption: Caption, token: int) -> Sentence:
    """The sentence that holds a token."""
    spans = zip(caption.sentences, caption.token_spans, strict=True)
    return next(sentence for sentence, (start, end) in spans if start <= token < end)
