#!/usr/bin/env bash
# The job that launch/slurm.sh hands in: all its processes, and again after they were asked to end, or one was lost.
# RESTARTS: how often at most.
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?launch/slurm.sh hands this to sbatch}"
code=0
# srun does not go by what sbatch was told of cores.
if [[ -n "${SLURM_CPUS_PER_TASK:-}" ]]; then
  export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
fi
# The processes end each other, each with the code that says why.  Killed by srun for an error of one of them, the
# others would hide that error behind a code that asks for another try.
srun --kill-on-bad-exit=0 --wait=900 launch/gpu.sh "$@" --coordinator=auto || code=$?
# A job that is preempted comes back by itself; one whose time is up, or that lost a process, does not.
case "$code" in
  75 | 134 | 137 | 143)
    if ((${SLURM_RESTART_COUNT:-0} < ${RESTARTS:-100})); then
      scontrol requeue "$SLURM_JOB_ID"
    fi
    ;;
esac
exit "$code"
