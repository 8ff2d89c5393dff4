"""mergekit's executor in memory, as its evolutionary search uses it. Runs in mergekit's environment.

Reads a job as JSON on standard input (see merge_speed.py); prints the fewest seconds of two merges into a resident
model, planning included, imports and opening of files left out.
"""

import json
import logging
import sys
import time

import torch
import yaml
from mergekit.architecture import get_architecture_info
from mergekit.config import MergeConfiguration
from mergekit.graph import Executor
from mergekit.io.tasks import LoaderCache
from mergekit.merge import _model_out_config
from mergekit.options import MergeOptions
from mergekit.plan import MergePlanner
from transformers import AutoModelForCausalLM

logging.disable(logging.WARNING)
job = json.load(sys.stdin)
torch.set_num_threads(job["threads"])
config = MergeConfiguration.model_validate(yaml.safe_load(job["recipe"]))
options = MergeOptions(quiet=True)
architecture = get_architecture_info(config, options)
out_config = _model_out_config(config, architecture, trust_remote_code=False)
model = AutoModelForCausalLM.from_pretrained(job["base"], dtype=torch.bfloat16)
parameters = dict(model.named_parameters())
LoaderCache().setup(options=options)
seconds = []
for _ in range(2):
    started = time.perf_counter()
    planner = MergePlanner(config, architecture, options, out_config)
    planner._plan()  # plan_in_memory would wrap each task once more, in a class that newer pydantic refuses
    names = {task: weight.name for weight, task in planner._tensors}
    for task, value in Executor(list(names)).run(quiet=True):
        parameters[names[task]].data.copy_(value)
    seconds.append(time.perf_counter() - started)
print(min(seconds))
