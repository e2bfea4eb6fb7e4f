#!/usr/bin/env bash
# Trains on a SLURM cluster, from the repository's root: sbatch --nodes=4 launch/slurm.sh GIN_FILE RUN_DIR [flags of `nlhf train`].
#
# Options before launch/slurm.sh win over those below. A process has one GPU, since that is how JAX reads SLURM's tasks; so
# --ntasks-per-node and --gpus-per-node are the same number. For one process a node: --ntasks-per-node=1, and
# JAX_LOCAL_DEVICE_IDS=0,1,2,3,4,5,6,7 in the environment.
#SBATCH --job-name=nlhf
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
# To the processes, not to this script (that would be B:TERM): srun turns a SIGTERM of its own into a SIGKILL of them. SLURM may send
# it up to a minute early; 90 s must be enough to end a step and save.
#SBATCH --signal=TERM@90
set -euo pipefail

if (($# < 2)); then
  echo "usage: sbatch [options] launch/slurm.sh GIN_FILE RUN_DIR [flags of nlhf train]" >&2
  exit 2
fi
# SLURM runs a copy of this file, so its own path is of no use.
if [[ ! -f launch/multihost.sh ]]; then
  echo "launch/slurm.sh: no launch/multihost.sh in $PWD: run sbatch in the repository's root." >&2
  exit 2
fi

export STOPPED_STATUS=75
status=0
# Every process sees all GPUs of its node and takes its own. One that ends first leaves the others time to save; if it fails, JAX
# ends them.
srun --gpu-bind=none --kill-on-bad-exit=0 bash launch/multihost.sh "$@" || status=$?
if ((status == STOPPED_STATUS)); then
  echo "Stopped before the end: back into the queue."
  scontrol requeue "$SLURM_JOB_ID"
  exit
fi
exit "$status"
