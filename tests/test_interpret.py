"Looking at a model: attributions that add up, surprisal word by word, reports and neighbours beside slow oracles."
import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
from training_helpers import tiny_size

from awdtext.data.batches import MultiCategorize, RegressionSetup
from awdtext.data.dataloaders import TextDataLoaders
from awdtext.data.tokenizer import BaseTokenizer, CharTokenizer
from awdtext.ensemble import Ensemble, LMEnsemble
from awdtext.interpret import (ClassificationInterpretation, ScoredTokens, attribute, document_losses,
    embedding_neighbours, integrated_gradients, leaks, most_surprising, show, surprisal)
from awdtext.lm.evaluate import evaluate_lm
from awdtext.models.gru import GRU
from awdtext.models.qrnn import QRNN
from awdtext.text_learner import AWD_LSTM, language_model_learner, load_learner, text_classifier_learner
from awdtext.training.rnn import ASGD
from awdtext.ulmfit import ULMFiTSettings, other_way, ulmfit

films = ['a good film', 'a bad film with a bad end', 'good',
         'the worst of all films , and long', 'so good , so very good'] * 6
stars = ['good' if 'good' in film else 'bad' if 'bad' in film else 'odd' for film in films]
text = 'a very good film with a bad end , and so good'


def clas_dls(labels=stars, **how): return TextDataLoaders.from_texts(films, labels, bs=4, min_freq=1, seed=0, **how)


def clas(dls=None, learned=True, **how):
    learn = text_classifier_learner(dls or clas_dls(), config=tiny_size, **how)
    if learned: learn.fit(1, 1e-2)
    learn.model.eval()
    return learn


def lm(**how):
    dls = TextDataLoaders.from_texts(films, is_lm=True, bs=4, min_freq=1, seed=0, **how)
    learn = language_model_learner(dls, config=tiny_size)
    learn.fit(1, 1e-2)
    return learn


def ids_of(learn, text):
    ids = learn.dls.vocab.encode(learn.dls.tokenizer(text))
    return ids.flip(0) if learn.dls.backwards else ids


def scaled(learn, ids, scales):
    "Logits of the whole model when each token's embedding is scaled, (m, n): the embedding's own output is changed."
    place = [0]
    def scale(module, args, out):                       # (seq_len, bs, emb_sz), window by window
        start,place[0] = place[0], place[0] + len(out)
        return out * scales[:, start:place[0]].t()[..., None]
    handle = learn.model.encoder.embedding.register_forward_hook(scale)
    m,n = scales.shape
    try:
        with torch.no_grad(): return learn.model(ids.expand(m, n), torch.tensor([n] * m)).logits
    finally: handle.remove()


def odds_of(learn, ids, scales, i):
    logits = scaled(learn, ids, scales)
    return logits[:, i] - logits[:, [j for j in range(3) if j != i]].logsumexp(1)


@pytest.mark.parametrize('how', [{}, {'arch': QRNN}, {'arch': GRU}, {'seq_len': 4}, {'backwards': True}])
def test_attributions_are_the_integrals_and_add_up(how):
    "Beside midpoints of the way, and at each of them central differences in the scale of one token."
    learn = clas(clas_dls(backwards=how.get('backwards', False)), **{'arch': AWD_LSTM, **how})
    learn.model.double()
    ids = ids_of(learn, text)
    found = attribute(learn, text, learn.dls.categories[1], n_steps=256)
    n,eps = len(ids), 1e-5
    slow,eye = torch.zeros(n, dtype=torch.float64), torch.eye(n, dtype=torch.float64)
    for alpha in (torch.arange(150) + .5) / 150:
        odds = odds_of(learn, ids, torch.cat([alpha + eps * eye, alpha - eps * eye]), 1)
        slow += (odds[:n] - odds[n:]) / (2 * eps) / 150
    scores = found.scores[::-1] if learn.dls.backwards else found.scores
    assert torch.allclose(torch.tensor(scores, dtype=torch.float64), slow, rtol=2e-2, atol=2e-4)
    end,begin = odds_of(learn, ids, torch.tensor([[1.], [0.]]).expand(2, n), 1).tolist()
    assert sum(scores) == pytest.approx(end - begin, rel=1e-2, abs=1e-4)
    assert found.tokens == learn.dls.tokenizer(text)


