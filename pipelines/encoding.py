"""How one text encoder reads prompts: as one sequence, in windows, or with stretched positions.

An encoder with a table of positions (CLIP, SDXL's second encoder) cannot read on beyond it; a TULIP encoder can.
However a prompt is read, each token's state is put at that token's place, so that position i of two encoders is the
same token.
"""

import contextlib
import dataclasses
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from accelerate.utils import align_module_device
from diffusers.utils.torch_utils import get_module_execution_device
from torch import Tensor, nn
from transformers import CLIPTokenizer, PreTrainedModel
from transformers.models.clip.modeling_clip import CLIPTextEmbeddings

from ..models.positions import stretch_position_embeddings, stretched_length, table_length
from ..prompt_tokens import TokenizedPrompt
from ..windows import split_windows

# One lock for each encoder with a table, which no thread may read while another has put a stretched one in its place.
_tables: WeakKeyDictionary[PreTrainedModel, threading.Lock] = WeakKeyDictionary()


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


@dataclass(frozen=True)
class EncodingTask:
    """Prompts for one encoder, to be read in one forward pass.

    Args:
        prompts: their tokens.
        lengths: the tokens of conditioning that each prompt has, the pads that SDXL shows to the UNet included.
        layers: which of the encoder's hidden states each prompt is read from.
        overflow: [`Conditioning`]'s.
        pooled: [`Conditioning`]'s.
    """

    prompts: Sequence[TokenizedPrompt]
    lengths: Sequence[int]
    layers: Sequence[int]
    overflow: str
    pooled: str

    @property
    def total(self) -> int:
        """Tokens of the longest prompt."""
        return max(self.lengths)

    def windows(self, room: int | None) -> list[list[range]]:
        """For each prompt the sequences that an encoder with room for so many tokens reads it in."""
        size = room if self.overflow == "windows" else None
        return [split_windows(prompt.tokens, size, prompt.breaks) for prompt in self.prompts]


def encode(encoder: PreTrainedModel, tokenizer: CLIPTokenizer, task: EncodingTask) -> tuple[Tensor, Tensor | None]:
    """Read `task`'s prompts: with a table of positions in one forward pass, two where only some need stretched ones.

    Without a table each length is a pass of its own: no token is computed that is not there, and no mask of tokens by
    tokens keeps attention from its fastest kernels.

    Returns states (prompts, longest length, width), weighted, zero beyond each prompt's length, and pooled vectors
    (prompts, projection width) where the encoder has them. An encoder with a table reads for one thread at a time.
    """
    table = table_length(encoder)
    if table is None:
        return _encode(encoder, tokenizer, task, table)
    with _tables.setdefault(encoder, threading.Lock()):
        return _encode_by_table(encoder, tokenizer, task, table)


def _encode_by_table(
    encoder: PreTrainedModel, tokenizer: CLIPTokenizer, task: EncodingTask, table: int
) -> tuple[Tensor, Tensor | None]:
    """[`encode`] for an encoder of `table` positions, whose lock is held."""
    if task.overflow != "stretch":
        return _encode(encoder, tokenizer, task, table)
    too_long = [max(map(len, windows)) + 2 > table for windows in task.windows(None)]
    if not any(too_long):
        return _encode(encoder, tokenizer, task, table)
    with stretched_positions(encoder):
        stretched, stretched_pooled = _encode(encoder, tokenizer, task, stretched_length(table))
    if all(too_long):
        return stretched, stretched_pooled
    short = [prompt.cut(2 if long else None) for prompt, long in zip(task.prompts, too_long, strict=True)]
    states, pooled = _encode(encoder, tokenizer, dataclasses.replace(task, prompts=short), table)  # as if alone
    chosen = torch.tensor(too_long, device=states.device)
    states = torch.where(chosen[:, None, None], stretched, states)
    if pooled is not None and stretched_pooled is not None:
        pooled = torch.where(chosen[:, None], stretched_pooled, pooled)
    return states, pooled


