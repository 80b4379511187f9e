#!/usr/bin/env bash
# The paper's ablations and ours. Without DATA on the embedded family, where each is one command that trains, judges and
# writes table, plot and JSON; what is there already is not run again:
#
#   training/runs/ablations.sh                         # SIZE=long for ten times the steps, ASSETS=… for another family
#
# docs/results.md has four of them with `--stage1-steps 100 --stage2-steps 20 --stage2-rate 2e-4 --batch 32 --captions
# 2000 --count 200`: 4 to 9 minutes each on one core of a busy machine. With the steps that stand as defaults, each takes
# some five times as long.
#
# With DATA on real pairs, RoPE or CoPE, cosine, L2 or MSE, and text lengths 77 to 308 with a frozen image tower:
#
#   DATA=/data/share-captioner_coco_lcs_sam_1246k_1107.json IMAGES=/data training/runs/ablations.sh
#
# ESTIMATED cost, not measured, from paper.sh's figures for B/16: 0.4 GPU-hours for each of the four stages 1, 0.3 for
# each of the four stages 2; 3 hours in all.
set -euo pipefail
OUT=${OUT:-outputs/ablations}

if [ -z "${DATA:-}" ]; then
    options=(--work "$OUT/encoders" ${ASSETS:+--assets "$ASSETS"})
    if [ "${SIZE:-short}" = long ]; then
        options+=(--stage1-steps 2500 --stage2-steps 1000 --captions 40000)
    fi
    for name in short positions lambda ntk loss length; do
        tulip-diffusion ablate "$name" "${options[@]}" --out "$OUT/$name"
    done
    exit
fi

MODEL=${MODEL:-openai/clip-vit-base-patch16}
GPUS=${GPUS:-1}
launch=(accelerate launch --num_processes "$GPUS" --module tulip_diffusion.training.commands train)

distill() {
    "${launch[@]}" distill --teacher "$MODEL" --data "$DATA" --output-dir "$OUT/$1" --objective paper --epochs 20 \
        --batch-size 640 --mixed-precision bf16 --teacher-cache "$OUT/$2" --resume auto "${@:3}"
}
distill cosine cache
distill l2 cache --pooled-loss l2
distill mse cache --pooled-loss mse
distill cope cache --position-encoding cope

for length in 77 154 231 308; do
    "${launch[@]}" expand --teacher "$MODEL" --student "$OUT/cosine" --data "$DATA" --image-root "$IMAGES" \
        --output-dir "$OUT/length-$length" --length "$length" --train text --anchor-weight 0 --chunk-size 160 \
        --mixed-precision bf16 --num-workers 16 --resume auto
done