def test_of_a_long_document_what_is_pooled_is_explained():
    learn = clas(seq_len=4, max_len=5)
    found = attribute(learn, text, 'good', n_steps=256)
    n = len(found.tokens)
    assert [math.isnan(s) for s in found.scores] == [True] * (n - 5) + [False] * 5
    scales = torch.ones(2, n)
    scales[1, -5:] = 0
    odds = odds_of(learn, ids_of(learn, text), scales, 1).tolist()
    assert np.nansum(found.scores) == pytest.approx(odds[0] - odds[1], rel=2e-2, abs=1e-3)


def test_attributions_of_other_tasks_and_of_averages():
    several = clas(clas_dls([[s] for s in stars], y_block=MultiCategorize))
    found = attribute(several, text, 'bad', n_steps=256)
    p = several.predict(text)[2][several.dls.labeler.index['bad']].item()
    assert f"'bad': {math.log(p / (1 - p)):+.3g}," in found.title
    number = clas(clas_dls([float(len(film)) for film in films], y_block=RegressionSetup))
    ids = ids_of(number, text)
    ends = scaled(number, ids, torch.tensor([[1.], [0.]]).expand(2, len(ids)))[:, 0].tolist()
    assert sum(attribute(number, text, n_steps=256).scores) == pytest.approx(ends[0] - ends[1], rel=2e-2, abs=1e-3)

    averaged = clas(learned=False)
    averaged.add_cb(ASGD(start=2)).fit(1, 1e-2)
    shown = attribute(averaged, text, 'good').scores
    averaged.average.show_iterate()
    assert attribute(averaged, text, 'good').scores == shown and not averaged.average.swapped
    training = averaged.model.train()
    assert attribute(averaged, text, 'good').scores == shown and training.training


def test_more_nodes_leave_no_gap():
    x = torch.randn(6, 3, dtype=torch.float64)
    f = lambda at: at.tanh().prod(1).sum(1) + at.sum((1, 2)).sigmoid()
    change = (f(x[None]) - f(0 * x[None])).item()
    assert integrated_gradients(f, x, 64, 5).sum().item() == pytest.approx(change, abs=1e-9)
    with pytest.raises(ValueError, match='n_steps=0'): integrated_gradients(f, x, 0)


def test_figures_are_those_of_scikit_learn():
    learn = clas(learned=False)
    interp = ClassificationInterpretation.from_learner(learn, ds_idx=0)
    probs,targets,losses = learn.get_preds(ds_idx=0, with_loss=True)
    said = probs.argmax(1)
    assert np.array_equal(interp.confusion_matrix(), confusion_matrix(targets, said, labels=range(3)))
    slow = [(learn.dls.categories[i], learn.dls.categories[j], int(((targets == i) & (said == j)).sum()))
            for i in range(3) for j in range(3) if i != j]
    assert set(interp.most_confused()) == {pair for pair in slow if pair[2]}
    assert interp.most_confused(min_val=5) == [pair for pair in interp.most_confused() if pair[2] >= 5]
    assert torch.equal(interp.top_losses(3)[0], losses.sort(descending=True).values[:3])
    report = interp.classification_report()
    check_report(report, targets, said, range(3))
    assert torch.equal(losses[interp.top_losses(largest=False)[1]], losses.sort().values)


def check_report(report, targets, said, labels):
    for average, rows in ((None, report[:-2]), ('macro', report[-2:-1]), ('weighted', report[-1:])):
        theirs = precision_recall_fscore_support(targets, said, labels=labels, average=average, zero_division=0)
        for name, figures in zip(('precision', 'recall', 'f1'), theirs):
            assert [row[name] for row in rows] == pytest.approx(list(np.atleast_1d(figures)))


