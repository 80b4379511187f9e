"""Can (TULIP - CLIP) be added to a fine-tuned CLIP, in place of distilling from it?

    python -m tests.benchmarks.bench_difference

The shipped family's second tower is fine-tuned by contrast against its own pictures; that is the checkpoint with text
encoders of its own. Its token states on up to 77 tokens are what a UNet was trained with. Printed is how far each
candidate is from them (error of `hidden_states[-2]`, cosine of the pooled vector) on held-out captions.
"""

import argparse
import copy

import torch
from torch import Tensor
from torch.nn import functional as F

from tulip_diffusion import from_clip
from tulip_diffusion.embedded import load_embedded_towers
from tulip_diffusion.evaluation.fidelity import compare_batch
from tulip_diffusion.scenes.dataset import SceneDataset
from tulip_diffusion.training.embedded.clip import normalised
from tulip_diffusion.training.embedded.tokenizer import build_tokenizer
from tulip_diffusion.training.losses import contrastive_loss, cosine_distance, relative_squared_error

BATCH = 32
TOKENIZER = build_tokenizer(pad_token="!")


def batch_of(number: int, split: str = "train", size: int = BATCH) -> tuple[Tensor, Tensor]:
    """Token ids (captions, 77) and pictures."""
    pictures, captions = SceneDataset(1 << 30, split).batch(number * size, size)
    texts = [caption.text for caption in captions]
    ids = TOKENIZER(texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    return ids, pictures


def fine_tuned(clip, image_encoder, steps: int, rate: float):
    """A copy of `clip` after `steps` of contrast against the family's pictures."""
    tuned = copy.deepcopy(clip).train()
    optimizer = torch.optim.AdamW(tuned.parameters(), lr=rate)
    for step in range(steps):
        ids, pictures = batch_of(10_000 + step)
        with torch.no_grad():
            images = F.normalize(image_encoder(normalised(pictures)).image_embeds, dim=-1)
        texts = F.normalize(tuned(ids).text_embeds, dim=-1)
        loss = contrastive_loss(images, texts, torch.tensor(50.0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return tuned.eval()


def with_difference(tuned, tulip, clip):
    """`tulip` plus what fine-tuning changed: tuned + (tulip - clip) for every weight but the positions."""
    made, before, after = copy.deepcopy(tulip), clip.state_dict(), tuned.state_dict()
    made.load_state_dict({name: value + after[name] - before[name] for name, value in tulip.state_dict().items()})
    return made.eval()


def distilled(student, teacher, steps: int, rate: float = 5e-4):
    """A copy of `student` after `steps` of matching `teacher`'s states and pooled vector on up to 77 tokens."""
    student = copy.deepcopy(student).train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=rate)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - step / steps)
        ids, _ = batch_of(50_000 + step)
        with torch.no_grad():
            target = teacher(ids, output_hidden_states=True)
        output = student(ids, output_hidden_states=True)
        loss = relative_squared_error(output.hidden_states[-2], target.hidden_states[-2]).mean()
        loss = loss + cosine_distance(output.text_embeds, target.text_embeds)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return student.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tuning-steps", type=int, nargs="+", default=[20, 60, 150])
    parser.add_argument("--distilling-steps", type=int, default=60)
    parser.add_argument("--rate", type=float, default=1e-4, help="learning rate of the fine-tuning")
    options = parser.parse_args()
    clip, image_encoder, _ = load_embedded_towers("clip")
    tulip = load_embedded_towers("tulip").text_encoder
    held_out, _ = batch_of(0, "validation", 128)

    def tell(name: str, encoder, teacher) -> None:
        with torch.no_grad():
            found = compare_batch(encoder, teacher, held_out)
        print(f"{name:<44} {found['penultimate_error']:.4f}  {found['pooled_cosine']:.4f}", flush=True)

    print("against                                      error   pooled cosine")
    tell("family: TULIP against its own CLIP", tulip, clip)
    for steps in options.tuning_steps:
        torch.manual_seed(0)
        tuned = fine_tuned(clip, image_encoder, steps, options.rate)
        print(f"a CLIP fine-tuned for {steps} steps")
        tell("  the CLIP before it was fine-tuned", clip, tuned)
        tell("  TULIP of that CLIP, as it is", tulip, tuned)
        added = with_difference(tuned, tulip, clip)
        tell("  TULIP with the difference added", added, tuned)
        tell("  positions swapped, untrained", from_clip(tuned), tuned)
        if steps == options.tuning_steps[-1]:
            for name, start in (("TULIP", tulip), ("TULIP with the difference", added)):
                tell(
                    f"  distilled, {options.distilling_steps} steps from {name}",
                    distilled(start, tuned, options.distilling_steps),
                    tuned,
                )


if __name__ == "__main__":
    main()
