"""Damage files byte by byte and load them: each must load whole, or be refused in one sentence.

    python -m tests.mutations [safetensors pt folder pipeline jsonl tar png …] [--count 1000] [--seed 0]

A *subject* is a file or folder that is made once, and the function that loads it. What a mutation does to the weights'
own bytes no loader can notice; half of the mutations therefore hit the first or last four kilobytes of a file, where
names, shapes and offsets stand.
"""

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModelWithProjection
from transformers.utils import logging

from tulip_diffusion import export_open_clip, from_clip, load_text_encoder

EDGE = 4096  # bytes at either end that hold a file's structure
LONGEST = 64  # bytes that one mutation touches
SENTENCES = (ValueError, OSError)  # with one line of text, as the command line prints them


@dataclass
class Subject:
    """Something to damage. `make` writes it to a path; `load` reads it; `check` refuses what was loaded in part."""

    name: str
    make: Callable[[Path], None]
    load: Callable[[Path], Any]
    check: Callable[[Any], None] = lambda loaded: None


def mutate(content: bytes, chance: random.Random) -> bytes:
    """`content` with one place changed, cut out, doubled, filled, or everything behind it cut off."""
    if not content:
        return bytes(chance.randrange(256) for _ in range(8))
    near_edge = chance.random() < 0.5
    at = chance.randrange(min(EDGE, len(content)) if near_edge else len(content))
    if near_edge and chance.random() < 0.5:
        at = len(content) - 1 - at
    before, after = content[:at], content[at:]
    size = chance.randint(1, LONGEST)
    kind = chance.choice(("bit", "bit", "byte", "byte", "noise", "cut", "double", "zeros", "insert", "truncate"))
    if kind == "bit":
        return before + bytes([after[0] ^ 1 << chance.randrange(8)]) + after[1:]
    if kind == "byte":
        return before + bytes([chance.randrange(256)]) + after[1:]
    if kind == "noise":
        return before + chance.randbytes(size) + after[size:]
    if kind == "zeros":
        return before + bytes(size) + after[size:]
    if kind == "insert":
        return before + chance.randbytes(size) + after
    return {"cut": before + after[size:], "double": before + after[:size] + after, "truncate": before}[kind]


def damage(subject: Subject, root: Path, count: int, seed: int = 0) -> tuple[Counter, list[str]]:
    """Load `count` mutations of `subject`; returns how many loaded and how many were refused, and what went wrong."""
    whole, damaged = root / subject.name, root / f"damaged-{subject.name}"
    subject.make(whole)
    files = [path for path in sorted(whole.rglob("*")) if path.is_file()] if whole.is_dir() else [whole]
    contents = {path: path.read_bytes() for path in files}
    if whole.is_dir():
        shutil.copytree(whole, damaged)
    outcomes, wrong = Counter(), []
    for number in range(count):
        chance = random.Random(f"{subject.name} {seed} {number}")
        path = chance.choice(files)
        target = damaged / path.relative_to(whole) if whole.is_dir() else damaged.with_suffix(whole.suffix)
        target.write_bytes(mutate(contents[path], chance))
        try:
            subject.check(subject.load(damaged if whole.is_dir() else target))
            outcomes["loaded"] += 1
        except SENTENCES as error:
            outcomes["refused"] += 1
            if not str(error) or "\n" in str(error):
                wrong.append(f"{subject.name} {seed} {number} ({path.name}): not one line: {error!r:.300}")
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            wrong.append(f"{subject.name} {seed} {number} ({path.name}): {error!r:.300}")
        target.write_bytes(contents[path])
    return outcomes, wrong


def small_clip() -> CLIPTextModelWithProjection:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPTextConfig(**sizes, vocab_size=300, projection_dim=16, bos_token_id=298, eos_token_id=299)
    return CLIPTextModelWithProjection(config).eval()


ENCODER = from_clip(small_clip(), rope_parameters={"rope_type": "ntk"}, attention_scaling="log")


def check_whole(model: Any) -> None:
    """Every tensor is there and is the one that was saved, but for the few that one mutation can touch."""
    expected, differ = ENCODER.state_dict(), 0
    assert model.state_dict().keys() == expected.keys()
    for key, value in model.state_dict().items():
        assert value.device.type == "cpu" and value.shape == expected[key].shape and value.dtype == torch.float32
        differ += not torch.equal(value, expected[key])
    assert differ <= 3, f"{differ} tensors differ"


def make_safetensors(path: Path) -> None:
    state = {key: value.contiguous() for key, value in export_open_clip(ENCODER).items()}
    save_file(state, path, {"format": "pt"})


def load(path: Path) -> Any:
    return load_text_encoder(path, hidden_act="gelu", num_attention_heads=2, rope="paper")


def make_pipeline(path: Path) -> None:
    """The parts of an SDXL pipeline's folder that hold its encoders."""
    ENCODER.save_pretrained(path / "text_encoder")
    ENCODER.save_pretrained(path / "text_encoder_2")
    (path / "model_index.json").write_text('{"_class_name": "StableDiffusionXLTulipPipeline"}')


def load_both(path: Path) -> Any:
    load_text_encoder(path, subfolder="text_encoder_2")
    return load_text_encoder(path)


SUBJECTS = {
    "safetensors": Subject("encoder.safetensors", make_safetensors, load, check_whole),
    "pt": Subject("encoder.pt", lambda path: torch.save(export_open_clip(ENCODER), path), load, check_whole),
    "folder": Subject("encoder", ENCODER.save_pretrained, load_text_encoder, check_whole),
    "pipeline": Subject("pipeline", make_pipeline, load_both, check_whole),
}


def main() -> int:
    from tests.data.mutations import SUBJECTS as DATA  # it needs what stands above

    subjects = SUBJECTS | DATA
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subjects", nargs="*", help=f"of {', '.join(subjects)} (default: all)")
    parser.add_argument("--count", type=int, default=1000, help="mutations of each")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    failed = False
    for name in options.subjects or subjects:
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as root:
            outcomes, wrong = damage(subjects[name], Path(root), options.count, options.seed)
        print(f"{name}: {dict(outcomes)}, {len(wrong)} wrong, {time.perf_counter() - start:.0f} s")
        print("".join(f"  {line}\n" for line in wrong[:20]), end="", flush=True)
        failed = failed or bool(wrong)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
