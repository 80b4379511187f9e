"""The probes of `evaluate positions`: what one sentence or one word does, depending on where it stands."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tulip_diffusion.models.positions import CLIP_LENGTH
from tulip_diffusion.pipelines.attention import long_context_attention, visible_tokens
from tulip_diffusion.scenes.dataset import SPLITS
from tulip_diffusion.scenes.render import render

from .encoders import Embeds
from .needles import Needle, hard_negatives, make_needle, two_colours
from .processes import shared
from .prompts import POSITIONS, bin_means, position_of, prompts_of
from .records import mean_over

EARLY = 0.2  # the part of a text that the early-token bias index is about
TIE = 1e-6  # likenesses closer than this are of texts that the encoder reads alike
TAIL = (0, 40, 77, 154, 248, 350, 500, 750, 1000, 1500, 2048)
Figures = dict[str, Any]


def early_bias(positions: Sequence[float], moved: Sequence[float]) -> float | None:
    """Early-token bias index: the share of a pooled state's movement that the first fifth of a text causes.

    `moved[i]` is how far the pooled state goes (1 - cosine) when one sentence is exchanged at `positions[i]`, the
    place of its first token as a share of the text, 0 to 1, rising. The index is the integral of that curve from 0 to
    0.2 over the one from 0 to 1, linear between the positions and level beyond them: 0.2 where no place counts more
    than another, 1 where the first fifth is all that counts, None where nothing moves.
    """
    grid = (np.arange(1000) + 0.5) / 1000
    heights = np.interp(grid, positions, moved)
    total = heights.sum()
    return float(heights[grid < EARLY].sum() / total) if total > TIE else None


def match_shares(images: Tensor, texts: Tensor) -> tuple[list[float], list[float]]:
    """Which images (n, dim) find their text among the n, and which texts their image, 1 or 0 each; unit vectors.

    Texts that are all alike give 1 / n, as chance does: each is found for the one image that comes first.
    """
    likeness = images @ texts.T
    numbers = torch.arange(len(images))
    hits = [(likeness.argmax(dim) == numbers).float().tolist() for dim in (1, 0)]
    return hits[0], hits[1]


def movement(texts: Tensor) -> float:
    """Mean of 1 - cosine over all pairs of unit vectors (n, dim)."""
    count = len(texts)
    return float((1 - texts @ texts.T).sum() / (count * (count - 1)))


def find_needles(encoder: Embeds, needles: Sequence[Needle], slots: int, name: str = "needles") -> Figures:
    """Needle retrieval by slot, with the movement of the pooled state and the early-token bias index."""
    slots = min(slots, *(len(needle.others) + 1 for needle in needles))

    def at_every_slot(number: int) -> list[tuple[int, float, float, float, list[float], list[float]]]:
        needle = needles[number]
        images = unit(encoder.encode_images([render(scene) for scene in needle.scenes]))
        rows: list[tuple[int, float, float, float, list[float], list[float]]] = []
        for place in needle.slots(slots):
            captions = needle.captions(place)
            texts = unit(encoder.encode_texts([caption.text for caption in captions]))
            token, whole = captions[0].token_spans[place][0], captions[0].tokens
            rows.append((number, token, token / whole, movement(texts), *match_shares(images, texts)))
        return rows

    found = list(zip(*shared(at_every_slot, range(len(needles)), name), strict=True))  # by slot
    figures: Figures = {"slots": {}, "chance": 1 / len(needles[0].scenes)}
    for slot, rows in enumerate(found):
        groups = [number for number, *_, hits, _ in rows for _ in hits]
        figures["slots"][slot] = {
            "position": float(np.mean([row[1] for row in rows])),
            "share of text": float(np.mean([row[2] for row in rows])),
            "image to text": mean_over([hit for row in rows for hit in row[4]], groups),
            "text to image": mean_over([hit for row in rows for hit in row[5]], groups),
            "moved": mean_over([row[3] for row in rows], [row[0] for row in rows]),
        }
    by_slot = list(figures["slots"].values())
    first, last = by_slot[0]["image to text"], by_slot[-1]["image to text"]
    figures["last of first"] = last.mean / first.mean if first.mean else None
    figures["early bias"] = early_bias([s["share of text"] for s in by_slot], [s["moved"].mean for s in by_slot])
    return figures


def prefer_right_colour(encoder: Embeds, prompts: str, count: int, split: str) -> Figures:
    """Share of pictures nearer to their text than to its hard negative, by the position of the colour's sentence.

    A tie, as between texts that differ where the encoder does not read, counts a half.
    """
    captions = prompts_of(prompts, count, split)

    def trials_of(number: int) -> list[tuple[int, int, float]]:
        caption = captions[number]
        negatives = hard_negatives(np.random.default_rng(number), caption)
        if not negatives:
            return []
        image = unit(encoder.encode_images([render(caption.scene)]))[0]
        texts = unit(encoder.encode_texts([caption.text, *(text for _, text in negatives)]))
        own, *others = (texts @ image).tolist()
        return [
            (number, position_of(claim), 0.5 if abs(own - other) < TIE else float(own > other))
            for (claim, _), other in zip(negatives, others, strict=True)
        ]

    trials = [trial for found in shared(trials_of, range(count), f"negatives {prompts}") for trial in found]
    numbers, places, scores = zip(*trials, strict=True) if trials else ((), (), ())
    return {"all": mean_over(scores, numbers), "position": bin_means(places, scores, numbers, POSITIONS)}


def unit(features: Tensor) -> Tensor:
    """`features` at length 1."""
    return F.normalize(features, dim=-1)


def relative_move(pair: Tensor) -> float:
    """||a - b|| / ||a|| of the two entries of a tensor (2, …)."""
    return float((pair[0] - pair[1]).norm() / pair[0].norm())


@torch.no_grad()
def predict_noise(pipeline: Any, states: Tensor, pooled: Tensor, seed: int, timestep: int) -> Tensor:
    """The UNet's prediction for each of `states` (texts, tokens, width), all from the same noise of `seed`."""
    unet = pipeline.unet
    size = unet.config.sample_size
    generator = torch.Generator("cpu").manual_seed(seed)
    noise = torch.randn(1, unet.config.in_channels, size, size, generator=generator).to(states)
    pixels = (size * pipeline.vae_scale_factor,) * 2
    width = pipeline.text_encoder_2.config.projection_dim
    sizes = pipeline._get_add_time_ids(pixels, (0, 0), pixels, states.dtype, width).to(states.device)
    conditions = {"text_embeds": pooled, "time_ids": sizes.repeat(len(states), 1)}
    with long_context_attention([unet], pipeline._conditioning.attention_scale):
        return unet(
            noise.repeat(len(states), 1, 1, 1), timestep, encoder_hidden_states=states, added_cond_kwargs=conditions
        ).sample


