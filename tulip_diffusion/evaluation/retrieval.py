"""Retrieval of images by captions and of captions by images: R@K by chunks, for any encoder and any scoring.

*Protocol*, as in the published scripts: similarity is the cosine in single precision; an image finds its caption at K
if any of its own captions (one, or five for COCO and Flickr30k) is among the K captions most similar to it, a caption
finds its image if that is among the K most similar images.

*Ties.* The published scripts leave the order of equal scores to their sorting routine. Here a tie counts as what a
random order would give on average, so a model that says the same of everything scores K / n, and without ties the
figures are the scripts' own. Ties are common where captions differ only behind a cut.

*Scoring.* Anything else than the cosine, such as late interaction, is a function `score(images, texts)` of two blocks
of features, (n, …) and (m, …), that returns (n, m); larger is more similar. The features may have any shape behind
their first axis and reach `score` as they are. FineLIP's are (n, slots + 1, dim), compared slot by slot:

    from tulip_diffusion.models.finelip import fine_score

    recall_at_k(image_features, text_features, image_of_text, score=fine_score)
"""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from tulip_diffusion.files import replacing

from .choices import Choice, choice_accuracy, fg_ovd, world_choices
from .datasets import WORLD, RetrievalSet, load_retrieval_set, world_set
from .embeddings import embed
from .encoders import Encoder, Score, open_pair, published_length
from .examples import retrieval_examples
from .papers import PUBLISHED
from .plots import figure, legend
from .processes import is_first
from .records import markdown, write_record
from .variants import varied

DIRECTIONS = {"i2t": "image to text", "t2i": "text to image"}
KS = (1, 5, 10)


def recall_at_k(
    image_embeds: Tensor,
    text_embeds: Tensor,
    image_of_text: Sequence[int] | Tensor,
    ks: Iterable[int] = KS,
    *,
    score: Score | None = None,
    block: tuple[int, int] = (1024, 4096),
    progress: bool = False,
) -> dict[str, float]:
    """R@K in both directions, as {"i2t_R@1": 0.41, …, "t2i_R@10": 0.77}.

    Args:
        image_embeds: (images, dim), normalised here; with `score` (images, …), used as given.
        text_embeds: (texts, dim), likewise.
        image_of_text: for every text the number of its image. Every image has one text or more.
        score: similarity of two blocks, the cosine by default; see the module's docstring.
        block: how many images and how many texts are compared at a time; the whole matrix is never held.

    Raises:
        ValueError: shapes do not fit, an image has no text, a K is below 1, or a score is not finite.
    """
    ks = tuple(ks)
    if any(k < 1 for k in ks):
        raise ValueError(f"ks must be 1 or more, got {ks}.")
    owner = checked_owners(image_embeds, text_embeds, image_of_text)
    if score is None:
        if image_embeds.shape[1:] != text_embeds.shape[1:] or image_embeds.ndim != 2:
            shapes = f"{tuple(image_embeds.shape)} and {tuple(text_embeds.shape)}"
            raise ValueError(f"Images and texts must be (n, dim) with one dim, got {shapes}; else pass `score`.")
        # Double, rounded to single: equal embeddings then score equally in whichever block they stand.
        image_embeds, text_embeds = (F.normalize(e.double(), dim=-1) for e in (image_embeds, text_embeds))
        score = dot
    found = standings(image_embeds, text_embeds, owner, score, block, progress)
    return {
        f"{direction}_R@{k}": hits(standing, k).mean().item()
        for direction, standing in zip(DIRECTIONS, found, strict=True)
        for k in ks
    }


