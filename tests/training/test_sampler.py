import torch

from soundwave_hf.training.sampler import LengthGroupedSampler


def order_of(seconds, batch_size: int, epoch: int = 0, **options) -> list[int]:
    sampler = LengthGroupedSampler(seconds, batch_size, **options)
    sampler.set_epoch(epoch)
    return list(sampler)


def batches_of(order: list[int], batch_size: int) -> list[set[int]]:
    return [set(order[start : start + batch_size]) for start in range(0, len(order), batch_size)]


def test_each_index_comes_once_an_epoch():
    seconds = torch.rand(103).tolist()
    sampler = LengthGroupedSampler(seconds, batch_size=4, pool=3)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        assert sorted(sampler) == list(range(103))
    assert len(sampler) == 103


def test_one_pool_gives_batches_in_order_of_length():
    seconds = [5.0, 1.0, 4.0, 2.0, 6.0, 3.0]  # indices by length: 1 3, 5 2, 0 4
    for epoch in range(5):
        assert sorted(map(sorted, batches_of(order_of(seconds, 2, epoch), 2))) == [[0, 4], [1, 3], [2, 5]]


def test_the_order_follows_from_seed_and_epoch_alone():
    seconds = torch.rand(64).tolist()
    first = order_of(seconds, 4, epoch=1, seed=3)
    torch.manual_seed(99)
    sampler = LengthGroupedSampler(seconds, 4, seed=3)
    sampler.set_epoch(0)
    list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) == first == list(sampler)
    assert order_of(seconds, 4, epoch=2, seed=3) != first
    assert order_of(seconds, 4, epoch=1, seed=4) != first


def test_sampling_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    order_of(torch.ones(20).tolist(), 4)
    assert torch.equal(torch.get_rng_state(), before)


def test_batches_come_in_a_shuffled_order():
    firsts = {order_of(list(range(40)), 4, epoch)[0] // 4 for epoch in range(20)}
    assert len(firsts) > 5


def test_a_batch_left_short_comes_last_and_the_others_stay_whole():
    seconds = list(range(10))
    for epoch in range(10):
        batches = batches_of(order_of(seconds, 4, epoch), 4)
        assert {frozenset(batch) for batch in batches} == {
            frozenset({0, 1, 2, 3}),
            frozenset({4, 5, 6, 7}),
            frozenset({8, 9}),
        }
        assert batches[-1] == {8, 9}


def test_fewer_clips_than_a_batch_are_one_batch():
    assert order_of([3.0, 1.0, 2.0], 8) == [1, 2, 0]


def test_clips_of_a_batch_are_of_nearly_one_length():
    seconds = (10 * torch.rand(1000)).tolist()
    batches = batches_of(order_of(seconds, 8), 8)
    spreads = [max(seconds[i] for i in batch) - min(seconds[i] for i in batch) for batch in batches]
    # 400 clips a pool over 10 s: eight neighbours span 0.18 s on average; eight clips at random, 7.8 s.
    assert sum(spreads) / len(spreads) < 0.5