@torch.no_grad()
def one_word(pipeline: Any, needle: Needle, slot: int, seed: int, timestep: int) -> Figures:
    """What the needle's changed word moves, each as ||a - b|| / ||a||.

    "pooled": the pooled vector; "word": token states of the word's sentence, None where the encoders do not read it;
    "after": of up to 77 tokens behind it, likewise; "noise": the UNet's prediction from one noise, given all of these.
    """
    one, other = needle.captions(slot)
    start, stop = one.token_spans[slot]
    states, _, pooled, _ = pipeline.encode_prompt([one.text, other.text], do_classifier_free_guidance=False)
    read = min(int(visible_tokens(states)[0].sum()), one.tokens) - 1  # the last one is EOS
    after = slice(stop, min(stop + CLIP_LENGTH, read))
    return {
        "position": start,
        "pooled": relative_move(pooled),
        "word": relative_move(states[:, start:stop]) if stop <= read else None,
        "after": relative_move(states[:, after]) if stop < read else None,
        "noise": relative_move(predict_noise(pipeline, states, pooled, seed, timestep)),
    }


def tail_sensitivity(pipeline: Any, texts: int, tokens: int, split: str, timestep: int = 500) -> Figures:
    """[`one_word`] at every place of `TAIL` in `texts` texts of about `tokens` tokens, averaged over the texts."""
    places = [place for place in TAIL if place <= tokens]

    def at_every_place(number: int) -> list[Figures]:
        rng = np.random.default_rng(SPLITS[split] + number)
        needle = make_needle(rng, tokens, two_colours(rng))
        return [one_word(pipeline, needle, needle.slot_at(place), number, timestep) for place in places]

    by_text = shared(at_every_place, range(texts), "one word")
    rows = {place: list(enumerate(found)) for place, found in zip(places, zip(*by_text, strict=True), strict=True)}
    figures: Figures = {}
    for place, found in rows.items():
        figures[str(place)] = {"position": float(np.mean([row["position"] for _, row in found]))}
        for name in ("pooled", "word", "after", "noise"):
            known = [(number, row[name]) for number, row in found if row[name] is not None]
            figures[str(place)][name] = mean_over([value for _, value in known], [number for number, _ in known])
    return figures
