#!/usr/bin/env bash
# Runs paper.sh and sdxl.sh, every command of them, at true size on random weights: two steps of two pairs a stage, in
# float32 and on whatever device there is. Done before the first hour on a GPU, it shows a wrong path, a missing package
# or too little memory within minutes. Memory and disk below are ESTIMATED, 16 bytes a weight that trains. It needs neither weights nor data, and removes what it wrote.
#
#   training/runs/dry_run.sh                     # ViT-L/14: 10 GB of memory, 15 GB of disk
#   TOWER=g training/runs/dry_run.sh             # bigG/14: 45 GB of memory, 60 GB of disk
#   TOWER=g DEPTH=2 training/runs/dry_run.sh     # every width true, two layers of each tower
set -euo pipefail
export TOWER=${TOWER:-l}
WORK=${WORK:-$(mktemp -d)}
trap 'rm -rf "$WORK"' EXIT
runs=$(dirname "$0")

python - "$WORK" "$TOWER" "${DEPTH:-}" <<'PYTHON'
import json, sys
from pathlib import Path

import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel

folder, tower, depth = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
text, vision = {
    "l": (
        {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
        {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
    ),
    "g": (
        {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20},
        {"hidden_size": 1664, "intermediate_size": 8192, "num_hidden_layers": 48, "num_attention_heads": 16},
    ),
}[tower]
if depth:
    text["num_hidden_layers"] = vision["num_hidden_layers"] = int(depth)
width = {"l": 768, "g": 1280}[tower]
own = {"l": "quick_gelu", "g": "gelu"}[tower]
text |= {"eos_token_id": 49407, "bos_token_id": 49406, "hidden_act": own, "projection_dim": width}
vision |= {"patch_size": 14, "image_size": 224, "hidden_act": own, "projection_dim": width}
torch.set_default_dtype(torch.bfloat16)  # for the file alone: every stage trains in float32
clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=width))
clip.save_pretrained(folder / "clip")
print(f"{sum(weight.numel() for weight in clip.parameters()) / 1e6:,.0f} M random weights")
with (folder / "pairs.json").open("w") as file:
    rows = []
    for number in range(4):
        Image.new("RGB", (320, 240), (60 * number, 90, 120)).save(folder / f"{number}.png")
        caption = " ".join(f"A red boat lies beside the {word} house." for word in "old new tall low wide far".split() * 5)
        said = [{"from": "human", "value": "Describe it."}, {"from": "gpt", "value": caption}]
        rows.append({"image": f"{number}.png", "conversations": said})
    json.dump(rows, file)
PYTHON

export MODEL="$WORK/clip" DATA="$WORK/pairs.json" IMAGES="$WORK"
few=(--steps 2 --batch-size 2 --chunk-size 1 --warmup-steps 1 --num-workers 0 --keep-last 1)
[ -n "${PRECISION:-}" ] || PRECISION=no
few+=(--mixed-precision "$PRECISION")
for run in paper sdxl; do
    echo "== $run.sh, $TOWER"
    OUT="$WORK/$run" "$runs/$run.sh" "${few[@]}"
    rm -rf "${WORK:?}/$run"
done
echo "dry run of paper.sh and sdxl.sh at the size of $TOWER: done"
