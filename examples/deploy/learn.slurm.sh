#!/usr/bin/env bash
# A learner as a SLURM job that survives preemption and the time limit. docs/deploy.md describes it.
#   sbatch examples/deploy/learn.slurm.sh DATASET RUN [OPTION OF avtd3 learn]...
#SBATCH --job-name=avtd3-learn
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
# Five minutes before the time limit, send SIGUSR1 to this script (B:), which ends the learner.
#SBATCH --signal=B:USR1@300
set -euo pipefail

dataset=${1:?usage: learn.slurm.sh DATASET RUN [OPTION]...} run=${2:?usage: learn.slurm.sh DATASET RUN [OPTION]...}
shift 2
AVTD3=${AVTD3:-avtd3}

# The first start makes the run with the options; later ones resume it with its own settings.
if [ -e "$run/config.json" ]; then
  set -- --resume
fi

# In the background, so that the shell can handle signals while it waits.
"$AVTD3" learn "$dataset" --run "$run" "$@" &
learner=$! signals=0 last=

# shellcheck disable=SC2329 # called by the traps
forward() { # only the first signal: a second one would end the learner without a checkpoint
  signals=$((signals + 1)) last=$1
  if [ "$signals" = 1 ]; then
    kill -USR1 "$learner" 2>/dev/null || true
  fi
}
trap 'forward USR1' USR1
trap 'forward TERM' TERM

while :; do # a signal ends `wait` while the learner still saves
  seen=$signals code=0
  wait "$learner" || code=$?
  [ "$signals" = "$seen" ] && break
done

# SIGUSR1 comes before the time limit or a preemption: queue this job again. SIGTERM comes from
# scancel --full: leave the job as it is.
# The learner exits with 128 + 10 if SIGUSR1 came before it had begun.
if [ "$last" = USR1 ] && { [ "$code" = 0 ] || [ "$code" = 138 ]; }; then
  echo "$SLURM_JOB_ID: saved; the job is queued again"
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
fi
exit "$code"
