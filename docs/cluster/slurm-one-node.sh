#!/usr/bin/env bash
# Searches on one node each, without a Ray cluster: evomerge starts a private Ray on the node's GPUs.
# sbatch slurm-one-node.sh EXPERIMENT RUNS            one search, in RUNS/seed-0
# sbatch --array=0-4 slurm-one-node.sh EXPERIMENT RUNS   five searches with seeds 0 to 4, for `evomerge compare`
#SBATCH --job-name=evomerge
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=12:00:00
#SBATCH --signal=B:TERM@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=evomerge-%A-%a.log

set -euo pipefail

experiment=${1:?usage: sbatch slurm-one-node.sh EXPERIMENT RUNS}
seed=${SLURM_ARRAY_TASK_ID:-0}
run=${2:?usage: sbatch slurm-one-node.sh EXPERIMENT RUNS}/seed-$seed
# source /shared/venv/bin/activate

driver=
stopping=
stop() {
  stopping=yes
  if [[ -n $driver ]]; then kill -TERM "$driver" 2>/dev/null || true; fi
}
trap stop TERM

if [[ -e $run/experiment.yaml ]]; then
  evomerge resume "$run" --ray-address local &
else
  evomerge run "$experiment" --out "$run" --set searcher.seed="$seed" --ray-address local &
fi
driver=$!
code=0
wait "$driver" || code=$?
if [[ -n $stopping ]]; then # the signal ended that wait, not evomerge
  code=0
  wait "$driver" || code=$?
fi
if ((code == 130)); then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"
