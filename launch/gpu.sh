#!/usr/bin/env bash
# On NVIDIA GPUs of this machine:  launch/gpu.sh train_ranker --config=configs/quickstart.py --workdir=runs/quickstart
# CUDA_VISIBLE_DEVICES: which of them (0).  CUDA: cuda12 for drivers older than 580.  XLA_PYTHON_CLIENT_MEM_FRACTION: how
# much of their memory JAX takes (0.92; 0.75 is its own default).
set -euo pipefail
cd "$(dirname "$0")/.."
export EXTRAS="retrieval report ${CUDA:-cuda13}${EXTRAS:+ $EXTRAS}" CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES:-0}"
export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}"
exec launch/local.sh "$@"
