#!/usr/bin/env bash
# ASRU 2019 Mandarin-English code-switching challenge, trained on its 200 hours of code-switching.
#
#   egs/asru/asr1/run.sh --corpus DIR [--model conextbimamba] [--english_bpe 3000] \
#       [--work exp/asru] [any option of ESPnet's asr.sh, e.g. --stage 10 --ngpu 2]
#
# Makes itself a working copy of ESPnet's recipe template and runs there, or in the copy in which
# it is called as ./run.sh; see README.md one folder up. `./asr.sh --help` in the copy lists
# ESPnet's options.
set -euo pipefail

here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
. "${here}/../../options.sh"
home=$(cd "${here}/../../.." && pwd)
configs=${home}/conf/asru

model=conextbimamba
corpus=${ASRU:-}
work=$(working_copy "${BASH_SOURCE[0]}" asru/asr1)
english_bpe=3000
asr_config=
stage=1
stop_stage=10000
options=()

while [ $# -gt 0 ]; do
    help_or_value "$@"
    case $1 in
        --model) model=$2 ;;
        --corpus) corpus=$2 ;;
        --work) work=$2 ;;
        --english_bpe) number "$@" && english_bpe=$2 ;;
        --asr_config) asr_config=$2 ;;
        --stage) number "$@" && stage=$2 ;;
        --stop_stage) number "$@" && stop_stage=$2 ;;
        *) options+=("$1" "$2") ;;
    esac
    shift 2
done
work=${work:-${home}/exp/asru}

[ "${english_bpe}" -gt 0 ] || refuse "option --english_bpe: '${english_bpe}' is no number from 1 on"
asr_config=$(own_or_model_yaml --asr_config "${asr_config}" "${configs}" "${model}" asr)

[ -z "${corpus}" ] || ASRU=$(readlink -m "${corpus}")
export ASRU=${ASRU:-}
recipe=$(python3 -m espnet_bimamba recipes get asru --own "${here}" --to "${work}" \
    --cache "${home}/.cache")
cd "${recipe}"

always=(
    --train_set train
    --valid_set dev
    --test_sets "dev test"
    --ngpu 1
    --use_lm false
    --max_wav_duration 30
    --speed_perturb_factors "0.9 1.0 1.1"
    --asr_config "${asr_config}"
    --inference_config "${configs}/decode_asr.yaml"
    --score_opts "-e utf-8 -c NOASCII"
)

asr() {
    ./asr.sh "${always[@]}" "$@" ${options[@]+"${options[@]}"}
}

# Stage 13 but for the tables of sclite. The names of the experiment and of the decoding are made of
# a dozen options: asr.sh makes them, which is read here with no stage to run.
score() (
    . ./asr.sh "${always[@]}" "$@" ${options[@]+"${options[@]}"} --stage 10000 >&2
    if [[ " ${skip_stages} " = *" 13 "* ]]; then
        exit
    fi
    if "${eval_valid_set}"; then
        test_sets="org/${valid_set} ${test_sets}"
    fi
    for dataset in ${test_sets}; do
        text=$(readlink -m "${asr_exp}/${inference_tag}/${dataset}/text")
        [ -f "${text}" ] || refuse "${text} is missing: start from stage 12"
    done
    # shellcheck disable=SC2086
    local/score.sh ${local_score_opts} "${asr_exp}"
    # Stage 14 packs this file, which stage 13 of asr.sh would have made.
    mer=${asr_exp}/MER.md results=${asr_exp}/RESULTS.md
    if [ -e "${results}" ] && [ "$(head -n 1 "${results}")" != "$(head -n 1 "${mer}")" ]; then
        echo "${results} is from another program and stays as it is: the new rates are in ${mer}" >&2
        exit
    fi
    cp "${mer}" "${results}"
)

# The size of the vocabulary is known once the transcripts are read, hence two calls.
if [ "${stage}" -le 1 ]; then
    asr --stage 1 --stop_stage 1
    stage=2
fi
if [ "${stop_stage}" -le 1 ]; then
    exit
fi
[ -f data/train/mandarin ] || refuse "${recipe}/data/train/mandarin is missing: start from stage 1"
# The Mandarin characters of the training set are tokens as they are; BPE learns on English alone.
# Sentencepiece counts <unk>, <s> and </s> in; asr.sh replaces them by <blank>, <unk> and <sos/eos>.
tokens=(
    --token_type bpe
    --nbpe "$((10#${english_bpe} + $(wc -l <data/train/mandarin) + 3))"
    --bpe_nlsyms data/train/mandarin
    --bpe_train_text data/train/text.english
)

if [ "${stage}" -gt 13 ] || [ "${stop_stage}" -lt 13 ] \
    || (set +u && . ./path.sh >/dev/null && command -v sclite >/dev/null); then
    asr "${tokens[@]}" --stage "${stage}" --stop_stage "${stop_stage}"
    exit
fi

echo "no sclite here: stage 13 will give the MER only (Debian and Ubuntu: apt install sctk)" >&2
if [ "${stage}" -le 12 ]; then
    asr "${tokens[@]}" --stage "${stage}" --stop_stage 12
fi
score "${tokens[@]}"
if [ "${stop_stage}" -ge 14 ]; then
    asr "${tokens[@]}" --stage 14 --stop_stage "${stop_stage}"
fi
