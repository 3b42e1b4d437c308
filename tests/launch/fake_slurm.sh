#!/usr/bin/env bash
# Stands for sbatch, srun, scontrol, ray and python in tests, by the name it is called by. Logs its arguments, one command
# per line. FAKE_RUN says what the python of the run does: exit with a number, `wait` for a signal, or be
# the `real` one, FAKE_PYTHON.
set -euo pipefail
name=${0##*/}
printf '%s\n' "$name $*" >>"$FAKE_LOG"
case $name in
sbatch) # runs the script at once, from a copy elsewhere, with the directives in its head as options
    script=$1
    shift
    directive() { sed -n "s/^#SBATCH --$1=//p" "$script"; }
    cp "$script" "$FAKE_SPOOL/slurm_script"
    nodes=$(directive nodes)
    export SLURM_JOB_ID=$FAKE_JOB SLURM_SUBMIT_DIR=$PWD SLURM_JOB_NUM_NODES=$nodes SLURMD_NODENAME=node0
    SLURM_CPUS_PER_TASK=${FAKE_CPUS:-$(directive cpus-per-task)}
    SLURM_GPUS_ON_NODE=${FAKE_GPUS-$(directive gpus-per-node)}
    export SLURM_CPUS_PER_TASK SLURM_GPUS_ON_NODE
    echo $$ >"$FAKE_SPOOL/pid"
    exec bash "$FAKE_SPOOL/slurm_script" "$@"
    ;;
srun) # one task per node, each in its network namespace if FAKE_NAMESPACES names them; passes SIGTERM on
    while [[ $1 == --* ]]; do shift; done
    read -r -a namespaces <<<"${FAKE_NAMESPACES:-}"
    tasks=()
    trap 'kill -TERM "${tasks[@]}" 2>/dev/null || true' TERM
    for ((node = 0; node < SLURM_JOB_NUM_NODES; node++)); do
        prefix=()
        ((${#namespaces[@]} == 0)) || prefix=(ip netns exec "${namespaces[node]}")
        SLURM_NODEID=$node "${prefix[@]}" "$@" &
        tasks+=($!)
    done
    for task in "${tasks[@]}"; do
        wait "$task" || true
        wait "$task" 2>/dev/null || true # again, if a signal ended the first
    done
    ;;
scontrol) exit "${FAKE_SCONTROL:-0}" ;;
ray)
    trap 'echo "ray stopped" >>"$FAKE_LOG"; exit 0' TERM
    printf '%s\n' "ray environment ${RAY_AUTH_MODE:-} ${RAY_AUTH_TOKEN:-no token} $(stat -c %a "$RAY_AUTH_TOKEN_PATH")" \
        "ray token of $(wc -c <"$RAY_AUTH_TOKEN_PATH") characters, folder $(stat -c %a "$RAY_TMPDIR")" >>"$FAKE_LOG"
    for _ in $(seq 600); do sleep 0.1; done
    ;;
python)
    if [[ $1 == *wait_for_nodes.py ]]; then
        (($3 > 0)) || exit 0
        for _ in $(seq 300); do
            (($(grep -c "^ray token" "$FAKE_LOG") < $3)) || exit "${FAKE_WAIT_STATUS:-0}"
            sleep 0.1
        done
        exit 9
    fi
    if [[ $FAKE_RUN == real ]]; then exec "$FAKE_PYTHON" "$@"; fi
    if [[ $FAKE_RUN != wait ]]; then exit "$FAKE_RUN"; fi
    trap 'sleep 0.5; echo "run ended" >>"$FAKE_LOG"; exit 75' USR1
    trap 'exit 143' TERM
    echo waiting >"$FAKE_SPOOL/waiting"
    for _ in $(seq 600); do sleep 0.1; done
    ;;
esac
