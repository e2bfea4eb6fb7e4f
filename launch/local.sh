#!/usr/bin/env bash
# Trains on this machine: launch/local.sh GIN_FILE RUN_DIR [flags of `nlhf train`].
set -euo pipefail
gin_file=$1 run_dir=$2
shift 2
exec nlhf train --gin_file="$gin_file" --run_dir="$run_dir" "$@"
