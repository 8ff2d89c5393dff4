"""Items: stable ids, one split by content, caps that only add (users' needs 10 and 12)."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from evomerge.fitness.items import Item, choose, content_hash, make_items, separate, split_by_hash

CONTENTS = st.lists(st.text(alphabet="abcdef", min_size=1, max_size=2), min_size=1, max_size=60)


def items_of(contents: list[str]) -> tuple[Item, ...]:
    """Return items whose documents are their contents."""
    return make_items((content, content_hash(content)) for content in contents)


def test_an_id_is_the_index_and_eight_hex_of_the_content() -> None:
    first, second = items_of(["a", "b"])
    assert (first.id, second.id) == ("0-ac8d8342", f"1-{content_hash('b')[:8]}")
    assert content_hash({"b": 1, "a": "é"}) == content_hash({"a": "é", "b": 1})


@given(CONTENTS, st.floats(0.05, 0.95))
def test_a_split_by_hash_is_a_partition_by_content(contents: list[str], share: float) -> None:
    items = items_of(contents)
    pools = split_by_hash(items, share)
    assert sorted(i.id for pool in pools.values() for i in pool) == sorted(i.id for i in items)
    assert not {i.content for i in pools["search"]} & {i.content for i in pools["confirmation"]}


@given(CONTENTS, st.floats(0.05, 0.95), st.randoms(use_true_random=False))
def test_a_split_does_not_depend_on_the_order_of_rows(contents: list[str], share: float, source: random.Random) -> None:
    shuffled = source.sample(contents, len(contents))
    before, after = (split_by_hash(items_of(rows), share) for rows in (contents, shuffled))
    assert {i.content for i in before["search"]} == {i.content for i in after["search"]}


@given(CONTENTS, CONTENTS)
def test_separate_splits_share_no_content_and_the_confirmation_stays_whole(one: list[str], two: list[str]) -> None:
    pools = separate(items_of(one), items_of(two))
    assert [i.doc for i in pools["confirmation"]] == two
    assert [i.doc for i in pools["search"]] == [doc for doc in one if doc not in two]


@given(CONTENTS, st.integers(0, 60), st.integers(0, 60), st.integers(0, 3))
def test_a_larger_cap_only_adds_items(contents: list[str], one: int, two: int, seed: int) -> None:
    items = items_of(contents)
    small, large = sorted((one, two))
    kept = choose(items, small, seed)
    assert choose(items, large, seed)[: len(kept)] == kept
    assert len(kept) == min(small, len(items))
    assert set(choose(items, None, seed)) == {item.id for item in items}


def test_a_cap_keeps_a_uniform_subset_that_the_seed_chooses() -> None:
    items = items_of([f"question {n}" for n in range(200)])
    counts = [0] * 200
    for seed in range(300):
        for identifier in choose(items, 20, seed):
            counts[int(identifier.partition("-")[0])] += 1
    mean, spread = 30.0, (300 * 0.1 * 0.9) ** 0.5
    assert max(abs(count - mean) for count in counts) < 5 * spread
    assert choose(items, 20, 0) != choose(items, 20, 1)


def test_the_share_is_kept_within_chance() -> None:
    pools = split_by_hash(items_of([f"question {n}" for n in range(2000)]), 0.3)
    assert abs(len(pools["confirmation"]) - 600) < 5 * (2000 * 0.3 * 0.7) ** 0.5
