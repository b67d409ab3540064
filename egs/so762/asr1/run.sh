#!/usr/bin/env bash
# An hour of real speech on a CPU: does it learn? speechocean762 (OpenSLR 101, CC BY 4.0), a part of it.
#
#   egs/so762/asr1/run.sh --corpus DIR [--model conextbimamba] [--seed 1] [--work exp/so762] \
#       [any option of ESPnet's asr.sh, e.g. --stage 11]
#
# Makes itself a working copy of ESPnet's recipe template and runs there, or in the copy in which
# it is called as ./run.sh; see README.md one folder up. `./asr.sh --help` in the copy lists
# ESPnet's options.
set -euo pipefail

here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
. "${here}/../../options.sh"
home=$(cd "${here}/../../.." && pwd)
configs=${home}/conf/so762

model=conextbimamba
seed=1
corpus=
work=$(working_copy "${BASH_SOURCE[0]}" so762/asr1)
stage=1
stop_stage=12 # ../results.py scores: it needs no sclite
asr_args=
asr_config=
options=()

while [ $# -gt 0 ]; do
    help_or_value "$@"
    case $1 in
        --model) model=$2 ;;
        --seed) number "$@" && seed=$2 ;;
        --corpus) corpus=$2 ;;
        --work) work=$2 ;;
        --stage) number "$@" && stage=$2 ;;
        --stop_stage) number "$@" && stop_stage=$2 ;;
        --asr_args) asr_args=$2 ;;
        --asr_config) asr_config=$2 ;;
        *) options+=("$1" "$2") ;;
    esac
    shift 2
done
work=${work:-${home}/exp/so762}

asr_config=$(own_or_model_yaml --asr_config "${asr_config}" "${configs}" "${model}" asr)

# Read by local/data.sh: as an option of it, a path with spaces would fall apart in asr.sh.
[ -z "${corpus}" ] || corpus=$(readlink -m "${corpus}")
export SO762=${corpus}
recipe=$(python3 -m espnet_bimamba recipes get so762 --own "${here}" --to "${work}" \
    --cache "${home}/.cache")
cd "${recipe}"

asr() {
    ./asr.sh \
        --lang en \
        --ngpu 0 \
        --nj 2 \
        --inference_nj 2 \
        --token_type char \
        --feats_type raw \
        --audio_format wav \
        --max_wav_duration 30 \
        --use_lm false \
        --train_set train \
        --valid_set dev \
        --test_sets "dev test" \
        --lm_train_text data/train/text \
        --asr_config "${asr_config}" \
        --asr_tag "${model}_seed${seed}" \
        --inference_config "${configs}/decode_asr.yaml" \
        --inference_asr_model valid.cer_ctc.ave.pth \
        "$@" \
        ${options[@]+"${options[@]}"}
}

# Where speech is masked from the start, CTC finds no alignment (README.md): the first epochs are
# without masks and changes of speed; then the same training, from its own checkpoint, is with them.
plain="--max_epoch 8 --specaug none --preprocessor_conf data_aug_prob=0.0"
if [ "${stage}" -le 11 ] && [ "${stop_stage}" -ge 11 ]; then
    asr --stage "${stage}" --stop_stage 11 --asr_args "--seed ${seed} ${plain} ${asr_args}"
    stage=11
fi
asr --stage "${stage}" --stop_stage "${stop_stage}" --asr_args "--seed ${seed} ${asr_args}"
