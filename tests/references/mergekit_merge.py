"""Merge recipes with mergekit, for comparison. Runs in mergekit's environment, not in ours; imports nothing
of ours.

    MERGEKIT_PYTHON tests/references/mergekit_merge.py JOBS.json

JOBS.json is a list of {"recipe": YAML text, "out": folder}. Prints one JSON object: mergekit's and torch's
versions. Written against mergekit 0.1.5.
"""

import importlib.metadata
import json
import logging
import sys
import warnings
from pathlib import Path


def main() -> None:
    """Carry out the jobs of the file named on the command line."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    import torch
    import yaml
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    torch.set_num_threads(1)
    for job in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        config = MergeConfiguration.model_validate(yaml.safe_load(job["recipe"]))
        options = MergeOptions(quiet=True, copy_tokenizer=False, write_model_card=False, random_seed=job.get("seed", 0))
        try:
            run_merge(config, job["out"], options=options)
        except Exception as error:  # it writes the weights before the config, which it cannot always write
            print(f"{job['out']}: {error!r}", file=sys.stderr)
    print(json.dumps({"mergekit": importlib.metadata.version("mergekit"), "torch": torch.__version__}))


if __name__ == "__main__":
    main()
