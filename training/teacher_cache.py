"""The teacher's outputs on disk: computed once, read in every later epoch and by every run that asks the same.

A cache is a folder of safetensors shards and a manifest that says what they were computed from.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from tulip_diffusion.files import replacing, write_text

from .teacher import Targets

BY_CAPTION = ("pooled", "short_states", "long_pooled")  # one tensor for each entry
SHARD_ENTRIES = 512
BATCH_ENTRIES = 32  # captions that the teacher reads at once while the cache is filled


def hash_parts(*parts: bytes | str) -> str:
    """SHA-256 of a sequence of parts, each with its length before it."""
    return hash_all(parts)


def hash_all(parts: Iterable[bytes | str]) -> str:
    """The same of any number of parts, one after the other."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


class TeacherCache:
    """A folder of cached targets.

    Args:
        manifest: all that the outputs depend on; with `rows` times `draws` entries, stored in `dtype`.

    Raises:
        ValueError: the folder's manifest is not `manifest`: its outputs came from another teacher or other captions.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]):
        manifest = manifest | {"shard_entries": SHARD_ENTRIES}
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

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"shards": {}}  # open files stay behind: a loader's worker opens its own

    def path(self, shard: int) -> Path:
        """The file of shard number `shard`."""
        return self.folder / f"shard-{shard:06d}.safetensors"

    def missing(self) -> list[int]:
        """Shards not computed yet."""
        count = -(-self.entries // SHARD_ENTRIES)
        return [shard for shard in range(count) if not self.path(shard).exists()]

    def free_bytes(self) -> int:
        """Room on the disk that the cache is on."""
        parents = (self.folder.absolute(), *self.folder.absolute().parents)
        return shutil.disk_usage(next(parent for parent in parents if parent.exists())).free

    def fill(self, compute: Callable[[Sequence[int]], Targets], accelerator: Accelerator) -> None:
        """Let `compute` make the outputs of the missing shards' entries, a few at a time, shared among the processes.

        A killed run's finished shards are kept.
        """
        missing = self.missing()
        accelerator.wait_for_everyone()  # all of them have looked before any writes
        if accelerator.is_main_process:
            write_text(self.folder / "manifest.json", json.dumps(self.manifest))
        accelerator.wait_for_everyone()
        mine = missing[accelerator.process_index :: accelerator.num_processes]
        for shard in tqdm(mine, desc="teacher cache", disable=not accelerator.is_main_process):
            with replacing(self.path(shard)) as unfinished:
                save_file(self.shard_tensors(shard, compute), unfinished)
        accelerator.wait_for_everyone()

    def shard_tensors(self, shard: int, compute: Callable[[Sequence[int]], Targets]) -> dict[str, Tensor]:
        """Pooled and short states by entry, all matched tokens in a row with their offsets."""
        numbers = range(shard * SHARD_ENTRIES, min((shard + 1) * SHARD_ENTRIES, self.entries))
        parts: dict[str, list[Tensor]] = {}
        for start in range(0, len(numbers), BATCH_ENTRIES):
            for name, value in self.flatten(compute(numbers[start : start + BATCH_ENTRIES])):
                parts.setdefault(name, []).append(value.cpu())
        tensors = {name: torch.cat(values).contiguous() for name, values in parts.items()}
        if "token_count" in tensors:
            counts = tensors.pop("token_count")
            tensors["token_offsets"] = torch.cat((counts.new_zeros(1), counts.cumsum(0)))
        return tensors

    def flatten(self, targets: Targets) -> Iterator[tuple[str, Tensor]]:
        """The tensors of `targets` as a shard holds them, by name."""
        yield "pooled", targets.pooled.to(self.dtype)
        if targets.short_states is not None:
            yield "short_states", targets.short_states.to(self.dtype)
        if targets.token_row is not None:
            assert targets.token_place is not None and targets.token_states is not None
            assert targets.long_pooled is not None
            yield "long_pooled", targets.long_pooled.to(self.dtype)
            yield "token_count", torch.bincount(targets.token_row, minlength=len(targets.pooled))
            yield "token_place", targets.token_place
            yield "token_states", targets.token_states.to(self.dtype)

    def shard(self, number: int) -> Any:
        """Shard `number`, opened once in this process."""
        if number not in self.shards:
            self.shards[number] = safe_open(self.path(number), framework="pt")
        return self.shards[number]

    def read(self, entries: Sequence[int]) -> dict[str, Tensor]:
        """The fields of `entries`' [`Targets`], as stored."""
        found = [self.entry(entry) for entry in entries]
        fields = {name: torch.stack([e[name] for e in found]) for name in BY_CAPTION if name in found[0]}
        if "token_states" in found[0]:
            counts = torch.tensor([len(e["token_place"]) for e in found])
            fields["token_row"] = torch.arange(len(found)).repeat_interleave(counts)
            fields |= {name: torch.cat([e[name] for e in found]) for name in ("token_place", "token_states")}
        return fields

    def entry(self, entry: int) -> dict[str, Tensor]:
        """The tensors of one entry, as stored."""
        number, place = divmod(entry, SHARD_ENTRIES)
        shard = self.shard(number)
        names = set(shard.keys())
        values = {name: shard.get_slice(name)[place] for name in BY_CAPTION if name in names}
        if "token_offsets" in names:
            start, end = shard.get_slice("token_offsets")[place : place + 2].tolist()
            values |= {name: shard.get_slice(name)[start:end] for name in ("token_place", "token_states")}
        return values
