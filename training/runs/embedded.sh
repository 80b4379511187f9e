#!/usr/bin/env bash
# Trains the embedded family from nothing: a good two hours on two idle CPU cores. It can be interrupted and started
# again: every line goes on where it stopped. SEED=1 FOLDER=outputs/again training/runs/embedded.sh makes another one.
set -euo pipefail
FOLDER=${FOLDER:-outputs/embedded}
SEED=${SEED:-0}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2}
part() { python -m "tulip_diffusion.training.embedded.$1" "${@:2}"; }

# What SDXL has: VAE, two CLIPs of 77 tokens, and a UNet that is trained on their states and never again.
part vae --out "$FOLDER/vae" --steps 1600 --seed "$SEED"
part clip l --out "$FOLDER/clip-l" --steps 900 --seed "$SEED"
part clip g --start "$FOLDER/clip-l" --out "$FOLDER/clip-g" --steps 60 --learning-rate 5e-4 --seed "$SEED"
part unet --folder "$FOLDER" --steps 12000 --seed "$SEED"

# Encoders for its two slots that read further.
part captions --out "$FOLDER/captions" --count 8000 --seed "$SEED"
for tower in l g; do
    pad=$([ "$tower" = l ] && echo eos || echo zero)
    common=(--teacher "$FOLDER/clip-$tower" --tokenizer "$FOLDER/clip-$tower" --data "$FOLDER/captions/captions.jsonl"
        --mixed_precision bf16 --attn eager --num_workers 0 --warmup_steps 20 --weight_decay 0.01 --resume auto
        --save_every 50 --seed "$SEED")
    part tulip "$tower" --folder "$FOLDER" --steps 400 --seed "$SEED"
    tulip-diffusion train distill "${common[@]}" --objective paper --pad "$pad" --steps 250 --batch_size 128 \
        --learning_rate 5e-4 --output_dir "$FOLDER/tulip-paper-stage1-$tower"
    tulip-diffusion train expand "${common[@]}" --student "$FOLDER/tulip-paper-stage1-$tower" --anchor_weight 0 \
        --pad "$pad" --steps 100 --batch_size 96 --learning_rate 1e-4 --output_dir "$FOLDER/tulip-paper-$tower"
    tulip-diffusion train finetune-clip "${common[@]}" --stretch --steps 150 --batch_size 96 --learning_rate 2e-4 \
        --output_dir "$FOLDER/clip-finetuned-$tower"
    tulip-diffusion train longclip "${common[@]}" --steps 150 --batch_size 96 --learning_rate 2e-4 \
        --output_dir "$FOLDER/longclip-$tower"
done

part export --folder "$FOLDER" --out "$FOLDER/assets"
for prompts in short full references 500 1000; do
    tulip-diffusion evaluate generation --assets "$FOLDER/assets" --prompts "$prompts" --out "$FOLDER/generation-$prompts"
done
