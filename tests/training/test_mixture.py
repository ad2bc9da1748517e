from collections import Counter
from itertools import chain, islice

import pytest
import torch
from datasets import Dataset
from torch.utils.data import DataLoader

from soundwave_hf.training.mixture import (
    DrawnRows,
    LengthGroups,
    Mixture,
    MixtureBatchSampler,
    MixtureStream,
    number_tasks,
)


PAPER = Mixture(temperature=1, step=5)


# ---- shares ----


def test_shares_go_from_those_of_the_samples_to_those_of_the_tasks():
    # 16 : 1, then their sixth roots 1.5874 : 1, then their eleventh 1.2867 : 1.
    assert PAPER.shares([16, 1], epoch=0) == pytest.approx([16 / 17, 1 / 17])
    assert PAPER.shares([16, 1], epoch=1) == pytest.approx([1.5874 / 2.5874, 1 / 2.5874], abs=1e-4)
    assert PAPER.shares([16, 1], epoch=2) == pytest.approx([1.2867 / 2.2867, 1 / 2.2867], abs=1e-4)
    assert PAPER.shares([3036, 460, 78, 25], epoch=10_000) == pytest.approx([0.25] * 4, abs=1e-3)
    assert Mixture(temperature=2, step=0).shares([9, 4, 1], epoch=7) == pytest.approx([3 / 6, 2 / 6, 1 / 6])


def test_quotas_are_whole_numbers_nearest_to_the_shares():
    assert PAPER.quotas([3, 2, 2], 0, num_draws=7).tolist() == [3, 2, 2]
    # 4.286, 2.857, 2.857 of ten: the two that lack least of a whole one get it.
    assert PAPER.quotas([3, 2, 2], 0, num_draws=10).tolist() == [4, 3, 3]
    assert PAPER.quotas([1, 1, 1], 3, num_draws=10).tolist() == [4, 3, 3]
    for epoch in range(20):
        assert PAPER.quotas([3036, 460, 78, 25], epoch, num_draws=3599).sum() == 3599


@pytest.mark.parametrize("values", [{"temperature": 0}, {"temperature": -1.0}, {"step": -1}])
def test_a_temperature_that_is_none_is_refused(values):
    with pytest.raises(ValueError, match="`mixture` has `temperature` .* the paper's are 1 and 5"):
        Mixture(**values)


def test_a_row_is_of_its_task_or_else_of_its_source():
    rows = Dataset.from_dict({"task": ["st", None, "asr"], "source": ["a", "b", "c"]})
    assert number_tasks(rows) == (["asr", "b", "st"], [2, 1, 0])
    assert number_tasks(rows.remove_columns("task")) == (["a", "b", "c"], [0, 1, 2])
    with pytest.raises(ValueError, match="row 1 has neither `task` nor `source`"):
        number_tasks(rows.remove_columns("source"))
    with pytest.raises(ValueError, match="the rows have neither `task` nor `source`"):
        number_tasks(rows.remove_columns(["task", "source"]))


def test_a_list_and_a_data_set_of_pytorch_have_tasks_too():
    rows = [{"task": "st"}, {"source": "b"}, {"task": "asr", "source": "c"}]
    assert number_tasks(rows) == (["asr", "b", "st"], [2, 1, 0])
    with pytest.raises(ValueError, match="row 1 has neither `task` nor `source`"):
        number_tasks([rows[0], {"text": "w1"}])


# ---- batches of like length ----


def batches_of(seconds, batch_size: int, epoch: int = 0, seed: int = 0, **options) -> list[list[int]]:
    sampler = MixtureBatchSampler(seconds, LengthGroups(batch_size, **options), seed=seed)
    sampler.set_epoch(epoch)
    return list(sampler)


def test_each_index_comes_once_an_epoch():
    sampler = MixtureBatchSampler(torch.rand(103).tolist(), LengthGroups(4, pool=3))
    for epoch in range(3):
        sampler.set_epoch(epoch)
        assert sorted(chain.from_iterable(sampler)) == list(range(103))
    assert len(sampler) == 26


def test_one_pool_gives_batches_in_order_of_length():
    seconds = [5.0, 1.0, 4.0, 2.0, 6.0, 3.0]  # indices by length: 1 3, 5 2, 0 4
    for epoch in range(5):
        assert sorted(map(sorted, batches_of(seconds, 2, epoch))) == [[0, 4], [1, 3], [2, 5]]


