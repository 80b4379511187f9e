"""What each objective of stage 1 leaves of a teacher: figures as JSON and a plot.

    python -m tests.benchmarks.bench_training_objective --out outputs/objective

A small CLIP text tower is initialised at random and trained first (captions of objects against fixed vectors, and the
next token from the penultimate states), because an untrained one has nothing worth keeping. Then students are
distilled from it with either objective and compared with it on captions that neither has seen.
"""

import argparse
import json
import random
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from tulip_diffusion import from_clip
from tulip_diffusion.data import CaptionData
from tulip_diffusion.evaluation.fidelity import fidelity, window_ids
from tulip_diffusion.tokenization import load_tokenizer
from tulip_diffusion.training.config import DistillArguments
from tulip_diffusion.training.distill import distill
from tulip_diffusion.training.losses import contrastive_loss

COLORS = ("red", "blue", "green", "yellow", "black", "white", "orange", "purple")
THINGS = ("boat", "tulip", "house", "dog", "lamp", "chair", "tree", "clock")
PLACES = ("left", "right", "top", "bottom", "centre", "front")
FORMS = (
    "A {} {} stands near the {} of the picture.",
    "There is a {} {} on the {}.",
    "In the picture a {} {} can be seen at the {} side.",
)
WIDTH, PROJECTION = 64, 64


def make_caption(number: int, most: int = 9) -> tuple[str, list[tuple[int, int, int]]]:
    """Caption `number` and its objects as (colour, thing, place)."""
    generator = random.Random(number)
    objects = [
        (generator.randrange(len(COLORS)), generator.randrange(len(THINGS)), generator.randrange(len(PLACES)))
        for _ in range(generator.randint(1, most))
    ]
    sentences = [generator.choice(FORMS).format(COLORS[c], THINGS[t], PLACES[p]) for c, t, p in objects]
    return " ".join(sentences), objects


def picture_vectors(captions: list[list[tuple[int, int, int]]]) -> Tensor:
    """A fixed unit vector for every caption: the sum of its objects' own, a stand-in for an image tower."""
    generator = torch.Generator().manual_seed(0)
    things = torch.randn(len(COLORS), len(THINGS), PROJECTION, generator=generator)
    places = torch.randn(len(PLACES), PROJECTION, generator=generator)
    sums = [torch.stack([things[c, t] + places[p] for c, t, p in objects]).sum(dim=0) for objects in captions]
    return F.normalize(torch.stack(sums), dim=-1)


def train_teacher(tokenizer, steps: int, batch_size: int = 64) -> CLIPTextModelWithProjection:
    """A CLIP text tower that knows its captions: pooled states find their picture, token states the next token."""
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        projection_dim=PROJECTION,
        bos_token_id=49406,
        eos_token_id=49407,
        pad_token_id=49407,
    )
    teacher = CLIPTextModelWithProjection(config)
    words = torch.unique(window_ids([make_caption(n)[0] for n in range(400)], tokenizer, 77, 49407))
    head = nn.Linear(WIDTH, len(words))
    optimizer = torch.optim.AdamW([*teacher.parameters(), *head.parameters()], lr=2e-3)
    for step in tqdm(range(steps), desc="teacher"):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1, (step + 1) / 50) * (1 - step / steps)
        captions, objects = zip(*(make_caption(10**6 + step * batch_size + n) for n in range(batch_size)), strict=True)
        ids = window_ids(captions, tokenizer, 77, 49407)
        output = teacher(ids, output_hidden_states=True)
        embeds = F.normalize(output.text_embeds, dim=-1)
        following = torch.searchsorted(words, ids[:, 1:].contiguous()).clamp(max=len(words) - 1)
        guesses = head(output.hidden_states[-2][:, :-1])
        loss = contrastive_loss(picture_vectors(list(objects)), embeds, 20.0)
        loss = loss + F.cross_entropy(guesses.flatten(0, 1), following.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"teacher's last loss {loss.item():.3f}")
    return teacher.eval()


def compare(out: Path, teacher_steps: int, steps: int, batch_size: int) -> dict:
    tokenizer = load_tokenizer()
    teacher = train_teacher(tokenizer, teacher_steps)
    held_out = [make_caption(number)[0] for number in range(256)]
    data = CaptionData([make_caption(2 * 10**6 + number)[0] for number in range(8192)])
    figures = {"untrained swap": fidelity(from_clip(teacher), teacher, tokenizer, held_out)}
    for objective in ("paper", "default"):
        arguments = DistillArguments(
            output_dir=str(out / objective),
            objective=objective,
            length=77,
            steps=steps,
            batch_size=batch_size,
            learning_rate=2e-3,
            warmup_steps=20,
            teacher_cache="off",
            num_workers=0,
            mixed_precision="bf16",
            attn="eager",
            save_every=10**9,
        )
        student = distill(teacher, tokenizer, data, arguments)
        figures[objective] = fidelity(student, teacher, tokenizer, held_out)
    return {
        "figures": figures,
        "captions": "synthetic, 1 to 9 sentences, cut at 77 tokens; 256 held out",
        "teacher": f"4 layers x {WIDTH}, {teacher_steps} steps of 64",
        "students": f"{steps} steps of {batch_size}",
        "seed": 0,
    }


def plot(result: dict, out: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.2))
    names = ("pooled_cosine", "penultimate_cosine", "penultimate_error")
    for number, (label, values) in enumerate(result["figures"].items()):
        axes[0].bar([x + 0.27 * number for x in range(3)], [values[name] for name in names], 0.25, label=label)
    axes[0].set_xticks([x + 0.27 for x in range(3)], ["pooled\ncosine", "penultimate\ncosine", "penultimate\nerror"])
    axes[0].legend(fontsize=8)
    for objective in ("paper", "default"):
        lines = (out / objective / "metrics.jsonl").read_text().splitlines()
        axes[1].plot([1 - json.loads(line)["pooled_cosine"] for line in lines], label=objective)
    axes[1].set(yscale="log", xlabel="step", ylabel="1 − pooled cosine (training)")
    axes[1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(out / "objective.svg")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/objective"))
    parser.add_argument("--teacher-steps", type=int, default=350)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--batch-size", type=int, default=64)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    result = compare(options.out, options.teacher_steps, options.steps, options.batch_size)
    (options.out / "objective.json").write_text(json.dumps(result, indent=2) + "\n")
    plot(result, options.out)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
