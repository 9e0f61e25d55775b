"Batches of documents: labels, buckets, order, randomness."
import pickle
import random

import numpy as np
import pandas as pd
import pytest
import torch
from torch.testing import assert_close

from awdtext.core import seed_all
from awdtext.data.batches import (
    Categorize, ClassifierDataLoader, MultiCategorize, RegressionSetup, TextBatch, bucketed, collate)
from awdtext.data.corpus import Corpus


def documents(lengths):
    "A corpus in which document `i` is its own number, repeated."
    lengths = torch.tensor(lengths, dtype=torch.long)
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    return Corpus(torch.arange(len(lengths)).repeat_interleave(lengths).int(), offsets)


def random_lengths(n, seed=0): return [int(random.Random(seed + i).lognormvariate(3, 1)) + 1 for i in range(n)]


# Labels

def test_categories_are_sorted_and_pythons_own():
    for labels in (np.array([3, 1, 3]), pd.Series([3, 1, 3]).tolist(), [np.int64(3), 1, 3]):
        cat = Categorize.from_labels(labels)
        assert cat.categories == [1, 3] and all(type(c) is int for c in cat.categories)
        assert cat(labels).tolist() == [1, 0, 1] and cat(labels).dtype == torch.int64
    assert Categorize.from_labels(np.array(['b', 'a'])).categories == ['a', 'b']
    assert Categorize.from_labels([True, False]).categories == [False, True]


def test_categories_in_an_order_of_ones_own():
    cat = Categorize(['neg', 'neutral', 'pos'])
    assert cat(['pos', 'neg']).tolist() == [2, 0] and [cat.decode(i) for i in range(3)] == cat.categories
    assert cat.decode(torch.tensor(1)) == 'neutral'


@pytest.mark.parametrize('missing', [None, float('nan'), np.float64('nan'), np.float32('nan'), pd.NA, pd.NaT])
def test_a_missing_label_names_its_row(missing):
    for make in (Categorize.from_labels, Categorize(['a', 'b']), MultiCategorize(['a', 'b']), RegressionSetup(1)):
        good = [['a']] if isinstance(make, MultiCategorize) else [1.] if isinstance(make, RegressionSetup) else ['a']
        with pytest.raises(ValueError, match="label of row 'x17' is missing"): make(good + [missing], ['x16', 'x17'])
        with pytest.raises(ValueError, match='label of row 1 is missing'): make(good + [missing])
    with pytest.raises(ValueError, match='label of row 1 is missing'):
        MultiCategorize.from_labels([['a'], ['b', missing]])


@pytest.mark.parametrize('labels,message', [
    ([], 'there is no label to learn from'),
    (['pos'] * 80, "all labels are 'pos': a classifier needs two categories"),
    (['1', 1], 'labels of several types')])
def test_labels_nothing_can_be_learned_from(labels, message):
    with pytest.raises(ValueError, match=message): Categorize.from_labels(labels)


@pytest.mark.parametrize('label', [['a'], ['a', 'b'], ('a', 'b'), {'a'}, [], np.array(['a', 'b']),
                                   torch.tensor([1, 2])], ids=repr)
def test_a_list_is_no_category(label):
    for learn in (Categorize.from_labels, Categorize(['a', 'b'])):
        with pytest.raises(ValueError) as e: learn(['a', label, 'b'], rows=['x', 'y', 'z'])
        assert str(e.value).startswith(f"the label of row 'y' is {label!r}, where one category is expected.")
        assert 'y_block=MultiCategoryBlock' in str(e.value)
    with pytest.raises(ValueError, match='where one category is expected'): MultiCategorize.from_labels([['a', label]])
    assert Categorize.from_labels([np.array('a'), np.str_('b')]).categories == ['a', 'b']       # which are no lists


