#!/usr/bin/env bash
# Trains the embedded family from nothing: some hours on two CPU cores, minutes on a GPU with a dozen cores beside it.
# It can be interrupted and started again: every line goes on where it stopped.
# SEED=1 FOLDER=outputs/again training/runs/embedded.sh makes another family.
set -euo pipefail
FOLDER=${FOLDER:-outputs/embedded}
SEED=${SEED:-0}
if python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    WORKERS=${WORKERS:-12} ATTN=sdpa
    VAE=(--steps 3000 --batch 64) CLIP=(--steps 2000 --batch 256) TULIP=(--steps 800 --batch 96)
    REFERRING=(--steps 300 --batch 96 --learning-rate 7e-4)
    UNET=(--steps 6000 --batch 256 --shard 32768 --passes 2)
    NEGATIVES=(--steps 1500 --batch 256) GAPS=(--steps 300 --batch 96 --learning-rate 5e-4)
    AGAIN=(--steps 200 --batch 96 --learning-rate 4e-4)
else
    WORKERS=${WORKERS:-0} ATTN=eager
    VAE=(--steps 1600 --batch 24) CLIP=(--steps 900 --batch 128) TULIP=(--steps 900 --batch 32)
    REFERRING=(--steps 300 --batch 32 --learning-rate 7e-4)
    UNET=(--steps 12000 --batch 32 --shard 8192 --passes 5)
    NEGATIVES=(--steps 2560 --batch 32) GAPS=(--steps 260 --batch 24 --learning-rate 5e-4)
    AGAIN=(--steps 180 --batch 24 --learning-rate 4e-4)
fi
part() { python -m "tulip_diffusion.training.embedded.$1" "${@:2}" --seed "$SEED"; }
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
part pairs --out "$FOLDER/captions" --count 20000
part pairs --out "$FOLDER/captions-referring" --count 10000 --references 0.6
part pairs --out "$FOLDER/captions-far" --count 7500 --references 0.4 --seed "$((SEED + 9))"
for tower in l g; do
    pad=$([ "$tower" = l ] && echo eos || echo zero)
    common=(--teacher "$FOLDER/clip-$tower" --tokenizer "$FOLDER/clip-$tower" --data "$FOLDER/captions/captions.jsonl"
        --mixed_precision bf16 --attn "$ATTN" --num_workers "$WORKERS" --warmup_steps 10
        --weight_decay 0.01 --save_every 50 --resume auto --seed "$SEED")
    pairs=(--steps 60 --batch_size 64 --learning_rate 2e-4)
    # Ours: states and references distilled to 520 tokens. Then contrast, gently, for the tower whose pooled state is
    # read by SDXL and by retrieval; the first slot's is read by nobody.
    part tulip "$tower" --folder "$FOLDER" --out "$FOLDER/tulip-first-$tower" "${TULIP[@]}" --attn "$ATTN" \
        "${scenes[@]}"
    stage1=$([ "$tower" = l ] && echo tulip-referring-l || echo tulip-stage1-g)
    part tulip "$tower" --folder "$FOLDER" --out "$FOLDER/$stage1" "${REFERRING[@]}" --attn "$ATTN" \
        "${scenes[@]}" --student "$FOLDER/tulip-first-$tower" --captions "$FOLDER/captions-referring/captions.jsonl"
    [ "$tower" = l ] || tulip-diffusion train expand "${common[@]}" "${pairs[@]}" --pad zero \
        --student "$FOLDER/tulip-stage1-g" --steps 40 --warmup_steps 5 --learning_rate 1e-4 \
        --ntk_alpha 0 --length 520 \
        --short_weight 0.5 --short_captions random-subset --anchor_weight 30 --output_dir "$FOLDER/tulip-referring-g"
    # The same lengths spread over 2,048 positions; for the second slot again, with captions that refer more. That costs
    # references what it gives to length, so what ships is the mean of before and after, its attention scaled.
    part tulip "$tower" --folder "$FOLDER" --out "$FOLDER/tulip-far-$tower" "${GAPS[@]}" "${scenes[@]}" \
        --student "$FOLDER/tulip-referring-$tower" --captions "$FOLDER/captions-far/captions.jsonl" \
        --position-gaps 2048
    last=tulip-far-$tower
    if [ "$tower" = g ]; then
        last=tulip-far-again-g
        part tulip g --folder "$FOLDER" --out "$FOLDER/$last" "${AGAIN[@]}" "${scenes[@]}" \
            --student "$FOLDER/tulip-far-g" --captions "$FOLDER/captions-referring/captions.jsonl" --position-gaps 2048
    fi
    mean=$([ "$tower" = l ] && echo tulip-l || echo tulip-mean-g)
    python -m tulip_diffusion.training.embedded.average "$FOLDER/tulip-referring-$tower" "$FOLDER/$last" \
        --share 0.7 --out "$FOLDER/$mean"
    # Retrieval without a price: the last layer, which SDXL does not read but for the pooled state, and an image tower.
    [ "$tower" = l ] || tulip-diffusion train expand "${common[@]}" --student "$FOLDER/tulip-mean-g" --pad zero \
        --freeze_token_states --steps 150 --warmup_steps 5 --batch_size 64 --learning_rate 5e-4 --ntk_alpha 0 \
        --length 248 --short_weight 0.3 --short_captions random-subset --hard_negative_margin 0.25 \
        --output_dir "$FOLDER/tulip-g"
    # As published: the pooled state alone, then NTK and contrast.
    tulip-diffusion train distill "${common[@]}" --pad "$pad" --objective paper --steps 200 --batch_size 128 \
        --learning_rate 5e-4 --output_dir "$FOLDER/tulip-paper-stage1-$tower"
    tulip-diffusion train expand "${common[@]}" "${pairs[@]}" --pad "$pad" \
        --student "$FOLDER/tulip-paper-stage1-$tower" --anchor_weight 0 --output_dir "$FOLDER/tulip-paper-$tower"
    tulip-diffusion train finetune-clip "${common[@]}" "${pairs[@]}" --stretch \
        --output_dir "$FOLDER/clip-finetuned-$tower"
    tulip-diffusion train longclip "${common[@]}" "${pairs[@]}" --output_dir "$FOLDER/longclip-$tower"
    tulip-diffusion train finelip "${common[@]}" --mixed_precision no --attn sdpa --pad "$pad" --steps 50 \
        --batch_size 32 --learning_rate 2e-4 --refinement_learning_rate 1e-3 --anchor_weight 10 \
        --output_dir "$FOLDER/finelip-$tower"
done

python -m tulip_diffusion.training.embedded.export --folder "$FOLDER" --out "$FOLDER/assets"
tulip-diffusion evaluate all --size standard --assets "$FOLDER/assets" --out "$FOLDER/evaluation"
