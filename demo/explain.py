"""Why the pictures differ: where each encoder looks, and how closely its states follow CLIP's."""

from typing import Any

import torch
from torch import Tensor

from tulip_diffusion.evaluation.fidelity import mean_cosine, relative_error
from tulip_diffusion.models.positions import table_length
from tulip_diffusion.prompt_tokens import tokenize

from . import markup
from .references import references
from .settings import Settings, check_tokens
from .studio import Studio

BARS = 16  # tokens in one bar of the chart


def explain(studio: Studio, settings: Settings) -> str:
    """Charts of attention and a table of fidelity for one prompt, as HTML.

    Raises:
        ValueError: the prompt is longer than the page takes.
    """
    text, description = studio.describe(settings.prompt)
    check_tokens("prompt", description.tokens)
    with studio.drawing:
        charts = [attention_chart(title, pipeline, text) for title, pipeline in studio.pipelines.items()]
        seen_by_all = text[: len(text) - len(description.readings["CLIP"].lost)]
        figures = fidelity(studio.pipelines, seen_by_all)
        heads = studio.weights.assets / "read_out"
        sentences, found = references(text, studio.pipelines, heads) if studio.weights.embedded else ([], [])
    return (
        '<div class="explain"><h3>Where the prompt\'s summary looks</h3>'
        "<p>Attention of the end-of-text token in the last layer of the first text encoder, mean over heads, "
        f"in bars of {BARS} tokens. The start token, where attention rests by habit, is left out.</p>"
        f'<div class="charts">{"".join(charts)}</div>'
        "<h3>How closely the UNet is told the same</h3>"
        "<p>On the words that all encoders see, a replacement should tell the UNet what CLIP tells it. "
        "Cosine 1 and error 0 are CLIP itself.</p>"
        + markup.table(figures, ("pooled cosine", "states cosine", "states error"), "Against CLIP, up to 77 tokens")
        + markup.references(sentences, found)
        + "</div>"
    )


def attention_chart(title: str, pipeline: Any, text: str) -> str:
    """Where one encoder's summary looks, as a chart in HTML."""
    shares = end_attention(pipeline.text_encoder, pipeline.tokenizer, text)
    bars = [part.sum().item() for part in shares.split(BARS)]
    beyond = shares[76:].sum().item()
    sentence = f"Reads {len(shares) + 2} tokens; {beyond:.0%} of its attention lies beyond the 77th."
    return markup.attention_chart(title, bars, BARS, sentence)


def end_attention(encoder: Any, tokenizer: Any, text: str) -> Tensor:
    """Shares of attention of the EOS query in the last layer over the tokens of `text` that `encoder` reads, sum 1.

    (tokens,) without BOS and EOS, as in the analysis of the TULIP paper.
    """
    ids = tokenize(text, tokenizer, "a1111").ids
    if (table := table_length(encoder)) is not None:
        ids = ids[: table - 2]
    row = torch.tensor([[tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]], device=encoder.device)
    backend = encoder.config._attn_implementation
    encoder.set_attn_implementation("eager")  # others do not give their weights away
    try:
        with torch.no_grad():
            attention = encoder(row, output_attentions=True).attentions[-1]  # (1, heads, queries, keys)
    finally:
        encoder.set_attn_implementation(backend)
    weights = attention[0, :, -1].float().mean(dim=0)[1:-1].cpu()
    return weights / weights.sum()


def fidelity(pipelines: dict[str, Any], text: str) -> dict[str, list[str]]:
    """For each encoder but the first, how its states and pooled vector for `text` compare with the first one's."""
    told = {}
    with torch.no_grad():
        for title, pipeline in pipelines.items():
            with pipeline.conditioned(sequence_length=77):
                states, _, pooled, _ = pipeline.encode_prompt(text, do_classifier_free_guidance=False)
            told[title] = states, pooled
    (_, (states, pooled)), *others = told.items()
    return {
        title: [
            f"{mean_cosine(own_pooled, pooled):.3f}",
            f"{mean_cosine(own, states):.3f}",
            f"{relative_error(own, states):.3f}",
        ]
        for title, (own, own_pooled) in others
    }
