"""The teacher's outputs on disk: computed once, read in every later epoch and by every run that asks the same.

A cache is a folder of safetensors shards and a manifest that says what they were computed from. Entry e belongs to
row e % rows in draw e // rows.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import send_to_device
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from tulip_diffusion.provenance import weights_hash

from .teacher import Targets

if TYPE_CHECKING:
    from .distill import Distillation

logger = get_logger(__name__)

SHARD_ENTRIES = 512
BATCH_ENTRIES = 32  # captions that the teacher reads at once while the cache is filled
ESTIMATED_FROM = 64  # captions that the size is estimated from


def hash_parts(*parts: bytes | str) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def manifest_of(stage: "Distillation", precision: str) -> dict[str, Any]:
    """Everything that the cached outputs depend on."""
    arguments, cutter, teacher = stage.arguments, stage.cutter, stage.teacher
    config = {k: v for k, v in teacher.encoder.config.to_dict().items() if k not in ("transformers_version", "dtype")}
    return {
        "format": 1,
        "teacher": weights_hash(teacher.encoder),
        "teacher_config": hash_parts(json.dumps(config, sort_keys=True, default=str)),
        "tokenizer": hash_parts(stage.tokenizer.backend_tokenizer.to_str(), str(stage.pad_id)),  # type: ignore[attr-defined]
        "data": hash_parts(*stage.data.captions),
        "rows": len(stage.data),
        "draws": stage.draws,
        "objective": arguments.objective,
        "cut": [cutter.length, cutter.window, cutter.short, cutter.sub_captions, cutter.candidates, cutter.seed],
        "subset_choice": arguments.subset_choice,
        "precision": precision,
        "dtype": arguments.teacher_cache_dtype,
        "shard_entries": SHARD_ENTRIES,
    }


def estimate_bytes(stage: "Distillation", entries: int) -> int:
    """Size of the whole cache, from the first captions' cuts. Every far token is stored once a cut."""
    config, window = stage.teacher.encoder.config, stage.teacher.window
    per_entry = config.projection_dim
    if not stage.paper:
        sample = stage.data.captions[:ESTIMATED_FROM]
        cuts = [stage.cutter(caption, row) for row, caption in enumerate(sample)]
        matched = sum(piece.count for cut in cuts for sub in cut.sub_captions for piece in sub.pieces)
        per_entry += (window + matched / len(cuts)) * config.hidden_size
    return int(2 * per_entry * entries)


def open_teacher_cache(stage: "Distillation", epochs: float, accelerator: Accelerator) -> "TeacherCache | None":
    """The cache that `stage.arguments.teacher_cache` asks for, filled; None where the teacher runs at every step.

    "auto" makes one where a cut is read more than once and there is room for it.

    Raises:
        ValueError: the named folder holds another run's cache.
        OSError: the named folder has no room.
    """
    asked = stage.arguments.teacher_cache
    if asked == "off" or (asked == "auto" and epochs <= stage.draws):
        return None
    folder = Path(stage.arguments.output_dir, "teacher-cache") if asked == "auto" else Path(asked)
    cache = TeacherCache(folder, manifest_of(stage, stage.arguments.mixed_precision))
    if cache.missing():
        needed, free = estimate_bytes(stage, cache.entries), free_bytes(folder)
        text = f"Teacher cache in {folder}: about {needed / 1e9:.2f} GB for {cache.entries} entries"
        accelerator.print(text)
        if needed > 0.95 * free:
            if asked == "auto":
                logger.warning("No room for the teacher cache; the teacher runs at every step.")
                return None
            raise OSError(
                f"{text}, but {free / 1e9:.1f} GB are free. Use fewer --subset-draws, another folder, "
                "or --teacher-cache off."
            )
        cache.fill(stage, accelerator)
    return cache


def free_bytes(folder: Path) -> int:
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    return shutil.disk_usage(existing).free


