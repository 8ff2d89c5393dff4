"""What a pass gathers, against hooks on modules and gradients of single examples."""

import copy
import math

import pytest
import torch
from torch.nn.functional import cross_entropy, log_softmax
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
)
from transformers.pytorch_utils import Conv1D

from evomerge.checkpoints import Checkpoint
from evomerge.errors import MergeError
from evomerge.merging.gathering import Example, answered, blocks, gather, masked
from evomerge.merging.gathering.places import spots
from evomerge.testing.tiny_models import tiny_family

ARCHITECTURES = ("llama", "gpt2", "qwen3_moe")


@pytest.fixture(scope="module", params=ARCHITECTURES)
def opened(request, tmp_path_factory):
    paths = tiny_family(tmp_path_factory.mktemp(request.param), request.param, parents=1)
    return AutoModelForCausalLM.from_pretrained(paths["a"]).eval(), Checkpoint(paths["a"])


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    paths = tiny_family(tmp_path_factory.mktemp("llama"), "llama", parents=1)
    return AutoModelForCausalLM.from_pretrained(paths["a"]).eval(), Checkpoint(paths["a"])


def some_examples(lengths=(10, 12, 10, 7)):
    generator = torch.Generator().manual_seed(0)
    return [answered((), torch.randint(4, 64, (n,), generator=generator).tolist()) for n in lengths]


def module_inputs(model, examples):
    """Return (module's name, whether it is a Conv1D) → every input row, seen by hooks on linear modules."""
    rows, hooks = {}, []
    for name, module in model.named_modules():
        if isinstance(module, (torch.nn.Linear, Conv1D)):
            hooks.append(
                module.register_forward_hook(
                    lambda m, args, _, name=name: rows.setdefault((name, isinstance(m, Conv1D)), []).append(
                        args[0].detach().reshape(-1, args[0].shape[-1]).double()
                    )
                )
            )
    with torch.no_grad():
        for example in examples:
            model(example.inputs["input_ids"][None])
    for hook in hooks:
        hook.remove()
    return {key: torch.cat(parts) for key, parts in rows.items()}


def test_gram_and_scale_are_those_of_the_modules_inputs(opened):
    model, checkpoint = opened
    examples = some_examples()
    gathered = gather(model, checkpoint, examples, ("gram", "scale"))
    inputs = module_inputs(model, examples)
    assert gathered.tokens == 39
    checked = 0
    for (module, is_conv1d), rows in inputs.items():
        name = f"{module}.weight"
        if name not in checkpoint.tensors or ("lm_head" in name and name not in gathered.axes):
            continue
        assert gathered.axes[name] == (0 if is_conv1d else 1)
        assert torch.allclose(gathered.sums[f"gram/{name}"].double(), rows.T @ rows / 39, atol=1e-5)
        scale = gathered.sums[f"scale/{name}"]
        assert scale.shape == ((len(scale), 1) if is_conv1d else (1, rows.shape[1]))
        assert torch.allclose(scale.flatten().double(), rows.abs().mean(0), atol=1e-6)
        checked += 1
    assert checked >= 8
    assert gathered.unseen == ()


def test_tied_embeddings_have_no_gram_matrix(tmp_path):
    paths = tiny_family(tmp_path, "llama", parents=1, tied=True)
    model = AutoModelForCausalLM.from_pretrained(paths["a"])
    gathered = gather(model, Checkpoint(paths["a"]), some_examples(), ("gram", "fisher"))
    assert "gram/model.embed_tokens.weight" not in gathered.sums
    assert gathered.sums["fisher/model.embed_tokens.weight"].count_nonzero() > 0


def test_each_expert_has_the_gram_matrix_of_the_tokens_routed_to_it(tmp_path):
    paths = tiny_family(tmp_path, "qwen3_moe", parents=1)
    model = AutoModelForCausalLM.from_pretrained(paths["a"]).eval()
    examples = some_examples()
    gathered = gather(model, Checkpoint(paths["a"]), examples, ("gram", "sample"))
    routed: dict[int, list[torch.Tensor]] = {}

    def see(_, args):
        for expert in range(4):
            routed.setdefault(expert, []).append(args[0][(args[1] == expert).any(-1)].double())

    hook = model.model.layers[1].mlp.experts.register_forward_pre_hook(see)
    with torch.no_grad():
        for example in examples:
            model(example.inputs["input_ids"][None])
    hook.remove()
    for expert, parts in routed.items():
        rows = torch.cat(parts)
        for matrix in ("gate_proj", "up_proj"):
            name = f"model.layers.1.mlp.experts.{expert}.{matrix}.weight"
            assert torch.allclose(gathered.sums[f"gram/{name}"].double(), rows.T @ rows / 39, atol=1e-5)
            assert f"sample/{name}" not in gathered.sums  # which tokens an expert sees differs between models
        assert gathered.sums[f"gram/{name.replace('up_proj', 'down_proj')}"].shape == (16, 16)


