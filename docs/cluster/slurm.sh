#!/usr/bin/env bash
# A search on several nodes of a SLURM cluster: starts a Ray cluster inside the allocation, runs evomerge on it, and
# requeues itself until the search is done. Submit it with: sbatch slurm.sh EXPERIMENT RUN
# EXPERIMENT, RUN, the parents and the Python environment must lie in folders that all nodes share.
#SBATCH --job-name=evomerge
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --exclusive
#SBATCH --time=12:00:00
#SBATCH --signal=B:TERM@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=evomerge-%j.log
# --signal gives evomerge 10 minutes before the time limit to finish the trials in flight: let it be more than a trial
# takes. A search that is killed all the same loses those trials only.

set -euo pipefail

experiment=${1:?usage: sbatch slurm.sh EXPERIMENT RUN}
run=${2:?usage: sbatch slurm.sh EXPERIMENT RUN}
# source /shared/venv/bin/activate

nodes=${SLURM_JOB_NUM_NODES:-1}
cpus=${SLURM_CPUS_PER_TASK:-1}
gpus=${SLURM_GPUS_ON_NODE:-0}
export SRUN_CPUS_PER_TASK=$cpus # srun of SLURM 22.05 and later does not take it from sbatch
export RAY_USAGE_STATS_ENABLED=0
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0 # at the end nothing runs that should be let finish

# Ray runs any code that it is sent, so only those who know this job's token may send it some.
RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_MODE RAY_AUTH_TOKEN

steps=() # srun's process ids: one for the head, one for all workers
driver=
stopping=

stop() { # before the time limit, and at `scancel --batch --signal=TERM`
  stopping=yes
  if [[ -n $driver ]]; then kill -TERM "$driver" 2>/dev/null || true; fi
}
clean_up() { # ends Ray; what has not ended 20 seconds later SLURM kills with the job
  for step in "${steps[@]}"; do kill -TERM "$step" 2>/dev/null || true; done
  for _ in {1..20}; do
    [[ -n $(jobs -pr) ]] || break
    sleep 1
  done
}
trap stop TERM
trap clean_up EXIT

mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${hosts[0]}
# The head's first address; where nodes have several networks, choose one here.
address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --all-ip-addresses | awk '{print $1}')
port=$((20000 + SLURM_JOB_ID % 20000)) # jobs that share a node do not meet
temporary=/tmp/ray-$SLURM_JOB_ID

srun --nodes=1 --ntasks=1 --nodelist="$head" \
  ray start --head --block --node-ip-address="$address" --port="$port" --include-dashboard=false \
  --temp-dir="$temporary" --num-cpus="$cpus" --num-gpus="$gpus" --object-store-memory=200000000 &
steps+=($!)
if ((nodes > 1)); then
  srun --nodes=$((nodes - 1)) --ntasks=$((nodes - 1)) --exclude="$head" \
    bash -c 'for _ in {1..60}; do ray start "$@" && exit 0; sleep 2; done; exit 1' ray-worker \
    --block --address="$address:$port" --num-cpus="$cpus" --num-gpus="$gpus" --object-store-memory=200000000 &
  steps+=($!)
fi

# The run notes how many trials are in flight when it begins, so begin with all nodes.
python - "$address:$port" "$nodes" <<'PYTHON'
import sys, time
import ray

address, wanted = sys.argv[1], int(sys.argv[2])
deadline = time.monotonic() + 600
while time.monotonic() < deadline:
    try:
        ray.init(address, logging_level="ERROR", log_to_driver=False)
        there = sum(node["Alive"] for node in ray.nodes())
        ray.shutdown()
        if there >= wanted:
            sys.exit(0)
        print(f"waiting for nodes: {there} of {wanted}", flush=True)
    except (ConnectionError, RuntimeError, ValueError) as error:
        print(f"waiting for the head: {error}", flush=True)
    time.sleep(2)
sys.exit(f"after 10 minutes the Ray cluster at {address} still has not {wanted} nodes")
PYTHON

[[ -z $stopping ]] || exit 130
if [[ -e $run/experiment.yaml ]]; then
  evomerge resume "$run" --ray-address "$address:$port" &
else
  evomerge run "$experiment" --out "$run" --ray-address "$address:$port" &
fi
driver=$!
code=0
wait "$driver" || code=$?
if [[ -n $stopping ]]; then # the signal ended that wait, not evomerge
  code=0
  wait "$driver" || code=$?
fi
if ((code == 130)); then # interrupted: evomerge asks to be resumed
  echo "evomerge was stopped; this job is requeued and goes on"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