class TeacherCache:
    """A folder of cached targets.

    Raises:
        ValueError: the folder's manifest is not `manifest`: its outputs came from another teacher or other captions.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]):
        self.folder, self.manifest = folder, manifest
        self.entries = manifest["rows"] * manifest["draws"]
        self.dtype = getattr(torch, manifest["dtype"])
        self.shards: dict[int, Any] = {}
        path = folder / "manifest.json"
        if path.exists() and (found := json.loads(path.read_text())) != manifest:
            stale = [key for key in manifest if found.get(key) != manifest[key]]
            raise ValueError(
                f"The teacher cache in {folder} is stale: it was made with other {', '.join(stale)}. "
                "Delete it, or name another folder with --teacher-cache."
            )

    def path(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:06d}.safetensors"

    def missing(self) -> list[int]:
        """Shards not computed yet."""
        count = -(-self.entries // SHARD_ENTRIES)
        return [shard for shard in range(count) if not self.path(shard).exists()]

    def fill(self, stage: "Distillation", accelerator: Accelerator) -> None:
        """Compute the missing shards, shared among the processes. A killed run's finished shards are kept."""
        missing = self.missing()
        accelerator.wait_for_everyone()  # all of them have looked before any writes
        if accelerator.is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self.folder / "manifest.json", lambda path: path.write_text(json.dumps(self.manifest)))
        accelerator.wait_for_everyone()
        mine = missing[accelerator.process_index :: accelerator.num_processes]
        for shard in tqdm(mine, desc="teacher cache", disable=not accelerator.is_main_process):
            tensors = self.compute(stage, shard, accelerator)
            write_atomically(self.path(shard), lambda path, tensors=tensors: save_file(tensors, path))
        accelerator.wait_for_everyone()

    def compute(self, stage: "Distillation", shard: int, accelerator: Accelerator) -> dict[str, Tensor]:
        """One shard's tensors: pooled and short states by entry, all matched tokens in a row with their offsets."""
        numbers = range(shard * SHARD_ENTRIES, min((shard + 1) * SHARD_ENTRIES, self.entries))
        parts: dict[str, list[Tensor]] = {}
        for start in range(0, len(numbers), BATCH_ENTRIES):
            keys = [divmod(number, len(stage.data)) for number in numbers[start : start + BATCH_ENTRIES]]
            chunk = stage.collate([stage.rows[row, draw] for draw, row in keys])
            targets = stage.targets(send_to_device(chunk, accelerator.device), accelerator)
            for name, value in self.flatten(targets):
                parts.setdefault(name, []).append(value.cpu())
        tensors = {name: torch.cat(values).contiguous() for name, values in parts.items()}
        if "token_count" in tensors:
            counts = tensors.pop("token_count")
            tensors["token_offsets"] = torch.cat((counts.new_zeros(1), counts.cumsum(0)))
        return tensors

    def flatten(self, targets: Targets) -> Iterator[tuple[str, Tensor]]:
        yield "pooled", targets.pooled.to(self.dtype)
        if targets.short_states is not None:
            yield "short_states", targets.short_states.to(self.dtype)
        if targets.token_row is not None:
            assert targets.token_place is not None and targets.token_states is not None
            yield "token_count", torch.bincount(targets.token_row, minlength=len(targets.pooled))
            yield "token_place", targets.token_place
            yield "token_states", targets.token_states.to(self.dtype)

    def shard(self, number: int) -> Any:
        if number not in self.shards:
            self.shards[number] = safe_open(self.path(number), framework="pt")
        return self.shards[number]

    def targets(self, entries: Sequence[int], device: torch.device) -> Targets:
        """What the teacher said of `entries`, in float32 on `device`."""
        found = [self.entry(entry) for entry in entries]

        def stacked(name: str) -> Tensor | None:
            return torch.stack([e[name] for e in found]).to(device).float() if name in found[0] else None

        targets = Targets(stacked("pooled"), stacked("short_states"))  # type: ignore[arg-type]
        if "token_states" in found[0]:
            counts = torch.tensor([len(e["token_place"]) for e in found])
            targets.token_row = torch.arange(len(found)).repeat_interleave(counts).to(device)
            targets.token_place = torch.cat([e["token_place"] for e in found]).to(device)
            targets.token_states = torch.cat([e["token_states"] for e in found]).to(device).float()
        return targets

    def entry(self, entry: int) -> dict[str, Tensor]:
        number, place = divmod(entry, SHARD_ENTRIES)
        shard = self.shard(number)
        names = set(shard.keys())
        values = {name: shard.get_slice(name)[place] for name in ("pooled", "short_states") if name in names}
        if "token_offsets" in names:
            start, end = shard.get_slice("token_offsets")[place : place + 2].tolist()
            values |= {name: shard.get_slice(name)[start:end] for name in ("token_place", "token_states")}
        return values


def write_atomically(path: Path, write) -> None:
    """Let `write` fill a temporary file, then give it its name."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    write(temporary)
    os.replace(temporary, path)
