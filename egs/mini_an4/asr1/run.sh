#!/usr/bin/env bash
# Runs ESPnet's own, unchanged mini_an4 recipe with one of our encoders, in a working copy of it.
#
#   egs/mini_an4/asr1/run.sh [--encoder conbimamba] [--work exp/mini_an4/conbimamba] \
#       [any option of ESPnet's run.sh, e.g. --ngpu 1 --stage 11]
set -euo pipefail

home=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)
configs=${home}/conf/mini_an4
encoder=conbimamba
work=

while [ $# -gt 1 ]; do
    case $1 in
        --encoder) encoder=$2 ;;
        --work) work=$2 ;;
        *) break ;;
    esac
    shift 2
done

config=${configs}/train_asr_${encoder}.yaml
if [ ! -f "${config}" ]; then
    echo "no encoder '${encoder}' here; there are:" >&2
    (cd "${configs}" && printf '%s\n' train_asr_*.yaml) | sed 's/^train_asr_\(.*\)\.yaml$/  \1/' >&2
    exit 2
fi

recipe=$(python3 -m espnet_bimamba.recipes --cache "${home}/.cache" \
    --link mini_an4/asr1 --to "${work:-${home}/exp/mini_an4/${encoder}}")
cd "${recipe}"

# The model of the lowest training loss: our YAMLs are made to memorise, and say so.
exec ./run.sh \
    --ngpu 0 \
    --use_lm false \
    --skip_packing false \
    --test_sets "train_dev test" \
    --asr_config "${config}" \
    --inference_config "${configs}/decode_asr.yaml" \
    --inference_asr_model train.loss.ave.pth \
    "$@"
