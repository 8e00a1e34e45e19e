"""Manifests for Kubernetes: a PyTorchJob of Kubeflow's training operator, or a JobSet."""

from __future__ import annotations

from typing import Any

import yaml

from loongforge.cluster.node import Job, node_script

_RUN_VOLUME = "shared"


def pytorch_job(job: Job) -> str:
    """A PyTorchJob (kubeflow.org/v1): node 0 is the master, whose service holds the rendezvous."""
    script = node_script(job, f"{job.name}-master-0")

    def replicas(number: int) -> dict[str, Any]:
        # the elastic agents restart ranks; a pod that is lost comes back and joins them
        return {"replicas": number, "restartPolicy": "OnFailure", "template": {"spec": _pod(job, "pytorch", script)}}

    workers = {"Worker": replicas(job.cluster.nodes - 1)} if job.cluster.nodes > 1 else {}
    spec = {"pytorchReplicaSpecs": {"Master": replicas(1), **workers}}
    return _dump("kubeflow.org/v1", "PyTorchJob", job, spec)


def job_set(job: Job) -> str:
    """A JobSet (jobset.x-k8s.io/v1alpha2): one indexed job, a pod for each node, found by their host names."""
    script = node_script(job, f"{job.name}-node-0-0.{job.name}")
    pod = {**_pod(job, "node", script), "restartPolicy": "OnFailure"}
    nodes = job.cluster.nodes
    indexed = {
        "parallelism": nodes,
        "completions": nodes,
        "completionMode": "Indexed",
        "backoffLimit": job.cluster.max_restarts * nodes,
        "template": {"spec": pod},
    }
    spec = {
        "failurePolicy": {"maxRestarts": job.cluster.max_restarts},
        "replicatedJobs": [{"name": "node", "replicas": 1, "template": {"spec": indexed}}],
    }
    return _dump("jobset.x-k8s.io/v1alpha2", "JobSet", job, spec)


def _pod(job: Job, container: str, script: str) -> dict[str, Any]:
    kubernetes = job.cluster.kubernetes
    devices = {} if kubernetes.device is None else {kubernetes.device: job.cluster.processes_per_node}
    volumes: list[dict[str, Any]] = [{"name": "shm", "emptyDir": {"medium": "Memory"}}]
    mounts = [{"name": "shm", "mountPath": "/dev/shm"}]
    if kubernetes.claim is not None:
        volumes.append({"name": _RUN_VOLUME, "persistentVolumeClaim": {"claimName": kubernetes.claim}})
        mounts.append({"name": _RUN_VOLUME, "mountPath": kubernetes.mount})
    return {
        "containers": [
            {
                "name": container,
                "image": kubernetes.image,
                "command": ["bash", "-c", script],
                "ports": [{"name": "rendezvous", "containerPort": job.cluster.port}],
                "resources": {"limits": {**devices, **kubernetes.limits}},
                "volumeMounts": mounts,
            }
        ],
        "volumes": volumes,
    }


def _dump(version: str, kind: str, job: Job, spec: dict[str, Any]) -> str:
    metadata = {"name": job.name, "namespace": job.cluster.kubernetes.namespace}
    manifest = {"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec}
    return yaml.dump(manifest, Dumper=_Readable, sort_keys=False, width=120)


class _Readable(yaml.SafeDumper):
    """Scripts stay readable."""


_Readable.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)
