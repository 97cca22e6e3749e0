"""Which rows each step reads, at any world size and after any break."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagebeam.data.ledger import Ledger, Plan
from stagebeam.data.order import Rows


@st.composite
def plans(draw: st.DrawFn, weights: bool = True) -> Plan:
    world, accumulation = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    batch = world * accumulation * draw(st.integers(1, 4))
    count = draw(st.integers(max(8, 2 * batch), 150))
    random = np.random.default_rng(draw(st.integers(0, 99)))
    likely = [0.5, 1.0, 1.0, 2.0, 2.5] if weights else [1.0]
    rows = Rows(random.integers(1, 999, count), random.choice(likely, count))
    plain = draw(st.booleans())
    return Plan(
        rows=count if plain else rows,
        global_batch_size=batch,
        world_size=world,
        gradient_accumulation_steps=accumulation,
        epochs=draw(st.integers(2, 4)),
        seed=draw(st.integers(-5, 2**40)),
        max_steps=draw(st.none() | st.integers(1, 50)),
        window=0 if plain else draw(st.integers(0, 5)),
    )


def all_steps(plan: Plan) -> list[np.ndarray]:
    return [plan.step_rows(step) for step in range(plan.total_steps)]


@given(plans(weights=False))
def test_every_epoch_reads_every_row_once_and_only_the_last_ends_early(plan: Plan) -> None:
    plan = replace(plan, max_steps=None)
    read = np.concatenate(all_steps(plan))
    length = plan.epoch_length
    assert len(read) + plan.unread == length * plan.epochs
    assert plan.unread < plan.global_batch_size
    # A batch that lies in two epochs is sorted as one, so epochs are told apart by count.
    counts = Counter(read.tolist())
    assert set(counts) <= set(range(length))
    assert {counts[row] for row in range(length)} <= {plan.epochs, plan.epochs - 1}
    for epoch in range(plan.epochs):
        rows = plan.read(epoch * length, (epoch + 1) * length)
        assert sorted(rows) == list(range(length))


@given(plans())
def test_the_steps_are_the_epochs_orders_cut_into_batches(plan: Plan) -> None:
    for step, rows in enumerate(all_steps(plan)):
        start = step * plan.global_batch_size
        assert sorted(rows) == sorted(plan.read(start, start + plan.global_batch_size))


@given(plans())
def test_ranks_and_micro_batches_share_out_a_step(plan: Plan) -> None:
    step = plan.total_steps - 1
    shares = [
        plan.rank_rows(step, rank, micro)
        for micro in range(plan.gradient_accumulation_steps)
        for rank in range(plan.world_size)
    ]
    assert {len(share) for share in shares} == {plan.micro_batch_size}
    assert np.array_equal(np.concatenate(shares), plan.step_rows(step))


@given(plans(), st.lists(st.tuples(st.integers(0, 20), st.sampled_from([1, 2, 4])), max_size=20))
def test_any_breaks_at_any_world_size_leave_the_order_of_global_batches(
    plan: Plan, breaks: list[tuple[int, int]]
) -> None:
    """At each break the run stops after so many steps, and goes on with so many ranks."""
    plan = replace(plan, global_batch_size=4, gradient_accumulation_steps=1, world_size=1)
    done, read = 0, []
    for steps, world_size in [*breaks, (plan.total_steps, 2)]:
        part = replace(plan, world_size=world_size)
        for step in range(done, min(done + steps, plan.total_steps)):
            read.append(np.concatenate([part.rank_rows(step, r, 0) for r in range(world_size)]))
        saved = json.loads(json.dumps(Ledger.after(part, len(read)).to_dict()))
        done = Ledger.from_dict(saved).start_step(plan)
    assert np.array_equal(read, all_steps(plan))


@given(plans(), st.data())
def test_a_ledger_and_what_remains_make_the_epoch_at_any_world_size(
    plan: Plan, data: st.DataObject
) -> None:
    step = data.draw(st.integers(0, plan.total_steps - 1))
    ledger = Ledger.from_dict(json.loads(json.dumps(Ledger.after(plan, step).to_dict())))
    other = replace(plan, world_size=1, gradient_accumulation_steps=1, max_steps=None)
    assert ledger.start_step(other) == step
    length = plan.epoch_length
    begun = step * plan.global_batch_size
    assert ledger.epoch == begun // length
    before = other.read(ledger.epoch * length, begun)
    whole = other.read(ledger.epoch * length, (ledger.epoch + 1) * length)
    assert [*before, *ledger.remaining(other)] == whole.tolist()


def test_rows_of_like_length_share_a_batch() -> None:
    sizes = np.random.default_rng(0).integers(1, 1000, 512)
    plan = Plan(Rows(sizes, np.ones(512)), 16, 2, 2, window=8)
    spread = [np.ptp(sizes[rows]) for rows in all_steps(plan)]
    plain = [np.ptp(sizes[rows]) for rows in all_steps(replace(plan, window=0))]
    assert np.mean(spread) < 0.25 * np.mean(plain)
    for step in range(plan.total_steps):
        micro = [sizes[plan.rank_rows(step, rank, m)].max() for m in (0, 1) for rank in (0, 1)]
        assert micro == sorted(micro)


def test_a_step_lies_in_the_epoch_of_its_first_row() -> None:
    plan = Plan(10, 4, 1, epochs=3)
    assert plan.total_steps == 7 and plan.unread == 2
    assert [plan.epoch_of(step) for step in range(7)] == [0, 0, 0, 1, 1, 2, 2]


def test_max_steps_ends_a_run_early() -> None:
    assert Plan(100, 10, 1, epochs=3, max_steps=12).total_steps == 12
    assert Plan(100, 10, 1, epochs=1, max_steps=12).total_steps == 10
    assert Plan(101, 10, 1, epochs=1, max_steps=12).unread == 1
    assert Plan(101, 10, 1, epochs=1, max_steps=9).unread == 0


def test_fewer_rows_than_a_batch_is_a_users_mistake() -> None:
    with pytest.raises(ValueError, match=r"31 rows.*global batch of 32"):
        Plan(31, 32, 1)


@given(plans(), st.integers(1, 9))
def test_any_number_of_ranks_reads_the_same_steps_in_micro_batches_that_are_no_larger(
    plan: Plan, world_size: int
) -> None:
    other = plan.at(world_size)
    assert other.world_size == world_size
    for step in range(plan.total_steps):
        shares = [
            other.rank_rows(step, rank, micro)
            for micro in range(other.gradient_accumulation_steps)
            for rank in range(world_size)
        ]
        assert np.array_equal(np.concatenate(shares), plan.step_rows(step))
        assert max(map(len, shares)) <= plan.micro_batch_size
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_the_ranks_that_a_plan_was_made_for_read_as_it_says() -> None:
    plan = Plan(100, 24, 4, 3)
    assert plan.at(4) == plan
    assert (plan.at(2).gradient_accumulation_steps, plan.at(3).gradient_accumulation_steps) == (
        6,
        4,
    )


def test_a_ledger_of_other_data_is_refused() -> None:
    sizes, weights = np.arange(100), np.ones(100)
    plan = Plan(Rows(sizes, weights), 10, 1, seed=1, window=2)
    ledger = Ledger.after(plan, 3)
    heavier = np.where(sizes == 7, 2.0, 1.0)
    for change, said in (
        ({"rows": Rows(np.arange(101), np.ones(101))}, "number of rows and rows or weights"),
        ({"rows": Rows(sizes, heavier)}, "rows or weights"),
        ({"global_batch_size": 20}, "global batch"),
        ({"seed": 2}, "seed"),
        ({"window": 3}, "length window"),
    ):
        with pytest.raises(ValueError, match=f"with another {said}: it cannot be continued"):
            ledger.start_step(replace(plan, **change))


def test_something_else_than_a_ledger_is_refused() -> None:
    with pytest.raises(ValueError, match="not the ledger"):
        Ledger.from_dict({"steps": 3})
