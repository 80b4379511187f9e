"""The example that a visitor finds drawn: shipped with the family, so that nothing has to be computed first.

    python -m tulip_diffusion.demo.greeting

draws it anew into the family's folder.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from tulip_diffusion.embedded import ASSETS
from tulip_diffusion.files import replacing, write_text

from . import markup
from .prompts import SIZES, world_prompts
from .runs import judge_all
from .settings import Settings
from .studio import Studio
from .weights import Weights

SIZE = 300  # tokens


@dataclass(frozen=True)
class Greeting:
    """A drawn prompt: pictures, and notes (HTML), by the encoders' titles."""

    prompt: str
    pictures: dict[str, Image.Image]
    notes: dict[str, str]

    @property
    def sentence(self) -> str:
        """What stands below the pictures, as HTML."""
        return markup.status(
            f"Drawn for you before you came: the example of {SIZE} tokens. Write a prompt of your own, or choose one."
        )

    def alt_text(self, title: str) -> str:
        """What a screen reader says of the picture of `title`."""
        return f"What {title} made of the example of {SIZE} tokens"


def load_greeting(assets: Path, titles: Sequence[str]) -> Greeting | None:
    """The greeting in a family's folder; None where it has none, or none for one of `titles`."""
    folder = assets / "greeting"
    files = {title: folder / f"{title.lower()}.png" for title in titles}
    if not all(file.is_file() for file in (folder / "greeting.json", *files.values())):
        return None
    told = json.loads((folder / "greeting.json").read_text(encoding="utf-8"))
    pictures: dict[str, Image.Image] = {title: Image.open(file) for title, file in files.items()}
    return Greeting(told["prompt"], pictures, {title: told["notes"][title] for title in titles})


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw the greeting's pictures and write them into the family's folder."""
    parser = argparse.ArgumentParser(description="Draw the example that greets a visitor of the demo.")
    parser.add_argument("--assets", type=Path, default=ASSETS, help="the family's folder (default: the package's)")
    options = parser.parse_args(arguments)
    studio = Studio(Weights(assets=options.assets))
    settings = Settings(world_prompts()[SIZES.index(SIZE)])
    pictures: dict[str, Image.Image] = {}
    for frame in studio.draw(settings):
        if frame.finished:
            pictures |= frame.pictures
    with replacing(options.assets / "greeting") as folder:
        folder.mkdir()
        for title, picture in pictures.items():
            picture.save(folder / f"{title.lower()}.png", optimize=True)
        notes = judge_all(studio, settings, pictures)[0]
        write_text(folder / "greeting.json", json.dumps({"prompt": settings.prompt, "notes": notes}, indent=1))
    print(options.assets / "greeting")


if __name__ == "__main__":
    main()
