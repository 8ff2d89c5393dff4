"""The loop that a user would write without evomerge: mergekit to disk, then ``lm_eval.simple_evaluate``, one by one.

Reads a job as JSON on standard input (see overhead.py); prints the mean seconds a trial, the first one (imports,
caches) left out.
"""

import json
import logging
import os
import sys
import tempfile
import time

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TQDM_DISABLE="1")

import lm_eval
import yaml
from lm_eval.tasks import TaskManager
from mergekit.config import MergeConfiguration
from mergekit.merge import MergeOptions, run_merge

logging.disable(logging.WARNING)
job = json.load(sys.stdin)
manager = TaskManager(include_path=job["tasks"], include_defaults=False)
seconds = []
for recipe in job["recipes"]:
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as out:
        run_merge(MergeConfiguration.model_validate(yaml.safe_load(recipe)), out, MergeOptions(quiet=True))
        lm_eval.simple_evaluate(
            model="hf",
            model_args={"pretrained": out},
            tasks=list(job["items"]),
            samples={task: sorted(items) for task, items in job["items"].items()},
            task_manager=manager,
            batch_size=job["batch_size"],
            device="cpu",
            bootstrap_iters=0,
        )
    seconds.append(time.perf_counter() - started)
print(sum(seconds[1:]) / len(seconds[1:]))
