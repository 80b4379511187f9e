"""How one text encoder reads prompts: as one sequence, in windows, or with stretched positions.

An encoder with a table of positions (CLIP, SDXL's second encoder) cannot read on beyond it; a TULIP encoder can.
However a prompt is read, each token's state is put at that token's place, so that position i of two encoders is the
same token.
"""

import contextlib
import functools
from collections.abc import Iterator, Sequence

import torch
from accelerate.utils import align_module_device
from diffusers.utils.torch_utils import get_module_execution_device
from torch import Tensor, nn
from transformers import CLIPTokenizer, PreTrainedModel
from transformers.models.clip.modeling_clip import CLIPTextEmbeddings

from ..models.positions import stretch_position_embeddings, stretched_length, table_length
from ..windows import split_windows
from .weighting import TokenizedPrompt


def context_length(encoder: PreTrainedModel, overflow: str) -> int | None:
    """Tokens that `encoder` reads of a prompt, BOS and EOS included, None for all of them."""
    table = table_length(encoder)
    if table is None or overflow == "windows":
        return None
    return table if overflow == "truncate" else stretched_length(table)


@contextlib.contextmanager
def stretched_positions(encoder: PreTrainedModel) -> Iterator[None]:
    """Give `encoder` Long-CLIP's interpolated table of positions for the time of the context."""
    embeddings = next(module for module in encoder.modules() if isinstance(module, CLIPTextEmbeddings))
    table = embeddings.position_embedding
    with align_module_device(table):  # sequential offload keeps the weight elsewhere
        stretched = stretch_position_embeddings(table.weight.detach())
    embeddings.position_embedding = nn.Embedding.from_pretrained(stretched)
    try:
        yield
    finally:
        embeddings.position_embedding = table


def encode(
    encoder: PreTrainedModel,
    tokenizer: CLIPTokenizer,
    prompts: Sequence[TokenizedPrompt],
    lengths: Sequence[int],
    layers: Sequence[int],
    overflow: str,
    pooled: str,
) -> tuple[Tensor, Tensor | None]:
    """Read `prompts` in one forward pass (two where only some of them need stretched positions).

    `lengths` says how many tokens of conditioning each prompt has, the pads that SDXL shows to the UNet included, and
    `layers` which of the encoder's hidden states is read; `overflow` and `pooled` are as in [`Conditioning`]. Returns
    states (prompts, longest length, width), weighted, zero beyond each prompt's length, and pooled vectors
    (prompts, projection width) where the encoder has them.
    """
    table = table_length(encoder)
    read = functools.partial(_read, encoder, tokenizer, prompts, lengths, layers, overflow, pooled)
    too_long = [table is not None and len(prompt.ids) + 2 > table for prompt in prompts]
    if table is None or overflow != "stretch" or not any(too_long):
        return read(table)
    with stretched_positions(encoder):
        stretched, stretched_pooled = read(stretched_length(table))
    if all(too_long):
        return stretched, stretched_pooled
    states, plain_pooled = read(table)  # the others are read as if they were alone
    chosen = torch.tensor(too_long, device=states.device)
    states = torch.where(chosen[:, None, None], stretched, states)
    return states, None if plain_pooled is None else torch.where(chosen[:, None], stretched_pooled, plain_pooled)


def _read(encoder, tokenizer, prompts, lengths, layers, overflow, pooled, table):
    """[`encode`] for an encoder of `table` positions, None for any number."""
    total = max(lengths)
    width = total if table is None else min(table, total)
    windows = [_windows(prompt, tokenizer, width - 2, overflow) for prompt in prompts]
    output = _forward(encoder, tokenizer, [window for of_prompt in windows for window in of_prompt], width, lengths)

    counts = [len(of_prompt) for of_prompt in windows]
    layer_of = [layer for layer, count in zip(layers, counts, strict=True) for _ in range(count)]
    states = torch.stack([output.hidden_states[layer][row] for row, layer in enumerate(layer_of)])
    states = torch.stack(
        [
            rows.flatten(0, 1)[_places([len(window) for window in of_prompt], width, total)]
            for rows, of_prompt in zip(states.split(counts), windows, strict=True)
        ]
    )
    states = states * _weights(prompts, lengths).to(states)[..., None]
    vectors = getattr(output, "text_embeds", None)
    if vectors is not None:
        vectors = torch.stack([_pool(rows, pooled) for rows in vectors.split(counts)])
    return states, vectors


def _windows(prompt: TokenizedPrompt, tokenizer: CLIPTokenizer, size: int, overflow: str) -> list[list[int]]:
    """The ids of each sequence that an encoder with room for `size` tokens reads `prompt` in."""
    if len(prompt.ids) <= size or overflow != "windows":
        return [prompt.ids[:size]]
    tokens = tokenizer.convert_ids_to_tokens(prompt.ids)
    return [prompt.ids[window.start : window.stop] for window in split_windows(tokens, size, prompt.breaks)]


def _forward(encoder, tokenizer, windows: list[list[int]], width: int, lengths: Sequence[int]):
    """Run `encoder` on `windows`, each between BOS and EOS and padded to `width`."""
    device = get_module_execution_device(encoder)
    ids = torch.full((len(windows), width), tokenizer.pad_token_id)
    for row, window in zip(ids, windows, strict=True):
        row[: len(window) + 2] = torch.tensor([tokenizer.bos_token_id, *window, tokenizer.eos_token_id])
    table, inputs = table_length(encoder), {}
    if table is None and min(lengths) < width:  # NTK scaling goes by a prompt's own length
        inputs["attention_mask"] = (torch.arange(width) < torch.tensor(lengths)[:, None]).long().to(device)
    elif table is not None and width > table:  # stretched
        inputs["position_ids"] = torch.arange(width, device=device)[None]
    return encoder(ids.to(device), output_hidden_states=True, **inputs)


def _places(windows: list[int], width: int, total: int) -> list[int]:
    """Where in a prompt's windows, laid end to end, each of its `total` tokens stands.

    BOS, every window's own tokens, EOS, then pads, the last one again and again where the window has no more.
    `windows` are their token counts, BOS and EOS left out.
    """
    own = [i * width + 1 + j for i, tokens in enumerate(windows) for j in range(tokens)]
    last, end = (len(windows) - 1) * width, windows[-1] + 1
    after = [last + min(end + j, width - 1) for j in range(total - len(own) - 1)]
    return [0, *own, *after]


def _weights(prompts: Sequence[TokenizedPrompt], lengths: Sequence[int]) -> Tensor:
    """What to multiply states by, (prompts, longest length): 1 for BOS, EOS and pads, 0 beyond a prompt's length."""
    weights = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).float()
    for row, prompt in zip(weights, prompts, strict=True):
        row[1 : len(prompt.ids) + 1] = torch.tensor(prompt.weights)
    return weights


def _pool(pooled: Tensor, source: str) -> Tensor:
    """One vector out of those of a prompt's windows, (windows, width) -> (width,)."""
    return pooled.mean(dim=0) if source == "mean" else pooled[0 if source == "first" else -1]