def test_several_labels_and_numbers():
    learn = clas(clas_dls([['film'] * ('film' in film) + [s] for film, s in zip(films, stars)]), learned=False)
    interp = ClassificationInterpretation.from_learner(learn, ds_idx=0)
    said = (interp.probs > .5).int()
    check_report(interp.classification_report(), interp.targets.int(), said, range(len(interp.vocab)))
    assert len(interp.losses) == len(learn.dls.train.corpus) and 'probability' in interp.top_table(1)[0]
    with pytest.raises(ValueError, match='one label for each document'): interp.confusion_matrix()
    number = clas(clas_dls([float(len(film)) for film in films], y_block=RegressionSetup), learned=False)
    interp = ClassificationInterpretation.from_learner(number)
    assert interp.top_table(1)[0]['loss'] == pytest.approx(float(interp.losses.max()))
    with pytest.raises(ValueError, match='this is a regression'): interp.classification_report()


def test_no_labels_no_interpretation():
    learn = clas(learned=False)
    with pytest.raises(ValueError, match='have no labels'):
        ClassificationInterpretation.from_learner(learn, dl=learn.dls.test_dl(films))
    interp = ClassificationInterpretation.from_learner(learn, dl=learn.dls.test_dl(films[:5], stars[:5]))
    assert interp.top_table()[0]['text'].startswith('xxbos')


# What is shown

def four_documents():
    "Two are right; the probabilities are given, so that every figure is known."
    dls = clas_dls(valid=['a good film', 'a bad film', 'so very long', 'a good end'],
                   valid_labels=['good', 'bad', 'odd', 'good'])
    probs = torch.tensor([[.1, .7, .2], [.25, .6, .15], [.2, .2, .6], [.9, .05, .05]])
    targets = torch.tensor([1, 0, 2, 1])
    losses = -probs[range(4), targets].log()
    return ClassificationInterpretation(clas(dls, learned=False), dls.valid, probs, targets, losses)


top_rows = [['text', 'target', 'predicted', 'probability', 'loss', 'number'],
            ['xxbos a good end', 'good', 'bad', '0.9', '2.996', '3'],
            ['xxbos a bad film', 'bad', 'good', '0.6', '1.386', '1']]
report_rows = [['category', 'precision', 'recall', 'f1', 'documents'], ['bad', '0', '0', '0', '1'],
               ['good', '0.5', '0.5', '0.5', '2'], ['odd', '1', '1', '1', '1'], ['mean', '0.5', '0.5', '0.5', '4'],
               ['weighted mean', '0.5', '0.5', '0.5', '4']]
shown = pytest.mark.parametrize('method,args,title,rows', [
    ('plot_top_losses', (2,), 'Top losses', top_rows),
    ('print_classification_report', (), '50.0% of 4 documents are right', report_rows)])


@shown
def test_what_a_terminal_shows(method, args, title, rows, capsys):
    interp = four_documents()
    capsys.readouterr()
    assert getattr(interp, method)(*args) is None
    first,*lines = capsys.readouterr().out.splitlines()
    assert first == title and [re.split(r' {2,}', line) for line in lines] == rows


@shown
def test_what_a_notebook_shows(method, args, title, rows, monkeypatch, capsys):
    "The same as an HTML table, which is displayed and not printed."
    interp,pages = four_documents(), []
    capsys.readouterr()
    monkeypatch.setattr('awdtext.interpret.display_mode', lambda: 'notebook')
    monkeypatch.setattr('IPython.display.display', pages.append)
    getattr(interp, method)(*args)
    (page,) = pages
    found = [re.findall(r'<t[hd][^>]*>(.*?)</t[hd]>', row) for row in page.data.split('<tr>')[1:]]
    assert type(page).__name__ == 'HTML' and f'<p>{title}</p>' in page.data and found == rows
    assert capsys.readouterr().out == ''


