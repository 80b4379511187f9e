"""The rows of every ablation: what each changes in stage 1 and in stage 2."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Variant:
    """One row of an ablation: stage 1's arguments that differ, and stage 2's, None for stage 1 alone.

    `rotations` is "" for stage 2's own; "test" stretches those of a stage-1 student without training; "own" scales
    them by each text's own length in stage 2 rather than by the longest.
    """

    name: str
    stage1: dict[str, Any] = field(default_factory=dict)
    stage2: dict[str, Any] | None = None
    rotations: str = ""


def both(name: str, stage1: dict[str, Any], **stage2: Any) -> tuple[Variant, Variant]:
    """The row of both stages, and that of stage 1 alone."""
    return Variant(f"{name}, stage 1 only", stage1), Variant(name, stage1, stage2)


PAPER = {"objective": "paper"}
COPE = {**PAPER, "position_encoding": "cope"}
ABLATIONS: dict[str, tuple[Variant, ...]] = {
    "positions": (*both("RoPE", PAPER), *both("CoPE", COPE)),
    "loss": (
        *both("cosine", PAPER),
        *both("L2", {**PAPER, "pooled_loss": "l2"}),
        *both("MSE", {**PAPER, "pooled_loss": "mse"}),
        *both("ours", {"objective": "default"}, anchor_weight=1.0),
    ),
    "length": (
        Variant("stage 1 only", PAPER),
        *(Variant(str(n), PAPER, {"length": n, "train": "text"}) for n in (77, 154, 231, 308, 500, 1000)),
    ),
    "lambda": (
        Variant("stage 1 only", PAPER),
        *(Variant(f"{weight:g}", PAPER, {"short_weight": weight}) for weight in (0.0, 0.1, 0.2, 0.5, 0.8, 1.0)),
    ),
    "ntk": (
        Variant("plain, stage 1 only", PAPER),
        Variant("alpha 8, stage 1 only", PAPER, rotations="test"),
        *(Variant(f"alpha {a:g}" if a else "plain", PAPER, {"ntk_alpha": a}) for a in (0.0, 1.0, 2.0, 4.0, 8.0, 16.0)),
        Variant("alpha 8, each text's own length", PAPER, {"ntk_alpha": 8.0}, rotations="own"),
    ),
    "short": (
        Variant("stage 1 only", PAPER),
        Variant("first sentence", PAPER, {"short_captions": "first-sentence"}),
        Variant("random subset", PAPER, {"short_captions": "random-subset"}),
        Variant("none", PAPER, {"short_weight": 0.0}),
    ),
}
