"""A batch script for Slurm's `sbatch`."""

from __future__ import annotations

import shlex

from loongforge.cluster.node import Job, node_script

_GRACE_S = 180


def batch_script(job: Job) -> str:
    """One task on each node, which is torchrun's agent; SIGTERM comes before the end, so that ranks save."""
    cluster, slurm = job.cluster, job.cluster.slurm
    options = {
        "job-name": job.name,
        "nodes": str(cluster.nodes),
        "ntasks-per-node": "1",
        "exclusive": "",
        "output": f"{job.name}-%j.log",
        "signal": f"TERM@{_GRACE_S}",
        "requeue": "",
        "partition": slurm.partition,
        "account": slurm.account,
        "time": slurm.time,
        "gres": slurm.gres,
    }
    lines = [f"#SBATCH --{name}{f'={value}' if value else ''}" for name, value in options.items() if value is not None]
    script = node_script(job, '"$LOONGFORGE_HEAD"')
    return "\n".join(
        [
            "#!/usr/bin/env bash",
            *lines,
            *(f"#SBATCH {option}" for option in slurm.options),
            "set -euo pipefail",
            # not through head, which would end scontrol by SIGPIPE and with it the script
            'read -r LOONGFORGE_HEAD < <(scontrol show hostnames "$SLURM_JOB_NODELIST")',
            "export LOONGFORGE_HEAD",
            f"srun --kill-on-bad-exit=0 bash -c {shlex.quote(script)}",
            "",
        ]
    )