def checked_owners(images: Tensor, texts: Tensor, image_of_text: Sequence[int] | Tensor) -> Tensor:
    """`image_of_text` as a tensor (texts,).

    Raises:
        ValueError: an image or a text has no partner.
    """
    owner = torch.as_tensor(image_of_text, dtype=torch.long, device=texts.device)
    if owner.shape != (len(texts),):
        raise ValueError(f"image_of_text must hold one image for each of {len(texts)} texts, got {len(owner)}.")
    if len(texts) == 0 or owner.min() < 0 or owner.max() >= len(images):
        raise ValueError(f"image_of_text must hold numbers of {len(images)} images, from 0 on, and not be empty.")
    without = (torch.bincount(owner, minlength=len(images)) == 0).nonzero().flatten()
    if len(without):
        raise ValueError(f"Image {without[0]} has no text in image_of_text; leave such images out.")
    return owner


def dot(images: Tensor, texts: Tensor) -> Tensor:
    """Scalar products (images, texts) in float32."""
    return (images @ texts.T).float()


class Standing(NamedTuple):
    """Where the best own match of every query stands, three counts each (queries,)."""

    above: Tensor  # candidates of others with a greater score
    level: Tensor  # candidates of others with the same score
    own: Tensor  # own matches with that score


def standings(
    images: Tensor, texts: Tensor, owner: Tensor, score: Score, block: tuple[int, int], progress: bool = False
) -> tuple[Standing, Standing]:
    """Standings of all images among the texts and of all texts among the images."""
    own = own_scores(images, texts, owner, score, block[0])
    best = own.new_full((len(images),), float("-inf")).scatter_reduce(0, owner, own, "amax")
    ties = torch.zeros_like(best).scatter_add(0, owner, (own == best[owner]).to(best.dtype)).long()
    of_images = Standing(torch.zeros_like(ties), torch.zeros_like(ties), ties)
    of_texts = Standing(torch.zeros_like(owner), torch.zeros_like(owner), torch.ones_like(owner))
    numbers = torch.arange(len(images), device=owner.device)
    for first in tqdm(range(0, len(images), block[0]), desc="ranks", disable=not progress, mininterval=5):
        rows = slice(first, first + block[0])
        for start in range(0, len(texts), block[1]):
            columns = slice(start, start + block[1])
            scores = finite(score(images[rows], texts[columns]))
            others = numbers[rows, None] != owner[None, columns]
            for standing, part, mine, axis in (
                (of_images, rows, best[rows, None], 1),
                (of_texts, columns, own[None, columns], 0),
            ):
                standing.above[part] += count((scores > mine) & others, axis)
                standing.level[part] += count((scores == mine) & others, axis)
    return of_images, of_texts


def count(found: Tensor, axis: int) -> Tensor:
    """How many are True along `axis`."""
    return found.sum(axis, dtype=torch.int32)  # into int64, the default, it takes five times as long on a CPU


def own_scores(images: Tensor, texts: Tensor, owner: Tensor, score: Score, rows: int) -> Tensor:
    """Score of every text with its own image, (texts,)."""
    parts, order = [], []
    for first in range(0, len(images), rows):
        mine = ((owner >= first) & (owner < first + rows)).nonzero().flatten()
        scores = finite(score(images[first : first + rows], texts[mine]))
        parts.append(scores[owner[mine] - first, torch.arange(len(mine), device=owner.device)])
        order.append(mine)
    scores = torch.cat(parts)
    return torch.empty_like(scores).scatter(0, torch.cat(order), scores)


def finite(scores: Tensor) -> Tensor:
    """`scores` as they are.

    Raises:
        ValueError: one is NaN or infinite.
    """
    if not scores.sum().isfinite():
        raise ValueError("A similarity is not a finite number: an embedding holds NaN or infinity.")
    return scores


def hits(standing: Standing, k: int) -> Tensor:
    """For every query the chance that an own match is among the first `k` when ties fall at random: 0 or 1 without.

    The `level` + `own` equal candidates share the k - `above` next ranks; all of these go to others with the chance
    C(level, ranks) / C(level + own, ranks).
    """
    above, level, own = (count.double() for count in standing)
    ranks = k - above
    drawn = ranks.clamp(min=0).minimum(level)
    logarithm = log_choose(level, drawn) - log_choose(level + own, drawn)
    return torch.where(ranks > level, 1.0, 1 - logarithm.exp())


