"""`python run_launcher.py ENTRY NPROC LOG_DIR [KEY=VALUE ...]`: a launcher in a process of its own."""

import sys
from pathlib import Path

from loongforge.config.compose import compose
from loongforge.config.errors import UserError
from loongforge.training.job import Job
from loongforge.training.launcher import launch

if __name__ == "__main__":
    entry, nproc, log_dir, *arguments = sys.argv[1:]
    tree = compose(["recipe=llm_pretrain"]).tree
    job = Job(f"launcher_jobs:{entry}", tree, dict(argument.split("=", 1) for argument in arguments))
    try:
        sys.exit(launch(job, int(nproc), Path(log_dir)))
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