def example_gradients(model, example, labels):
    """Return each parameter's gradient of log p(labels | example)."""
    model.requires_grad_(True)
    scores = model(example.inputs["input_ids"][None]).logits[0, :-1]
    loss = -cross_entropy(scores, labels[:-1], ignore_index=-100, reduction="sum")
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    model.requires_grad_(False)
    return dict(zip((name for name, _ in model.named_parameters()), found, strict=True))


def test_empirical_fisher_is_the_mean_of_squared_gradients_of_single_examples(opened):
    model, checkpoint = opened
    examples = [*some_examples(), answered([5, 6, 7], [8, 9])]
    gathered = gather(model, checkpoint, examples, ("fisher",), labels="data")
    expected: dict[str, torch.Tensor] = {}
    for example in examples:
        for name, gradient in example_gradients(model, example, example.labels).items():
            if gradient is not None:
                expected[name] = expected.get(name, 0) + gradient.double().square() / len(examples)
    found = spots(model, checkpoint, checkpoint.tensors)
    assert found.keys() == checkpoint.tensors.keys()
    for name, spot in found.items():
        fisher = gathered.sums[f"fisher/{name}"]
        assert fisher.shape == checkpoint.tensors[name].shape
        assert torch.allclose(fisher.double(), spot.view(expected[spot.parameter]), rtol=1e-4, atol=1e-9)
    entries = torch.cat([gathered.sums[f"fisher/{name}"].flatten().double() for name in found])
    assert math.isclose(gathered.numbers["fisher_size"], entries.square().mean().sqrt(), rel_tol=1e-5)


def test_sampled_fisher_estimates_the_expectation_under_the_model(llama):
    """Σ_t Σ_v p(v) (∇ log p(v))² exactly, for one vector of weights, against 400 draws."""
    model, checkpoint = copy.deepcopy(llama[0]), llama[1]
    model.lm_head.weight.data.mul_(8)  # a random model's predictions are all but uniform; these are not
    example, name = answered([4, 5], [6, 7]), "model.norm.weight"
    weight = dict(model.named_parameters())[name].requires_grad_(True)
    scores = model(example.inputs["input_ids"][None]).logits[0]
    exact = torch.zeros_like(weight)
    for position in (1, 2):
        log_p = log_softmax(scores[position], -1)
        for token in range(64):
            (gradient,) = torch.autograd.grad(log_p[token], weight, retain_graph=True)
            exact += log_p[token].exp().detach() * gradient.square()
    weight.requires_grad_(False)
    sampled = gather(model, checkpoint, [example] * 400, ("fisher",)).sums[f"fisher/{name}"]
    assert float((sampled - exact).norm() / exact.norm()) < 0.15
    data = gather(model, checkpoint, [example], ("fisher",), labels="data").sums[f"fisher/{name}"]
    assert float((data - exact).norm() / exact.norm()) > 0.3


def test_gradient_gram_is_that_of_the_outputs_gradients(llama):
    model, checkpoint = llama
    examples = some_examples((6, 9))
    gathered = gather(model, checkpoint, examples, ("gradient",), labels="data")
    module, total = model.model.layers[0].mlp.up_proj, 0
    outputs = []
    hook = module.register_forward_hook(lambda _, __, output: outputs.append(output))
    model.requires_grad_(True)
    for example in examples:
        scores = model(example.inputs["input_ids"][None]).logits[0, :-1]
        (gradient,) = torch.autograd.grad(-cross_entropy(scores, example.labels[:-1], reduction="sum"), outputs[-1])
        total = total + gradient[0].double().T @ gradient[0].double() / 15
    hook.remove()
    model.requires_grad_(False)
    assert torch.allclose(gathered.sums["gradient/model.layers.0.mlp.up_proj.weight"].double(), total, atol=1e-8)
    assert "gradient/lm_head.weight" not in gathered.sums


def test_loss_is_the_mean_over_the_predicted_tokens_alone(llama):
    model, checkpoint = llama
    examples = [answered([5, 6, 7], [8, 9]), answered((), [4, 10, 11, 12]), answered([9, 9, 9, 9], [20])]
    total = 0.0
    with torch.no_grad():
        for ids, start in (([5, 6, 7, 8, 9], 3), ([4, 10, 11, 12], 1), ([9, 9, 9, 9, 20], 4)):
            scores = log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)
            total -= sum(float(scores[t - 1, ids[t]]) for t in range(start, len(ids)))
    assert math.isclose(gather(model, checkpoint, examples, ("loss",)).numbers["loss"], total / 6, rel_tol=1e-6)


