"""The zoo's pool: checkpoints of the very training that made the experts, and adapters that PEFT reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from evomerge.checkpoints import open_checkpoint, resolve
from evomerge.checkpoints.resolve import ZOO_VERSION
from evomerge.errors import CheckpointError, EvomergeError
from evomerge.zoo import lora, pool
from evomerge.zoo.building import build_zoo
from evomerge.zoo.family import EXPERTS, Plan

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:(?!evomerge).*"),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning"),  # of PEFT and about it
]
TINY = Plan(
    train_items=120, search_items=30, test_items=30, hidden_size=32, intermediate_size=48, layers=2, heads=2,
    batch_size=8, base_steps=3, expert_steps=4,
)  # fmt: skip


def silent(*_: object) -> None:
    pass


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    pool.build_pool(build_zoo(folder / "zoo" / ZOO_VERSION, plan=TINY, progress=False), progress=False)
    return folder


@pytest.fixture
def zoo(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EVOMERGE_CACHE", str(cache))
    return cache / "zoo" / ZOO_VERSION


def test_the_pool_has_checkpoints_and_adapters_of_every_expert(zoo: Path) -> None:
    kept = [f"{name}-{share}" for name in EXPERTS for share in (25, 50, 75)]
    kept += [f"{name}-lora-{share}" for name in EXPERTS for share in (50, 100)]
    assert sorted(path.name for path in (zoo / "pool").iterdir()) == sorted(kept)
    assert not list(zoo.parent.glob("*.partial-*"))
    before = (zoo / "pool").stat().st_mtime_ns
    assert pool.build_pool(zoo, progress=False) == zoo / "pool"
    assert (zoo / "pool").stat().st_mtime_ns == before


def test_a_checkpoint_at_the_end_would_be_the_expert(
    zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "KEPT", (75, 100))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # what the build gives experts
    try:
        pool.train_checkpoints("counting", zoo, tmp_path, TINY, silent)
    finally:
        torch.set_num_threads(threads)
    last, earlier = ((tmp_path / f"counting-{share}" / "model.safetensors").read_bytes() for share in (100, 75))
    assert last == (zoo / "counting" / "model.safetensors").read_bytes()
    assert earlier == (zoo / "pool" / "counting-75" / "model.safetensors").read_bytes()
    assert earlier != last


def test_pool_models_are_found_by_name_and_adapters_know_their_base(zoo: Path) -> None:
    assert resolve("zoo/pool/math-en-25") == zoo / "pool" / "math-en-25"
    adapted = open_checkpoint("zoo/pool/math-en-lora-100")
    base = open_checkpoint("zoo/base")
    changed = {name for name in base.tensors if not torch.equal(base.tensor(name), adapted.tensor(name))}
    assert changed == {name for name in base.tensors if name.removesuffix(".weight").endswith(lora.MODULES)}
    with pytest.raises(CheckpointError, match=r"'zoo/pool/math-25'.*did you mean"):
        resolve("zoo/pool/math-25")


def test_a_pool_that_is_not_built_says_how_to_build_it(
    zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = tmp_path / "zoo" / ZOO_VERSION
    alone.mkdir(parents=True)
    with pytest.raises(EvomergeError, match="run `evomerge zoo build` first"):
        pool.build_pool(alone, progress=False)
    (alone / "base").symlink_to(zoo / "base")
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match="run `evomerge zoo build --pool`"):
        resolve("zoo/pool/math-en-25")


def test_adapters_compute_what_was_trained_and_begin_with_one_a(zoo: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(zoo / "base")
    adapted = lora.adapt(model)
    for module in adapted.values():
        torch.nn.init.normal_(module.up)
    lora.write_adapter(adapted, tmp_path / "adapter", "zoo/base")
    inputs = torch.arange(12).reshape(2, 6)
    ours = model(inputs).logits
    base = AutoModelForCausalLM.from_pretrained(zoo / "base")
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")(inputs).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    torch.manual_seed(TINY.seed)
    again = lora.adapt(AutoModelForCausalLM.from_pretrained(zoo / "base"))
    torch.manual_seed(TINY.seed)
    more = lora.adapt(AutoModelForCausalLM.from_pretrained(zoo / "base"))
    assert all(torch.equal(again[name].down, more[name].down) for name in again)
