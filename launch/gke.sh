#!/usr/bin/env bash
# On TPUs of a GKE cluster, through xpk:
#
#   launch/gke.sh run train_ranker --config=configs/quickstart.py --workdir=gs://bucket/quickstart
#   launch/gke.sh logs
#   launch/gke.sh delete
#
# JOB: its name.  CLUSTER, TYPE, SLICES: where.  IMAGE: where its container goes, as REGION-docker.pkg.dev/PROJECT/REPO/NAME.
# xpk restarts a job whose exit code is 127 or more: 143 is, which says that it was asked to end.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/what.sh
source launch/what.sh
: "${JOB:?JOB names the workload}" "${CLUSTER:?CLUSTER says where it runs}"

run() {
  module "$@" >/dev/null
  : "${TYPE:?TYPE is for example v5litepod-16}" "${IMAGE:?IMAGE says where the container goes}"
  act docker build --file=launch/Dockerfile --build-arg=EXTRAS="retrieval report tpu gcs" --tag="$IMAGE" .
  act docker push "$IMAGE"
  act xpk workload create --workload="$JOB" --cluster="$CLUSTER" --tpu-type="$TYPE" --num-slices="${SLICES:-1}" \
    --docker-image="$IMAGE" --max-restarts="${RESTARTS:-100}" --termination-grace-period-seconds=120 \
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