def test_scored_tokens_are_shown_too(monkeypatch, capsys):
    scored,pages = ScoredTokens(['so', '<good>'], [math.nan, 2.], 'A & B'), []
    show(scored)
    assert capsys.readouterr().out == 'A & B\nso <good>(+2.00)\n'
    monkeypatch.setattr('awdtext.interpret.display_mode', lambda: 'notebook')
    monkeypatch.setattr('IPython.display.display', pages.append)
    show(scored)
    (page,) = pages
    assert 'A &amp; B' in page.data and '&lt;good&gt;</span>' in page.data and capsys.readouterr().out == ''


def test_a_confusion_matrix_with_names():
    interp = four_documents()
    assert repr(interp.confusion_table()) == '\n'.join([
        'Confusion matrix',
        'actual \\ predicted  bad  good  odd',
        'bad                   0     1    0',
        'good                  1     1    0',
        'odd                   0     0    1'])
    assert [list(row.values())[1:] for row in interp.confusion_table(normalize=True)] == [
        [0, 1, 0], [.5, .5, 0], [0, 0, 1]]
    assert interp.plot_confusion_matrix(normalize=True).texts[3].get_text() == '0.50'


def test_the_confusion_of_categories_that_are_numbers():
    learn = clas(clas_dls([0.5 if 'good' in film else 1.25 for film in films]), learned=False)
    table = ClassificationInterpretation.from_learner(learn, ds_idx=0).confusion_table()
    assert [row['actual \\ predicted'] for row in table] == ['0.5', '1.25'] == list(table[0])[1:]
    assert sum(row['0.5'] + row['1.25'] for row in table) == len(learn.dls.train.corpus)
    several = ClassificationInterpretation.from_learner(clas(clas_dls([[s] for s in stars]), learned=False))
    with pytest.raises(ValueError, match='one label for each document'): several.confusion_table()


@pytest.mark.parametrize('backwards', [False, True])
def test_surprisal_is_that_of_a_loop_over_words(backwards):
    learn = lm(backwards=backwards, seq_len=5)
    found,ids,state,nats = surprisal(learn, text), ids_of(learn, text), None, [math.nan]
    learn.model.eval()
    for now, then in zip(ids[:-1], ids[1:]):
        with torch.no_grad(): out = learn.model(now[None, None], state)
        state = out.state
        nats.append(-learn.model.logits(out.dropped)[0, 0].log_softmax(-1)[then].item())
    assert found.scores == pytest.approx(nats[::-1] if backwards else nats, rel=1e-4, nan_ok=True)
    assert found.tokens == learn.dls.tokenizer(text)


@pytest.mark.parametrize('backwards', [False, True])
def test_losses_of_documents_are_those_of_each_alone(backwards):
    learn = lm(backwards=backwards, seq_len=5)
    corpus = learn.dls.test_dl([*films[:7], '']).corpus
    found = document_losses(learn, corpus, bs=3).tolist()
    alone = [evaluate_lm(learn.model, doc).loss if len(doc) > 1 else math.nan for doc in corpus]
    assert found == pytest.approx(alone, rel=1e-4, nan_ok=True)
    table = most_surprising(learn, films[:7], k=3, min_tokens=4)
    assert all(len(row['text'].split()) >= 4 for row in table) and table[0]['nats'] >= table[-1]['nats']
    assert {row['text'] for row in table} <= {' '.join(learn.dls.tokenizer(film)) for film in films}


