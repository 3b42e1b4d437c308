#!/usr/bin/env bash
# VBench-I2V's six dimensions for the videos that `python -m fresco_dist.report.vbench export FOLDER OUT` wrote.
#
#   launch/vbench/run.sh [--check] OUT [CACHE]
#
# Needs a CUDA GPU, the weights in CACHE (default: VBENCH_CACHE_DIR, else ~/.cache/vbench, as VBench has it) and, the
# first time, a package registry: VBench is installed in CACHE/venv, 6.4 GB. Otherwise nothing is fetched. --check only
# says which weights are missing and where they come from. Results go to OUT/results; typed again, it goes on with what
# has none. Exit status: 0 all done, 1 some dimensions failed, 2 bad input.
#
# Environment: FRESCO_DIST_VBENCH_PYTHON (default: python3.11) makes the virtual environment.
set -euo pipefail

dimensions=(subject_consistency motion_smoothness aesthetic_quality imaging_quality i2v_subject i2v_background)
dino=https://dl.fbaipublicfiles.com/dino/dino_vitbase16_pretrain/dino_vitbase16_pretrain.pth
dreamsim=https://github.com/ssundaram21/dreamsim/releases/download/v0.2.0-checkpoints/dreamsim_ensemble_checkpoint.zip
weights=( # file in CACHE, dimensions, source
    "dino_model/dino_vitbase16_pretrain.pth|subject_consistency, i2v_*|$dino"
    "dino_model/facebookresearch_dino_main/hubconf.py|subject_consistency, i2v_*|git clone https://github.com/facebookresearch/dino"
    "amt_model/amt-s.pth|motion_smoothness|https://huggingface.co/lalala125/AMT/resolve/main/amt-s.pth"
    "clip_model/ViT-L-14.pt|aesthetic_quality|https://openaipublic.azureedge.net/clip/models/b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836/ViT-L-14.pt"
    "aesthetic_model/emb_reader/sa_0_4_vit_l_14_linear.pth|aesthetic_quality|https://raw.githubusercontent.com/LAION-AI/aesthetic-predictor/main/sa_0_4_vit_l_14_linear.pth"
    "pyiqa_model/musiq_spaq_ckpt-358bb6af.pth|imaging_quality|https://github.com/chaofengc/IQA-PyTorch/releases/download/v0.1-weights/musiq_spaq_ckpt-358bb6af.pth"
    "models/dino_vitb16_pretrain.pth|i2v_background|in $dreamsim"
    "models/clip_vitb16_pretrain.pth.tar|i2v_background|in $dreamsim"
    "models/open_clip_vitb16_pretrain.pth.tar|i2v_background|in $dreamsim"
    "models/ensemble_lora/adapter_config.json|i2v_background|in $dreamsim"
)

main() {
    local only_check=
    if [[ ${1:-} == --check ]]; then
        only_check=1
        shift
    fi
    if (($# < 1 || $# > 2)) || [[ $1 == -* ]]; then
        echo "usage: launch/vbench/run.sh [--check] OUT [CACHE]" >&2
        exit 2
    fi
    here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
    cache=$(realpath -m "${2:-${VBENCH_CACHE_DIR:-$HOME/.cache/vbench}}")
    if [[ ! -f $1/videos.json ]]; then
        echo "error: OUT must be a folder that \`python -m fresco_dist.report.vbench export\` wrote; got $1." >&2
        exit 2
    fi
    out=$(realpath "$1")
    check_weights
    if [[ -z $only_check ]]; then
        link_weights
        install
        measure
    fi
}

check_weights() {
    local entry file of source missing=()
    for entry in "${weights[@]}"; do
        IFS='|' read -r file of source <<<"$entry"
        [[ -s $cache/$file ]] || missing+=("  $file ($of)"$'\n'"      $source")
    done
    if ((${#missing[@]})); then
        echo "error: weights are missing, or empty, in $cache:" >&2
        printf '%s\n' "${missing[@]}" >&2
        exit 2
    fi
    echo "weights    all in $cache"
}

# DINO's code takes its weights from torch's hub whatever VBench says, and DreamSim has a hub of its own in ./models.
link_weights() {
    link ../../../dino_model/dino_vitbase16_pretrain.pth torch/hub/checkpoints/dino_vitbase16_pretrain.pth
    link ../../dino_model/dino_vitbase16_pretrain.pth models/checkpoints/dino_vitbase16_pretrain.pth
    link ../dino_model/facebookresearch_dino_main models/facebookresearch_dino_main
}

link() {
    mkdir -p "$cache/$(dirname "$2")"
    [[ -e $cache/$2 ]] || ln -sfn "$1" "$cache/$2"
}

install() {
    local venv=$cache/venv
    python=$venv/bin/python
    unset PYTHONPATH
    export PYTHONNOUSERSITE=1
    cmp -s "$here/requirements.txt" "$venv/installed.txt" && return
    local maker=${FRESCO_DIST_VBENCH_PYTHON:-python3.11}
    if ! "$maker" -c 'import sys; sys.exit(sys.version_info[:2] not in [(3, 10), (3, 11)])' 2>/dev/null; then
        echo "error: FRESCO_DIST_VBENCH_PYTHON must be a Python 3.10 or 3.11; got $maker." >&2
        exit 2
    fi
    echo "installing vbench in $venv"
    "$maker" -m venv "$venv"
    "$python" -m pip install --quiet --requirement "$here/requirements.txt"
    cp "$here/requirements.txt" "$venv/installed.txt" # last: what it lists is there
}

measure() {
    local videos method dimension status failed=()
    export VBENCH_CACHE_DIR=$cache TORCH_HOME=$cache/torch HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1
    cd "$cache" # DreamSim looks for ./models
    for videos in "$out"/videos/*/; do
        method=$(basename "$videos")
        for dimension in "${dimensions[@]}"; do
            if [[ -s $out/results/$method/${dimension}_eval_results.json ]]; then
                echo "done       $method $dimension"
                continue
            fi
            echo "measuring  $method $dimension"
            status=0
            "$python" "$here/dimension.py" "$out" "$method" "$dimension" || status=$?
            case $status in
                0) ;;
                2 | 130 | 143) exit "$status" ;; # not this machine, or interrupted
                *) failed+=("$method $dimension") ;;
            esac
        done
    done
    if ((${#failed[@]})); then
        printf 'failed     %s\n' "${failed[@]}" >&2
        exit 1
    fi
    echo "next       python -m fresco_dist.report.vbench import $out"
}

main "$@"