def test_unknown_label_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match="label 'c' of row 9 is not among the categories .* part: 'a', 'b'"):
        Categorize(['a', 'b'])(['a', 'c'], rows=[8, 9])
    with pytest.raises(ValueError, match=r"'c0', .*'c11', … \(50 in all\)"):
        Categorize([f'c{i}' for i in range(50)])(['x'])
    with pytest.raises(ValueError, match="label 'c' of row 0"): MultiCategorize(['a', 'b'])([['a', 'c']])


def test_categories_are_named_once():
    for cls in (Categorize, MultiCategorize):
        with pytest.raises(ValueError, match='a category is named twice'): cls(['a', 'b', 'a'])


def test_several_labels_are_rows_of_zeros_and_ones():
    labels = [['b', 'a'], [], ('c',), {'a'}, ['a', 'a']]
    multi = MultiCategorize.from_labels(labels)
    assert_close(multi(labels), torch.tensor([[1., 1., 0.], [0., 0., 0.], [0., 0., 1.], [1., 0., 0.], [1., 0., 0.]]))
    assert [multi.decode(row) for row in multi(labels)] == [['a', 'b'], [], ['c'], ['a'], ['a']]
    assert MultiCategorize.from_labels([['a'], []]).n_out == 1


def test_numbers():
    one, two = RegressionSetup.from_labels(np.array([1, 2.5])), RegressionSetup.from_labels([[1, 2], [3, 4]])
    assert one(np.array([1, 2.5])).tolist() == [1., 2.5] and one([]).shape == (0,)
    assert_close(two([[1, 2], (3, 4.)]), torch.tensor([[1., 2.], [3., 4.]]))
    assert (one.n_out, two.n_out, two.decode(torch.tensor([1., 2.]))) == (1, 2, [1., 2.])
    with pytest.raises(ValueError, match=r'label of row 0 is \[1, 2, 3\]: 2 number'): two([[1, 2, 3]])
    with pytest.raises(ValueError, match="label of row 1 is '3': 1 number"): one([2, '3'])


# Rectangles

def test_rows_are_filled_up_on_the_right():
    docs = [torch.tensor(doc, dtype=torch.int32) for doc in ([5, 6], [7, 8, 9, 10], [11])]
    ids, lengths = collate(docs, pad_idx=3)
    assert ids.tolist() == [[5, 6, 3, 3], [7, 8, 9, 10], [11, 3, 3, 3]] and lengths.tolist() == [2, 4, 1]
    assert ids.dtype == lengths.dtype == torch.int64


# Buckets

@pytest.mark.parametrize('shuffle', [False, True])
@pytest.mark.parametrize('n,bs', [
    (2, 64), (5, 2), (7, 3), (64, 64), (65, 64), (129, 64), (101, 2), (1000, 7), (3201, 64)])
def test_each_document_once_and_longest_first(n, bs, shuffle):
    lengths = random_lengths(n)
    dl = ClassifierDataLoader(documents(lengths), torch.arange(n), bs=bs, shuffle=shuffle, seed=0)
    seen = []
    batches = list(dl)
    for batch, targets in batches:
        assert isinstance(batch, TextBatch) and batch.ids.shape == (len(targets), max(batch.lengths))
        assert batch.lengths.tolist() == [lengths[i] for i in targets] == sorted(batch.lengths.tolist(), reverse=True)
        for row, length, i in zip(batch.ids, batch.lengths, targets):
            assert (row[:length] == i).all() and (row[length:] == 1).all()
        seen += targets.tolist()
    assert sorted(seen) == list(range(n)) and dl.order.tolist() == seen and len(dl) == len(batches)
    assert batches[0][0].lengths[0] == max(lengths)
    if shuffle: assert min(len(targets) for _, targets in batches) >= 2


def test_without_shuffling_all_are_sorted():
    lengths = random_lengths(200)
    dl = ClassifierDataLoader(documents(lengths), bs=7)
    assert [lengths[i] for i in dl.order] == sorted(lengths, reverse=True)
    assert all(y is None for _, y in dl)
    ties = ClassifierDataLoader(documents([2, 2, 2, 3, 2]), bs=2)
    assert ties.order.tolist() == [3, 0, 1, 2, 4]  # of equal length, in the order of the corpus


