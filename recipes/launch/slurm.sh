#!/bin/bash
# Slurm: one task a machine, which starts one process a GPU. SIGTERM two minutes before the time is up saves a checkpoint, and the job goes on in the queue.
#   sbatch recipes/launch/slurm.sh sft --config recipes/sft.yaml --output_dir /shared/runs/sft
#SBATCH --job-name=seodang
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --output=%x-%j.log
set -eu
verb=$1
shift
export ADDRESS PORT PROCESSES LAUNCH_FILE
ADDRESS=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
PORT=$((20000 + SLURM_JOB_ID % 20000)) # another job on these machines has another
PROCESSES=$((SLURM_NNODES * ${SLURM_GPUS_ON_NODE:-8}))
LAUNCH_FILE=${LAUNCH_FILE:-recipes/launch/machines.yaml}
stopped=
trap 'stopped=yes; kill -TERM "$step"' TERM
srun --kill-on-bad-exit=1 bash -c 'exec accelerate launch --config_file "$LAUNCH_FILE" --num_machines "$SLURM_NNODES" --num_processes "$PROCESSES" \
    --machine_rank "$SLURM_NODEID" --main_process_ip "$ADDRESS" --main_process_port "$PORT" "$@"' task "recipes/$verb.py" "$@" &
step=$!
code=0
wait "$step" || code=$?
if [ -n "$stopped" ]; then
    wait "$step" || true # until the checkpoint is written
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
fi
exit "$code"
