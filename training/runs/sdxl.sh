#!/usr/bin/env bash
# Ours, for SDXL: token states are matched too, beyond 77 tokens through subsets of sentences; then the same lengths are
# spread over 2,048 positions, and the mean of before and after is kept, its attention scaled. Last it learns retrieval
# with an image tower, in what comes after the states that SDXL reads, so that pictures pay nothing, and the mean of
# before and after finds short captions as CLIP does. Upgrades CLIP-L; TOWER=g does bigG, whose padding is id 0.
#
#   DATA=/data/share-captioner_coco_lcs_sam_1246k_1107.json IMAGES=/data training/runs/sdxl.sh
#
# Flags given here are added to every training. $OUT/encoder/ is for SDXL's first slot, $OUT/retrieval/ for its second
# and for retrieval; their token states are the same.
#
# ESTIMATED cost in bf16, not measured, as operations / (0.3 x 989 TFLOP/s), an H100 used to 30 %. A caption is 77 + 220
# tokens for the student (6 operations a weight) and about 460 for the teacher (2), who is not cached: its states of
# all captions would take 600 GB and more.
#   stage 1, L (85 M weights): 1.246 M x 4 captions x 230 GFLOP = 1.1e18, 1.1 GPU-hours.    bigG (630 M): 8
#   spread positions, one epoch more: 0.3 GPU-hours.                                        bigG: 2
#   retrieval, L/14: 1.246 M pairs x (257 x 304 M x 8 + 325 x 85 M x 4.3 operations, since the text tower's backward pass
#     is that of one layer in twelve) = 0.93e18, 0.9 GPU-hours.                              bigG (image 1.8 B): 5
set -euo pipefail
TOWER=${TOWER:-l}
case $TOWER in
    l) MODEL=${MODEL:-openai/clip-vit-large-patch14} PAD=eos CHUNK=${CHUNK:-160} ;;
    g) MODEL=${MODEL:-laion/CLIP-ViT-bigG-14-laion2B-39B-b160k} PAD=zero CHUNK=${CHUNK:-32} ;;
esac
OUT=${OUT:-outputs/sdxl-$TOWER}
GPUS=${GPUS:-1}
launch=(accelerate launch --num_processes "$GPUS" --module tulip_diffusion.training.commands train)

"${launch[@]}" distill --teacher "$MODEL" --data "$DATA" --output-dir "$OUT/stage1" --pad "$PAD" \
    --length 248 --sub-captions subsets --epochs 4 --batch-size 640 --chunk-size "$CHUNK" \
    --learning-rate 5e-4 --warmup-steps 500 --teacher-cache off --mixed-precision bf16 --num-workers 8 \
    --resume auto "$@"

"${launch[@]}" distill --teacher "$MODEL" --student "$OUT/stage1" --data "$DATA" --output-dir "$OUT/far" --pad "$PAD" \
    --length 248 --sub-captions subsets --position-gaps 2048 --epochs 1 --batch-size 640 --chunk-size "$CHUNK" \
    --learning-rate 2.5e-4 --warmup-steps 200 --teacher-cache off --mixed-precision bf16 --num-workers 8 --seed 1 \
    --resume auto "$@"

python -m tulip_diffusion.training.embedded.average "$OUT/stage1" "$OUT/far" --share 0.7 --out "$OUT/encoder"

"${launch[@]}" expand --teacher "$MODEL" --student "$OUT/encoder" --data "$DATA" --image-root "$IMAGES" \
    --output-dir "$OUT/contrast" --pad "$PAD" --length 248 --ntk-alpha 0 --epochs 1 --batch-size 1280 \
    --chunk-size "$CHUNK" --learning-rate 1e-5 --warmup-steps 200 --freeze-token-states --short-weight 0.5 \
    --short-captions random-subset --hard-negative-margin 0.25 \
    --mixed-precision bf16 --num-workers 16 --resume auto "$@"

python -m tulip_diffusion.training.embedded.average "$OUT/encoder" "$OUT/contrast" --clip "$MODEL" --share 0.7 \
    --out "$OUT/retrieval"
