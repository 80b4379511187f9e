"""What `train distill --match` leaves of the states that SDXL and Stable Diffusion 1.5 read: figures as JSON.

    python -m tests.benchmarks.bench_match --out outputs/match

The embedded family's second CLIP is distilled with either option, from the same captions in the same order, and both
students are compared with it on captions that neither has seen.
"""

import argparse
import json
from pathlib import Path

import torch
from transformers import CLIPTextModelWithProjection

from tulip_diffusion.data import CaptionData
from tulip_diffusion.embedded import load_embedded_pipeline
from tulip_diffusion.evaluation.fidelity import mean_cosine, pooled_state, relative_error, window_ids
from tulip_diffusion.evaluation.prompts import prompts_of
from tulip_diffusion.training.config import DistillArguments
from tulip_diffusion.training.distill import distill


def texts(split: str, count: int) -> list[str]:
    return [caption.text for caption in prompts_of("full", count, split)]


@torch.no_grad()
def figures(student, teacher: CLIPTextModelWithProjection, tokenizer, captions: list[str]) -> dict[str, float]:
    """Errors of the states of all 77 positions, as SDXL's second slot pads them."""
    ids = window_ids(captions, tokenizer, teacher.config.max_position_embeddings, tokenizer.pad_token_id)
    said, taught = (encoder.eval()(ids, output_hidden_states=True) for encoder in (student, teacher))
    return {
        "penultimate_error": relative_error(said.hidden_states[-2], taught.hidden_states[-2]),
        "last_error": relative_error(said.last_hidden_state, taught.last_hidden_state),
        "pooled_cosine": mean_cosine(pooled_state(said), pooled_state(taught)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("outputs/match"))
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=32)
    options = parser.parse_args()
    pipe = load_embedded_pipeline("clip")
    tokenizer, record = pipe.tokenizer_2, {}
    for match in ("penultimate", "last"):
        arguments = DistillArguments(
            output_dir=str(options.out / match),
            match=match,
            steps=options.steps,
            batch_size=options.batch_size,
            length=77,  # longer texts add the same terms
            learning_rate=1e-3,
            warmup_steps=10,
            pad="zero",
            freeze_token_embedding=False,
            teacher_cache="off",
            num_workers=0,
        )
        data = CaptionData(texts("train", 2000))
        student = distill(pipe.text_encoder_2, tokenizer, data, arguments)
        record[match] = figures(student, pipe.text_encoder_2, tokenizer, texts("evaluation", 256))
        print(match, json.dumps(record[match]))
    (options.out / "match.json").write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