def test_neighbours_are_the_nearest():
    learn = lm()
    weight,vocab = learn.encoder.embedding.weight.detach(), learn.dls.vocab
    cosine = lambda w: F.cosine_similarity(weight[vocab.stoi['good']], weight[vocab.stoi[w]], 0).item()
    slow = {w: cosine(w) for w in vocab.itos if w != 'good'}
    nearest = sorted(slow, key=slow.get, reverse=True)[:4]
    found = embedding_neighbours(learn, 'good', 4)
    assert [row['word'] for row in found] == nearest
    assert len(embedding_neighbours(learn, 'good', 1000)) == len(vocab) - 1
    for none in (None, 3, b'good', ['good']):
        with pytest.raises(TypeError, match=r'word=.* is no token: give a string, one of the \d+ in learn.dls.vocab'):
            embedding_neighbours(learn, none)
    with pytest.raises(ValueError, match="'Good' is not in the vocabulary of .* try 'good'"):
        embedding_neighbours(learn, 'Good')


@pytest.mark.parametrize('backwards', [False, True])
def test_leaks(backwards):
    dls = TextDataLoaders.from_texts(films, stars, bs=4, min_freq=1, valid=[films[0], 'never seen before'],
                                     valid_labels=stars[:2], backwards=backwards)
    (row,) = leaks(dls)
    assert row['valid'] == row['train'] == 'xxbos a good film' and (row['number'], row['similarity']) == (0, 1.)
    assert '1 of 2 validation documents' in repr(leaks(dls))
    assert repr(leaks(dls, k=0)) == '1 of 2 validation documents are in the training part'


def test_what_a_regression_is_asked_for():
    number = clas(clas_dls([float(len(film)) for film in films], y_block=RegressionSetup), learned=False)
    interp = ClassificationInterpretation.from_learner(number)
    assert interp.intrinsic_attention(text, 0).scores == interp.intrinsic_attention(text).scores
    for which in (1, -1, 'good'):
        with pytest.raises(ValueError, match=r'gives 1 number\(s\), counted from 0'): attribute(number, text, which)


def test_numbers_and_parts_that_cannot_be():
    learn = lm()
    for k in (0, -1, 2.5):
        for f in (lambda k: embedding_neighbours(learn, 'good', k), lambda k: most_surprising(learn, k=k)):
            with pytest.raises(ValueError, match=f'k={k}'): f(k)
    for part in ('all', 'test'):
        with pytest.raises(ValueError, match=f"part='{part}'"): most_surprising(learn, part)


# Ensembles

def both_ways(labels=stars, **how):
    return Ensemble([clas(clas_dls(labels, backwards=back), **how) for back in (False, True)])


def ensembles_odds(both, scales, i):
    "Log-odds of the mean probability when each token's embedding is scaled, (m, n): in every part."
    probs = []
    for part in both.parts:
        own = scales.flip(1) if part.dls.backwards else scales
        probs.append(part.loss_func.activation(scaled(part, ids_of(part, text), own)))
    p = torch.stack(probs).mean(0)[:, i]
    return p.log() - (1 - p).log()


@pytest.mark.parametrize('labels', [stars, [[s] for s in stars]], ids=['one label', 'several'])
def test_attributions_of_an_ensemble_are_those_of_its_mean(labels):
    "Beside midpoints of the way through all parts, and at each of them central differences in the scale of one token."
    both = both_ways(labels)
    for part in both.parts: part.model.double()
    found = attribute(both, text, both.dls.categories[1], n_steps=256)
    n,eps = len(found.tokens), 1e-5
    slow,eye = torch.zeros(n, dtype=torch.float64), torch.eye(n, dtype=torch.float64)
    for alpha in (torch.arange(150) + .5) / 150:
        odds = ensembles_odds(both, torch.cat([alpha + eps * eye, alpha - eps * eye]), 1)
        slow += (odds[:n] - odds[n:]) / (2 * eps) / 150
    assert torch.allclose(torch.tensor(found.scores, dtype=torch.float64), slow, rtol=2e-2, atol=2e-4)
    end,begin = ensembles_odds(both, torch.tensor([[1.], [0.]]).expand(2, n), 1).tolist()
    assert sum(found.scores) == pytest.approx(end - begin, rel=1e-2, abs=1e-4)
    p = both.predict(text)[2][1].item()
    assert found.tokens == both.parts[0].dls.tokenizer(text)
    assert f"'{both.dls.categories[1]}': {math.log(p / (1 - p)):+.3g}," in found.title


