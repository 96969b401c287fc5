#!/usr/bin/env bash
# On this machine:  launch/local.sh train_ranker --config=configs/quickstart.py --workdir=runs/quickstart
# EXTRAS: what to install (see pyproject.toml); with cuda12, cuda13 or tpu among them, JAX_PLATFORMS asks for such devices.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/what.sh
source launch/what.sh
module="$(module "$@")"
read -ra extras <<<"${EXTRAS:-retrieval report}"
act source launch/env.sh "${extras[@]}"
# Named, a platform that does not start is an error; unnamed, jax would go on with the CPU.
for extra in "${extras[@]}"; do
  case "$extra" in
    cuda*) export JAX_PLATFORMS="${JAX_PLATFORMS:-cuda,cpu}" ;;
    tpu) export JAX_PLATFORMS="${JAX_PLATFORMS:-tpu,cpu}" ;;
  esac
done
become python -m "$module" "${@:2}"
