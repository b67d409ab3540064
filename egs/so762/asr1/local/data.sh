#!/usr/bin/env bash
# Stage 1 of asr.sh: writes data/{train,dev,test} from the corpus in ${SO762}.
set -euo pipefail

if [ -z "${SO762:-}" ]; then
    echo "name the folder that holds train.tsv, dev.tsv, test.tsv and flac/: run.sh --corpus FOLDER" >&2
    exit 2
fi
python3 local/data.py "${SO762}" data