@pytest.mark.parametrize('labels', [stars, [[s] for s in stars]], ids=['one label', 'several'])
def test_a_calibrated_ensemble_is_attributed_as_it_predicts(labels):
    both = both_ways(labels)
    before = attribute(both, text, both.dls.categories[1]).scores
    both.cool(2.)
    found = attribute(both, text, both.dls.categories[1])
    p = both.predict(text)[2][1].item()
    assert f"{math.log(p / (1 - p)):+.3g}, of an empty text" in found.title
    assert len(both.dls.categories) > 2 or found.scores == pytest.approx([score / 2 for score in before], abs=1e-5)


def test_an_ensemble_of_equals_says_what_each_says():
    one = clas()
    both = Ensemble([one, one])
    assert attribute(both, text, 'good').scores == pytest.approx(attribute(one, text, 'good').scores, abs=1e-5)
    assert attribute(both, text).title == attribute(one, text).title
    first,second = (ClassificationInterpretation.from_learner(o) for o in (both, one))
    assert np.array_equal(first.confusion_matrix(), second.confusion_matrix())
    assert first.top_table()[0]['text'] == second.top_table()[0]['text']
    numbers = clas(clas_dls([float(len(film)) for film in films], y_block=RegressionSetup))
    twice = attribute(Ensemble([numbers, numbers]), text)
    assert twice.scores == pytest.approx(attribute(numbers, text).scores, abs=1e-4)


def test_of_a_long_document_an_ensemble_explains_what_any_part_pools():
    "The forward one its last five tokens, the backward one its first five."
    found = attribute(both_ways(seq_len=4, max_len=5), text, 'good')
    n = len(found.tokens)
    assert n > 10 and [math.isnan(s) for s in found.scores] == [False] * 5 + [True] * (n - 10) + [False] * 5
    alone = attribute(both_ways(max_len=5).parts[0], text, 'good')
    assert [math.isnan(s) for s in alone.scores] == [True] * (n - 5) + [False] * 5


@pytest.mark.parametrize('of', ['validation', 'new texts'])
def test_errors_of_an_ensemble_are_those_of_its_mean(of):
    both = both_ways(learned=False)
    dl = None if of == 'validation' else both.dls.test_dl(films[:7], stars[:7])
    interp = ClassificationInterpretation.from_learner(both, dl=dl)
    probs,targets = both.get_preds(dl=dl)
    assert np.array_equal(interp.confusion_matrix(), confusion_matrix(targets, probs.argmax(1), labels=range(3)))
    assert {(a, b) for a, b, _ in interp.most_confused()} <= {(a, b) for a in interp.vocab for b in interp.vocab}
    check_report(interp.classification_report(), targets, probs.argmax(1), range(3))
    losses = -probs[torch.arange(len(targets)), targets].log()
    worst = int(losses.argmax())
    row = interp.top_table(1)[0]
    assert (row['number'], row['loss']) == (worst, pytest.approx(losses[worst].item(), rel=1e-5))
    part = both.parts[1]                                     # which reads from the end
    read = (part.dls.valid if dl is None else dl[1]).corpus[worst]
    assert row['text'].split() == part.dls.vocab.decode(read)[::-1]
    assert interp.intrinsic_attention(text, 0).title.startswith("'bad'")