def test_the_order_follows_from_seed_and_epoch_alone():
    seconds = torch.rand(64).tolist()
    first = batches_of(seconds, 4, epoch=1, seed=3)
    torch.manual_seed(99)
    sampler = MixtureBatchSampler(seconds, LengthGroups(4), seed=3)
    list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) == first == list(sampler)
    assert batches_of(seconds, 4, epoch=2, seed=3) != first
    assert batches_of(seconds, 4, epoch=1, seed=4) != first


def test_sampling_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    batches_of(torch.ones(20).tolist(), 4)
    assert torch.equal(torch.get_rng_state(), before)


def test_batches_come_in_a_shuffled_order():
    firsts = {batches_of(list(range(40)), 4, epoch)[0][0] // 4 for epoch in range(20)}
    assert len(firsts) > 5


def test_batches_of_one_step_stay_together():
    for epoch in range(5):
        batches = batches_of(list(range(40)), 4, epoch, group=2)
        steps = [set(batches[i] + batches[i + 1]) for i in range(0, 10, 2)]
        assert {min(step) for step in steps} == {0, 8, 16, 24, 32}
        assert all(max(step) - min(step) == 7 for step in steps)


@pytest.mark.parametrize("drop_last", [False, True])
def test_a_batch_left_short_comes_last_or_is_left_out_and_the_others_stay_whole(drop_last):
    for epoch in range(10):
        batches = batches_of(list(range(10)), 4, epoch, drop_last=drop_last)
        whole = [batch for batch in batches if len(batch) == 4]
        assert sorted(map(sorted, whole)) == [[0, 1, 2, 3], [4, 5, 6, 7]]
        assert batches[2:] == ([] if drop_last else [[8, 9]])
    assert len(MixtureBatchSampler(list(range(10)), LengthGroups(4, drop_last=drop_last))) == 3 - drop_last


def test_fewer_clips_than_a_batch_are_one_batch():
    assert batches_of([3.0, 1.0, 2.0], 8) == [[1, 2, 0]]


def test_clips_of_a_batch_are_of_nearly_one_length():
    seconds = (10 * torch.rand(1000)).tolist()
    spreads = [max(seconds[i] for i in b) - min(seconds[i] for i in b) for b in batches_of(seconds, 8)]
    # 400 clips a pool over 10 s: eight neighbours span 0.18 s on average; eight clips at random, 7.8 s.
    assert sum(spreads) / len(spreads) < 0.5


# ---- batches by audio seconds ----


def test_a_batch_takes_the_clips_that_fit_with_their_padding():
    seconds = [1.0, 2.0, 3.0, 4.0, 0.5, 0.5]
    # By length 4 5 0 1 2 3: three of 1 s and less are 3 s padded, a fourth of 2 s would make them 8 s; 2 x 3 s fit.
    assert sorted(map(sorted, batches_of(seconds, 9, max_batch_seconds=6.0))) == [[0, 4, 5], [1, 2], [3]]
    # At most two clips.
    assert sorted(map(sorted, batches_of(seconds, 2, max_batch_seconds=6.0))) == [[0, 1], [2], [3], [4, 5]]


def test_no_batch_by_seconds_is_over_the_limit_and_all_but_a_few_are_nearly_full():
    seconds = (3 + 27 * torch.rand(2000)).tolist()
    batches = batches_of(seconds, 64, max_batch_seconds=120.0)
    padded = [len(batch) * max(seconds[i] for i in batch) for batch in batches]
    assert sorted(chain.from_iterable(batches)) == list(range(2000))
    assert max(padded) <= 120.0
    # On average half a clip does not fit in: 8 s of 120.
    assert sum(padded) / len(padded) > 0.9 * 120


def test_a_clip_over_the_limit_is_refused():
    with pytest.raises(
        ValueError, match=r"is 5.0, and 2 of the clips are longer, up to 9.0 s: give at least that, or"
    ):
        MixtureBatchSampler([1.0, 7.0, 9.0], LengthGroups(4, max_batch_seconds=5.0))


def test_epochs_of_batches_by_seconds_are_of_one_length_and_draw_on_where_the_last_one_ended():
    tasks = [0] * 90 + [1] * 10
    seconds = [1.0] * 90 + [4.0] * 10  # more of the longer ones, epoch by epoch: 11 batches in the first
    sampler = MixtureBatchSampler(seconds, LengthGroups(10, max_batch_seconds=10.0), tasks, PAPER)
    epochs = []
    for epoch in range(4):
        sampler.set_epoch(epoch)
        epochs.append(list(sampler))
    assert {len(batches) for batches in epochs} == {len(sampler)}
    order = list(chain.from_iterable(chain.from_iterable(epochs)))
    assert len(set(order)) == len(order)  # no draw twice
    again = MixtureBatchSampler(seconds, LengthGroups(10, max_batch_seconds=10.0), tasks, PAPER)
    again.set_epoch(3)
    assert list(again) == epochs[3]
    quotas = PAPER.quotas([90, 10], 0, 100) + PAPER.quotas([90, 10], 1, 100)
    assert Counter(tasks[draw % 100] for draw in order[:200]) == dict(enumerate(quotas))


# ---- mixtures ----


TASKS = [0] * 14 + [1] * 5 + [2]
SECONDS = [1.0 + index / 10 for index in range(20)]


def mixed(epoch: int, seed: int = 0) -> list[int]:
    sampler = MixtureBatchSampler(SECONDS, LengthGroups(4), TASKS, PAPER, seed)
    sampler.set_epoch(epoch)
    return list(chain.from_iterable(sampler))


def test_an_epoch_draws_the_quotas_of_its_tasks():
    for epoch in range(6):
        counts = Counter(TASKS[draw % 20] for draw in mixed(epoch))
        assert [counts[task] for task in range(3)] == PAPER.quotas([14, 5, 1], epoch, 20).tolist()
    assert Counter(TASKS[draw % 20] for draw in mixed(0)) == {0: 14, 1: 5, 2: 1}


def test_clips_of_a_task_are_repeated_when_all_have_come_over_the_end_of_epochs_too():
    draws = list(chain.from_iterable(mixed(epoch) for epoch in range(8)))
    assert len(set(draws)) == len(draws)
    for task, size in ((0, 14), (1, 5), (2, 1)):
        of_task = [draw for draw in draws if TASKS[draw % 20] == task]
        whole, rest = divmod(len(of_task), size)
        repeats = Counter(draw // 20 for draw in of_task)
        assert [repeats[repeat] for repeat in range(whole)] == [size] * whole
        assert repeats[whole] == rest
    # In the order of drawing: within an epoch of the small task an earlier pass comes whole before a later one begins.
    assert Counter(draw % 20 for draw in draws if TASKS[draw % 20] == 2) == {
        19: sum(int(PAPER.quotas([14, 5, 1], epoch, 20)[2]) for epoch in range(8))
    }


def test_the_order_of_a_mixture_follows_from_seed_and_epoch_alone():
    assert mixed(3) == mixed(3)
    assert mixed(3, seed=1) != mixed(3)
    parts = [draw for draw in mixed(3, seed=1) if TASKS[draw % 20] == 0]
    assert parts != [draw for draw in mixed(3) if TASKS[draw % 20] == 0]


def test_a_mixture_needs_a_task_for_each_clip():
    with pytest.raises(ValueError, match="A mixture of 2 clips needs the task of each, and none arrived"):
        MixtureBatchSampler([1.0, 2.0], LengthGroups(2), mixture=PAPER)
    with pytest.raises(ValueError, match="A mixture of 2 clips needs the task of each, and 1 arrived"):
        MixtureBatchSampler([1.0, 2.0], LengthGroups(2), [0], PAPER)


def test_drawn_rows_tell_repeats_and_tasks():
    rows = DrawnRows([{"text": "a"}, {"text": "b"}, {"text": "c"}], tasks=[0, 1, 0])
    assert rows[4] == {"text": "b", "row": 4, "_task": 1}
    assert rows[2] == {"text": "c", "row": 2, "_task": 0}
    assert (len(rows), DrawnRows([{"text": "a"}])[0]) == (3, {"text": "a", "row": 0})


# ---- streams ----


SIZES = {"asr": 30, "sound": 6}


def streams(num_shards: int = 2) -> dict:
    """Rows without an order of length, each with a text of its own."""
    return {
        task: Dataset.from_dict(
            {"text": [f"{task} {i}" for i in range(size)], "seconds": [1.0 + 7 * i % 5 for i in range(size)]}
        ).to_iterable_dataset(num_shards=num_shards)
        for task, size in SIZES.items()
    }


def stream(**options) -> MixtureStream:
    groups = LengthGroups(4, pool=3, max_batch_seconds=options.pop("max_batch_seconds", None))
    return MixtureStream(streams(options.pop("num_shards", 2)), SIZES, groups, PAPER, **options)


def test_a_stream_draws_the_quotas_of_each_epoch_and_opens_what_is_exhausted_anew():
    rows = list(islice(stream(), 180))  # five epochs of 36
    assert [row["row"] for row in rows] != list(range(180))
    assert sorted(row["row"] for row in rows) == list(range(180))
    for epoch in range(5):
        counts = Counter(row["_task"] for row in rows[36 * epoch : 36 * epoch + 36])
        assert [counts[0], counts[1]] == PAPER.quotas([30, 6], epoch, 36).tolist()
    in_order = [row["text"] for row in sorted(rows, key=lambda row: row["row"]) if row["_task"] == 1]
    passes = [in_order[start : start + 6] for start in range(0, len(in_order) - 5, 6)]
    assert len(passes) > 5
    assert {tuple(sorted(each)) for each in passes} == {tuple(f"sound {i}" for i in range(6))}
    assert len(set(map(tuple, passes))) > 1  # each in an order of its own


def test_rows_side_by_side_are_of_like_length():
    rows = list(islice(stream(), 36))
    parts = [rows[start : start + 4] for start in range(0, 36, 4)]
    spreads = [max(row["seconds"] for row in part) - min(row["seconds"] for row in part) for part in parts]
    # Twelve rows of five lengths: four neighbours by length span two of them.
    assert sum(spreads) / len(spreads) <= 2.0


@pytest.mark.parametrize("max_batch_seconds", [None, 12.0])
@pytest.mark.parametrize("stop", [1, 7, 12, 13, 40, 100])
def test_a_stream_goes_on_from_its_state(stop, max_batch_seconds):
    whole = list(islice(stream(max_batch_seconds=max_batch_seconds), stop + 30))
    stopped = stream(max_batch_seconds=max_batch_seconds)
    assert stopped.state_dict() is None
    assert list(islice(stopped, stop)) == whole[:stop]
    state = stopped.state_dict()
    assert "text" not in str(state)
    resumed = stream(max_batch_seconds=max_batch_seconds)
    resumed.load_state_dict(state)
    assert list(islice(resumed, 30)) == whole[stop:]
    assert list(islice(stopped, stop)) == whole[:stop]  # an iteration begins where the state given to it says


def test_a_stream_gives_whole_batches_by_seconds():
    batches = list(islice(stream(max_batch_seconds=12.0), 40))
    assert all(len(batch) <= 4 and len(batch) * max(r["seconds"] for r in batch) <= 12 for batch in batches)
    assert max(map(len, batches)) == 4
    loader = DataLoader(stream(max_batch_seconds=12.0), batch_size=None, collate_fn=lambda rows: len(rows))
    assert list(islice(loader, 40)) == [len(batch) for batch in batches]


@pytest.mark.parametrize("num_shards", [1, 2])
def test_processes_share_a_stream(num_shards):
    # With two shards each process has its own; with one each takes every other row.
    parts = [stream(num_shards=num_shards, rank=rank, world_size=2) for rank in range(2)]
    rows = [list(islice(part, 20)) for part in parts]  # an epoch of 40: 36, rounded up to whole batches of both
    texts = [{row["text"] for row in part} for part in rows]
    assert not texts[0] & texts[1]
    assert sorted(row["row"] for row in rows[0] + rows[1]) == list(range(40))
    counts = Counter(row["_task"] for row in rows[0] + rows[1])
    assert [counts[0], counts[1]] == PAPER.quotas([30, 6], 0, 40).tolist()


def test_a_state_of_other_processes_is_refused():
    stopped, other = stream(), stream(rank=1, world_size=2)
    next(iter(stopped))
    other.load_state_dict(stopped.state_dict())
    with pytest.raises(ValueError, match=r"The state is of part \[0, 1\] and this is part \[1, 2\]: start as many"):
        next(iter(other))


def test_loader_workers_share_a_stream():
    rows = list(chain.from_iterable(islice(DataLoader(stream(), 4, num_workers=2, collate_fn=list), 10)))
    assert sorted(row["row"] for row in rows) == list(range(40))


def test_what_is_no_mixture_of_streams_is_refused():
    with pytest.raises(
        ValueError, match=r"There are streams of \['asr', 'sound'\] and sizes \{'asr': 3\}: give each task"
    ):
        MixtureStream(streams(), {"asr": 3}, LengthGroups(4), PAPER)
    one_row = {"asr": Dataset.from_dict({"seconds": [1.0]}).to_iterable_dataset()}
    with pytest.raises(ValueError, match="The stream of task `asr` has no row for one of the processes"):
        next(iter(MixtureStream(one_row, {"asr": 1}, LengthGroups(4), PAPER, rank=1, world_size=2)))
    with pytest.raises(ValueError, match=r"`max_batch_seconds` is 3.0, and .* of the clips are longer, up to 5.0 s"):
        next(iter(stream(max_batch_seconds=3.0)))
