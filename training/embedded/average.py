"""The weighted mean of two encoders of one origin: what both have learned, where either alone gave something up."""

import argparse
from pathlib import Path

from transformers import AutoTokenizer

from tulip_diffusion.models.text_encoder import TulipTextModelWithProjection


def main(arguments: list[str] | None = None) -> None:
    """Write the weighted mean of two encoders."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("first", type=Path, help="folder of a TULIP encoder")
    parser.add_argument("second", type=Path, help="folder of one that went on from there")
    parser.add_argument("--share", type=float, default=0.7, help="share of the second")
    parser.add_argument("--attention-scaling", choices=("none", "log"), default="log", help="of the mean")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    mean = TulipTextModelWithProjection.from_pretrained(options.first, attention_scaling=options.attention_scaling)
    second = TulipTextModelWithProjection.from_pretrained(options.second).state_dict()
    mean.load_state_dict(
        {name: weight.lerp(second[name], options.share) for name, weight in mean.state_dict().items()}
    )
    mean.save_pretrained(options.out)
    AutoTokenizer.from_pretrained(options.second).save_pretrained(options.out)


if __name__ == "__main__":
    main()