def test_leaks_of_an_ensemble_are_those_of_its_parts():
    "A forward and a backward reader, loaders made apart or turned round; other documents are refused."
    held = ['a good film', 'never seen before by anybody here']
    two = dict(valid=held, valid_labels=['good', 'odd'])
    dls = clas_dls(**two)
    expected = leaks(dls)
    assert [(row['number'], row['similarity']) for row in expected] == [(0, 1.)]
    for other in (other_way(dls), clas_dls(backwards=True, **two)):
        for one, second in ((dls, other), (other, dls)):
            both = Ensemble([clas(one, learned=False, backwards=one.backwards),
                             clas(second, learned=False, backwards=second.backwards)])
            assert leaks(both.dls) == expected and leaks(both.dls).title == expected.title
    others = clas_dls(valid=held[::-1], valid_labels=['odd', 'good'])
    with pytest.raises(ValueError, match=r'part 1 of the ensemble has other documents.*leaks\(dls\.parts\[1\]\)'):
        leaks(Ensemble([clas(dls, learned=False), clas(others, learned=False)]).dls)
    fewer = clas_dls(valid=held[:1], valid_labels=['good'])
    with pytest.raises(ValueError, match='other documents'):
        leaks(Ensemble([clas(dls, learned=False), clas(fewer, learned=False)]).dls)


def test_leaks_of_what_ulmfit_returns_and_of_a_file(tmp_path):
    settings = ULMFiTSettings(lm_bs=4, seq_len=8, min_freq=1, clas_bs=4, steps=((-1, 1, 1e-2),))
    words = [f'{a} {film} {i}' for i, film in enumerate(films) for a in ('so', 'oh')]
    learn = ulmfit(None, (words, [star for star in stars for _ in range(2)]), tmp_path, backwards='both', lm_epochs=1,
                   config=dict(emb_sz=8, n_hid=12, n_layers=1), tok_tfm=BaseTokenizer(), settings=settings,
                   valid=([words[0] + ' .', 'nothing like that at all'], ['good', 'odd']), precision='fp32')
    found = leaks(learn.dls, threshold=.3)
    assert [row['number'] for row in found] == [0] and found == leaks(learn.dls.parts[1], threshold=.3)
    for dls in (load_learner(tmp_path / 'classifier').dls, load_learner(tmp_path / 'language_model_forward').dls):
        with pytest.raises(ValueError, match='a model from a file comes without its data. Give the loaders'): leaks(dls)


@pytest.mark.parametrize('k', [-1, 0, 2.5, 'all', True])
def test_numbers_of_rows_that_cannot_be(k):
    learn = clas(learned=False)
    interp = ClassificationInterpretation.from_learner(learn)
    message = rf'k={k!r}: use a whole number, 1 or more, or None for all\.'
    for call in (interp.top_losses, interp.plot_top_losses, interp.top_table):
        with pytest.raises(ValueError, match=message): call(k)
    if k == 0: assert leaks(learn.dls, k=k) == []
    else:
        with pytest.raises(ValueError, match=rf'k={k!r}: use a whole number, 0 or more, or None'): leaks(learn.dls, k=k)
    with pytest.raises(ValueError, match=rf'k={k!r}: use a whole number'): embedding_neighbours(learn, 'good', k)
    with pytest.raises(ValueError, match=rf'k={k!r}: use a whole number'): most_surprising(lm(), k=k)
    with pytest.raises(ValueError, match=rf'n_steps={k!r}: use a whole number'): attribute(learn, text, n_steps=k)
    assert len(interp.top_table(None)) == len(interp.top_table(10_000)) == len(interp.losses)


@pytest.mark.parametrize('class_id', [99, 3, -1, 1.5, 'good', True])
def test_categories_that_there_are_not(class_id):
    learn = clas(learned=False)
    interp = ClassificationInterpretation.from_learner(learn)
    message = rf"class_id={class_id!r}: use None for .*, 0 to 2, in 'bad', 'good', 'odd'; attribute\(learn, text"
    with pytest.raises(ValueError, match=message): interp.intrinsic_attention(text, class_id)
    assert interp.intrinsic_attention(text, np.int64(2)).title.startswith("'odd'")
    if class_id == 'good': return
    message = f"category={class_id!r} is none of 'bad', 'good', 'odd'. None takes the likeliest"
    with pytest.raises(ValueError, match=message): attribute(learn, text, class_id)


