#!/usr/bin/env bash
# TULIP as printed (arXiv:2410.10034): ShareGPT4V, 20 epochs of stage 1 in batches of 640, 1 epoch of stage 2 in
# batches of 1,280, for ViT-L/14 (default) or, with MODEL=openai/clip-vit-base-patch16, for B/16.
#
#   DATA=/data/share-captioner_coco_lcs_sam_1246k_1107.json IMAGES=/data training/runs/paper.sh
#
# Flags given here are added to both stages.
#
# ESTIMATED cost in bf16, not measured, as operations / (0.3 x 989 TFLOP/s), an H100 used to 30 %:
#   stage 1, L/14: 1.246 M x 20 captions x 77 tokens x 6 x 85 M weights = 0.98e18, 0.9 GPU-hours with cached pooled
#     states (2 GB), which are computed once in 0.02 hours.                    B/16 (38 M weights): 0.4
#   stage 2, L/14: 1.246 M pairs x (257 x 304 M + 325 x 85 M) x 8 operations (6, and 2 for the recomputed forward)
#     = 1.05e18, 1.0 GPU-hours if the images are decoded at 350 a second.            B/16: 0.3
# Differences from the published run, all on purpose: gradients are averaged over GPUs (theirs were not, so that their
# batch of 640 was 80 in effect), the student keeps its teacher's activation and, in stage 2, its own text projection,
# and lambda is 0.2 with and without accumulation.
set -euo pipefail
MODEL=${MODEL:-openai/clip-vit-large-patch14}
OUT=${OUT:-outputs/paper/$(basename "$MODEL")}
GPUS=${GPUS:-1}
CHUNK=${CHUNK:-160}  # pairs that fit into one GPU's memory at once in stage 2; changes nothing in the result
launch=(accelerate launch --num_processes "$GPUS" --module tulip_diffusion.training.commands train)

"${launch[@]}" distill --teacher "$MODEL" --data "$DATA" --output-dir "$OUT/stage1" \
    --objective paper --length 77 --epochs 20 --batch-size 640 \
    --learning-rate 5e-4 --weight-decay 0.1 --warmup-steps 1000 --mixed-precision bf16 --resume auto "$@"

"${launch[@]}" expand --teacher "$MODEL" --student "$OUT/stage1" --data "$DATA" --image-root "$IMAGES" \
    --output-dir "$OUT/stage2" --length 248 --epochs 1 --batch-size 1280 --chunk-size "$CHUNK" \
    --learning-rate 1e-5 --weight-decay 0.1 --warmup-steps 1000 \
    --short-weight 0.2 --short-captions first-sentence --anchor-weight 0 \
    --mixed-precision bf16 --num-workers 16 --resume auto "$@"
