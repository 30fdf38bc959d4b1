#!/usr/bin/env bash
# Trains on all hosts of a Cloud TPU pod. xlj finds the other hosts by itself.
#
#   TPU=NAME ZONE=us-central2-b launch/cluster/tpu_pod.sh \
#     --config=xmc --workdir=SHARED/runs/xlj \
#     --config.checkpoint.dir=gs://BUCKET/runs/xlj
#
# Every host needs xlj in the directory XLJ, installed for PYTHON; to install:
#   gcloud compute tpus tpu-vm ssh NAME --zone=ZONE --worker=all \
#     --command="git clone REPOSITORY xlj && pip install -e './xlj[tpu]' gcsfs"
# SHARED is a directory that all hosts see, as of Filestore. It cannot be in a
# bucket; checkpoints can. Run the same command again to continue from the last
# one; Ctrl-C here may leave processes there: `tpu_pod.sh --stop` tells them to
# save and end.
set -euo pipefail

# Fill in, or give them in the environment:
TPU=${TPU:?the name of the TPU}
ZONE=${ZONE:?its zone}
XLJ=${XLJ:-xlj}
PYTHON=${PYTHON:-python3}

everywhere() {
  exec gcloud compute tpus tpu-vm ssh "$TPU" \
    --zone="$ZONE" --worker=all --command="$1"
}

if [[ ${1:-} == --stop ]]; then
  # The brackets keep the pattern from matching its own command line.
  everywhere "pkill -TERM -f '[m] xlj train'"
fi
if (($# == 0)); then
  sed -n 's/^#   //p' "$0" >&2
  exit 2
fi
everywhere "cd ${XLJ@Q} && exec ${PYTHON@Q} -m xlj train ${*@Q}"