def test_samples_are_rows_of_the_same_tokens_for_every_model_and_batching(llama, tmp_path):
    model, checkpoint = llama
    examples, name = some_examples(), "model.layers.1.mlp.down_proj.weight"
    samples = gather(model, checkpoint, examples, ("sample",), sample_rows=11)
    assert samples.sums[f"sample/{name}"].shape == (11, 48)
    assert samples.sums[f"sample/{name}"].dtype == torch.float16
    head = samples.sums["sample/lm_head.weight"]  # its inputs tell which tokens were taken
    norm = []
    hook = model.lm_head.register_forward_pre_hook(lambda _, args: norm.append(args[0][0].half()))
    with torch.no_grad():
        for example in examples:
            model(example.inputs["input_ids"][None])
    hook.remove()
    everything = torch.cat(norm)
    taken = [int((everything - row).float().abs().sum(-1).argmin()) for row in head]
    assert len(set(taken)) == 11
    other = AutoModelForCausalLM.from_pretrained(tiny_family(tmp_path, "llama", parents=1, distance=0.0)["a"])
    again = gather(other, Checkpoint(tmp_path / "a"), examples, ("sample",), sample_rows=11, batch_tokens=1)
    assert again.sums["sample/lm_head.weight"].shape == head.shape
    alone = gather(model, checkpoint, examples, ("sample",), sample_rows=11, batch_tokens=1)
    order = [set(map(tuple, each.sums["sample/lm_head.weight"][:, :4].tolist())) for each in (samples, alone)]
    assert len(order[0] & order[1]) >= 9  # half precision rounds a few apart


def test_pass_leaves_the_model_as_it_was_and_repeats_bit_for_bit(llama):
    model, checkpoint = llama
    before = {name: value.clone() for name, value in model.state_dict().items()}
    kinds = ("fisher", "gram", "scale", "sample", "gradient", "loss")
    first, second = (gather(model, checkpoint, some_examples(), kinds, seed=4) for _ in range(2))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())
    assert first.sums.keys() == second.sums.keys()
    assert all(torch.equal(first.sums[key], second.sums[key]) for key in first.sums)


def test_tensor_whose_numbers_are_not_the_models_gets_no_statistics(llama, tmp_path):
    model, _ = llama
    other = Checkpoint(tiny_family(tmp_path, "llama", parents=1, seed=5)["a"])
    assert "model.layers.0.mlp.up_proj.weight" not in spots(model, other, other.tensors)
    gathered = gather(model, other, some_examples(), ("gram",))
    assert "model.layers.0.mlp.up_proj.weight" in gathered.unseen


def test_examples_without_anything_to_predict_are_refused_for_the_fisher(llama):
    model, checkpoint = llama
    with pytest.raises(MergeError, match="fisher needs examples with something to predict"):
        gather(model, checkpoint, [Example({"input_ids": torch.tensor([1, 2, 3])})], ("fisher",))


def test_blocks_cut_joined_texts_and_masks_hide_what_they_ask_for():
    cut = blocks([[1, 2, 3], [4, 5, 6, 7]], 3)
    assert [each.inputs["input_ids"].tolist() for each in cut] == [[1, 2, 3], [4, 5, 6]]
    assert cut[0].labels.tolist() == [2, 3, -100]
    assert blocks([[1, 2]], 5)[0].inputs["input_ids"].tolist() == [1, 2]
    hidden = masked(answered((), list(range(10, 30))), 3, 0.2, seed=1)
    asked = hidden.labels != -100
    assert 0 < int(asked.sum()) < 20
    assert (hidden.inputs["input_ids"][asked] == 3).all()
    assert torch.equal(hidden.labels[asked], torch.arange(10, 30)[asked])


def test_masked_language_models_are_measured_on_the_tokens_they_fill_in(tmp_path):
    paths = tiny_family(tmp_path, "bert", parents=1, model_class="BertForMaskedLM")
    model = AutoModelForMaskedLM.from_pretrained(paths["a"]).eval()
    example = masked(some_examples((20,))[0], 3, 0.3, seed=0)
    gathered = gather(model, Checkpoint(paths["a"]), [example], ("gram", "fisher", "loss"))
    with torch.no_grad():
        scores = model(example.inputs["input_ids"][None]).logits[0]
    assert math.isclose(gathered.numbers["loss"], float(cross_entropy(scores, example.labels)), rel_tol=1e-5)
    assert gathered.sums["gram/bert.encoder.layer.0.attention.self.query.weight"].shape == (32, 32)


def test_models_of_images_are_measured_on_their_own_inputs(tmp_path):
    paths = tiny_family(tmp_path, "vit", parents=1)
    model = AutoModelForImageClassification.from_pretrained(paths["a"]).eval()
    size = model.config.image_size
    examples = [Example({"pixel_values": torch.rand(3, size, size)}) for _ in range(2)]
    gathered = gather(model, Checkpoint(paths["a"]), examples, ("gram", "scale"))
    assert sum(name.startswith("gram/") for name in gathered.sums) >= 12
    assert all(tensor.isfinite().all() for tensor in gathered.sums.values())


def test_model_that_needs_other_inputs_is_told(tmp_path):
    paths = tiny_family(tmp_path, "t5", parents=1)
    model = AutoModelForSeq2SeqLM.from_pretrained(paths["a"])
    with pytest.raises(MergeError, match="cannot be run on input_ids alone"):
        gather(model, Checkpoint(paths["a"]), some_examples(), ("gram",))
