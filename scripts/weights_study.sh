#!/usr/bin/env bash
# The study behind docs/weights.md: pre-train every source, compare them on busi and on phantom.
# MEDTRANSFER_DATA must hold busi/. Takes about two hours on two cores.
set -euo pipefail
cd "$(dirname "$0")/.."

out=medtransfer-data/weights-study
split='dataset.split.ratios=[0.5,0.1,0.4]' # the study's own: what is tested on is never seen
for dataset in busi phantom; do
  medtransfer pretrain source=sae backbone=resnet10t dataset=$dataset "$split"
  medtransfer pretrain source=rbm backbone=dense_encoder source.noise=1 trainer.gradient_clip=10 \
    dataset=$dataset "$split"
  medtransfer pretrain source=simclr dataset=$dataset "$split"
  medtransfer pretrain source=supervised dataset=$dataset "$split"
done
for dataset in busi phantom; do
  medtransfer train -m study=weights dataset=$dataset study.name=weights-$dataset \
    features.mode=online # as it was run: augmentation drawn anew at every step
  medtransfer report weights-$dataset --out "$out/$dataset"
done
python scripts/weights_table.py "$out"/{busi,phantom}/results.json
