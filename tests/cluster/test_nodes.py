"""Who sits where: never more on a node or a GPU than it has, tensor groups whole, and what fits is found."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from orchestrator.cluster.nodes import Node, as_node, find_seats, gangs_that_fit, less, suits
from orchestrator.plan.layout import Layout
from orchestrator.plan.plan import Resources


def need(workers: int, cpus: float = 1.0, gpus: float = 0.0) -> Resources:
    return Resources(workers, cpus, gpus, "gloo", "cpu")


def test_a_sum_over_nodes_is_no_room() -> None:
    nodes = [Node("a", 3.0), Node("b", 3.0)]
    assert find_seats(nodes, nodes, need(3, cpus=2.0)) is None
    seats = find_seats(nodes, nodes, need(2, cpus=2.0))
    assert seats is not None
    assert sorted(seat.node for seat in seats) == ["a", "b"]
    assert gangs_that_fit(nodes, need(1, cpus=2.0)) == 2
    assert gangs_that_fit(nodes, need(2)) == 3


@pytest.mark.parametrize(("share", "gpus", "most"), [(0.75, 3, 3), (0.5, 3, 6), (0.3, 2, 6), (1.0, 3, 3), (2.0, 3, 1)])
def test_a_share_is_of_one_gpu(share: float, gpus: int, most: int) -> None:
    node = as_node("a", {"CPU": 64.0, "GPU": float(gpus)})
    assert node.holds(need(1, gpus=share)) == most
    assert gangs_that_fit([node], need(1, gpus=share)) == most


def test_a_small_share_goes_to_the_gpu_that_is_fullest() -> None:
    node = as_node("a", {"CPU": 8.0, "GPU": 2.0})
    node = node.without(node.seat(need(1, gpus=0.5)))
    node = node.without(node.seat(need(1, gpus=0.5)))
    assert node.holds(need(1, gpus=1.0)) == 1, "the two halves are on one GPU"


def test_a_gang_that_fits_on_one_node_takes_the_fullest_such() -> None:
    nodes = [Node("large", 8.0), Node("small", 2.0)]
    seats = find_seats(nodes, nodes, need(2))
    assert seats is not None
    assert {seat.node for seat in seats} == {"small"}
    assert find_seats(nodes, less(nodes, seats), need(8)) is not None


def test_tensor_groups_are_not_cut_where_nodes_are_large_enough() -> None:
    layout, nodes = Layout(replicate=2, tensor=2), [Node("a", 3.0), Node("b", 3.0)]
    seats = find_seats(nodes, nodes, need(4), layout)
    assert seats is not None
    assert Counter(seat.node for seat in seats) == {"a": 2, "b": 2}
    busy = less(nodes, find_seats(nodes, nodes, need(2)) or ())
    assert find_seats(nodes, busy, need(4), layout) is None, "it is waited for"
    assert find_seats(nodes, busy, need(4)) is not None


def test_an_idle_gang_is_used_for_a_tensor_group_only_if_it_shares_a_node() -> None:
    nodes = [Node("a", 3.0), Node("b", 3.0)]
    apart = find_seats(nodes, [Node("a", 1.0), Node("b", 1.0)], need(2))
    together = find_seats(nodes, nodes, need(2))
    assert apart is not None
    assert together is not None
    assert not suits(nodes, apart, need(2), Layout(tensor=2))
    assert suits(nodes, together, need(2), Layout(tensor=2))
    assert suits(nodes, apart, need(2), Layout(replicate=2))


@pytest.mark.parametrize("seed", range(30))
def test_gangs_that_come_and_go_never_take_more_than_there_is(seed: int) -> None:
    draw = random.Random(seed)
    nodes = [as_node(f"n{at}", {"CPU": draw.randint(1, 6), "GPU": draw.randint(0, 3)}) for at in range(3)]
    gangs = []
    for _ in range(40):
        if gangs and draw.random() < 0.4:
            gangs.pop(draw.randrange(len(gangs)))
        asked = need(draw.randint(1, 4), draw.choice([0.5, 1.0, 2.0]), draw.choice([0.0, 0.0, 0.25, 0.75, 1.0]))
        seats = find_seats(nodes, less(nodes, [seat for gang in gangs for seat in gang]), asked)
        if seats is not None:
            assert len(seats) == asked.num_workers
            gangs.append(seats)
        for node in less(nodes, [seat for gang in gangs for seat in gang]):
            assert node.cpus > -1e-6
            assert all(-1e-6 < free < 1 + 1e-6 for free in node.gpus)
        alone = [need(1, asked.cpus_per_worker, asked.gpus_per_worker)] * asked.num_workers
        if seats is None:  # nor do they fit one by one
            free = less(nodes, [seat for gang in gangs for seat in gang])
            for one in alone:
                found = find_seats(nodes, free, one)
                if found is None:
                    break
                free = less(free, found)
            else:
                pytest.fail(f"room for {asked} was not found on {free}")
