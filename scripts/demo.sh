#!/usr/bin/env bash
# The main job on generated images: compare frozen and fine-tuned, with the weights that ship and with controls.
set -euo pipefail
medtransfer=${1:-medtransfer}
"$medtransfer" train -m experiment=demo "${@:2}"
