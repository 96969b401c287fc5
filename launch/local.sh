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
# Named, a platform that does not start is an error; unnamed, jax would go on with the CPU.  What is set already stays, as
# it may be asked for, to debug on the CPU what was installed for a GPU; that it was left set is seen here.
for extra in "${extras[@]}"; do
  case "$extra" in
    cuda*) wanted=cuda,cpu ;;
    tpu) wanted=tpu,cpu ;;
    *) continue ;;
  esac
  export JAX_PLATFORMS="${JAX_PLATFORMS:-$wanted}"
  if [[ ",${JAX_PLATFORMS/gpu/cuda}," != *",${wanted%,cpu},"* ]]; then # jax reads gpu as cuda or rocm
    echo "launch/local.sh: JAX_PLATFORMS=$JAX_PLATFORMS is set here, so nothing runs on a ${wanted%,cpu} device, though" \
      "$extra is asked for; unset JAX_PLATFORMS where it should" >&2
  fi
done
become python -m "$module" "${@:2}"
