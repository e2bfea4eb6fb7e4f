#!/usr/bin/env bash
# Trains on several hosts. On each of them, with the same arguments: launch/multihost.sh GIN_FILE|EXPERIMENT/RUN RUN_DIR
# [flags of `nlhf train`].
#
# RUN_DIR is one directory that all of them see. Which processes belong to the run is given by, in this order:
#   COORDINATOR_ADDRESS=HOST:PORT, PROCESS_COUNT and PROCESS_INDEX, on plain hosts;
#   SLURM (inside of srun), Open MPI (inside of mpirun), GKE or the metadata of a TPU pod.
# A run that is started again resumes where it stopped. SIGTERM makes it save and end with status 0, as if it were done; a scheduler
# that must tell the two apart sets STOPPED_STATUS to the status that it wants to see instead.
set -euo pipefail

if (($# < 2)); then
  echo "usage: $0 GIN_FILE|EXPERIMENT/RUN RUN_DIR [flags of nlhf train]" >&2
  exit 2
fi
run=--experiment="$1" run_dir=$2
[[ $1 != *.gin ]] || run=--gin_file="$1"
shift 2

tpu_pod() {
  [[ -n ${TPU_WORKER_HOSTNAMES:-}${TPU_PROCESS_ADDRESSES:-} ]] && return
  local host=${GCE_METADATA_IP:-metadata.google.internal}
  curl --silent --fail --max-time 5 --header 'Metadata-Flavor: Google' \
    "http://$host/computeMetadata/v1/instance/attributes/agent-worker-number" >/dev/null 2>&1
}

plain=(COORDINATOR_ADDRESS PROCESS_COUNT PROCESS_INDEX) missing=()
for name in "${plain[@]}"; do
  [[ -n ${!name:-} ]] || missing+=("$name")
done
if ((${#missing[@]} == 0)); then
  join=(--coordinator_address="$COORDINATOR_ADDRESS" --process_count="$PROCESS_COUNT" --process_index="$PROCESS_INDEX")
elif ((${#missing[@]} < ${#plain[@]})); then
  echo "$0: ${plain[*]} belong together, and ${missing[*]} is not set." >&2
  exit 2
elif [[ -n ${SLURM_STEP_NODELIST:-}${OMPI_MCA_orte_hnp_uri:-} ]] || tpu_pod; then
  join=(--multihost)
else
  echo "$0: no SLURM step, Open MPI or TPU pod here: set ${missing[*]}." >&2
  exit 2
fi

nlhf=(nlhf)
command -v nlhf >/dev/null || nlhf=(python3 -m nlhf_jax) # A checkout.
command=("${nlhf[@]}" train "$run" --run_dir="$run_dir" "${join[@]}" "$@")
[[ ${STOPPED_STATUS:-0} == 0 ]] && exec "${command[@]}"

stopped=
trap 'stopped=1; [[ -z ${!:-} ]] || kill -TERM "$!"' TERM
"${command[@]}" &
status=0
wait "$!" || status=$?
while kill -0 "$!" 2>/dev/null; do # A signal ends `wait` early.
  status=0
  wait "$!" || status=$?
done
# 143: SIGTERM came before the program could listen.
if [[ $stopped ]] && ((status == 0 || status == 143)); then
  exit "$STOPPED_STATUS"
fi
exit "$status"
