"""The CLIP-L-like and the bigG-like model: text towers with 77 absolute positions, and image towers.

Trained by contrast between pictures and captions. Read-out heads on the penultimate states, at every sentence's last
token, and on the image tower's patches make a few minutes of training enough: where a sentence says (or resolves by
reference) a place, a kind and a colour, its last state must hold them. The heads are kept as a measuring tool.
"""

import argparse
import functools
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from tulip_diffusion.devices import best_device
from tulip_diffusion.scenes.captions import Caption
from tulip_diffusion.scenes.dataset import SceneDataset, window_caption
from tulip_diffusion.scenes.read_out import IGNORED, ReadOut, head_accuracies, sentence_targets
from tulip_diffusion.scenes.sprites import COLOURS, KINDS

from .steps import train
from .tokenizer import build_tokenizer

WIDTH, LAYERS, HEADS = 128, 5, 4
SLOTS = {  # SDXL's two: activation, and the token that pads
    "l": {"hidden_act": "quick_gelu", "pad_token": "<|endoftext|>"},
    "g": {"hidden_act": "gelu", "pad_token": "!"},
}


def build_clip(slot: str, tokenizer: CLIPTokenizer) -> CLIPModel:
    """A new CLIP for one of SDXL's slots, "l" or "g"."""
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "max_position_embeddings": 77,
        "hidden_act": SLOTS[slot]["hidden_act"],
        "projection_dim": WIDTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": 3,
        "num_attention_heads": HEADS,
        "image_size": 64,
        "patch_size": 16,
        "hidden_act": "gelu",
        "projection_dim": WIDTH,
    }
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH)
    # sdpa's backward in bfloat16 is several times slower on a CPU than plain matrix products.
    return CLIPModel._from_config(config, attn_implementation="eager")


class ClipWithHeads(nn.Module):
    """A CLIP model and the heads that read its states."""

    def __init__(self, clip: CLIPModel):
        super().__init__()
        self.clip = clip
        self.text_heads, self.image_heads = ReadOut(WIDTH), ReadOut(WIDTH)


def normalised(pictures: Tensor) -> Tensor:
    """Pictures in -1..1 as CLIP's own preprocessing gives them, so that other stages can read them from files."""
    mean, std = (
        torch.tensor(values, device=pictures.device).view(3, 1, 1) for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
    )
    return ((pictures + 1) / 2 - mean) / std


def scene_targets(captions: list[Caption]) -> tuple[Tensor, Tensor]:
    """Kind and colour of every place, (captions, 16) each."""
    colours = list(COLOURS)
    kinds = [[KINDS.index(t.kind) if t else len(KINDS) for t in c.scene.things] for c in captions]
    tints = [[colours.index(t.colour) if t else IGNORED for t in c.scene.things] for c in captions]
    return torch.tensor(kinds), torch.tensor(tints)


class ClipBatches:
    """Step number to what the loss needs: pictures, token ids, where sentences end, what they and the places hold."""

    def __init__(self, tokenizer: CLIPTokenizer, data: SceneDataset, first: int, size: int):
        self.tokenizer, self.data, self.first, self.size = tokenizer, data, first, size

    def __call__(self, step: int) -> dict[str, Tensor]:
        pictures, captions = self.data.batch(self.first + step * self.size, self.size)
        texts = [caption.text for caption in captions]
        ids = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt").input_ids
        where, what = sentence_targets(captions)
        kinds, tints = scene_targets(captions)
        return {"pictures": pictures, "ids": ids, "where": where, "what": what, "kinds": kinds, "tints": tints}


