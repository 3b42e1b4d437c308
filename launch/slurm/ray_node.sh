#!/usr/bin/env bash
# The Ray of one node, in the foreground until SIGTERM: ray_node.sh HEAD_IP BASE_PORT, one task of srun per node.
# shellcheck source=launch/slurm/job.sh
source "$SLURM_SUBMIT_DIR/launch/slurm/job.sh"
head_ip=$1 base_port=$2
make_private_folder "$RAY_TMPDIR"
trap 'rm -rf "$RAY_TMPDIR"' EXIT

options=(
    --block --disable-usage-stats
    --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="${SLURM_GPUS_ON_NODE:-0}"
    --node-manager-port="$((base_port + 1))" --object-manager-port="$((base_port + 2))"
    --runtime-env-agent-port="$((base_port + 3))" --metrics-export-port="$((base_port + 4))"
    --dashboard-agent-listen-port="$((base_port + 5))" --dashboard-agent-grpc-port="$((base_port + 6))"
    --min-worker-port="$((base_port + 20))" --max-worker-port="$((base_port + 199))"
)
if ((SLURM_NODEID == 0)); then
    options+=(--head --node-ip-address="$head_ip" --port="$base_port" --include-dashboard=false)
else
    options+=(--address="$head_ip:$base_port")
    pass_signals_to "$python" "$slurm_scripts/wait_for_nodes.py" "$head_ip:$base_port" 0
fi
pass_signals_to ray start "${options[@]}"
