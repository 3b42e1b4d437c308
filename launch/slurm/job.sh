# shellcheck shell=bash
# What the sbatch scripts here share: a Ray cluster inside the allocation, signals, exit status, requeueing. Sourced.
#
#   run_job OVERRIDE...   run `python -m $command OVERRIDE...` on all nodes of the job; ends the script
#
# Environment: FRESCO_DIST_PYTHON (default: python), FRESCO_DIST_MAX_REQUEUES (default: 3), FRESCO_DIST_HEAD_IP (default:
# the address that the first node's name resolves to).
set -euo pipefail

EXIT_INTERRUPTED=75 # fresco_dist.launch: stopped at a task boundary on SIGUSR1
command=fresco_dist.launch # or fresco_dist.evaluate
python=${FRESCO_DIST_PYTHON:-python}
max_requeues=${FRESCO_DIST_MAX_REQUEUES:-3}
slurm_scripts=$SLURM_SUBMIT_DIR/launch/slurm
token_file=$HOME/.fresco_dist/token-$SLURM_JOB_ID # on the file system that the nodes share
ray_step=
early=0 # SIGUSR1 came while no command was there to take it

run_job() {
    # Short, because Ray's sockets lie below it and a socket's path has at most 107 characters.
    export RAY_TMPDIR=/tmp/fd-$SLURM_JOB_ID
    trap clean_up EXIT
    trap 'early=1' USR1
    make_private_folder "$RAY_TMPDIR"
    local overrides=("$@") status=0
    if ((SLURM_JOB_NUM_NODES > 1)); then
        start_ray || status=$?
        overrides+=("cluster.address=$head_ip:$base_port" "cluster.num_nodes=$SLURM_JOB_NUM_NODES")
    fi
    if ((status == 0 && !early)); then
        pass_signals_to "$python" -m "$command" "${overrides[@]}" || status=$?
    fi
    if ((early || status == 128 + 10)); then # SIGUSR1 before the run could take it: nothing was begun
        status=$EXIT_INTERRUPTED
    fi
    clean_up # before the requeueing, which ends the job at once
    ((status != EXIT_INTERRUPTED)) || requeue
    exit "$status"
}

make_private_folder() {
    mkdir -m 700 "$1" 2>/dev/null && return
    if [[ ! -O $1 ]]; then
        echo "error: $1 must be a folder of yours; it belongs to somebody else." >&2
        return 2
    fi
}

# Ray on all nodes of the job, one task per node; sets head_ip and base_port.
start_ray() {
    # A hundred jobs on shared nodes have ports of their own, all below those that Linux gives to outgoing connections.
    base_port=$((12000 + SLURM_JOB_ID % 100 * 200))
    head_ip=${FRESCO_DIST_HEAD_IP:-$(getent ahostsv4 "${SLURMD_NODENAME:-$(hostname)}" | awk 'NR == 1 { print $1 }')}
    if [[ -z $head_ip || $head_ip == 127.* ]]; then
        echo "error: FRESCO_DIST_HEAD_IP must be the address of this node for the others; got '$head_ip'." >&2
        return 2
    fi
    (umask 077 && mkdir -p "${token_file%/*}" && od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$token_file") || return
    unset RAY_AUTH_TOKEN # it would come before the file
    export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$token_file RAY_USAGE_STATS_ENABLED=0 RAY_worker_niceness=0
    local resources=(--cpus-per-task="$SLURM_CPUS_PER_TASK")
    if [[ -n ${SLURM_GPUS_ON_NODE:-} ]]; then
        resources+=(--gpus-per-node="$SLURM_GPUS_ON_NODE")
    fi
    srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 "${resources[@]}" \
        --export=ALL --kill-on-bad-exit=1 bash "$slurm_scripts/ray_node.sh" "$head_ip" "$base_port" &
    ray_step=$!
    pass_signals_to "$python" "$slurm_scripts/wait_for_nodes.py" "$head_ip:$base_port" "$SLURM_JOB_NUM_NODES"
}

# Run a command, pass SIGUSR1 and SIGTERM on to it, return its exit status: bash alone would sit out the signal.
pass_signals_to() {
    local signalled=1 status=0 waited
    "$@" &
    local child=$!
    trap 'signalled=1; kill -USR1 "$child" 2>/dev/null || true' USR1
    trap 'signalled=1; kill -TERM "$child" 2>/dev/null || true' TERM INT
    while ((signalled)); do # a signal ends `wait`, too
        signalled=0 waited=0
        wait "$child" || waited=$?
        ((waited == 127)) || status=$waited # 127: it had ended before
    done
    trap - TERM INT
    trap 'early=1' USR1
    return "$status"
}

requeue() {
    local restarts=${SLURM_RESTART_COUNT:-0}
    if ((restarts < max_requeues)) && scontrol requeue "$SLURM_JOB_ID"; then
        echo "interrupted; requeued, restart $((restarts + 1)) of $max_requeues" >&2
    else
        echo "interrupted and not requeued (restart $restarts of $max_requeues); to run it again:" \
            "scontrol requeue $SLURM_JOB_ID" >&2
    fi
}

clean_up() {
    trap '' USR1 TERM INT
    if [[ -n $ray_step ]]; then
        kill -TERM "$ray_step" 2>/dev/null || true
        wait "$ray_step" || true
        ray_step=
    fi
    rm -rf "$token_file" "$RAY_TMPDIR"
}
