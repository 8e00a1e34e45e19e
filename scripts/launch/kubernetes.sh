#!/usr/bin/env bash
# A run on Kubernetes (Kubeflow): scripts/launch/kubernetes.sh +recipe=llava_sft cluster.nodes=4 [--dry-run]; see docs/launch.md.
exec loongforge launch cluster=pytorchjob "$@"
