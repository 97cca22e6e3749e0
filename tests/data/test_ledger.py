from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagebeam.data.ledger import Ledger, Plan, epoch_order


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    world, accumulation = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    batch = world * accumulation * draw(st.integers(1, 4))
    return Plan(
        rows=draw(st.integers(batch, 200)),
        global_batch_size=batch,
        world_size=world,
        gradient_accumulation_steps=accumulation,
        epochs=draw(st.integers(1, 3)),
        seed=draw(st.integers(-5, 2**40)),
        max_steps=draw(st.none() | st.integers(1, 50)),
    )


@given(plans())
def test_an_epoch_reads_every_row_once_but_for_the_last_incomplete_batch(plan: Plan) -> None:
    for epoch in range(plan.total_steps // plan.steps_per_epoch):
        first = epoch * plan.steps_per_epoch
        read = np.concatenate(
            [plan.step_rows(s) for s in range(first, first + plan.steps_per_epoch)]
        )
        assert len(set(read)) == len(read) == plan.rows - plan.rows % plan.global_batch_size
        assert set(read) <= set(range(plan.rows))


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


@given(plans(), st.data())
def test_a_ledger_and_what_remains_make_the_epoch_at_any_world_size(
    plan: Plan, data: st.DataObject
) -> None:
    step = data.draw(st.integers(0, plan.total_steps - 1))
    ledger = Ledger.from_dict(json.loads(json.dumps(Ledger.after(plan, step).to_dict())))
    other = Plan(plan.rows, plan.global_batch_size, 1, 1, plan.epochs, plan.seed)
    assert ledger.start_step(other) == step
    end = (ledger.epoch + 1) * plan.steps_per_epoch
    left = np.concatenate([other.step_rows(s) for s in range(step, end)])
    assert np.array_equal(ledger.remaining, left)


def test_order_depends_on_seed_and_epoch_and_on_nothing_else() -> None:
    orders = {
        (seed, epoch): tuple(epoch_order(seed, epoch, 50)) for seed in (0, 1) for epoch in (0, 1)
    }
    assert len(set(orders.values())) == 4
    epoch_order.cache_clear()
    assert tuple(epoch_order(0, 1, 50)) == orders[0, 1]
    assert not epoch_order(0, 1, 50).flags.writeable


def test_order_is_the_same_in_every_release() -> None:
    # A checkpoint's ledger means these rows; another order would train on some of them twice.
    assert epoch_order(7, 2, 10).tolist() == [0, 3, 5, 1, 8, 4, 9, 2, 6, 7]


def test_max_steps_ends_a_run_early() -> None:
    assert Plan(100, 10, 1, epochs=3, max_steps=12).total_steps == 12
    assert Plan(100, 10, 1, epochs=1, max_steps=12).total_steps == 10


def test_fewer_rows_than_a_batch_is_a_users_mistake() -> None:
    with pytest.raises(ValueError, match=r"31 rows.*global batch of 32"):
        Plan(31, 32, 1)


def test_a_batch_that_does_not_divide_is_a_users_mistake() -> None:
    with pytest.raises(ValueError, match="32 rows does not divide over 3 ranks x 1"):
        Plan(100, 32, 3)


def test_a_ledger_of_other_data_is_refused() -> None:
    ledger = Ledger.after(Plan(100, 10, 1, seed=1), 3)
    for other in (Plan(101, 10, 1, seed=1), Plan(100, 20, 1, seed=1), Plan(100, 10, 1, seed=2)):
        with pytest.raises(ValueError, match="cannot be continued"):
            ledger.start_step(other)


def test_something_else_than_a_ledger_is_refused() -> None:
    with pytest.raises(ValueError, match="not the ledger"):
        Ledger.from_dict({"steps": 3})