def test_buckets_save_most_of_the_padding():
    lengths = torch.tensor(random_lengths(6400))
    def padding(batches): return 1 - lengths.sum().item() / sum(len(b) * int(lengths[b].max()) for b in batches)
    at_random = torch.randperm(6400).split(64)
    assert padding(bucketed(lengths, 64, torch.Generator().manual_seed(0))) < .25 < .6 < padding(at_random)


def test_training_batches_stay_random():
    "Two documents of like length do not always meet."
    dl = ClassifierDataLoader(documents(random_lengths(1000)), torch.arange(1000), bs=2, shuffle=True, seed=0)
    mates = [{frozenset(y.tolist()) for _, y in dl} for _ in range(2)]
    assert len(mates[0] & mates[1]) < 100


def test_a_pass_is_a_function_of_seed_and_epoch():
    def orders(seed):
        dl = ClassifierDataLoader(documents(random_lengths(300)), bs=8, shuffle=True, seed=seed)
        result = []
        for _ in range(3):
            list(dl)
            result.append(dl.order.tolist())
        return result
    first = orders(0)
    assert first == orders(0)
    assert len({tuple(order) for order in first + orders(1)}) == 6


def test_setting_the_epoch_goes_on_from_there():
    make = lambda: ClassifierDataLoader(documents(random_lengths(100)), torch.arange(100), bs=8, shuffle=True, seed=3)
    dl, resumed = make(), make()
    passes = [list(dl) for _ in range(3)]
    resumed.epoch = 2
    assert_close(list(resumed), passes[2])


def test_global_randomness_is_neither_used_nor_changed():
    before = torch.get_rng_state()
    list(ClassifierDataLoader(documents(random_lengths(100)), bs=8, shuffle=True, seed=3))
    assert torch.get_rng_state().equal(before)


def test_seed_all_governs_loaders_without_a_seed():
    def order(seed):
        seed_all(seed)
        return ClassifierDataLoader(documents(random_lengths(100)), bs=8, shuffle=True).order.tolist()
    assert order(1) == order(1) != order(2)


@pytest.mark.parametrize('targets', [torch.rand(30), torch.rand(30, 4), torch.arange(30)])
def test_targets_of_any_kind_go_with_their_documents(targets):
    dl = ClassifierDataLoader(documents(random_lengths(30)), targets, bs=4, shuffle=True, seed=0)
    y = torch.cat([y for _, y in dl])
    assert_close(y, targets[dl.order])


def test_device_and_pickle():
    dl = ClassifierDataLoader(documents([3, 2]), torch.arange(2), device='meta')
    (ids, lengths), y = next(iter(pickle.loads(pickle.dumps(dl))))
    assert {ids.device.type, lengths.device.type, y.device.type} == {'meta'}


# What cannot be

@pytest.mark.parametrize('lengths,options,message', [
    ([], {}, 'there are no documents'),
    ([3, 2], dict(targets=torch.arange(3)), '2 documents, but 3 labels'),
    ([3, 0, 2, 0], {}, r'document\(s\) 1, 3 have no tokens'),
    ([3, 2], dict(bs=0), 'bs=0: use a whole number, 1 or more'),
    ([3], dict(shuffle=True), r'1 document\(s\) in batches of 64: batch normalisation needs two'),
    ([3, 2, 4], dict(shuffle=True, bs=1), r'3 document\(s\) in batches of 1: batch normalisation needs two'),
    ([3, 2], dict(seed=-1, shuffle=True), 'seed=-1')])
def test_what_cannot_be_loaded(lengths, options, message):
    with pytest.raises(ValueError, match=message): ClassifierDataLoader(documents(lengths), **options)


def test_one_document_is_enough_where_nothing_is_learned():
    (batch, y), = ClassifierDataLoader(documents([3]))
    assert batch.ids.tolist() == [[0, 0, 0]] and y is None
