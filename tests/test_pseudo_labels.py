"Pseudo-labels: a slow choice by hand as oracle, and the second classifier of ulmfit, stopped everywhere."
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from test_ulmfit import Stops, killed_after, labels, more, probabilities, quick, reviews

from awdtext import ulmfit as module
from awdtext.data.batches import Categorize
from awdtext.data.data_block import MultiCategoryBlock, RegressionBlock
from awdtext.pseudo_labels import label_shares, pseudo_label
from awdtext.training.learner import Learner
from awdtext.ulmfit import ulmfit

plenty = [text.replace('film', noun) for text in reviews[:18] for noun in ('opera', 'tale')]


def says(probs, train=(0, 1, 1, 2)):
    "A classifier that says this."
    train = train and SimpleNamespace(targets=torch.tensor(train))
    dls = SimpleNamespace(train=train, labeler=Categorize(['a', 'b', 'c']), test_dl=list)
    return SimpleNamespace(dls=dls, get_preds=lambda dl: (probs, None))


@pytest.mark.parametrize('n', [4, 40, 99, 1000])
def test_the_most_certain_of_each_category_by_hand(n):
    probs = torch.rand(200, 3, generator=torch.Generator().manual_seed(n)).pow(3)
    probs = probs / probs.sum(1, keepdim=True)
    found = pseudo_label(says(probs), [f'text {i}' for i in range(200)], n)
    expected = set()
    for category, share in enumerate((1 / 4, 1 / 2, 1 / 4)):
        rows = []
        for i, row in enumerate(probs.tolist()):
            first,second,_ = sorted(row, reverse=True)
            if row.index(first) == category: rows.append((first - second, i))
        expected |= {(i, category) for _, i in sorted(rows, reverse=True)[:round(share * n)]}
    assert set(zip(found.idxs, found.categories)) == expected
    assert found.texts == [f'text {i}' for i in found.idxs] and found.labels == ['abc'[y] for y in found.categories]
    for category in range(3):
        margins = [m for m, y in zip(found.margins, found.categories) if y == category]
        assert margins == sorted(margins, reverse=True)


def test_shares_are_those_of_the_training_part():
    assert label_shares([0, 0, 0, 1], 100) == {0: 75, 1: 25}


@pytest.mark.parametrize(('how', 'n', 'message'), [
    ({}, 2, 'n=2: use one for each of the 3 categories'), ({}, -2, 'n=-2'), ({}, 2.5, 'n=2.5'),
    ({'train': None}, 4, 'There is no training data')])
def test_what_cannot_be(how, n, message):
    learn = says(torch.eye(3)[[0, 0, 0, 0, 0]], **how)
    with pytest.raises((ValueError, TypeError), match=message): pseudo_label(learn, list('abcde'), n)


@pytest.mark.parametrize('kind', [list, tuple, iter, lambda texts: pd.Series(texts, index=range(9, 4, -1))])
def test_texts_of_any_kind(kind):
    found = pseudo_label(says(torch.eye(3)[[0, 1, 2, 1, 0]]), kind(list('abcde')), 4)
    assert (found.texts, found.idxs) == (list('abdc'), [0, 1, 3, 2])


# In ulmfit

@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "A run with a second classifier, uninterrupted; its folder."
    out = tmp_path_factory.mktemp('pseudo') / 'run'
    return ulmfit(plenty + more, (reviews, labels), out, pseudo_labels=20, **quick), out


def trained_on(monkeypatch):
    "What classifiers will be trained on, and rows of a batch."
    found,build = [], module._classifier_learner
    def noting(job, way, *docs_and_bs):
        found.append(docs_and_bs)
        return build(job, way, *docs_and_bs)
    monkeypatch.setattr(module, '_classifier_learner', noting)
    return found


def test_second_learns_from_the_labelled_and_the_pseudo_labelled(tmp_path, monkeypatch):
    trained = trained_on(monkeypatch)
    ulmfit(plenty + more, (reviews, labels), tmp_path, pseudo_labels=40, **quick)
    (first,bs),(second,second_bs) = trained
    table = pd.read_csv(tmp_path / 'pseudo_labels_forward.csv')
    assert (bs, second_bs) == (8, 32) and set(table['text']) <= set(plenty + more) - set(reviews)
    assert second.texts == first.texts + table['text'].tolist()
    assert second.labels == first.labels + table['label'].tolist()


def test_few_labelled_documents_are_repeated(tmp_path, monkeypatch):
    trained = trained_on(monkeypatch)
    few = slice(None, None, 6)
    ulmfit(plenty + reviews[1::6] + more, (reviews[few], labels[few]), tmp_path, pseudo_labels=60, **quick)
    (first, _),(second, _) = trained
    n = len(pd.read_csv(tmp_path / 'pseudo_labels_forward.csv'))
    times = max(1, round(n / (2 * len(first.texts))))
    assert times > 1 and len(second.texts) == times * len(first.texts) + n
    assert second.texts[:len(first.texts)] == second.texts[len(first.texts):2 * len(first.texts)] == first.texts


@pytest.mark.parametrize(('accuracies', 'taken'), [((.8, .85), True), ((.8, .8), True), ((.8, .77), True),
                                                   ((.8, .75), False)])
def test_first_is_kept_only_if_the_second_is_worse_by_more_than_chance(accuracies, taken):
    content = {'settings': {'n_validation': 100}}                       # a standard error of four points
    content |= {f'forward {name}': {'accuracy': a} for name, a in zip(('classifier', 'second classifier'), accuracies)}
    assert module._is_taken(content, 'forward') is taken


