"""The authors' evolution of networks for digits, run by an interpreter that has JAX, optax and pycma.

Reads a job as JSON on standard input (see digits.py): the folder of their code (github.com/SakanaAI/natural_niches),
the variant, forward passes, seeds, and the networks to start from if they are not to be random. Prints the accuracy on
the test images after every so many passes, for each seed, and the seconds a pass. With ``"passes": 0`` it times
crossover, mutation and the scores of a child alone.
"""

import contextlib
import json
import os
import sys
import time

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TQDM_DISABLE"] = "1"
job = json.load(sys.stdin)
sys.path.insert(0, job["code"])

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

WARM = 200  # passes for compilation


def child_seconds() -> float:
    """Return the seconds that a child takes: crossed, mutated and scored on the training images, without an archive."""
    from data import load_data
    from helper_fn import crossover, mutate
    from model import mlp, num_params

    (x, y), _ = load_data()
    x, y = jnp.asarray(x), jnp.asarray(y)

    @jax.jit
    def scores(first, second, key):
        one, two = jax.random.split(key)
        return jnp.argmax(mlp(mutate(crossover((first, second), one), two), x), axis=1) == y

    parents = [jax.random.normal(jax.random.PRNGKey(n), (num_params,)) * 0.01 for n in range(2)]
    keys = jax.random.split(jax.random.PRNGKey(2), job["repeats"])
    scores(*parents, keys[0]).block_until_ready()
    began = time.perf_counter()
    for key in keys:
        scores(*parents, key).block_until_ready()
    return (time.perf_counter() - began) / len(keys)


def evolve(passes: int, runs: int) -> list:
    """Return the authors' results of the variant."""
    variant, pretrained = job["variant"], job["pretrained"]
    networks = [jnp.asarray(numbers) for numbers in job["networks"]]
    if variant == "map-elites":
        import map_elites_fn

        map_elites_fn.get_pre_trained_models = lambda: networks
        return map_elites_fn.run_map_elites(runs, passes, False, pretrained)
    if variant == "cma-es":
        import cma_es_fn

        strategy = cma_es_fn.cma.CMAEvolutionStrategy
        cma_es_fn.cma.CMAEvolutionStrategy = lambda x0, sigma0, inopts: strategy(
            x0, sigma0, {**inopts, "CMA_diagonal": True, "verbose": -9}
        )
        return cma_es_fn.run_cma_es(runs, 20, passes, False)
    import natural_niches_fn

    natural_niches_fn.get_pre_trained_models = lambda: networks
    return natural_niches_fn.run_natural_niches(
        runs,
        20,
        passes,
        False,
        no_matchmaker=variant in ("no-attraction", "ga"),
        no_crossover=False,
        no_splitpoint=variant == "no-split",
        use_pre_trained=pretrained,
        alpha=0.0 if variant in ("no-competition", "ga") else 1.0,
    )


with contextlib.redirect_stdout(sys.stderr):
    if job["passes"] == 0:
        answer = {"seconds": child_seconds()}
    else:
        evolve(WARM, 1)
        began = time.perf_counter()
        results = evolve(job["passes"], job["runs"])
        seconds = (time.perf_counter() - began) / (job["passes"] * job["runs"])
        every = job["every"] // (20 if job["variant"] == "cma-es" else 1)  # its accuracy comes once a generation
        curves = [[float(v) for v in result["test_values"][every - 1 :: every]] for result in results]
        answer = {"seconds": seconds, "curves": curves}
print(json.dumps(answer))
