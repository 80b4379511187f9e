"""The weighted mean of two encoders of one origin: what both have learned, where either alone gave something up.

Of fine-tuned models that is WiSE-FT (arXiv:2109.01903).
"""

import argparse
import json
from pathlib import Path

from torch import nn
from transformers import AutoTokenizer, CLIPVisionModelWithProjection

from tulip_diffusion.files import write_text
from tulip_diffusion.models.text_encoder import TulipTextModelWithProjection
from tulip_diffusion.training.towers import save_image_tower

from .export import image_tower


def average(first: nn.Module, second: nn.Module, share: float) -> None:
    """Move `first`'s weights to the mean, in which `second`'s count `share`."""
    others = second.state_dict()
    first.load_state_dict(
        {
            name: weight.lerp(others[name], share) if weight.is_floating_point() else weight
            for name, weight in first.state_dict().items()
        }
    )


def main(arguments: list[str] | None = None) -> None:
    """Write the weighted mean of two encoders, and of their image towers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("first", type=Path, help="folder of a TULIP encoder")
    parser.add_argument("second", type=Path, help="folder of one that went on from there")
    parser.add_argument("--share", type=float, default=0.7, help="share of the second")
    parser.add_argument("--attention-scaling", choices=("none", "log"), default="log", help="of the mean")
    parser.add_argument(
        "--clip", type=Path, help="whole CLIP whose image tower the second's went on from: averaged too"
    )
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    mean = TulipTextModelWithProjection.from_pretrained(options.first, attention_scaling=options.attention_scaling)
    average(mean, TulipTextModelWithProjection.from_pretrained(options.second), options.share)
    mean.save_pretrained(options.out)
    if options.clip:
        tower = image_tower(options.clip)
        average(tower, CLIPVisionModelWithProjection.from_pretrained(options.second / "image_encoder"), options.share)
        save_image_tower(tower, tower.state_dict(), options.out / "image_encoder")
    if (run := options.second / "run.json").is_file():  # its temperature and how it was trained, not its figures
        told = json.loads(run.read_text()) | {"mean": {"with": str(options.first), "share": options.share}}
        told.pop("figures", None)
        write_text(options.out / "run.json", json.dumps(told, indent=2))
    AutoTokenizer.from_pretrained(options.second).save_pretrained(options.out)


if __name__ == "__main__":
    main()
