#!/usr/bin/env bash
# Stage 1 of enh.sh: writes data/{train,valid,test} from ${SE_CORPUS} and, for the paper's protocol,
# ${SE_NOISES}, of run.sh or of db.sh. `local/data.sh --help` has its options, which go into
# --local_data_opts.
set -euo pipefail

given=${SE_CORPUS:-} given_noises=${SE_NOISES:-}
. ./db.sh

SE_CORPUS=${given:-${SE_CORPUS:-}}
SE_NOISES=${given_noises:-${SE_NOISES:-}}
if [ -z "${SE_CORPUS}" ]; then
    echo "name the folder of the speech (LibriSpeech, or so762): run.sh --corpus FOLDER, or SE_CORPUS=FOLDER in ${PWD}/db.sh" >&2
    exit 2
fi
. ./path.sh

python3 local/data.py --protocol "${SE_PROTOCOL}" --corpus "${SE_CORPUS}" \
    ${SE_NOISES:+--noises "${SE_NOISES}"} "$@"
for set in train valid test; do
    utils/validate_data_dir.sh --no-feats --no-text "data/${set}"
done
