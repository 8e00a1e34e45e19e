#!/usr/bin/env bash
# On every node: scripts/launch/torchrun.sh +recipe=llava_sft cluster.nodes=2 cluster.endpoint=FIRST run.dir=DIR; see docs/launch.md.
exec loongforge launch cluster=torchrun "$@"
