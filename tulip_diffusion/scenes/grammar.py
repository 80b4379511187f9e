"""Writes captions of random scenes, and parses them."""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from .captions import Caption, Sentence
from .render import CABINETS, COLUMNS, PLACES, ROWS, Scene, Thing
from .sprites import COLOURS, KINDS
from .wording import ASIDES, REMARKS, SIDES, TEMPLATES, count_tokens, fill, parse_freely, parse_sentence

LANDMARKS = 4  # kinds that a scene for references holds at most once


def choose(rng: np.random.Generator, options: Sequence[str]) -> str:
    """One of `options`, each as likely as the others."""
    return options[int(rng.integers(len(options)))]


def landmark_scene(rng: np.random.Generator, count: int) -> Scene:
    """A random scene of `count` things; `LANDMARKS` kinds occur at most once, so "the tulip" can mean one tulip."""
    kinds = list(rng.permutation(KINDS))
    things: list[Thing | None] = [None] * PLACES
    for number, place in enumerate(rng.permutation(PLACES)[:count]):
        kind = kinds[number] if number < LANDMARKS else choose(rng, kinds[LANDMARKS:])
        things[place] = Thing(str(kind), choose(rng, tuple(COLOURS)))
    return Scene(choose(rng, tuple(CABINETS)), tuple(things))


