#!/usr/bin/env bash
# Table 21: the Conformer and ConExtBiMamba on AN4, each with five seeds; WER, mean, variance, a plot.
#
#   egs/an4/asr1/seeds.sh [--recipe an4] [--models "conformer conextbimamba"] \
#       [--seeds "2048 233 666 1024 3407"] [--work exp/an4] [--set test] [--asr_args "..."] \
#       [options of egs/RECIPE/asr1/run.sh and of ESPnet's run.sh, e.g. --corpus DIR --ngpu 1]
#
# Interrupted, the same command goes on: a finished part leaves a file, and a training its
# checkpoint. To train again after a change, delete exp/asr_MODEL_seed* in the working copy.
# In a few minutes without a GPU, and meaning nothing but that it works:
#
#   egs/an4/asr1/seeds.sh --recipe mini_an4 --models "conbimamba transbimamba" --seeds "1 2"
#
# --set is the test set whose error rates are gathered: of LibriSpeech test_clean and of SEAME
# devman, unless another is named.
set -euo pipefail

home=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)
. "${home}/egs/options.sh"
recipe=an4
models="conformer conextbimamba"
seeds="2048 233 666 1024 3407"
work=
test_set=
asr_args=
given=()

while [ $# -gt 0 ]; do
    help_or_value "$@"
    case $1 in
        --recipe) recipe=$2 ;;
        --models) models=$2 ;;
        --seeds) seeds=$2 ;;
        --work) work=$2 ;;
        --set) test_set=$2 ;;
        --asr_args) asr_args="$2 " ;;
        --model | --stage | --stop_stage | --asr_exp | --asr_stats_dir | --asr_config | --asr_tag)
            refuse "option '$1' is not possible: this program sets it itself" ;;
        *) given+=("$1" "$2") ;;
    esac
    shift 2
done

once() { # option, its words
    local twice
    twice=$(printf '%s\n' "${@:2}" | sort | uniq -d | tr '\n' ' ')
    [ -z "${twice}" ] || refuse "$1 '${*:2}': each may come but once, unlike ${twice% }"
}

run=${home}/egs/${recipe}/asr1/run.sh
[ -x "${run}" ] || refuse "no recipe '${recipe}' here: ${run} is not there"
[ -n "${models// /}" ] || refuse "--models names none"
[[ ${seeds} =~ ^\ *[0-9]+(\ +[0-9]+)*\ *$ ]] || refuse "--seeds '${seeds}': not whole numbers"
# gather.py reads them as numbers: 01 is 1.
seeds=$(for seed in ${seeds}; do echo "$((10#${seed}))"; done)
# shellcheck disable=SC2086
once --models ${models}
# shellcheck disable=SC2086
once --seeds ${seeds}
# shellcheck disable=SC2086
python3 "${home}/egs/models.py" "${recipe}" ${models}
if [ -z "${test_set}" ]; then
    case ${recipe} in
        librispeech*) test_set=test_clean ;;
        seame) test_set=devman ;;
        *) test_set=test ;;
    esac
fi
work=$(realpath -m "${work:-${home}/exp/${recipe}}")
copy=${work}/egs2/${recipe}/asr1
options=(--work "${work}" ${given[@]+"${given[@]}"})

# Runs some stages, unless a file says that they are done: what they make must be there then.
stages() {
    local done_file=$1 product=$2 first=$3 last=$4
    shift 4
    if [ -e "${done_file}" ]; then
        return
    fi
    "${run}" "${options[@]}" "$@" --stage "${first}" --stop_stage "${last}"
    if ! compgen -G "${copy}/${product}" >/dev/null; then
        echo "stages ${first} to ${last} ended well, but ${copy}/${product} is not there" >&2
        exit 1
    fi
    touch "${done_file}"
}

for model in ${models}; do
    stages "${work}/.data_is_there" "data/*token_list/*/tokens.txt" 1 5 --model "${model}"
    stats=exp/asr_stats_${model}
    model_options=(--model "${model}" --asr_stats_dir "${stats}")
    stages "${work}/.statistics_of_${model}" "${stats}/valid/text_shape.*" 10 10 "${model_options[@]}"
    for seed in ${seeds}; do
        exp=exp/asr_${model}_seed${seed}
        seed_options=("${model_options[@]}" --asr_exp "${exp}" --asr_args "${asr_args}--seed ${seed}")
        mkdir -p "${copy}/${exp}"
        stages "${copy}/${exp}/.trained" "${exp}/*.ave.pth" 11 11 "${seed_options[@]}"
        stages "${copy}/${exp}/.decoded" "${exp}/*/*/text" 12 12 "${seed_options[@]}"
        if PATH="${work}/tools/sctk/bin:${PATH}" command -v sclite >/dev/null; then
            stages "${copy}/${exp}/RESULTS.md" "${exp}/RESULTS.md" 13 13 "${seed_options[@]}"
        elif [ ! -e "${copy}/${exp}/RESULTS.md" ]; then
            echo "no sclite here: jiwer scores ${exp} instead"
            python3 "${home}/egs/mini_an4/results.py" "${copy}/${exp}" "${copy}/dump/raw"
        fi
    done
done

# shellcheck disable=SC2086
python3 "${home}/egs/an4/gather.py" "${copy}/exp" --models ${models} --seeds ${seeds} \
    --set "${test_set}"
