#!/usr/bin/env bash
# Runs one prompt-tuning command as a process for each GPU of a SLURM job.
#
#   sbatch --nodes=2 scripts/slurm.sh train --gin_file=runs/sst2_small.gin --gin.MODEL_DIR=/shared/run ...
#
# Three minutes before its time is up the run saves and ends with 0; submitted again it goes on there. To have that
# happen by itself submit it several times under one name: sbatch --dependency=singleton --job-name=NAME ...
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@180
set -euo pipefail
if [ $# -lt 1 ]; then
  sed -n '2,7s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
command=$1
shift
# a process that is lost ends the others within seconds; srun then ends what is left
exec srun --kill-on-bad-exit=1 "${PROMPT_TUNING:-prompt-tuning}" "$command" --multihost "$@"