class Writer:
    """Puts the things of one scene into words, one after the other, and remembers what was mentioned."""

    def __init__(self, rng: np.random.Generator, scene: Scene, wording: str, references: Mapping[str, float]):
        self.rng, self.wording, self.references = rng, wording, references
        self.things = {place: thing for place, thing in enumerate(scene.things) if thing}
        self.mentioned: list[int] = []  # places, in order
        self.sentences: list[Sentence] = []

    def say(self, role: str, places: tuple[int, ...], words: Mapping[str, str], referent: int | None = None) -> None:
        """Add a sentence in `role`, in one of the wordings that it has."""
        wording = choose(self.rng, ("long", "short")) if self.wording == "mixed" else self.wording
        template = choose(self.rng, TEMPLATES[role][wording])
        self.sentences.append(Sentence(fill(template, words), role, places, referent))

    def sole(self) -> list[int]:
        """Places whose thing is the only one of its kind so far."""
        kinds = [self.things[place].kind for place in self.mentioned]
        return [place for place in self.mentioned if kinds.count(self.things[place].kind) == 1]

    def describe(self, place: int) -> None:
        """Say what stands in `place`; a reference to a colour gives it the colour of what it refers to."""
        thing = self.things[place]
        words = {
            "row": ROWS[place // len(COLUMNS)],
            "column": COLUMNS[place % len(COLUMNS)],
            "kind": thing.kind,
            "colour": thing.colour,
        }
        role = self.role(place)
        if role == "colour":
            referent = int(self.rng.choice([other for other in self.sole() if self.things[other].kind != thing.kind]))
            self.things[place] = Thing(thing.kind, self.things[referent].colour)
            self.say("colour", (place,), {**words, "other": self.things[referent].kind}, referent)
        elif role == "place":
            referent, side = self.neighbours(place)[0]
            self.say("place", (place,), {**words, "side": side, "other": self.things[referent].kind}, referent)
        elif role == "it":
            self.say("colourless", (place,), words)
            self.say("it", (place,), words)
        else:
            self.say("thing", (place,), words)
        self.mentioned.append(place)

    def role(self, place: int) -> str:
        """Choose at random how `place` is described, among the ways that are open at this point."""
        chance = self.rng.random()
        for role in ("colour", "place", "it"):
            chance -= self.references.get(role, 0)
            if chance < 0:
                others = [other for other in self.sole() if self.things[other].kind != self.things[place].kind]
                open_ = {"colour": bool(others), "place": bool(self.neighbours(place)), "it": True}
                return role if open_[role] else "thing"
        return "thing"

    def neighbours(self, place: int) -> list[tuple[int, str]]:
        """Things mentioned before, each the only one of its kind, that `place` is beside, and on which side."""
        found = []
        for side, step in SIDES.items():
            other = place - step
            same_row = other // len(COLUMNS) == place // len(COLUMNS)
            if other in self.sole() and (abs(step) > 1 or same_row):
                found.append((other, side))
        return found

    def describe_every(self, places: list[int]) -> None:
        """Mention these things of one kind without their colour, then give it to all of them at once."""
        colour = self.things[places[0]].colour
        for place in places:
            thing = self.things[place] = Thing(self.things[place].kind, colour)
            row, column = ROWS[place // len(COLUMNS)], COLUMNS[place % len(COLUMNS)]
            self.say("colourless", (place,), {"row": row, "column": column, "kind": thing.kind})
        self.mentioned += places
        self.say("every", tuple(places), {"kind": thing.kind, "colour": colour})


def write_caption(
    rng: np.random.Generator,
    scene: Scene,
    wording: str = "long",
    references: Mapping[str, float] | None = None,
    cabinet: bool = True,
    tokens: int | None = None,
) -> Caption:
    """Describe `scene`, thing by thing in random order.

    Args:
        wording: "long" (about 14 tokens a thing), "short" (about 6), "terse" (5) or "mixed" (long and short).
        references: share of the things described by "colour" ("in the same colour as the tulip"), "place" ("to the
            right of the boat"), "it" (colour in a sentence of its own) and, for the scene, the chance of one "every"
            ("every cup mentioned so far is red"). Things whose colour is given by another's take it over, so the
            caption's scene can differ from the one passed in.
        cabinet: whether a sentence, anywhere, names the cabinet.
        tokens: make the caption about this long with remarks and asides that say nothing about the picture.
    """
    references = references or {}
    writer = Writer(rng, scene, wording, references)
    order = [int(place) for place in rng.permutation(scene.occupied)]
    together = shared_kind(rng, scene) if rng.random() < references.get("every", 0) else []
    turn = int(rng.integers(len(order) + 1))
    for number, place in enumerate(order):
        if number == turn and together:
            writer.describe_every(together)
        if place not in together:
            writer.describe(place)
    if turn >= len(order) and together:
        writer.describe_every(together)
    sentences = writer.sentences
    if cabinet:
        writer.say("cabinet", (), {"cabinet": scene.cabinet})
        sentences.insert(int(rng.integers(len(sentences))), sentences.pop())
    if tokens is not None:
        pad_sentences(rng, sentences, tokens)
    things = tuple(writer.things.get(place) for place in range(PLACES))
    return Caption(Scene(scene.cabinet, things), tuple(sentences))


def shared_kind(rng: np.random.Generator, scene: Scene) -> list[int]:
    """Places of all the things of one kind, three at most of them, or none for an empty scene."""
    kinds = [thing.kind if thing else None for thing in scene.things]
    present = sorted({kind for kind in kinds if kind})
    if not present:
        return []
    chosen = choose(rng, present)
    places = [place for place, kind in enumerate(kinds) if kind == chosen]
    return places if len(places) <= 3 else []


def pad_sentences(rng: np.random.Generator, sentences: list[Sentence], tokens: int) -> None:
    """Insert remarks behind things and asides anywhere until the caption has about `tokens` tokens."""
    missing = tokens - 2 - sum(count_tokens(sentence.text) for sentence in sentences)
    while True:
        index = int(rng.integers(len(sentences) + 1))
        told = index > 0 and sentences[index - 1].role in ("thing", "colour", "it")
        aside = choose(rng, REMARKS if told and rng.random() < 0.5 else ASIDES)
        missing -= count_tokens(aside)
        if missing < 0:
            return
        sentences.insert(index, Sentence(aside))


class Parser:
    """Parses sentences one after the other and remembers what was mentioned, as `Writer` does when it writes them."""

    def __init__(self) -> None:
        self.cabinet = next(iter(CABINETS))
        self.kinds: dict[int, str] = {}  # by place, in order of mention
        self.colours: dict[int, str] = {}
        self.sentences: list[Sentence] = []

    def parse(self, text: str) -> None:
        """Take in one sentence, with or without its full stop."""
        known = parse_sentence(text if text.endswith(".") else text + ".")
        if known is None:
            self.parse_freely(text)
            return
        role, words = known
        referent = self.referent(words["other"]) if "other" in words else None
        places = self.places(role, words, referent)
        if role == "cabinet":
            self.cabinet = words["cabinet"]
        colour = words.get("colour") or self.colours.get(-1 if referent is None else referent)
        for place in places:
            if role not in ("it", "every"):
                self.kinds[place] = words["kind"]
            if colour is not None:
                self.colours[place] = colour
        self.sentences.append(Sentence(text, role, places, referent))

    def parse_freely(self, text: str) -> None:
        """A sentence that the grammar does not write, by the world's words in it; an aside where they say nothing."""
        places: list[int] = []
        for words in parse_freely(text):
            places += self.places("thing", words, None)
            self.kinds[places[-1]], self.colours[places[-1]] = words["kind"], words["colour"]
        self.sentences.append(Sentence(text, "thing" if places else "", tuple(places)))

    def referent(self, kind: str) -> int | None:
        """The place of "the tulip", None unless exactly one was mentioned."""
        places = [place for place, mentioned in self.kinds.items() if mentioned == kind]
        return places[0] if len(places) == 1 else None

    def places(self, role: str, words: Mapping[str, str], referent: int | None) -> tuple[int, ...]:
        """The places that a sentence speaks of."""
        if role == "it":
            return tuple(self.kinds)[-1:]
        if role == "every":
            return tuple(place for place, kind in self.kinds.items() if kind == words["kind"])
        if role == "place":
            beside = -1 if referent is None else referent + SIDES[words["side"]]
            return (beside,) if 0 <= beside < PLACES else ()
        if role == "cabinet":
            return ()
        return (ROWS.index(words["row"]) * len(COLUMNS) + COLUMNS.index(words["column"]),)

    def scene(self) -> Scene:
        """What the sentences so far put into places; a thing without a colour is left out."""
        things: list[Thing | None] = [None] * PLACES
        for place, kind in self.kinds.items():
            if place in self.colours:
                things[place] = Thing(kind, self.colours[place])
        return Scene(self.cabinet, tuple(things))


def parse_caption(text: str) -> Caption:
    """Parse a text of this world, resolving its references.

    Sentences that the grammar does not write are taken by the world's words in them, in whatever order; those that say
    nothing of a thing in a place are asides.

    Raises:
        ValueError: the text says nothing that the world could show.
    """
    parser = Parser()
    for part in re.findall(r"[^.!?;\n]+[.!?;]?", text):
        if part.strip():
            parser.parse(part.strip())
    caption = Caption(parser.scene(), tuple(parser.sentences))
    if not caption.claims:
        raise ValueError(f"Nothing in {text[:60]!r} says which thing of which colour stands in which place.")
    return caption
