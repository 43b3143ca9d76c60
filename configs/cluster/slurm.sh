#!/usr/bin/env bash
# A Ray cluster inside a Slurm allocation, and a run on it:  sbatch configs/cluster/slurm.sh job.yaml /shared/runs/turbo
# The run folder lies on a file system that all nodes see, or is an s3:// URL. Started again, the run goes on.
#SBATCH --job-name=promptmill
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@300
#SBATCH --requeue
set -euo pipefail

config=$1
out=$2
port=6379
umask 077

# Ray's ports are open to everybody on the cluster's network: a token keeps others out.
export RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(python -c "import secrets; print(secrets.token_hex(32))")
export RAY_AUTH_TOKEN

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
address=$(srun --nodes=1 --ntasks=1 -w "$head" hostname --ip-address | awk '{print $1}')

srun --nodes=1 --ntasks=1 --overlap -w "$head" \
    ray start --head --node-ip-address="$address" --port="$port" --dashboard-host=127.0.0.1 --block &
sleep 20
for node in "${nodes[@]:1}"; do
    srun --nodes=1 --ntasks=1 --overlap -w "$node" ray start --address="$address:$port" --block &
done
sleep 20

# Slurm's warning, five minutes before the end, becomes a drain: the current batches are finished and kept.
promptmill run "$config" --out "$out" --set executor.address="$address:$port" &
run=$!
trap 'kill -TERM $run' TERM
wait "$run" || wait "$run"
