"""Independent statements of the published text towers, run straight from a state dict in OpenAI's names.

One function for all of them, written from the papers and the layout alone: what the loaders are held against.
"""

import math

import open_clip
import torch
import torch.nn.functional as F

from tulip_diffusion import stretch_position_embeddings

VISION = {"layers": 2, "width": 64, "patch_size": 16, "image_size": 32, "head_width": 32}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 2}
IDS = torch.full((2, 248), 0)
IDS[0, :5] = torch.tensor([49406, 320, 256, 1125, 49407])
IDS[1] = torch.randint(300, 40000, (248,), generator=torch.Generator().manual_seed(0))
IDS[1, 0], IDS[1, -1] = 49406, 49407


def open_clip_model(quick_gelu=False):
    torch.manual_seed(0)
    model = open_clip.model.CLIP(embed_dim=32, vision_cfg=VISION, text_cfg=TEXT, quick_gelu=quick_gelu).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def longclip_state(whole_clip):
    stretched = stretch_position_embeddings(whole_clip["positional_embedding"])
    trained = stretched + 0.05 * torch.randn_like(stretched)
    return {**whole_clip, "positional_embedding": stretched, "positional_embedding_res": trained}


def assert_agrees(model, reference, ids):
    expected_states, expected_embeds = reference
    with torch.no_grad():
        output = model(ids, output_hidden_states=True)
    torch.testing.assert_close(output.text_embeds, expected_embeds, atol=5e-5, rtol=0)
    for ours, expected in zip(output.hidden_states, expected_states, strict=True):
        torch.testing.assert_close(ours, expected, atol=3e-4, rtol=0)


def causal_mask(tokens):
    return torch.full((tokens, tokens), -math.inf).triu(1)


def rotation(tokens, head_dim, theta):
    frequencies = 1.0 / theta ** (torch.arange(0, head_dim, 2).float() / head_dim)
    angles = torch.outer(torch.arange(tokens).float(), frequencies)
    return torch.polar(torch.ones_like(angles), angles)


def rotate_complex(heads, table):
    """(batch, heads, tokens, head_dim): pairs (2i, 2i + 1) as complex numbers."""
    pairs = torch.view_as_complex(heads.reshape(*heads.shape[:-1], -1, 2).contiguous())
    return torch.view_as_real(pairs * table).flatten(-2)


def scaled(query, base):
    """Query i, counted from 1, times max(1, ln i / ln base)."""
    factors = [max(1.0, math.log(i) / math.log(base)) for i in range(1, query.shape[-2] + 1)]
    return query * torch.tensor(factors)[:, None]


def contextual(state, name, query, key, head_dim, base):
    """CoPE: gates on masked logits, positions from the right, the table read between two rows."""
    query = F.layer_norm(query, (head_dim,), state[f"{name}.q_ln.weight"], state[f"{name}.q_ln.bias"])
    key = F.layer_norm(key, (head_dim,), state[f"{name}.k_ln.weight"], state[f"{name}.k_ln.bias"])
    query = query * head_dim**-0.5
    query = query if base is None else scaled(query, base)
    logits = query @ key.transpose(-1, -2) / math.sqrt(head_dim) + causal_mask(query.shape[-2])
    table = state[f"{name}.cope.pos_emb"][0]
    position = logits.sigmoid().flip(-1).cumsum(-1).flip(-1).clamp(max=table.shape[1] - 1)
    low = position.floor()
    rows = query @ table
    at_low, at_high = rows.gather(-1, low.long()), rows.gather(-1, position.ceil().long())
    return logits + at_low + (at_high - at_low) * (position - low)


def text_tower(state, ids, heads, activation, theta=None, positions=None, eos=49407, scaling_base=None):
    """Every hidden state (before each block, and after the last), and the pooled, projected embedding."""
    hidden = state["token_embedding.weight"][ids]
    if positions is not None:
        hidden = hidden + positions[: ids.shape[1]]
    batch, tokens, width = hidden.shape
    head_dim = width // heads
    states = [hidden]
    layers = sum(key.endswith("attn.in_proj_weight") and key.startswith("transformer.") for key in state)
    for layer in range(layers):
        name = f"transformer.resblocks.{layer}"

        def linear(part, inputs, name=name):
            return F.linear(inputs, state[f"{name}.{part}.weight"], state[f"{name}.{part}.bias"])

        def norm(part, inputs, name=name):
            return F.layer_norm(inputs, (width,), state[f"{name}.{part}.weight"], state[f"{name}.{part}.bias"])

        projected = F.linear(
            norm("ln_1", hidden), state[f"{name}.attn.in_proj_weight"], state[f"{name}.attn.in_proj_bias"]
        )
        query, key, value = (
            part.view(batch, tokens, heads, head_dim).transpose(1, 2) for part in projected.chunk(3, dim=-1)
        )
        if theta is not None:
            table = rotation(tokens, head_dim, theta)
            query, key = rotate_complex(query, table), rotate_complex(key, table)
        if f"{name}.attn.cope.pos_emb" in state:
            logits = contextual(state, f"{name}.attn", query, key, head_dim, scaling_base)
        else:
            query = query if scaling_base is None else scaled(query, scaling_base)
            logits = query @ key.transpose(-1, -2) * head_dim**-0.5 + causal_mask(tokens)
        attended = (logits.softmax(-1) @ value).transpose(1, 2).reshape(batch, tokens, width)
        hidden = hidden + linear("attn.out_proj", attended)
        hidden = hidden + linear("mlp.c_proj", activation(linear("mlp.c_fc", norm("ln_2", hidden))))
        states.append(hidden)
    last = F.layer_norm(hidden, (width,), state["ln_final.weight"], state["ln_final.bias"])
    pooled = last[torch.arange(batch), (ids == eos).int().argmax(-1)]
    return states, pooled @ state["text_projection"]


def quick_gelu(x):
    return x * torch.sigmoid(1.702 * x)