@pytest.mark.parametrize('taken', [True, False])
def test_learner_that_is_returned_is_the_one_that_the_card_names(tmp_path, monkeypatch, taken):
    monkeypatch.setattr(module, '_is_taken', lambda content, way: taken)
    learn = ulmfit(plenty + more, (reviews, labels), tmp_path, pseudo_labels=20, **quick)
    assert ('; taken' in learn.card, 'not taken' in learn.card) == (taken, not taken)
    mine = probabilities(learn)
    named = learn.load('weights_forward_second' if taken else 'weights_forward', with_opt=False)
    assert torch.equal(probabilities(named), mine)


@pytest.mark.parametrize('at', [60, 75, 85])
def test_same_call_goes_on(run, tmp_path, monkeypatch, at):
    Stops.__name__ = 'KeepBest'
    monkeypatch.setattr(module, 'KeepBest', Stops)
    Stops.steps,Stops.at,Stops.how = 0, at, 'dies'
    args,how = [plenty + more, (reviews, labels), tmp_path / 'run'], dict(pseudo_labels=20, **quick)
    with pytest.raises(RuntimeError, match='killed'): ulmfit(*args, every='2steps', **how)
    Stops.at = None
    torch.manual_seed(0)                                                # as another process would not be where this was
    assert torch.equal(probabilities(ulmfit(*args, every='3steps', **how)), probabilities(run[0]))


@pytest.mark.parametrize('last', ['forward classifier', 'forward pseudo-labels', 'forward second classifier'])
def test_killed_between_stages(run, tmp_path, monkeypatch, last):
    def call(): return ulmfit(plenty + more, (reviews, labels), tmp_path / 'run', pseudo_labels=20, **quick)
    assert torch.equal(probabilities(killed_after(monkeypatch, last, call)), probabilities(run[0]))


def test_odd_texts_get_labels_and_the_table_is_for_the_eye_alone(tmp_path, monkeypatch):
    signs = ['\r', '\r\n', '"', '\0', '\n', '\u2028', ',', ';']
    odd = [f'{text}{sign} indeed' for text, sign in zip(plenty, signs)]
    trained = trained_on(monkeypatch)
    def call(): return ulmfit(odd, (reviews, labels), tmp_path, pseudo_labels=40, **quick)
    killed_after(monkeypatch, 'forward pseudo-labels', call)            # what it labelled is read again
    (second,) = [docs.texts for docs, bs in trained if bs == 32]
    assert set(second) & set(odd) and set(second) <= {*odd, *reviews}
    (tmp_path / 'pseudo_labels_forward.csv').unlink()                   # as somebody does who has seen it
    assert call().predict(reviews[0])[0] in ('neg', 'pos')


def test_finished_run_trains_and_predicts_no_more(run, monkeypatch):
    learn,out = run
    monkeypatch.setattr(Learner, '_fit', lambda *args, **how: pytest.fail("it trains"))
    monkeypatch.setattr(module, 'pseudo_label', lambda *args: pytest.fail("it labels"))
    again = ulmfit(plenty + more, (reviews, labels), out, pseudo_labels=20, **quick)
    assert torch.equal(probabilities(again), probabilities(learn)) and again.card == learn.card


def test_both_directions(tmp_path):
    learn = ulmfit(plenty + more, (reviews, labels), tmp_path, backwards='both', pseudo_labels=20, **quick)
    assert learn.card.count('with labels of what was there before') == 2
    assert (tmp_path / 'pseudo_labels_backward.csv').exists()
    found = pseudo_label(learn, more, 6)                                # by hand, of the mean of both
    probs = learn.get_preds(dl=learn.dls.test_dl(more))[0]
    assert found.categories == probs.argmax(1)[found.idxs].tolist()


def test_time_of_the_second_is_in_the_plan(tmp_path, capsys):
    how = {**quick, 'lm_epochs': None, 'minutes': .05}
    ulmfit(plenty + more, (reviews, labels), tmp_path / 'one', **how)
    ulmfit(plenty + more, (reviews, labels), tmp_path / 'two', pseudo_labels=20, **how)
    plans = [line for line in capsys.readouterr().out.splitlines() if line.startswith('Plan')]
    assert 'and one on its labels in' in plans[1] and 'and one on its labels' not in plans[0]


@pytest.mark.parametrize(('texts', 'y', 'how', 'message'), [
    (more, labels, {'pseudo_labels': -1}, 'pseudo_labels=-1'),
    (more, labels, {'pseudo_labels': .5}, 'pseudo_labels=0.5'),
    (more, labels, {'pseudo_labels': 1}, 'n=1: use one for each of the 2 categories'),
    (None, labels, {'pseudo_labels': 9}, 'there is no text without a label'),
    (more, [[y] for y in labels], {'pseudo_labels': 9, 'y_block': MultiCategoryBlock}, 'one category a document'),
    (more, [*map(float, range(len(reviews)))], {'pseudo_labels': 9, 'y_block': RegressionBlock},
     'one category a document')])
def test_what_would_fail_later_fails_at_once(tmp_path, texts, y, how, message):
    with pytest.raises((ValueError, TypeError), match=message):
        ulmfit(texts, (reviews, y), tmp_path / 'run', **how, **quick)
    assert not (tmp_path / 'run').exists()