@pytest.mark.parametrize('category', [1, -1, 'good'])
def test_numbers_of_a_regression_that_there_are_not(category):
    number = clas(clas_dls([float(len(film)) for film in films], y_block=RegressionSetup), learned=False)
    interp = ClassificationInterpretation.from_learner(number)
    for call in (interp.intrinsic_attention, lambda *args: attribute(number, *args)):
        with pytest.raises(ValueError, match=f'category={category!r}: this regression gives 1 n'): call(text, category)


def test_ensembles_that_cannot_be_looked_at():
    both = both_ways(learned=False)
    with pytest.raises(ValueError, match='have no labels'):
        ClassificationInterpretation.from_learner(both, dl=both.dls.test_dl(films))
    other = Ensemble([both.parts[0], clas(clas_dls(tok_tfm=BaseTokenizer()), learned=False)])
    with pytest.raises(ValueError, match=r'different tokens.*learn\.parts\[0\]'): attribute(other, "it isn't", 'bad')
    lms = LMEnsemble([lm(), lm(backwards=True)])
    with pytest.raises(TypeError, match='language model: see surprisal'):
        ClassificationInterpretation.from_learner(lms)
    with pytest.raises(TypeError, match='This is a language model'): attribute(lms, text)
    with pytest.raises(TypeError, match='This is a classifier'): surprisal(both, text)
    with pytest.raises(ValueError, match='several embeddings.*learn\\.parts'): embedding_neighbours(lms, 'good')


def test_surprisal_of_several_language_models_is_the_mean_of_theirs():
    lms = LMEnsemble([lm(), lm(backwards=True)])
    found = surprisal(lms, text)
    each = [part.score([text])[0] for part in lms.parts]
    slow = [sum(nats) / 2 for nats in zip(*(score.surprisals for score in each))]
    assert found.tokens == ['xxbos', *each[0].tokens] and found.scores[1:] == pytest.approx(slow)
    assert math.isnan(found.scores[0]) and found.title.startswith(f'{sum(slow) / len(slow):.2f} nats')
    with pytest.raises(ValueError, match='no words'): surprisal(lms, '')


@pytest.mark.parametrize('backwards', [False, True])
def test_several_models_of_characters_are_surprised_on_average(backwards):
    "Of no mark at the beginning: what is read first is not scored."
    lms = LMEnsemble([lm(backwards=backwards, tok_tfm=CharTokenizer()) for _ in range(2)])
    with torch.no_grad(): lms.parts[1].model.decoder.bias += torch.arange(len(lms.dls.vocab)) / 9
    found,each = surprisal(lms, text), [surprisal(part, text) for part in lms.parts]
    assert ''.join(found.tokens) == text and math.isnan(found.scores[-1 if backwards else 0])
    np.testing.assert_allclose(found.scores, np.mean([one.scores for one in each], 0), rtol=1e-5)
    corpus = lms.parts[0].dls.valid.corpus
    means = torch.stack([document_losses(part, corpus) for part in lms.parts]).mean(0)
    torch.testing.assert_close(document_losses(lms, corpus), means)


@pytest.mark.parametrize('part', ['valid', 'texts'])
def test_most_surprising_to_several_language_models(part):
    "The order is by the mean nats of a word, whichever end each part reads from."
    lms = LMEnsemble([lm(), lm(backwards=True)])
    corpus = lms.parts[0].dls.valid.corpus if part == 'valid' else lms.parts[0].dls.test_dl(films[:7]).corpus
    docs = [' '.join(lms.dls.vocab.decode(doc)[1:]) for doc in corpus]
    table = most_surprising(lms, 'valid' if part == 'valid' else films[:7], k=3, min_tokens=2)
    slow = {i: np.mean([np.mean(one.score([doc])[0].surprisals) for one in lms.parts]) for i, doc in enumerate(docs)}
    best = sorted(slow, key=slow.get, reverse=True)[:3]
    assert [row['nats'] for row in table] == pytest.approx([slow[i] for i in best], rel=1e-4)
    assert table[0]['text'].split()[1:] == docs[table[0]['number']].split()
