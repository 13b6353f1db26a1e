#!/usr/bin/env bash
# Runs one command in N processes of one job on this machine.
#
#   experiments/launch/local.sh N COMMAND…
#   DEVICES=4 experiments/launch/local.sh 2 python -m experiments.train --config.devices=8 …
#
# DEVICES: fake CPU devices of each process, without which a process takes what it finds (on a
# machine with GPUs, process i takes the i-th alone). PORT: where process 0 listens, default 29400.
# Ctrl-C and SIGTERM go to every process; when one fails, the others are told to stop, and its exit
# status is that of the job. Needs bash 5.1.
set -euo pipefail

if (($# < 2)) || ! [[ $1 =~ ^[1-9][0-9]*$ ]]; then
  sed -n '2,10s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
count=$1
shift

export JAX_COORDINATOR_ADDRESS="localhost:${PORT:-29400}" JAX_NUM_PROCESSES="$count"
if [[ -n ${DEVICES:-} ]]; then
  export JAX_PLATFORMS=cpu
  export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$DEVICES"
fi

declare -A running=()
stop() { kill -s "$1" "${!running[@]}" 2>/dev/null || true; }
trap 'stop INT' INT
trap 'stop TERM' TERM

for ((i = 0; i < count; i++)); do
  if [[ -z ${DEVICES:-} ]] && command -v nvidia-smi >/dev/null; then
    JAX_PROCESS_ID=$i JAX_LOCAL_DEVICE_IDS=$i "$@" &
  else
    JAX_PROCESS_ID=$i "$@" &
  fi
  running[$!]=$i
done

status=0
while ((${#running[@]})); do
  ended='' code=0
  wait -n -p ended "${!running[@]}" || code=$?
  [[ -n ${ended:-} ]] || continue # a signal came, was passed on, and unset it
  unset "running[$ended]"
  if ((code != 0 && status == 0)); then
    status=$code
    stop TERM # the others would wait for it
  fi
done
exit "$status"
