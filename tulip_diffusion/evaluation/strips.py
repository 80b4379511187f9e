"""The same prompt and noise under several encoders, side by side, with the share of details that each picture shows.

As in the papers' figures, but with a judge that is exact: the prompts are texts of the world of
`tulip_diffusion.scenes`, the first of their set, not the best.
"""

import argparse
from typing import Any

from tulip_diffusion.files import replacing
from tulip_diffusion.prompt_description import word_positions
from tulip_diffusion.tokenization import load_tokenizer

from .details import details, hits
from .drawing import draw_captions, open_pipeline, to_image
from .processes import is_first
from .prompts import prompts_of
from .records import markdown, write_record
from .side_by_side import Panel, make_strip


def run(options: argparse.Namespace) -> None:
    """The command."""
    captions = {f"{name}-{i}": c for name in options.prompts for i, c in enumerate(prompts_of(name, options.count))}
    panels: dict[str, list[Panel]] = {name: [] for name in captions}
    results: dict[str, dict[str, Any]] = {
        name: {"prompt": caption.text, "tokens": caption.tokens, "right": {}} for name, caption in captions.items()
    }
    for encoder in options.encoders:
        pipeline = open_pipeline(encoder, options)
        for name, caption in captions.items():
            picture = draw_captions(pipeline, [caption], options.steps, options.guidance)
            right = [detail.right for detail in details(picture, [caption])]
            results[name]["right"][encoder] = sum(right) / len(right)
            panels[name].append(Panel(to_image(picture[0]), encoder, hits(caption.text, picture[0])))
    if not is_first():
        return
    tokenizer = load_tokenizer()
    for name, drawn in panels.items():
        with replacing(options.out / f"{name}.png") as unfinished:
            make_strip(drawn, word_positions(captions[name].text, tokenizer)).save(unfinished)
    rows = [[name, entry["tokens"], *entry["right"].values()] for name, entry in results.items()]
    write_record("strips", options, results, markdown(["prompt", "tokens", *options.encoders], rows))
