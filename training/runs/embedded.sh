#!/usr/bin/env bash
# Trains the embedded family from nothing: some hours on two CPU cores, minutes on a GPU with a dozen cores beside it.
# It can be interrupted and started again: every line goes on where it stopped.
# SEED=1 FOLDER=outputs/again training/runs/embedded.sh makes another family.
# DRY=1 FOLDER=outputs/dry training/runs/embedded.sh takes two steps of every part, to see in minutes that all fits together.
set -euo pipefail
FOLDER=${FOLDER:-outputs/embedded}
SEED=${SEED:-0}
if python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    WORKERS=${WORKERS:-12} ATTN=sdpa
    VAE=(--steps 3000 --batch 64) CLIP=(--steps 2000 --batch 256) TULIP=(--steps 800 --batch 96)
    REFERRING=(--steps 300 --batch 96 --learning-rate 7e-4)
    UNET=(--steps 6000 --batch 256 --shard 32768 --passes 2)
    NEGATIVES=(--steps 1500 --batch 256) GAPS=(--steps 300 --batch 96 --learning-rate 5e-4)
    AGAIN=(--steps 200 --batch 96 --learning-rate 4e-4) LAST=(--steps 600 --batch 96 --learning-rate 8e-4)
else
    WORKERS=${WORKERS:-0} ATTN=eager
    VAE=(--steps 1600 --batch 24) CLIP=(--steps 900 --batch 128) TULIP=(--steps 900 --batch 32)
    REFERRING=(--steps 300 --batch 32 --learning-rate 7e-4)
    UNET=(--steps 12000 --batch 32 --shard 8192 --passes 5)
    NEGATIVES=(--steps 2560 --batch 32) GAPS=(--steps 260 --batch 24 --learning-rate 5e-4)
    AGAIN=(--steps 180 --batch 24 --learning-rate 4e-4) LAST=(--steps 1000 --batch 24 --learning-rate 8e-4)
fi
PAIRS=(--steps 60 --batch_size 64 --learning_rate 2e-4) CONTRAST=(--steps 40) RETRIEVAL=(--steps 150)
PAPER=(--steps 200 --batch_size 128) FINELIP=(--steps 50 --batch_size 32)
CAPTIONS=20000 REFERRING_CAPTIONS=10000 FAR_CAPTIONS=7500 LAST_CAPTIONS=12000 SIZE=standard
if [ -n "${DRY:-}" ]; then
    TWO=(--steps 2 --batch 8) PAIRS=(--steps 2 --batch_size 8)
    VAE=("${TWO[@]}") CLIP=("${TWO[@]}") TULIP=("${TWO[@]}") REFERRING=("${TWO[@]}")
    UNET=("${TWO[@]}" --shard 256 --passes 1) NEGATIVES=("${UNET[@]}")
    GAPS=("${TWO[@]}") AGAIN=("${TWO[@]}") LAST=("${TWO[@]}")
    CONTRAST=() RETRIEVAL=(--steps 2 --batch_size 8) PAPER=("${PAIRS[@]}") FINELIP=("${PAIRS[@]}")
    CAPTIONS=64 REFERRING_CAPTIONS=64 FAR_CAPTIONS=64 LAST_CAPTIONS=64 SIZE=quick
fi
part() {
    local seed=(--seed "$SEED")
    [[ " $* " != *" --seed "* ]] || seed=()
    python -m "tulip_diffusion.training.embedded.$1" "${@:2}" "${seed[@]}"
}
scenes=(--workers "$WORKERS")

# What SDXL has: VAE, two CLIPs of 77 tokens, and a UNet that is trained on their states and never again.
part vae --out "$FOLDER/vae" "${VAE[@]}" "${scenes[@]}"
part clip l --out "$FOLDER/clip-l" "${CLIP[@]}" "${scenes[@]}"
part clip g --out "$FOLDER/clip-g" "${CLIP[@]}" "${scenes[@]}"
# Steps of one size: without these, glibc gives their memory back each time, a quarter of the time on a CPU.
MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592 MALLOC_TOP_PAD_=268435456 \
    part unet --folder "$FOLDER" --out "$FOLDER/unet-first" "${UNET[@]}" "${scenes[@]}"
# It goes on with captions that refer more, with empty and unrelated texts for "no prompt": what people write as negatives.
MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592 MALLOC_TOP_PAD_=268435456 \
    part unet --folder "$FOLDER" --start "$FOLDER/unet-first" --texts everything --learning-rate 4e-4 \
    "${NEGATIVES[@]}" "${scenes[@]}"

