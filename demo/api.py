"""The endpoints for `gradio_client`, MCP and plain HTTP: typed arguments in, JSON and files out."""

from collections.abc import Iterator
from typing import Any

from .errors import told_to_clients
from .runs import finish
from .settings import Settings
from .studio import Studio


class Api:
    """The endpoints as methods, so that their types and docstrings are what clients read."""

    def __init__(self, studio: Studio):
        self.studio = studio

    def compare(
        self,
        prompt: str,
        seed: int = 0,
        steps: int | None = None,
        guidance: float | None = None,
        negative: str = "",
        size: int | None = None,
        overflow: str = "own",
        length: str = "own",
    ) -> Iterator[dict]:
        """Draw one prompt under CLIP, Long-CLIP and TULIP, from the same noise.

        Answers as it goes, with `status` telling the step; the last answer has `pictures`, one for each encoder with
        its file, the words it could not see and how many details of the prompt it shows, and `strip`, a PNG of all of
        them over the prompt, with the settings in its metadata.

        Args:
            prompt: what the pictures should show, of any length up to 2,000 tokens.
            seed: the starting noise, the same for every encoder.
            steps: denoising steps, from 1 to 100; by default what suits the model.
            guidance: guidance scale, from 0 to 20; by default what suits the model.
            negative: what the pictures should not show.
            size: side of the pictures in pixels; by default what the model was trained with.
            overflow: what encoders do with a prompt that outgrows them: own, windows, stretch or truncate.
            length: tokens of conditioning: own, auto, exact, 77 or 248.
        """
        weights = self.studio.weights
        with told_to_clients():
            settings = Settings(
                prompt,
                negative,
                seed,
                weights.steps if steps is None else steps,
                weights.guidance if guidance is None else guidance,
                weights.sizes[-1] if size is None else size,
                overflow,
                length,
            )
            pictures: dict[str, Any] = {}
            for frame in self.studio.draw(settings):
                yield {"status": f"step {frame.done} of {frame.total}", "seed": seed, "pictures": [], "strip": None}
                if frame.finished:
                    pictures |= frame.pictures
            run = finish(self.studio, settings, pictures)
            answers = [
                {
                    "encoder": title,
                    "file": file(run.pictures[title]),
                    "cannot_see": run.unseen[title],
                    "details": run.scores[title],
                }
                for title in pictures
            ]
            yield {"status": "done", "seed": seed, "pictures": answers, "strip": file(run.strip)}

    def describe(self, prompt: str) -> dict:
        """Count a prompt's tokens and say which of its words CLIP, Long-CLIP and TULIP cannot see.

        Args:
            prompt: any text of up to 20,000 characters.
        """
        with told_to_clients():
            _, description = self.studio.describe(prompt)
            return {
                "tokens": description.tokens,
                "encoders": [
                    {"encoder": title, "reads_at_most": reading.limit, "cannot_see": reading.lost}
                    for title, reading in description.readings.items()
                ],
            }


def file(path: str) -> dict[str, Any]:
    """A file of ours as gradio's clients know to fetch it."""
    return {"path": path, "meta": {"_type": "gradio.FileData"}}
