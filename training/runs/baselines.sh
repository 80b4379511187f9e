#!/usr/bin/env bash
# What TULIP is compared with, on the same pairs: Long-CLIP as released, and CLIP fine-tuned at 77 tokens and with
# stretched positions, in full float32 (the strong baseline).
#
#   DATA=/data/share-captioner_coco_lcs_sam_1246k_1107.json IMAGES=/data training/runs/baselines.sh
#
# ESTIMATED cost, not measured: an epoch of ViT-L/14 pairs is about 1.0e18 operations (see paper.sh). Float32 with TF32
# off runs at about 30 TFLOP/s on an H100: 9 GPU-hours a run; 30 hours for the three.
set -euo pipefail
MODEL=${MODEL:-openai/clip-vit-large-patch14}
OUT=${OUT:-outputs/baselines/$(basename "$MODEL")}
GPUS=${GPUS:-1}
CHUNK=${CHUNK:-64}
launch=(accelerate launch --num_processes "$GPUS" --module tulip_diffusion.training.commands train)
data=(--teacher "$MODEL" --data "$DATA" --image-root "$IMAGES" --chunk-size "$CHUNK" --num-workers 16 --resume auto)

"${launch[@]}" longclip "${data[@]}" --output-dir "$OUT/longclip" --epochs 1 --batch-size 2048 \
    --learning-rate 1e-6 --weight-decay 0.01 --warmup-steps 200 --label-smoothing 0.1

"${launch[@]}" finetune-clip "${data[@]}" --output-dir "$OUT/finetuned-77" --epochs 1 --batch-size 1280 \
    --learning-rate 1e-5 --warmup-steps 200

"${launch[@]}" finetune-clip "${data[@]}" --output-dir "$OUT/finetuned-248" --stretch --epochs 1 --batch-size 1280 \
    --learning-rate 1e-5 --warmup-steps 200
