#!/usr/bin/env bash
# Stage 1 of asr.sh: writes data/{train,dev,test} from the corpus in ${SO762}, of run.sh or of
# db.sh.
set -euo pipefail

given=${SO762:-}
. ./db.sh

SO762=${given:-${SO762:-}}
if [ -z "${SO762}" ]; then
    echo "name the folder that holds train.tsv, dev.tsv, test.tsv and flac/: run.sh --corpus FOLDER, or SO762=FOLDER in ${PWD}/db.sh" >&2
    exit 2
fi
python3 local/data.py "${SO762}" data
