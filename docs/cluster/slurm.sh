#!/bin/bash
# Two machines with four GPUs each under Slurm. `sbatch slurm.sh`; submitting it again continues the run. Slurm sends SIGUSR1 ten minutes
# before the time limit: the run writes a checkpoint and ends, and the job is put back into the queue.
#SBATCH --job-name=simclr
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=USR1@600

# 138 is 128 + SIGUSR1: the time is up, the run is not finished.
srun --mpi=none simclr pretrain --data /images --recipe imagenet_resnet50_v2 --run /runs/mine --resume auto
if [ $? = 138 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
