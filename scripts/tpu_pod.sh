#!/usr/bin/env bash
# Runs one prompt-tuning command on every host of a TPU pod slice; the same command goes on after a preemption.
#
#   scripts/tpu_pod.sh NAME ZONE train --gin_file=runs/sst2_small.gin \
#       --gin.INITIAL_CHECKPOINT_PATH=/mnt/shared/xxl --gin.MODEL_DIR=/mnt/shared/run --gin.MODEL_PARALLEL=4 ...
#
# On every host: this project in ~/prompt-tuning with its virtual environment (README, "Start", with .[tpu]), and
# MODEL_DIR and the base on storage that all of them see (Filestore, or a bucket mounted with gcsfuse
# --rename-dir-limit=1000).
set -euo pipefail
if [ $# -lt 3 ]; then
  sed -n '2,10s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
name=$1 zone=$2 command=$3
shift 3
flags=$(printf ' %q' "$@")
exec gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker=all \
  --command "cd prompt-tuning && .venv/bin/prompt-tuning $command --multihost$flags"
