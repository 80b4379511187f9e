"""The seeds that keep evaluation apart from training."""

# First seed of every split. Example i of a split has the seed SPLITS[split] + i, so a split is the same everywhere.
SPLITS = {"train": 0, "validation": 1_000_000_000, "evaluation": 2_000_000_000}
