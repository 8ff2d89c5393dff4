"""Public benchmarks are known by their data and split, whatever a task is called."""

from pathlib import Path

import pytest
import yaml
from lm_eval.tasks._yaml_loader import load_yaml

from evomerge.fitness import Fitness, FitnessConfig
from evomerge.fitness.public_benchmarks import benchmark_of, benchmarks
from evomerge.fitness.sources import shipped_names
from evomerge.testing.tasks import write_sums

# A task of lm-eval's, and the benchmark that it is.
WELL_KNOWN = {
    "gsm8k": "GSM8K",
    "mmlu_anatomy": "MMLU",
    "arc_easy": "ARC",
    "arc_challenge": "ARC",
    "hellaswag": "HellaSwag",
    "truthfulqa_mc1": "TruthfulQA",
    "truthfulqa_gen": "TruthfulQA",
    "winogrande": "WinoGrande",
    "humaneval": "HumanEval",
    "mbpp": "MBPP",
    "bbh_fewshot_navigate": "BBH",
    "ifeval": "IFEval",
    "gpqa_main_zeroshot": "GPQA",
    "hendrycks_math_algebra": "MATH",
    "minerva_math500": "MATH",
    "mgsm_direct_ja": "MGSM",
    "mmlu_pro_math": "MMLU-Pro",
    "leaderboard_musr_object_placements": "MuSR",
    "drop": "DROP",
    "boolq": "SuperGLUE",
    "piqa": "PIQA",
    "openbookqa": "OpenBookQA",
    "commonsense_qa": "CommonsenseQA",
    "triviaqa": "TriviaQA",
    "nq_open": "Natural Questions",
    "lambada_openai": "LAMBADA",
    "sciq": "SciQ",
    "race": "RACE",
    "social_iqa": "Social IQa",
}


@pytest.mark.parametrize("task", WELL_KNOWN)
def test_what_lm_eval_reports_on_is_known(task: str) -> None:
    config = load_yaml(shipped_names()[task]["task"][0], resolve_func=False)
    split = config.get("test_split") or config.get("validation_split")
    found = benchmark_of(config["dataset_path"], split)
    assert found is not None
    assert found.name == WELL_KNOWN[task]


NOT_REPORTED_ON = (
    ("openai/gsm8k", "train"),
    ("cais/mmlu", "validation"),
    ("allenai/ai2_arc", "validation"),
    ("Rowan/hellaswag", "train"),
    ("me/gsm8k-like", "test"),
    ("me/mine", "test"),
    (None, "test"),
    ("openai/gsm8k", None),
)


@pytest.mark.parametrize(("dataset", "split"), NOT_REPORTED_ON)
def test_what_nobody_reports_on_is_not(dataset: str | None, split: str | None) -> None:
    assert benchmark_of(dataset, split) is None


@pytest.mark.parametrize("split", ["test", "test[:100]", "test[50%:]", "train+test"])
def test_a_part_of_a_split_is_of_it(split: str) -> None:
    assert benchmark_of("OpenAI/GSM8K", split) is not None


@pytest.mark.parametrize(
    "dataset", ["/data/gsm8k", "./gsm8k", "/cache/datasets--openai--gsm8k/snapshots/12ab", "hf://datasets/openai/gsm8k"]
)
def test_a_local_copy_is_known_by_its_folder(dataset: str) -> None:
    assert benchmark_of(dataset, "test") is not None
    assert benchmark_of(dataset, "train") is None


@pytest.mark.parametrize(
    ("files", "split", "known"),
    [
        ({"test": "/data/gsm8k/test.jsonl"}, "test", True),
        ({"mine": ["/data/a.jsonl", "/data/gsm8k_test.jsonl"]}, "mine", True),  # told by the file's name
        ({"validation": "/data/gsm8k-test.jsonl"}, "validation", True),
        ({"test": "/data/gsm8k-train.jsonl"}, "test", False),
        ({"test": "/data/gsm8k/train.jsonl", "other": "/data/gsm8k/test.jsonl"}, "test", False),
        ("https://huggingface.co/datasets/openai/gsm8k/resolve/main/main/test-00000-of-00001.parquet", "test", True),
        ({"test": "/data/mine/test.jsonl"}, "test", False),
        (None, "test", False),
    ],
)
def test_files_are_known_by_their_names(files: object, split: str, known: bool) -> None:
    assert (benchmark_of("json", split, files) is not None) is known


def test_the_table_is_sound() -> None:
    names = [benchmark.name for benchmark in benchmarks()]
    assert len(names) == len(set(names)) > 50
    datasets = [dataset.lower() for benchmark in benchmarks() for dataset in benchmark.datasets]
    assert len(datasets) == len(set(datasets))


@pytest.mark.parametrize(("keep", "warned"), [({"test"}, True), ({"search", "test"}, False)])
def test_a_task_on_a_renamed_copy_is_warned_about(tmp_path: Path, keep: set[str], warned: bool) -> None:
    path = write_sums(tmp_path, "mine")
    data = yaml.safe_load(path.read_text())
    for role in ("training_split", "validation_split", "test_split"):
        if data[role] not in keep:
            del data[role]
    copies = {split: f"gsm8k-{split}.jsonl" for split in keep}
    for split, name in copies.items():
        (tmp_path / name).write_bytes((tmp_path / f"mine-{split}.jsonl").read_bytes())
    data["dataset_kwargs"] = {"data_files": copies}
    path.write_text(yaml.safe_dump(data))
    objective = {"task": str(path), "metric": "exact_match", "filter": "strict"}
    fitness = Fitness(FitnessConfig.model_validate({"objectives": [objective]}))
    told = [str(problem) for problem in fitness.warnings]
    assert len(told) == warned
    assert not warned or "task 'mine' searches on the 'test' split of GSM8K, a public benchmark" in told[0]
