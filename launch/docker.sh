#!/usr/bin/env bash
# In a container of this machine:  launch/docker.sh train_ranker --config=configs/quickstart.py --workdir=runs/quickstart
# EXTRAS: what the image installs.  RUN_FLAGS: for docker run, as --gpus=all.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/what.sh
source launch/what.sh
module "$@" >/dev/null
image="${IMAGE:-idistill_jax}"
read -ra run_flags <<<"${RUN_FLAGS:-}"
act docker build --file=launch/Dockerfile --build-arg=EXTRAS="${EXTRAS:-retrieval report}" --tag="$image" .
for key in $(keys); do run_flags+=(--env="$key"); done
become docker run --rm --volume="$PWD/runs:/idistill_jax/runs" ${run_flags[@]+"${run_flags[@]}"} "$image" "$@"
