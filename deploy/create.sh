#!/bin/sh
# Creates one night's RayJob and waits for its end. A night whose RayJob is there already is waited
# for; one that has failed or was stopped is created anew and goes on from what it has committed.
#
# Exit codes: 0 done; 1 failed, trying again may help; 2 a mistake; 3 done, with error rows; 130
# stopped or deleted by somebody.
set -eu

# The day that had ended at the tick, not at this moment: Kubernetes ends a CronJob's job name with
# the tick's minutes since 1970.
minutes=${JOB_NAME##*-}
case $minutes in
    '' | *[!0-9]*) echo "JOB_NAME is '$JOB_NAME': it must end with minutes since 1970" >&2; exit 2 ;;
esac
day=$(date -u -d "@$((minutes * 60 - 86400))" +%Y-%m-%d)
job=rayjob/summaries-$day

# "JOB_STATUS DEPLOYMENT_STATUS MESSAGE"; nothing where there is no such RayJob.
state() {
    kubectl get "$job" --ignore-not-found --output \
        'jsonpath={.status.jobStatus} {.status.jobDeploymentStatus} {.status.message}'
}

now=$(state)
case $now in
    *' failed with exit code 3'[,.]*) ;;
    'STOPPED '* | *' Failed '* | *' ValidationFailed '*) kubectl delete "$job" --wait; now= ;;
esac
if [ -z "$now" ]; then
    sed "s/yyyy-mm-dd/$day/g" "$(dirname "$0")/rayjob.yaml" | kubectl create --filename -
fi
while :; do
    now=$(state)
    case $now in
        '') echo "$job was deleted" >&2; exit 130 ;;
        'SUCCEEDED Complete '*) echo "$job: done"; exit 0 ;;
        'STOPPED '*) echo "$job was stopped" >&2; exit 130 ;;
        *' Failed '*' failed with exit code 2'[,.]*) echo "$job: $now" >&2; exit 2 ;;
        *' Failed '*' failed with exit code 3'[,.]*) echo "$job: done, some rows are error rows"; exit 3 ;;
        *' Failed '* | *' ValidationFailed '* | *' Complete '*) echo "$job: $now" >&2; exit 1 ;;
    esac
    sleep "${POLL_SECONDS:-30}"
done
