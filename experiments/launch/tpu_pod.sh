#!/usr/bin/env bash
# A Cloud TPU pod, from nothing to nothing.
#
#   export NAME=mctx ZONE=us-west4-a TYPE=v5litepod-16 BUCKET=gs://my-bucket/pico
#   experiments/launch/tpu_pod.sh create     # the pod
#   experiments/launch/tpu_pod.sh install    # the last commit and its requirements, on every worker
#   experiments/launch/tpu_pod.sh run --config=experiments/configs/pico_base.py \
#       --config.corpus=runs/corpus          # on every worker, to the end; again: goes on
#   experiments/launch/tpu_pod.sh fetch      # checkpoints and metrics, to runs/NAME
#   experiments/launch/tpu_pod.sh delete
#
# What follows `run` goes to `python -m experiments.train`, with --workdir=BUCKET mounted on every
# worker, since all processes write one checkpoint; put the corpus into the bucket, too, and name it
# by its place under runs/ of the worker (runs/ is the bucket). VERSION: the pod's software, default
# v2-alpha-tpuv5-lite. SPOT=1 takes a pod that may be taken away: its SIGTERM saves.
set -euo pipefail

usage() {
  sed -n '2,16s/^# \{0,1\}//p' "$0" >&2
  exit 2
}
(($# > 0)) || usage
action=$1
shift

: "${NAME:?set NAME, the name of the pod}" "${ZONE:?set ZONE, such as us-west4-a}"
bucket=${BUCKET:-}
on_all() {
  gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all --command="$1"
}
need_bucket() {
  [[ $bucket == gs://?* ]] || { echo "set BUCKET to gs://BUCKET/FOLDER" >&2; exit 2; }
}

case $action in
create)
  gcloud compute tpus tpu-vm create "$NAME" --zone="$ZONE" \
    --accelerator-type="${TYPE:?set TYPE, such as v5litepod-16}" \
    --version="${VERSION:-v2-alpha-tpuv5-lite}" ${SPOT:+--spot}
  ;;
install)
  archive=$(mktemp)
  trap 'rm -f "$archive"' EXIT
  git -C "$(dirname "$0")/../.." archive --format=tar.gz --output="$archive" HEAD
  gcloud compute tpus tpu-vm scp "$archive" "$NAME:mctx.tar.gz" --zone="$ZONE" --worker=all
  on_all "set -e
    mkdir -p mctx && tar -xzf mctx.tar.gz -C mctx && cd mctx
    command -v gcsfuse >/dev/null || {
      repo=gcsfuse-\$(lsb_release -cs)
      echo \"deb [signed-by=/usr/share/keyrings/cloud.google.asc] https://packages.cloud.google.com/apt \$repo main\" |
        sudo tee /etc/apt/sources.list.d/gcsfuse.list
      curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg |
        sudo tee /usr/share/keyrings/cloud.google.asc >/dev/null
      sudo apt-get update -q && sudo apt-get install -qy gcsfuse
    }
    python3 -m pip install --quiet --user uv  # the system's Python is older than 3.11
    ~/.local/bin/uv venv --python 3.12 --allow-existing .venv
    ~/.local/bin/uv pip install --python .venv/bin/python -r requirements.txt 'jax[tpu]'"
  ;;
run)
  need_bucket
  path=${bucket#gs://}
  folder=${path#*/}
  only=""
  [[ $folder == "$path" ]] || only="--only-dir=$folder"
  # A checkpoint is finished by renaming its folder, and what one worker writes the others must see.
  mount="gcsfuse --implicit-dirs --rename-dir-limit=100000"
  mount+=" --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0"
  on_all "set -e
    cd mctx && mkdir -p runs && { mountpoint -q runs || $mount $only ${path%%/*} runs; }
    MCTX_TPU_POD=1 .venv/bin/python -m experiments.train --workdir=runs $(printf '%q ' "$@")"
  ;;
fetch)
  need_bucket
  mkdir -p "runs/$NAME"
  gcloud storage rsync --recursive "$bucket" "runs/$NAME"
  ;;
delete)
  gcloud compute tpus tpu-vm delete "$NAME" --zone="$ZONE" --quiet
  ;;
*) usage ;;
esac
