#!/usr/bin/env bash
# On GPUs of a Slurm cluster, from a login node that shares this folder with the others:
#
#   launch/slurm.sh train_ranker --config=configs/quickstart.py --workdir=runs/quickstart
#
# NODES, GPUS: how many, and how many of each.  CPUS: cores of each process, one a GPU (8).  EXTRAS: what to install beside.  SBATCH_PARTITION, SBATCH_ACCOUNT, SBATCH_TIMELIMIT are sbatch's own.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/what.sh
source launch/what.sh
module "$@" >/dev/null
# Here and now: the nodes may see no package index.
read -ra extras <<<"retrieval report ${CUDA:-cuda13} ${EXTRAS:-}"
act source launch/env.sh "${extras[@]}"
# One process a GPU is what jax.distributed expects of Slurm.  SIGTERM two minutes ahead of the end: time to save.
become sbatch --job-name="idistill_jax-$1" --nodes="${NODES:-1}" --ntasks-per-node="${GPUS:-1}" \
  --gpus-per-node="${GPUS:-1}" --cpus-per-task="${CPUS:-8}" --requeue --signal=TERM@120 --open-mode=append --output="slurm-%j.log" \
  launch/slurm_job.sh "$@"
