"""Captions of the world: sentences that know what they claim, so that evaluation knows which token says what."""

from dataclasses import dataclass
from functools import cached_property

from .render import PLACES, Scene, Thing
from .wording import count_tokens


@dataclass(frozen=True)
class Sentence:
    """One sentence. `places` are those it speaks of; `role` is a key of `wording.TEMPLATES`, or "" for an aside.

    `referent` is the place of the earlier thing that it needs to be understood ("the same colour as the tulip").
    """

    text: str
    role: str = ""
    places: tuple[int, ...] = ()
    referent: int | None = None


@dataclass(frozen=True)
class Claim:
    """What a caption says about one place.

    `sentence` is the index of the sentence with which it is complete; `tokens` the first and one past the last token
    of that sentence, counted from 1 behind BOS. A claim that refers back has the `role` of the sentence that does, and
    `distance` is the number of tokens from the end of the sentence referred to to the end of this one.
    """

    place: int
    thing: Thing
    sentence: int
    tokens: tuple[int, int]
    role: str = "thing"
    distance: int | None = None


@dataclass(frozen=True)
class Caption:
    """Sentences about `scene`. A thing that no sentence mentions is not in the scene."""

    scene: Scene
    sentences: tuple[Sentence, ...]

    @cached_property
    def text(self) -> str:
        """The whole text."""
        return " ".join(sentence.text for sentence in self.sentences)

    @cached_property
    def token_spans(self) -> list[tuple[int, int]]:
        """For every sentence its first token and the one past its last; BOS is token 0."""
        spans, start = [], 1
        for sentence in self.sentences:
            spans.append((start, start := start + count_tokens(sentence.text)))
        return spans

    @property
    def tokens(self) -> int:
        """CLIP tokens in all, BOS and EOS included."""
        return self.token_spans[-1][1] + 1 if self.sentences else 2

    def first_mention(self, place: int) -> int | None:
        """Index of the sentence that puts something into `place`."""
        for index, sentence in enumerate(self.sentences):
            if place in sentence.places and sentence.role not in ("it", "every"):
                return index
        return None

    def claim(self, place: int) -> Claim | None:
        """What is said about `place`, or None where a reference leads nowhere or nothing names the colour."""
        index = self.first_mention(place)
        thing = self.scene.things[place]
        if index is None or thing is None:
            return None
        sentence = self.sentences[index]
        if sentence.role == "thing":
            return Claim(place, thing, index, self.token_spans[index])
        if sentence.role in ("colour", "place"):
            referent = None if sentence.referent is None else self.claim(sentence.referent)
            return self.reference(place, thing, index, None if referent is None else referent.sentence)
        for later in range(index + 1, len(self.sentences)):
            if self.sentences[later].role in ("it", "every") and place in self.sentences[later].places:
                return self.reference(place, thing, later, index)
        return None

    def reference(self, place: int, thing: Thing, index: int, source: int | None) -> Claim | None:
        """The claim of sentence `index` that takes its colour from `source`; None if that is no earlier one."""
        if source is None or source >= index:
            return None
        distance = self.token_spans[index][1] - self.token_spans[source][1]
        return Claim(place, thing, index, self.token_spans[index], self.sentences[index].role, distance)

    @cached_property
    def claims(self) -> list[Claim]:
        """One claim for every place of which kind and colour can be known from the text."""
        return [claim for place in range(PLACES) if (claim := self.claim(place))]

    def subset(self, indices) -> "Caption":
        """The caption of these sentences alone, in order; the scene keeps what they mention."""
        sentences = tuple(self.sentences[index] for index in sorted(indices))
        mentioned = {place for sentence in sentences for place in sentence.places}
        things = tuple(thing if place in mentioned else None for place, thing in enumerate(self.scene.things))
        return Caption(Scene(self.scene.cabinet, things), sentences)

    def cut(self, tokens: int) -> "Caption":
        """The leading sentences that fit whole into a window of `tokens` tokens, BOS and EOS included."""
        return self.subset(index for index, (_, end) in enumerate(self.token_spans) if end + 1 <= tokens)
