#!/usr/bin/env bash
# Table 21: the Conformer and ConExtBiMamba on AN4, each with five seeds; WER, mean, variance, a plot.
#
#   egs/an4/asr1/seeds.sh [--recipe an4] [--models "conformer conextbimamba"] \
#       [--seeds "2048 233 666 1024 3407"] [--work exp/an4] [--corpus DIR] \
#       [--asr_args "..."] [any option of ESPnet's run.sh, e.g. --ngpu 1]
#
# Interrupted, the same command goes on: a finished part leaves a file, and a training its
# checkpoint. To train again after a change, delete exp/asr_MODEL_seed* in the working copy.
# In a few minutes without a GPU, and meaning nothing but that it works:
#
#   egs/an4/asr1/seeds.sh --recipe mini_an4 --models "conbimamba transbimamba" --seeds "1 2"
set -euo pipefail

home=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)
recipe=an4
models="conformer conextbimamba"
seeds="2048 233 666 1024 3407"
work=
asr_args=

while [ $# -gt 1 ]; do
    case $1 in
        --recipe) recipe=$2 ;;
        --models) models=$2 ;;
        --seeds) seeds=$2 ;;
        --work) work=$2 ;;
        --asr_args) asr_args="$2 " ;;
        *) break ;;
    esac
    shift 2
done

run=${home}/egs/${recipe}/asr1/run.sh
if [ ! -x "${run}" ]; then
    echo "no recipe '${recipe}' here: ${run} is not there" >&2
    exit 2
fi
work=$(realpath -m "${work:-${home}/exp/${recipe}}")
copy=${work}/egs2/${recipe}/asr1
options=(--work "${work}" "$@")

# Runs some stages, unless a file says that they are done.
stages() {
    local done_file=$1 first=$2 last=$3
    shift 3
    if [ ! -e "${done_file}" ]; then
        "${run}" "${options[@]}" "$@" --stage "${first}" --stop_stage "${last}"
        touch "${done_file}"
    fi
}

mkdir -p "${work}"
for model in ${models}; do
    stages "${work}/.data_is_there" 1 5 --model "${model}"
    model_options=(--model "${model}" --asr_stats_dir "exp/asr_stats_${model}")
    stages "${work}/.statistics_of_${model}" 10 10 "${model_options[@]}"
    for seed in ${seeds}; do
        exp=exp/asr_${model}_seed${seed}
        seed_options=("${model_options[@]}" --asr_exp "${exp}" --asr_args "${asr_args}--seed ${seed}")
        mkdir -p "${copy}/${exp}"
        stages "${copy}/${exp}/.trained" 11 11 "${seed_options[@]}"
        stages "${copy}/${exp}/.decoded" 12 12 "${seed_options[@]}"
        if PATH="${work}/tools/sctk/bin:${PATH}" command -v sclite >/dev/null; then
            stages "${copy}/${exp}/RESULTS.md" 13 13 "${seed_options[@]}"
        elif [ ! -e "${copy}/${exp}/RESULTS.md" ]; then
            echo "no sclite here: jiwer scores ${exp} instead"
            python3 "${home}/egs/mini_an4/results.py" "${copy}/${exp}" "${copy}/dump/raw"
        fi
    done
done

# shellcheck disable=SC2086
python3 "${home}/egs/an4/gather.py" "${copy}/exp" --models ${models} --seeds ${seeds}