def log_choose(n: Tensor, k: Tensor) -> Tensor:
    """Logarithm of the number of ways to take k of n."""
    return torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)


def open_data(options: argparse.Namespace) -> list[RetrievalSet]:
    """The sets of `--data`, all opened before anything is encoded."""
    sets = []
    for entry in (entry for entry in options.data if not is_choice(entry)):
        name, _, path = entry.partition("=")
        if path:
            sets.append(load_retrieval_set(name, path, options.images))
        elif name in WORLD:
            sets.append(world_set(name, options.count))
        else:
            raise ValueError(f"--data {entry}: give NAME=PATH for data on disk, or one of {', '.join(WORLD)}.")
    return [one for data in sets for one in (data, *(varied(data, variant) for variant in options.variants))]


def open_choices(options: argparse.Namespace) -> dict[str, list[Choice]]:
    """The sets of `--data` with one right caption among several a picture, by their names."""
    found = {}
    for entry in filter(is_choice, options.data):
        name, _, path = entry.partition("=")
        if name == "world-details":
            found[name] = world_choices(options.count)
        elif not path or options.images is None:
            raise ValueError("--data fg-ovd needs its file, fg-ovd=3_attributes.json, and COCO's folder by --images.")
        else:
            found[f"fg-ovd {Path(path).stem}"] = fg_ovd(Path(path), options.images)
    return found


def is_choice(entry: str) -> bool:
    """Whether an entry of --data asks for choices among captions instead of retrieval."""
    return entry.partition("=")[0] in ("fg-ovd", "world-details")


def run(options: argparse.Namespace) -> None:
    """The command: encode, rank, write."""
    sets, choices = open_data(options), open_choices(options)
    chosen: dict[str, dict[str, Any]] = {name: {} for name in choices}
    results: dict[str, dict[str, Any]] = {data.name: {} for data in sets}
    for source in options.encoders:
        encoder = open_pair(source, options)
        if isinstance(encoder, Encoder):
            encoder.length = published_length(encoder)
        for data in sets:
            images, texts = embed(encoder, data, options.cache, options.batch, progress=True)
            figures = recall_over_folds(images, texts, data, encoder.score)
            sizes = {"images": len(images), "texts": len(texts), "length": encoder.length}
            results[data.name][encoder.name] = {**figures, **sizes}
            print(f"{data.name}, {encoder.name}: {summary(figures)}", flush=True)
            if is_first():
                with replacing(options.out / f"examples-{data.name}-{file_name(encoder.name)}.png") as unfinished:
                    retrieval_examples(data, images, texts, encoder.score).save(unfinished)
        for name, choice in choices.items():
            chosen[name][encoder.name] = choice_accuracy(encoder, choice, f"{encoder.name}, {name}")
    parts = [f"## {name}\n\n{recall_table(name, rows)}" for name, rows in results.items()] + [NOTE] * bool(results)
    parts += [choice_table(chosen)] * bool(chosen)
    print("\n" + "\n\n".join(parts))
    if is_first():
        if results:
            plot(results, options.out / "retrieval.png")
        published = {name: PUBLISHED[name] for name in results if name in PUBLISHED}
        record = {"measured": results, "choices": chosen, "published": published}
        write_record("retrieval", options, record, "\n\n".join(parts))


def recall_over_folds(images: Tensor, texts: Tensor, data: RetrievalSet, score: Score | None) -> dict[str, float]:
    """[`recall_at_k`] within each of the set's folds of images, averaged."""
    owner, size = torch.as_tensor(data.image_of_text), len(images) // data.folds
    found = []
    for first in range(0, len(images), size):
        mine = (owner >= first) & (owner < first + size)
        part = images[first : first + size], texts[mine], owner[mine] - first
        found.append(recall_at_k(*part, score=score, progress=len(images) > 5000))
    return {name: sum(figures[name] for figures in found) / len(found) for name in found[0]}


