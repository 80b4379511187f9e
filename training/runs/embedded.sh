#!/usr/bin/env bash
# Trains the embedded family from nothing: about two hours on two CPU cores. Every line can be interrupted and run
# again: it goes on where it stopped. SEED=1 FOLDER=outputs/again training/runs/embedded.sh makes another family.
set -euo pipefail
FOLDER=${FOLDER:-outputs/embedded}
SEED=${SEED:-0}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2}
run() { python -m "tulip_diffusion.training.embedded.$1" "${@:2}" --seed "$SEED"; }

run vae --out "$FOLDER/vae" --steps 1600
run clip l --out "$FOLDER/clip-l" --steps 900
run clip g --start "$FOLDER/clip-l" --out "$FOLDER/clip-g" --steps 350
run unet --folder "$FOLDER" --steps 12000

run captions --out "$FOLDER/captions" --count 8000
for tower in l g; do
    run tulip "$tower" --folder "$FOLDER" --steps 400
done
