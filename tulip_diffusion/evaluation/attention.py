"""What the pooled state looks at: attention of the EOS query in the last block over a long caption (TULIP, Fig. 5).

The paper shows that TULIP's attention spreads over the whole caption where Long-CLIP's stays with its beginning. Here
the spread is a number as well. BOS, on which much attention rests that says nothing, and EOS itself are counted apart:
everything else is the *words*, and their attention is shared out to sum to 1.
"""

import argparse
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tulip_diffusion.data import open_captions
from tulip_diffusion.models.positions import CLIP_LENGTH

from .encoders import Encoder, open_encoder
from .plots import curve, figure, legend, level, middles, shaded_words
from .processes import is_first, shared
from .prompts import position_after, prompts_of
from .records import markdown, mean_over, write_record

BIN = 20  # tokens


@torch.no_grad()
def eos_attention(encoder: Encoder, text: str) -> tuple[list[str], Tensor]:
    """The tokens of `text` that the encoder reads, and their attention from EOS in the last block, (heads, tokens).

    Tokens are spelt as the vocabulary does, BOS and EOS included; every head's attention sums to 1.
    """
    tower = encoder.towers.text_encoder
    ids = encoder.enclose(encoder.tokenize([text])[0])
    before = tower.config._attn_implementation
    tower.set_attn_implementation("eager")  # the others do not tell
    try:
        attentions = tower(ids[None].to(encoder.device), output_attentions=True).attentions
    finally:
        tower.set_attn_implementation(before)
    return encoder.tokenizer.convert_ids_to_tokens(ids.tolist()), attentions[-1][0, :, -1].float().cpu()


def entropy(weights: Tensor) -> Tensor:
    """-sum p ln p over the last dimension, in nats; 0 ln 0 is 0."""
    return torch.special.entr(weights).sum(dim=-1)


def words_of(attention: Tensor) -> Tensor:
    """Attention (heads, tokens) on the words alone, each head's made to sum to 1 again."""
    words = attention[:, 1:-1]
    return words / words.sum(dim=-1, keepdim=True).clamp(min=1e-12)


def spread(attention: Tensor) -> dict[str, float]:
    """How one text's attention (heads, tokens), BOS first and EOS last, is spread; means over heads.

    "entropy": of the words, in nats, and "of uniform" as a share of the ln(words) that an even spread has; "effective
    words": the exponential of the entropy of the heads' mean, so many words would an even spread of this entropy have;
    "bos", "eos": attention that rests there; "beyond 77" and "last quarter": the words' attention there over what an
    even spread would put there, so 1 is even.
    """
    words = words_of(attention)
    count = words.shape[1]
    positions = torch.arange(1, count + 1)
    unseen = torch.tensor([position_after(token) > CLIP_LENGTH for token in range(1, count + 1)])
    figures = {
        "entropy": entropy(words).mean().item(),
        "of uniform": (entropy(words).mean() / torch.tensor(float(count)).log()).item(),
        "effective words": entropy(words.mean(dim=0)).exp().item(),
        "bos": attention[:, 0].mean().item(),
        "eos": attention[:, -1].mean().item(),
    }
    for name, place in (("beyond 77", unseen), ("last quarter", positions > 0.75 * count)):
        if place.any():
            figures[name] = (words[:, place].sum(dim=1).mean() / place.float().mean()).item()
    return figures


def by_position(words: Tensor) -> dict[str, float]:
    """Mean attention on the words (words,) of each bin of `BIN` tokens, over that of an even spread."""
    edges = range(1, len(words) + BIN, BIN)
    shares = [words[low - 1 : high - 1] for low, high in pairwise(edges)]
    return {f"{low}-{low + BIN}": part.mean().item() * len(words) for low, part in zip(edges, shares, strict=False)}


def measure(encoder: Encoder, texts: Sequence[str], name: str) -> dict[str, Any]:
    """Means of [`spread`] and [`by_position`] over `texts`."""
    spreads: dict[str, list[tuple[int, float]]] = {}
    bins: dict[str, list[tuple[int, float]]] = {}
    attentions = shared(lambda text: eos_attention(encoder, text)[1], texts, name)
    for number, attention in enumerate(attentions):
        mean = words_of(attention).mean(dim=0)
        for collected, figures in ((spreads, spread(attention)), (bins, by_position(mean))):
            for key, value in figures.items():
                collected.setdefault(key, []).append((number, value))
    averaged = [
        {key: mean_over([value for _, value in pairs], [number for number, _ in pairs]) for key, pairs in kind.items()}
        for kind in (spreads, bins)
    ]
    return {**averaged[0], "position": averaged[1]}


def texts_of(options: argparse.Namespace) -> list[str]:
    """The captions that the options name."""
    if options.data:
        return list(open_captions(options.data).captions[: options.count])
    return [caption.text for caption in prompts_of(options.prompts, options.count, options.split)]


def run(options: argparse.Namespace) -> None:
    """The command."""
    opened = {name: open_encoder(name, options) for name in options.encoders}  # fails early where one is missing
    texts = texts_of(options)
    results: dict[str, Any] = {}
    for name, encoder in opened.items():
        tokens, attention = eos_attention(encoder, texts[0])
        example: dict[str, Any] = {"words": [token.removesuffix("</w>") for token in tokens[1:-1]]}
        example["attention"] = words_of(attention).mean(dim=0).tolist()
        results[name] = {**measure(encoder, texts, name), "example": example}
    figures = [key for result in results.values() for key in result if key not in ("position", "example")]
    columns = list(dict.fromkeys(figures))
    rows = [[name, *map(result.get, columns)] for name, result in results.items()]
    title = "Attention of EOS in the last block; entropy in nats, places as multiples of an even spread"
    table = f"{title}\n\n{markdown(['', *columns], rows)}"
    print(table)
    if is_first():
        write_record("attention", options, results, table)
        plot_curves(results, options.out / "attention.png")
        plot_words(results, options.out / "attention_words.png")


def plot_curves(results: dict[str, Any], out: Path) -> None:
    """Attention by position, one line an encoder."""
    with figure(out) as panels:
        axes = panels[0][0]
        for name, result in results.items():
            curve(axes, middles(result["position"]), list(result["position"].values()), name)
        level(axes, 1, "even spread")
        axes.axvline(CLIP_LENGTH, color="0.8")
        axes.set(xlabel="token position", ylabel="attention of EOS, last block, × even", ylim=(0, None))
        legend(axes)


def plot_words(results: dict[str, Any], out: Path) -> None:
    """The first caption word by word, one panel an encoder; the darkest word has the most attention of its panel."""
    with figure(out, rows=len(results), size=(6.5, 2.6)) as panels:
        for axes, (name, result) in zip(panels[:, 0], results.items(), strict=True):
            attention = torch.tensor(result["example"]["attention"])
            title = f"{name}: spread over {entropy(attention).exp():.0f} of {len(attention)} tokens"
            shaded_words(axes, result["example"]["words"], (attention / attention.max()).tolist(), title)
        bottom = min(axes.get_ylim()[0] for axes in panels[:, 0])
        for axes in panels[:, 0]:
            axes.set_ylim(bottom, 1)