def choice_table(chosen: dict[str, dict[str, Any]]) -> str:
    """Choices made right by each encoder, as a Markdown table."""
    encoders = list(dict.fromkeys(name for rows in chosen.values() for name in rows))
    rows = [
        [name, *(found[encoder]["right"] for encoder in encoders), next(iter(found.values()))["chance"]]
        for name, found in chosen.items()
    ]
    title = "Right caption chosen among those that differ in a detail"
    return f"## Details\n\n{title}\n\n{markdown(['', *encoders, 'chance'], rows)}"


def summary(figures: dict[str, float]) -> str:
    """R@1 in both directions, in one line."""
    return ", ".join(f"{name.replace('_', ' ')} {figures[name]:.3f}" for name in ("i2t_R@1", "t2i_R@1"))


def file_name(name: str) -> str:
    """`name` with letters and digits only, and hyphens for the rest."""
    return "".join(letter if letter.isalnum() or letter in "-." else "-" for letter in name)


NOTE = (
    "R@K in per cent, with half the width of a 95 % interval (Wilson's, over queries) behind R@1. Rows in italics are "
    "published in papers, not measured here."
)


def recall_table(name: str, rows: dict[str, dict[str, Any]]) -> str:
    """Measured rows, then published ones in italics, as Markdown."""
    columns = [f"{direction}_R@{k}" for direction in DIRECTIONS for k in KS]
    head = ["", *(f"{DIRECTIONS[column[:3]]} {column[4:]}" for column in columns)]
    lines = [[encoder, *(recall_cell(figures, column) for column in columns)] for encoder, figures in rows.items()]
    for model, pair in PUBLISHED.get(name, {}).items():
        figures = dict(zip(("i2t_R@1", "t2i_R@1"), pair, strict=True))
        cells = ["" if figures.get(column) is None else f"*{figures[column]:.1f}*" for column in columns]
        lines.append([f"*{model}, published*", *cells])
    return markdown(head, lines)


def recall_cell(figures: dict[str, Any], column: str) -> str:
    """A recall in per cent, R@1 with its 95 % half-width."""
    share = figures[column]
    if not column.endswith("R@1"):
        return f"{100 * share:.1f}"
    return f"{100 * share:.1f} ± {100 * half_width(share, figures['images' if column[0] == 'i' else 'texts']):.1f}"


def half_width(share: float, queries: int) -> float:
    """Of Wilson's 95 % interval for a share of `queries`, which stays open at 0 and at 1."""
    z = 1.96
    return z * (share * (1 - share) / queries + (z / (2 * queries)) ** 2) ** 0.5 / (1 + z**2 / queries)


def plot(results: dict[str, dict[str, Any]], out: Path) -> None:
    """R@1 of both directions as bars: a panel a data set, a pair of bars an encoder, published ones hatched."""
    with figure(out, columns=len(results), size=(3.2, 4)) as panels:
        for axes, (name, rows) in zip(panels[0], results.items(), strict=True):
            measured = {encoder: (row["i2t_R@1"], row["t2i_R@1"]) for encoder, row in rows.items()}
            published = {
                f"{model}, published": [(v or 0) / 100 for v in pair]
                for model, pair in PUBLISHED.get(name, {}).items()
            }
            bars = {**measured, **published}
            for offset, (direction, colour) in enumerate(zip(DIRECTIONS.values(), ("C0", "C1"), strict=True)):
                heights = [pair[offset] for pair in bars.values()]
                places = [number + 0.4 * offset - 0.2 for number in range(len(bars))]
                drawn = axes.bar(places, heights, 0.38, color=colour, label=direction)
                for bar in list(drawn)[len(measured) :]:
                    bar.set(hatch="//", alpha=0.5)
            axes.set(title=name, ylim=(0, 1.02))
            axes.set_xticks(range(len(bars)), bars, rotation=45, ha="right")
        panels[0][0].set_ylabel("R@1")
        legend(panels[0][-1])
