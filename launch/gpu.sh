#!/usr/bin/env bash
# On NVIDIA GPUs of this machine:  launch/gpu.sh train_ranker --config=configs/quickstart.py --workdir=runs/quickstart
# CUDA_VISIBLE_DEVICES: which of them (0).  CUDA: cuda12 for drivers older than 580.
set -euo pipefail
cd "$(dirname "$0")/.."
export EXTRAS="retrieval report ${CUDA:-cuda13}${EXTRAS:+ $EXTRAS}" CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES:-0}"
exec launch/local.sh "$@"
