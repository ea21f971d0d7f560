#!/usr/bin/env bash
# The main job on generated images: pre-train once, compare frozen and fine-tuned, with controls.
set -euo pipefail
medtransfer=${1:-medtransfer}
"$medtransfer" pretrain source=synthetic
"$medtransfer" train -m experiment=demo "${@:2}"
