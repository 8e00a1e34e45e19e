#!/usr/bin/env bash
# A run on Slurm: scripts/launch/slurm.sh +recipe=llava_sft cluster.nodes=4 cluster.slurm.partition=gpu [--dry-run]; see docs/launch.md.
exec loongforge launch cluster=slurm "$@"
