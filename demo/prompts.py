"""Prompts of about 60, 150, 300 and 600 tokens to start from."""

import random
from itertools import accumulate

SIZES = (60, 150, 300, 600)
SEED = 2_100_000_100  # outside every split of `scenes.dataset`
THINGS = {60: 3, 150: 10, 300: 16, 600: 16}
PROSE = (
    "An old harbour town at the end of a rainy summer afternoon, seen from the deck of a small ferry.",
    "In the foreground a wooden jetty leads from the lower left corner towards the houses, its planks dark and wet.",
    "A fisherman in a yellow oilskin coat mends a green net.",
    "Beside him a ginger cat watches three silver herrings in a blue enamel bowl.",
    "Behind them four narrow houses stand wall to wall along the quay.",
    "The first is painted ochre and has white shutters, two of them closed.",
    "The second is a faded rose, and a string of paper lanterns hangs between its upper windows.",
    "The third is a bakery with a copper pretzel above the door and a row of round loaves behind the glass.",
    "The fourth, the smallest, is built of bare grey stone and wears a crooked chimney with a stork's nest on it.",
    "A woman in a long red scarf leans out of the bakery's upper window and shakes a checked tablecloth.",
    "Under the window a boy in a striped shirt balances on a black bicycle that is much too large for him.",
    "A handcart full of lemons has been left at the corner, and one lemon has rolled to the edge of the water.",
    "To the right of the houses a flight of stone steps climbs to a small white chapel with a green door.",
    "On the third step an old man plays the accordion, his hat upside down in front of him with two coins in it.",
    "Five sailing boats lie in the basin, four with brown sails furled and one with a single bright orange sail.",
    "The boat with the orange sail is called Margarethe; the name is written in white letters on its bow.",
    "A heron stands on its rudder with one leg drawn up.",
    "Far behind the harbour wall a lighthouse with a red and white tower sends its first beam into the haze.",
    "Above it the clouds are breaking, and a low sun lays a strip of gold across the water up to the jetty.",
    "Swallows fly under the arch of a small stone bridge on the far left, which a lady crosses with a blue umbrella.",
    "Her reflection and the umbrella's can be seen between the boats, broken by the rings of the last raindrops.",
    "On the quay a chalk drawing of a whale is half washed away by a puddle.",
    "A brass bell, a coil of rope and a lantern with a cracked pane lie next to the mooring post nearest to us.",
    "A sheet of music has blown against the post and sticks to it.",
    "Everything is painted in oil on coarse canvas, with thick light strokes on the water and thin glazes in the sky.",
    "The colours are warm ochre, rose and deep sea green, with small touches of vermilion.",
)


def world_prompts() -> list[str]:
    """Prompts of the embedded family's world, always the same ones."""
    import numpy as np

    from tulip_diffusion.scenes.grammar import write_caption
    from tulip_diffusion.scenes.render import random_scene

    prompts = []
    for number, (size, things) in enumerate(THINGS.items()):
        rng = np.random.default_rng(SEED + number)
        prompts.append(write_caption(rng, random_scene(rng, things), tokens=size).text)
    return prompts


def random_prompt(world: bool) -> str:
    """A prompt that nobody has seen before: of the embedded family's world, or some of the prose."""
    if not world:
        return " ".join(sorted(random.sample(PROSE, random.randint(4, len(PROSE))), key=PROSE.index))
    import numpy as np

    from tulip_diffusion.scenes.grammar import write_caption
    from tulip_diffusion.scenes.render import random_scene

    rng = np.random.default_rng()
    references = {"colour": 0.2} if rng.random() < 0.5 else None
    return write_caption(rng, random_scene(rng, int(rng.integers(3, 17))), references=references).text


def prose_prompts() -> list[str]:
    """One description in natural prose, told at four lengths; a word and a half makes about two tokens."""
    texts = list(accumulate(PROSE, "{} {}".format))
    return [min(texts, key=lambda text: abs(len(text.split()) * 1.2 - size)) for size in SIZES]
