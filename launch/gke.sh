#!/usr/bin/env bash
# On TPUs of a GKE cluster, through xpk:
#
#   launch/gke.sh run train_ranker --config=configs/quickstart.py --workdir=gs://bucket/quickstart
#   launch/gke.sh logs
#   launch/gke.sh delete
#
# JOB: its name.  CLUSTER, TYPE, SLICES: where, and how many of it.  EXTRAS: what to install beside.  IMAGE: where its container goes, as REGION-docker.pkg.dev/PROJECT/REPO/NAME.
# xpk by itself restarts a job whose exit code is 42 or from 127 to 255: 143 is, which says that it was asked to end, but
# also 139, a crash.  None of these can be taken from it; 75, for another process that was lost, is added.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/what.sh
source launch/what.sh
: "${JOB:?JOB names the workload}" "${CLUSTER:?CLUSTER says where it runs}"

# listed STATUS: whether xpk has the job among those.  A dry run does without what xpk cannot tell.
listed() {
  local found
  if ! found="$(xpk workload list --cluster="$CLUSTER" --filter-by-job="$JOB" --filter-by-status="$1")"; then
    printf '%s\n' "$found" >&2
    "$dry_run" || exit 1
    return 1
  fi
  grep -Eq "^$JOB( |\$)" <<<"$found"
}

# xpk makes no job of a name that it has, for half a day after its end.
free_name() {
  listed EVERYTHING || return 0
  if ! listed FINISHED; then
    echo "launch/gke.sh: $JOB is there already, and is not over; launch/gke.sh logs shows it, delete ends it" >&2
    exit 0
  fi
  delete
  until "$dry_run" || ! listed EVERYTHING; do sleep "${POLL_SECONDS:-5}"; done
}

run() {
  module "$@" >/dev/null
  : "${TYPE:?TYPE is for example v5litepod-16}" "${IMAGE:?IMAGE says where the container goes}"
  free_name
  act docker build --file=launch/Dockerfile --build-arg=EXTRAS="retrieval report tpu gcs${EXTRAS:+ $EXTRAS}" --tag="$IMAGE" .
  act docker push "$IMAGE"
  local env=()
  if [[ -n "$(keys)" ]]; then
    # Names alone: xpk takes the values from its own environment.
    "$dry_run" || keys >.idistill_jax.names
    env=(--env-file=.idistill_jax.names)
  fi
  act xpk workload create --workload="$JOB" --cluster="$CLUSTER" --tpu-type="$TYPE" --num-slices="${SLICES:-1}" \
    --docker-image="$IMAGE" --max-restarts="${RESTARTS:-100}" --restart-on-exit-codes=75 \
    --termination-grace-period-seconds=120 ${env[@]+"${env[@]}"} \
    --command="exec launch/local.sh $(quoted "$@") --coordinator=auto"
}

logs() {
  become kubectl logs --follow \
    --selector="jobset.sigs.k8s.io/jobset-name=$JOB,batch.kubernetes.io/job-completion-index=0"
}

delete() {
  act xpk workload delete --workload="$JOB" --cluster="$CLUSTER"
}

case "${1:-}" in
  run | logs | delete) "$@" ;;
  *) echo "usage: launch/gke.sh [--dry_run] run STAGE --config=... --workdir=... | logs | delete" >&2; exit 2 ;;
esac