# Encoders for its two slots that read further, and what they are compared with.
part pairs --out "$FOLDER/captions" --count "$CAPTIONS"
part pairs --out "$FOLDER/captions-referring" --count "$REFERRING_CAPTIONS" --references 0.6
part pairs --out "$FOLDER/captions-far" --count "$FAR_CAPTIONS" --references 0.4 --seed "$((SEED + 9))"
part pairs --out "$FOLDER/captions-last" --count "$LAST_CAPTIONS" --references 0.6 --seed "$((SEED + 31))"
for tower in l g; do
    pad=$([ "$tower" = l ] && echo eos || echo zero)
    common=(--teacher "$FOLDER/clip-$tower" --tokenizer "$FOLDER/clip-$tower" --data "$FOLDER/captions/captions.jsonl"
        --mixed_precision bf16 --attn "$ATTN" --num_workers "$WORKERS" --warmup_steps 10
        --weight_decay 0.01 --save_every 50 --resume auto --seed "$SEED")
    # Ours: states and references distilled to 520 tokens. Then contrast, gently, for the tower whose pooled state is
    # read by SDXL and by retrieval; the first slot's is read by nobody.
    part tulip "$tower" --folder "$FOLDER" --out "$FOLDER/tulip-first-$tower" "${TULIP[@]}" --attn "$ATTN" \
        "${scenes[@]}"
    stage1=$([ "$tower" = l ] && echo tulip-referring-l || echo tulip-stage1-g)
    part tulip "$tower" --folder "$FOLDER" --out "$FOLDER/$stage1" "${REFERRING[@]}" --attn "$ATTN" \
        "${scenes[@]}" --student "$FOLDER/tulip-first-$tower" --captions "$FOLDER/captions-referring/captions.jsonl"
    [ "$tower" = l ] || tulip-diffusion train expand "${common[@]}" "${PAIRS[@]}" --pad zero \
        --student "$FOLDER/tulip-stage1-g" "${CONTRAST[@]}" --warmup_steps 5 --learning_rate 1e-4 \
        --ntk_alpha 0 --length 520 \
        --short_weight 0.5 --short_captions random-subset --anchor_weight 30 --output_dir "$FOLDER/tulip-referring-g"
    # The same lengths spread over 2,048 positions; for the second slot again, with captions that refer more. That costs
    # references what it gives to length, so training goes on from the mean of before and after.
    part tulip "$tower" --folder "$FOLDER" --out "$FOLDER/tulip-far-$tower" "${GAPS[@]}" "${scenes[@]}" \
        --student "$FOLDER/tulip-referring-$tower" --captions "$FOLDER/captions-far/captions.jsonl" \
        --position-gaps 2048
    last=tulip-far-$tower
    if [ "$tower" = g ]; then
        last=tulip-far-again-g
        part tulip g --folder "$FOLDER" --out "$FOLDER/$last" "${AGAIN[@]}" "${scenes[@]}" \
            --student "$FOLDER/tulip-far-g" --captions "$FOLDER/captions-referring/captions.jsonl" --position-gaps 2048
    fi
    python -m tulip_diffusion.training.embedded.average "$FOLDER/tulip-referring-$tower" "$FOLDER/$last" \
        --share 0.7 --out "$FOLDER/tulip-mean-$tower"
    # References are learned more slowly than anything else: of seven captions in ten the teacher is asked about them
    # alone. Again the mean of before and after is better than either, and its attention is scaled.
    part tulip "$tower" --folder "$FOLDER" --out "$FOLDER/tulip-last-$tower" "${LAST[@]}" "${scenes[@]}" \
        --student "$FOLDER/tulip-mean-$tower" --captions "$FOLDER/captions-last/captions.jsonl" --position-gaps 2048 \
        --plain 0.3 --long-pooled-weight 0.3
    token_states=$([ "$tower" = l ] && echo tulip-l || echo tulip-states-g)
    python -m tulip_diffusion.training.embedded.average "$FOLDER/tulip-mean-$tower" "$FOLDER/tulip-last-$tower" \
        --share 0.5 --out "$FOLDER/$token_states"
    # Retrieval without a price: the last layer, which SDXL does not read but for the pooled state, and an image tower.
    # The mean of before and after keeps short captions as CLIP finds them.
    if [ "$tower" = g ]; then
        tulip-diffusion train expand "${common[@]}" --student "$FOLDER/tulip-states-g" --pad zero \
            --freeze_token_states --batch_size 64 "${RETRIEVAL[@]}" --warmup_steps 5 --learning_rate 5e-4 \
            --ntk_alpha 0 --length 248 --short_weight 0.5 --short_captions random-subset --hard_negative_margin 0.25 \
            --output_dir "$FOLDER/tulip-retrieval-g"
        python -m tulip_diffusion.training.embedded.average "$FOLDER/tulip-states-g" "$FOLDER/tulip-retrieval-g" \
            --clip "$FOLDER/clip-g" --share 0.7 --out "$FOLDER/tulip-g"
    fi
    # As published: the pooled state alone, then NTK and contrast.
    tulip-diffusion train distill "${common[@]}" --pad "$pad" --objective paper "${PAPER[@]}" \
        --learning_rate 5e-4 --output_dir "$FOLDER/tulip-paper-stage1-$tower"
    tulip-diffusion train expand "${common[@]}" "${PAIRS[@]}" --pad "$pad" \
        --student "$FOLDER/tulip-paper-stage1-$tower" --anchor_weight 0 --output_dir "$FOLDER/tulip-paper-$tower"
    tulip-diffusion train finetune-clip "${common[@]}" "${PAIRS[@]}" --stretch \
        --output_dir "$FOLDER/clip-finetuned-$tower"
    tulip-diffusion train longclip "${common[@]}" "${PAIRS[@]}" --output_dir "$FOLDER/longclip-$tower"
    tulip-diffusion train finelip "${common[@]}" --mixed_precision no --attn sdpa --pad "$pad" "${FINELIP[@]}" \
        --learning_rate 2e-4 --refinement_learning_rate 1e-3 --anchor_weight 10 \
        --output_dir "$FOLDER/finelip-$tower"
done

python -m tulip_diffusion.training.embedded.export --folder "$FOLDER" --out "$FOLDER/assets"
tulip-diffusion evaluate all --size "$SIZE" --assets "$FOLDER/assets" --out "$FOLDER/evaluation"
