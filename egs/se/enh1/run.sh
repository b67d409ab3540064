#!/usr/bin/env bash
# Speech enhancement as in the paper's appendix C.1, for who has its corpora; or the same on an hour
# of free speech (so762) and on noise that is computed, for a CPU.
#
#   egs/se/enh1/run.sh --corpus DIR --noises DIR [--model mamba4] [--seed 1] [--work exp/se] \
#       [any option of ESPnet's enh.sh, e.g. --stage 6]
#   egs/se/enh1/run.sh --protocol so762 --corpus DIR [--work exp/so762_se] [...]
#
# Makes itself a working copy of ESPnet's recipe template and runs there, or in the copy in which
# it is called as ./run.sh, with the protocol that the copy was made for; see README.md one folder
# up. `./enh.sh --help` in the copy lists ESPnet's options.
set -euo pipefail

here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
. "${here}/../../options.sh"
home=$(cd "${here}/../../.." && pwd)

protocol=
model=mamba4
seed=1
corpus=
noises=
work=$(working_copy "${BASH_SOURCE[0]}" se/enh1)
stage=1
stop_stage=8
enh_args=
enh_config=
score_nj=2 # processes of stage 8
options=()

while [ $# -gt 0 ]; do
    help_or_value "$@"
    case $1 in
        --protocol) protocol=$2 ;;
        --model) model=$2 ;;
        --seed) number "$@" && seed=$2 ;;
        --corpus) corpus=$2 ;;
        --noises) noises=$2 ;;
        --work) work=$2 ;;
        --stage) number "$@" && stage=$2 ;;
        --stop_stage) number "$@" && stop_stage=$2 ;;
        --enh_args) enh_args=$2 ;;
        --enh_config) enh_config=$2 ;;
        --score_nj) number "$@" && score_nj=$2 ;;
        *) options+=("$1" "$2") ;;
    esac
    shift 2
done

if [ -z "${protocol}" ]; then
    protocol=$(cat "${work}/.protocol" 2>/dev/null || echo paper)
fi
case ${protocol} in
    paper) name=se usual=(--nj 8 --inference_nj 8 --ngpu 1) ;;
    so762) name=so762_se usual=(--nj 2 --inference_nj 2 --ngpu 0) ;;
    *) refuse "no protocol '${protocol}' here; there are: paper, so762" ;;
esac
configs=${home}/conf/${name}
enh_config=$(own_or_model_yaml --enh_config "${enh_config}" "${configs}" "${model}" enh)

# Read by local/data.sh: as options of it, paths with spaces would fall apart in enh.sh.
[ -z "${corpus}" ] || corpus=$(readlink -m "${corpus}")
[ -z "${noises}" ] || noises=$(readlink -m "${noises}")
export SE_PROTOCOL=${protocol} SE_CORPUS=${corpus} SE_NOISES=${noises}
recipe=$(python3 -m espnet_bimamba recipes get se/enh1 --own "${here}" \
    --to "${work:-${home}/exp/${name}}" --cache "${home}/.cache")
echo "${protocol}" >"${recipe}/../../../.protocol"
cd "${recipe}"

# ESPnet's own preprocessor mixes while it trains: a random section of a random noise clip, the
# ratio drawn from -10 to 20 dB. What is validated and tested it takes as it is.
mixing="--preprocessor enh --sample_rate 16000 --force_single_channel true"
mixing+=" --noise_scp dump/raw/train/noises.scp --noise_apply_prob 1.0 --noise_db_range=-10_20"
tag=${model}_seed${seed}

enh() {
    ./enh.sh \
        --lang en \
        "${usual[@]}" \
        --audio_format wav \
        --fs 16k \
        --max_wav_duration 30 \
        --ref_num 1 \
        --train_set train \
        --valid_set valid \
        --test_sets test \
        --extra_wav_list noises.scp \
        --enh_config "${enh_config}" \
        --enh_tag "${tag}" \
        --enh_args "--seed ${seed} ${mixing} ${enh_args}" \
        --inference_model valid.loss.best.pth \
        --inference_args "--normalize_output_wav false --output_format wav" \
        "$@" \
        ${options[@]+"${options[@]}"}
}

if [ "${stage}" -le 7 ]; then
    enh --stage "${stage}" --stop_stage "$((stop_stage < 7 ? stop_stage : 7))"
fi
# Stage 8 is ours: it has the paper's measures, most of which ESPnet's lacks.
if [ "${stage}" -le 8 ] && [ "${stop_stage}" -ge 8 ]; then
    python3 local/score.py --experiment "exp/enh_${tag}" --nj "${score_nj}"
fi
if [ "${stop_stage}" -ge 9 ]; then
    enh --stage "$((stage > 9 ? stage : 9))" --stop_stage "${stop_stage}"
fi
