#!/usr/bin/env bash
# The job that launch/slurm.sh hands in: all its processes, and again after they were asked to end.
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?launch/slurm.sh hands this to sbatch}"
code=0
srun --kill-on-bad-exit=1 launch/gpu.sh "$@" --coordinator=auto || code=$?
# A job that is preempted comes back by itself; one whose time is up does not.
if ((code == 143)); then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
