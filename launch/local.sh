#!/usr/bin/env bash
# Trains on this machine: launch/local.sh GIN_FILE|EXPERIMENT/RUN RUN_DIR [flags of `nlhf train`].
set -euo pipefail
run=--experiment="$1" run_dir=$2
[[ $1 != *.gin ]] || run=--gin_file="$1"
shift 2
nlhf=(nlhf)
command -v nlhf >/dev/null || nlhf=(python3 -m nlhf_jax) # A checkout.
exec "${nlhf[@]}" train "$run" --run_dir="$run_dir" "$@"