def _encode(
    encoder: PreTrainedModel, tokenizer: CLIPTokenizer, task: EncodingTask, table: int | None
) -> tuple[Tensor, Tensor | None]:
    """[`encode`] for an encoder of `table` positions, None for any number."""
    width = task.total if table is None else min(table, task.total)
    windows = task.windows(None if table is None else width - 2)
    hidden, vectors = _forward(encoder, tokenizer, task, windows, width)

    counts = [len(of_prompt) for of_prompt in windows]
    layer_of = [layer for layer, count in zip(task.layers, counts, strict=True) for _ in range(count)]
    states = torch.stack([hidden[layer][row] for row, layer in enumerate(layer_of)])
    states = torch.stack(
        [
            rows.flatten(0, 1)[_positions([len(window) for window in of_prompt], width, task.total)]
            for rows, of_prompt in zip(states.split(counts), windows, strict=True)
        ]
    )
    states = states * _weights(task).to(states)[..., None]
    if vectors is not None:
        vectors = torch.stack([_pool(rows, task.pooled) for rows in vectors.split(counts)])
    return states, vectors


def _forward(
    encoder: PreTrainedModel, tokenizer: CLIPTokenizer, task: EncodingTask, windows: list[list[range]], width: int
) -> tuple[dict[int, Tensor], Tensor | None]:
    """Run `encoder` on all windows, each between BOS and EOS and padded to its length.

    Returns the states of `task`'s layers, (windows, `width`, hidden size), zero beyond a window's length, and what
    the encoder pools, (windows, projection width), or None.
    """
    device = get_module_execution_device(encoder)
    count = sum(len(of_prompt) for of_prompt in windows)
    ids = torch.full((count, width), tokenizer.pad_token_id)
    rows_of: dict[int, list[int]] = defaultdict(list)  # by length, the pads that the UNet is shown included
    row, table, inputs = 0, table_length(encoder), {}
    for prompt, length, of_prompt in zip(task.prompts, task.lengths, windows, strict=True):
        for window in of_prompt:
            own = [tokenizer.bos_token_id, *prompt.ids[window.start : window.stop], tokenizer.eos_token_id]
            ids[row, : len(own)] = torch.tensor(own)
            rows_of[width if table is not None else length - len(prompt.ids) + len(window)].append(row)
            row += 1
    if table is not None and width > table:  # stretched
        inputs["position_ids"] = torch.arange(width, device=device)[None]
    ids = ids.to(device)
    order = [row for rows in rows_of.values() for row in rows]
    back = torch.tensor(order).argsort().to(device)
    outputs = [encoder(ids[rows, :length], output_hidden_states=True, **inputs) for length, rows in rows_of.items()]
    hidden = {
        layer: torch.cat([_filled(output.hidden_states[layer], width) for output in outputs])[back]
        for layer in set(task.layers)
    }
    pooled = [vectors for output in outputs if (vectors := getattr(output, "text_embeds", None)) is not None]
    return hidden, torch.cat(pooled)[back] if pooled else None


def _filled(states: Tensor, width: int) -> Tensor:
    """`states` (windows, tokens, hidden size) with zeros up to `width` tokens."""
    return nn.functional.pad(states, (0, 0, 0, width - states.shape[1]))


def _positions(windows: list[int], width: int, total: int) -> list[int]:
    """Where in a prompt's windows, laid end to end, each of its `total` tokens stands.

    BOS, every window's own tokens, EOS, then pads, the last one again and again where the window has no more.
    `windows` are their token counts, BOS and EOS left out.
    """
    own = [i * width + 1 + j for i, tokens in enumerate(windows) for j in range(tokens)]
    last, end = (len(windows) - 1) * width, windows[-1] + 1
    after = [last + min(end + j, width - 1) for j in range(total - len(own) - 1)]
    return [0, *own, *after]


def _weights(task: EncodingTask) -> Tensor:
    """What to multiply states by, (prompts, longest length): 1 for BOS, EOS and pads, 0 beyond a prompt's length."""
    weights = (torch.arange(task.total) < torch.tensor(task.lengths)[:, None]).float()
    for row, prompt in zip(weights, task.prompts, strict=True):
        row[1 : len(prompt.ids) + 1] = torch.tensor(prompt.weights)
    return weights


def _pool(pooled: Tensor, source: str) -> Tensor:
    """One vector out of those of a prompt's windows, (windows, width) -> (width,)."""
    return pooled.mean(dim=0) if source == "mean" else pooled[0 if source == "first" else -1]
