"""Jobs on several machines: what runs on each node, and in which form Slurm or Kubernetes takes it."""
