#!/usr/bin/env bash
# In a container of this machine:  launch/docker.sh train_ranker --config=configs/quickstart.py --workdir=runs/quickstart
# EXTRAS: what the image installs.  RUN_FLAGS: for docker run, as --gpus=all, or --volume=/data:/data for a workdir there.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/what.sh
source launch/what.sh
module "$@" >/dev/null
# What the container alone has goes with it, answers that were paid for as well.
for word in "$@"; do
  case "$word" in
    --workdir=runs | --workdir=runs/* | --workdir=./runs/* | --workdir=/idistill_jax/runs/* | --workdir=*://*) ;;
    --workdir=*)
      if [[ "${RUN_FLAGS:-}" != *-v* && "${RUN_FLAGS:-}" != *--mount* ]]; then
        echo "launch/docker.sh: $word would be deleted with the container: take one in runs/ or a bucket, or mount its" \
          "folder, as RUN_FLAGS=--volume=/data:/data does" >&2
        exit 2
      fi ;;
  esac
done
image="${IMAGE:-idistill_jax}"
read -ra run_flags <<<"${RUN_FLAGS:-}"
act docker build --file=launch/Dockerfile --build-arg=EXTRAS="${EXTRAS:-retrieval report}" --tag="$image" .
for key in $(keys); do run_flags+=(--env="$key"); done
become docker run --rm --volume="$PWD/runs:/idistill_jax/runs" ${run_flags[@]+"${run_flags[@]}"} "$image" "$@"