def clip_loss(model: ClipWithHeads, batch: dict[str, Tensor]) -> Tensor:
    """CLIP's symmetric contrastive loss, plus the cross-entropies of both towers' read-out heads; a scalar."""
    clip = model.clip
    text = clip.text_model(input_ids=batch["ids"], output_hidden_states=True)
    vision = clip.vision_model(pixel_values=normalised(batch["pictures"]))
    text_embeds = F.normalize(clip.text_projection(text.pooler_output).float(), dim=-1)
    image_embeds = F.normalize(clip.visual_projection(vision.pooler_output).float(), dim=-1)
    logits = clip.logit_scale.exp().clamp(max=100) * text_embeds @ image_embeds.T
    labels = torch.arange(len(logits), device=logits.device)
    loss = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2

    states = text.hidden_states[-2][batch["where"][:, 0], batch["where"][:, 1]]
    for logits, target in zip(model.text_heads(states), batch["what"].unbind(1), strict=True):
        loss = loss + F.cross_entropy(logits.float(), target, ignore_index=IGNORED)
    _, kinds, tints = model.image_heads(vision.last_hidden_state[:, 1:])
    for logits, target in ((kinds, batch["kinds"]), (tints, batch["tints"])):
        loss = loss + F.cross_entropy(logits.float().flatten(0, 1), target.flatten(), ignore_index=IGNORED)
    return loss


@torch.no_grad()
def check_clip(model: ClipWithHeads, tokenizer: CLIPTokenizer, count: int = 256) -> str:
    """Read-out accuracy at sentence ends and retrieval among `count` held-out captions."""
    pictures, captions = SceneDataset(count, "validation").batch(0, count)
    ids = tokenizer(
        [caption.text for caption in captions], padding=True, truncation=True, return_tensors="pt"
    ).input_ids
    clip = model.clip
    text = clip.text_model(input_ids=ids.to(clip.device), output_hidden_states=True)
    found = head_accuracies(model.text_heads, text.hidden_states[-2], captions)
    text_embeds = F.normalize(clip.text_projection(text.pooler_output), dim=-1)
    vision = clip.vision_model(pixel_values=normalised(pictures.to(clip.device)))
    image_embeds = F.normalize(clip.visual_projection(vision.pooler_output), dim=-1)
    recall = ((text_embeds @ image_embeds.T).argmax(1).cpu() == torch.arange(count)).float().mean()
    return " ".join(f"{name} {share:.3f}" for name, share in {**found, "R@1": recall}.items())


def load_clip_with_heads(folder: Path) -> tuple[ClipWithHeads, CLIPTokenizer]:
    """What [`main`] wrote into `folder`, in evaluation mode, and its tokenizer."""
    model = ClipWithHeads(CLIPModel.from_pretrained(folder))
    heads = load_file(folder / "heads.safetensors")
    missing, unexpected = model.load_state_dict(heads, strict=False)
    assert not unexpected and all(name.startswith("clip.") for name in missing)
    return model.eval(), CLIPTokenizer.from_pretrained(folder)


def main(arguments: list[str] | None = None) -> None:
    """Train the CLIP of one slot and write it with its heads."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("slot", choices=SLOTS, help="of SDXL's two: the first (l) or the second (g)")
    parser.add_argument("--out", type=Path, default=None, help="default: outputs/embedded/clip-SLOT")
    parser.add_argument("--start", type=Path, help="folder of a trained one whose weights to start from")
    parser.add_argument("--steps", type=int, default=450)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default=best_device())
    parser.add_argument("--workers", type=int, default=0, help="processes that make scenes ahead of time")
    options = parser.parse_args(arguments)
    folder = options.out or Path(f"outputs/embedded/clip-{options.slot}")
    torch.manual_seed(options.seed + ord(options.slot))
    tokenizer = build_tokenizer(pad_token=SLOTS[options.slot]["pad_token"])
    model = ClipWithHeads(build_clip(options.slot, tokenizer))
    if options.start:
        model.load_state_dict(load_clip_with_heads(options.start)[0].state_dict())
    first = (options.seed * 2 + list(SLOTS).index(options.slot)) * 10_000_000
    data = SceneDataset(first + 10_000_000, write=functools.partial(window_caption, dangling=0.15))
    train(
        model.to(options.device),
        ClipBatches(tokenizer, data, first, options.batch),
        functools.partial(clip_loss, model),
        folder,
        options.steps,
        options.learning_rate,
        weight_decay=0.05,
        workers=options.workers,
        check=functools.partial(check_clip, model, tokenizer),
        check_every=100,
    )
    model.clip.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    heads = {name: weight for name, weight in model.state_dict().items() if not name.startswith("clip.")}
    save_file(heads, folder / "heads.safetensors")


if __name__ == "__main__":
    main()
