"ulmfit: every stage on tiny texts, stopped everywhere; ensembles are the mean of their parts."
import json
import signal
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.utils.class_weight import compute_class_weight

from awdtext import ulmfit as module
from awdtext.data.batches import RegressionSetup
from awdtext.data.data_block import RegressionBlock
from awdtext.data.tokenizer import BaseTokenizer, CharTokenizer, SubwordTokenizer
from awdtext.ensemble import Ensemble, LMEnsemble
from awdtext.recipes import Results
from awdtext.text_learner import TextClassifierLearner, load_learner
from awdtext.training.calibration import fit_temperature
from awdtext.training.learner import Learner
from awdtext.training.loggers import CSVLogger
from awdtext.training.monitors import EarlyStopping, KeepBest
from awdtext.training.precision import supported
from awdtext.ulmfit import Docs, ULMFiTSettings, split_data, ulmfit

nouns,good,bad = ('film', 'book', 'play', 'song'), ('good', 'fine', 'great'), ('bad', 'poor', 'dull')
reviews = [f'the {noun} was {word} and {other} .' for noun in nouns for words in (good, bad)
           for word in words for other in words]
labels = ['pos' if any(word in text for word in good) else 'neg' for text in reviews]
more = [f'a {noun} is {word} .' for noun in nouns for word in good + bad]
small = ULMFiTSettings(n_samples=0, lm_bs=4, seq_len=8, min_freq=1, clas_bs=8, lm_lr=2e-2,
                       steps=((-1, 1, 5e-2), (-2, 1, 5e-2), (0, 3, 5e-2)))
quick = dict(config=dict(emb_sz=8, n_hid=12, n_layers=2), lm_epochs=2, tok_tfm=BaseTokenizer(), settings=small,
             drop_mult=.1, precision='fp32', probe=False)


def probabilities(learn): return learn.get_preds()[0]


@pytest.fixture(scope='module')
def both(tmp_path_factory):
    "A run in both directions, uninterrupted; its folder."
    out = tmp_path_factory.mktemp('ulmfit') / 'run'
    return ulmfit(more, (reviews, labels), out, backwards='both', **quick), out


# The whole way

def test_one_direction_returns_the_learner(tmp_path):
    learn = ulmfit(pd.Series(more), pd.DataFrame({'text': reviews, 'label': labels}), tmp_path / 'run',
                   **{**quick, 'precision': None, 'settings': replace(small, n_samples=2)})
    has = 'bf16' if supported('bf16', torch.device('cpu')) else 'fp32'
    assert f'products in {has}' in learn.card and learn.precision.name == 'fp32'
    assert type(learn) is TextClassifierLearner and not learn.dls.backwards
    assert learn.predict(reviews[0])[0] in ('neg', 'pos')
    assert len(learn.validate()) == 2 and {row['stage'] for row in learn.record} == {1, 2, 3}
    there = load_learner(tmp_path / 'run/classifier')
    torch.testing.assert_close(there.predict(reviews[0])[2], learn.predict(reviews[0])[2])
    assert there.card == learn.card == (tmp_path / 'run/card.txt').read_text().rstrip('\n')
    assert learn.dls.vocab.itos == load_learner(tmp_path / 'run/language_model_forward').dls.vocab.itos
    assert not (tmp_path / 'run/checkpoints/forward_classifier').exists(), "checkpoints are deleted when all is done"
    for name, sections in (('language_model', ['Curves', 'Samples']), ('classifier', ['Curves', 'Which words decide'])):
        page = (tmp_path / f'run/forward_{name}.html').read_text()
        assert f'<h1>The forward {name.replace("_", " ")}</h1>' in page
        assert all(f'<h2>{section}</h2>' in page for section in sections)


@pytest.mark.parametrize('wanted', ['fp16', 'bf16'])
def test_the_card_tells_the_precision_that_was_used(tmp_path, monkeypatch, capsys, wanted):
    "Of a processor that has neither."
    monkeypatch.setattr('awdtext.training.precision.supported', lambda name, device: name == 'fp32')
    learn = ulmfit(more, (reviews, labels), tmp_path, **{**quick, 'precision': wanted})
    assert 'products in fp32' in learn.card and 'float32' in capsys.readouterr().out.split('Plan')[0]


def test_time_is_that_of_all_that_was_done(tmp_path, monkeypatch):
    "With tokenising and reports, of which an hour passes here; what was asked for stands beside it."
    began,slow = time.monotonic(), 0.
    def clock(): return began + slow
    monkeypatch.setattr(module, 'time', SimpleNamespace(monotonic=clock))
    report = module.training_report
    def slowly(*args):
        nonlocal slow
        slow += 1800
        return report(*args)
    monkeypatch.setattr(module, 'training_report', slowly)
    learn = ulmfit(more, (reviews, labels), tmp_path, **quick)
    seconds = json.loads((tmp_path / 'results.json').read_text())['seconds']
    assert seconds['forward language model'] == pytest.approx(1800) and sum(seconds.values()) == pytest.approx(3600)
    assert 'time                    1 h 00 min in all' in learn.card and 'asked for' not in learn.card


def test_backward_alone_reads_from_the_end(tmp_path):
    learn = ulmfit(more, (reviews, labels), tmp_path, backwards=True, **quick)
    assert type(learn) is TextClassifierLearner and learn.dls.backwards
    assert load_learner(tmp_path / 'language_model_backward').dls.backwards


def calibrated_loss(learn):
    "Of what it says of its validation data."
    probs,targs = learn.get_preds()
    losses = [F.nll_loss((probs.log() / t).log_softmax(1), targs) for t in np.geomspace(.05, 20, 2000)]
    return min(losses).item()


def test_best_epoch_of_all_steps_is_kept(both):
    for part in both[0].parts:
        least = min(row['calibrated_loss'] for row in part.record)
        assert calibrated_loss(part) == pytest.approx(least, rel=1e-3, abs=1e-6)


def test_a_classifier_that_is_too_sure_is_kept_and_cooled(tmp_path, monkeypatch):
    kept,stops = [],[]
    class Spy(KeepBest):
        def after_epoch(self, learn):
            super().after_epoch(learn)
            if self.monitor == 'calibrated_loss' and self.improved: kept.append(learn.record[-1]['calibrated_loss'])
    monkeypatch.setattr(module, 'KeepBest', Spy)
    monkeypatch.setattr(module, 'EarlyStopping', lambda *args, **how: stops.append((*args, how['patience']))
                        or EarlyStopping(*args, **how))
    wrong = [{'pos': 'neg', 'neg': 'pos'}[label] if i % 4 == 0 else label for i, label in enumerate(labels)]
    settings = replace(small, steps=((-1, 2, 5e-2), (-2, 1, 5e-2), (0, 12, 5e-2)), clas_patience=12)
    learn = ulmfit(more, (reviews, wrong), tmp_path, **{**quick, 'settings': settings, 'drop_mult': 0.})
    least = min(row['calibrated_loss'] for row in learn.record)
    assert learn.validate()[0] == pytest.approx(least, rel=1e-4)
    assert set(stops) == {(small.lm_patience,), ('calibrated_loss', 12)} # of the language model, and of the classifier
    assert kept[-1] == least and kept == sorted(kept, reverse=True)
    assert all(row['calibrated_loss'] < row['valid_loss'] for row in learn.record)
    result = json.loads((tmp_path / 'results.json').read_text())['forward classifier']
    assert result['temperature'] != 1 and f"temperature {result['temperature']:.2f}" in learn.card
    assert [m.name for m in learn.metrics] == ['accuracy'] and len(learn.validate()) == 2
    there = load_learner(tmp_path / 'classifier')
    torch.testing.assert_close(there.predict(reviews[0])[2], learn.predict(reviews[0])[2])


def test_it_stops_early_with_the_best_pass(tmp_path):
    "A rate that ruins the classifier makes most passes of its last step worse; the others are never cut short."
    settings = replace(small, steps=((-1, 8, .3), (-2, 1, 5e-2), (0, 30, .3)), clas_patience=1)
    learn = ulmfit(more, (reviews, labels), tmp_path, **{**quick, 'settings': settings})
    losses = [[row['calibrated_loss'] for row in learn.record if row['stage'] == i] for i in (1, 2, 3)]
    best = min(range(len(losses[2])), key=losses[2].__getitem__)
    assert len(losses[0]) == 8 and len(losses[1]) == 1
    assert len(losses[2]) == best + 2 < 30                                  # with the first one that was no better
    assert f'{sum(map(len, losses))} passes (' in learn.card


def test_the_best_pass_of_the_language_model_stays(tmp_path, monkeypatch):
    seen = []
    class Watch(EarlyStopping):
        def after_epoch(self, learn):
            if 'perplexity' in learn.record[-1]: seen.append([row['perplexity'] for row in learn.record])
            super().after_epoch(learn)
    monkeypatch.setattr(module, 'EarlyStopping', Watch)
    ulmfit(more, (reviews, labels), tmp_path,
           **{**quick, 'settings': replace(small, lm_lr=1., lm_patience=2), 'lm_epochs': 12})
    perplexities = seen[-1]
    best = perplexities.index(min(perplexities))
    assert best + 2 == len(perplexities) - 1 < 11                            # two passes after the best one it ended
    lm = load_learner(tmp_path / 'language_model_forward')
    found = json.loads((tmp_path / 'results.json').read_text())['forward language model']
    assert found['perplexity'] == pytest.approx(perplexities[best], rel=1e-5) and found['epochs'] == len(perplexities)
    valid = module.split_data(more, Docs(reviews, labels), settings=small).lm_valid
    assert lm.evaluate(valid).perplexity < 2 * perplexities[best]


def test_numbers_are_not_cooled(tmp_path):
    learn = ulmfit(more, (reviews, [float(label == 'pos') for label in labels]), tmp_path, y_block=RegressionSetup,
                   **quick)
    assert learn.validate()[0] == pytest.approx(min(row['valid_loss'] for row in learn.record), rel=1e-4)
    assert 'temperature' not in learn.card and 'calibrated_loss' not in learn.record[0]


def test_labels_alone_do(tmp_path):
    assert ulmfit(None, (reviews, labels), tmp_path, **quick).predict(reviews[0])


def f1_at(learn, i, cut):
    probs,y = learn.get_preds()
    return f1_score(y[:, i], probs[:, i] > cut)


def tune_threshold(probs, truth):
    "The best F1 that any threshold gives: a slow loop."
    return max(f1_score(truth, probs > cut) for cut in [0., *probs.tolist()])


def test_several_labels_and_numbers(tmp_path):
    several = [label + ('; long' if i % 2 else '') for i, label in enumerate(labels)]
    frame = pd.DataFrame({'body': reviews, 'tags': several})
    learn = ulmfit(more, frame, tmp_path / 'several', text_col='body', label_col='tags', label_delim='; ',
                   backwards='both', **quick)
    assert set(learn.dls.categories) == {'long', 'neg', 'pos'}
    assert isinstance(learn.predict(reviews[0])[0], list)
    mean = torch.stack([part.get_preds()[0] for part in learn.parts]).mean(0)
    y = learn.get_preds()[1]
    expected = F.binary_cross_entropy(mean, y)
    assert learn.validate()[0] == pytest.approx(expected.item(), rel=1e-3)
    tuned = [tune_threshold(column, truth) for column, truth in zip(learn.get_preds()[0].T, y.T)]
    assert [f1_at(learn, i, cut.item()) for i, cut in enumerate(learn.thresholds)] == pytest.approx(tuned)
    there = load_learner(tmp_path / 'several/classifier')
    assert torch.equal(there.thresholds, learn.thresholds)
    assert 'thresholds              ' in learn.card
    again = ulmfit(more, frame, tmp_path / 'several', text_col='body', label_col='tags', label_delim='; ',
                   backwards='both', **quick)
    assert torch.equal(again.thresholds, learn.thresholds) and again.validate() == learn.validate()
    numbers = ulmfit(more, (reviews, [float(label == 'pos') for label in labels]), tmp_path / 'numbers',
                     y_block=RegressionSetup, backwards='both', **quick)
    mean = torch.stack([part.get_preds()[0] for part in numbers.parts]).mean(0)
    assert numbers.thresholds is None
    assert numbers.predict(reviews[0])[0] == pytest.approx(
        torch.stack([part.get_preds(dl=part.dls.test_dl([reviews[0]]))[0] for part in numbers.parts]).mean().item())
    errors = mean.view(-1) - numbers.get_preds()[1].view(-1)
    assert numbers.validate()[0] == pytest.approx(errors.pow(2).mean().item())


def test_subwords_travel(tmp_path):
    learn = ulmfit(more, (reviews, labels), tmp_path, **{**quick, 'tok_tfm': SubwordTokenizer(vocab_sz=300)})
    there = load_learner(tmp_path / 'classifier')
    torch.testing.assert_close(there.predict(reviews[0])[2], learn.predict(reviews[0])[2])
    assert there.dls.tokenizer(reviews[0]) == learn.dls.tokenizer(reviews[0])


def test_slanted_triangular_rates(tmp_path):
    learn = ulmfit(more, (reviews, labels), tmp_path,
                   **{**quick, 'settings': replace(small, schedule='slanted-triangular')})
    lrs = learn.recorder.lrs
    n = len(lrs) // 5                                                   # steps of one pass; five passes in all
    assert lrs[0] == pytest.approx(5e-2 / 32) and max(lrs[-3 * n:]) == pytest.approx(5e-2, rel=.1)
    assert 'slanted-triangular' in learn.card


def test_groups_thaw_one_step_at_a_time_at_rates_of_their_own(tmp_path, monkeypatch):
    seen,fit = [], Learner.fit_one_cycle
    def spy(learn, n_epoch, lr_max, **how):
        groups = [params[0].requires_grad for params in learn.splitter(learn.model)]
        fit(learn, n_epoch, lr_max, **how)
        seen.append((n_epoch, lr_max, groups, [group['lr'] for group in learn.opt.param_groups]))
    monkeypatch.setattr(Learner, 'fit_one_cycle', spy)
    ulmfit(more, (reviews, labels), tmp_path, **quick)
    lm,*steps = seen
    assert lm[:2] == (2, small.lm_lr) and all(lm[2])
    assert [n for n, *_ in steps] == [1, 1, 3]
    assert [thawed for _, _, thawed, _ in steps] == [[False] * 3 + [True], [False] * 2 + [True] * 2, [True] * 4]
    for *_, rates in steps[1:]: assert [rates[-1] / lr for lr in rates] == pytest.approx([2.6**3, 2.6**2, 2.6, 1])


# Ensembles

def test_ensemble_is_the_mean_of_its_parts(both):
    learn,_ = both
    assert [part.dls.backwards for part in learn.parts] == [False, True]
    one,two = map(probabilities, learn.parts)
    assert not torch.allclose(one, two)
    preds,targets = learn.get_preds()
    torch.testing.assert_close(preds, (one + two) / 2)
    loss,accuracy = learn.validate()
    assert loss == pytest.approx(torch.nn.functional.nll_loss(preds.log(), targets).item(), rel=1e-4)
    assert accuracy == pytest.approx((preds.argmax(1) == targets).float().mean().item())
    text = reviews[3]
    torch.testing.assert_close(learn.predict(text)[2], sum(part.predict(text)[2] for part in learn.parts) / 2)
    assert learn.encode([text]).shape == (1, 2 * 3 * 8)
    assert np.array_equal(list(learn.iter_encode(text for text in reviews[:9])), learn.encode(reviews[:9]))
    with pytest.raises(ValueError, match='part 1 is an ensemble itself'): Ensemble([learn.parts[0], learn])
    assert learn.dls.valid is learn.parts[0].dls.valid


def test_an_ensemble_shows_documents_beside_what_it_says(both, capsys):
    learn,_ = both
    learn.show_results(max_n=3, shuffle=False)
    rows = capsys.readouterr().out.strip().split('\n\n')
    shown = [dict(line.split(': ', 1) for line in row.split('\n')) for row in rows]
    dls = learn.parts[0].dls
    corpus,(preds,targets) = dls.valid.corpus, learn.get_preds()
    for row in shown:
        i = next(i for i in range(3) if ' '.join(dls.vocab.decode(corpus[i])) == row['text'])
        assert row['category'] == dls.categories[targets[i]] and row['predicted'] == dls.categories[preds[i].argmax()]
    assert len(shown) == 3
    torch.manual_seed(0)
    learn.show_results(max_n=100)
    drawn = capsys.readouterr().out
    assert drawn.count('predicted: ') == len(corpus)
    learn.show_results(dl=learn.dls.test_dl(reviews[:2]))
    assert 'category' not in (out := capsys.readouterr().out) and out.count('predicted: ') == 2
    with pytest.raises(ValueError, match='There is no data number 2'): learn.show_results(2)
    with pytest.raises(ValueError, match='max_n=0'): learn.show_results(max_n=0)


def test_exported_ensemble_says_the_same(both, tmp_path):
    learn,out = both
    there = load_learner(out / 'classifier')
    assert type(there) is Ensemble and there.card == learn.card
    dl = there.dls.test_dl(reviews[:5], labels[:5])
    torch.testing.assert_close(there.get_preds(dl=dl)[0], learn.get_preds(dl=learn.dls.test_dl(reviews[:5]))[0])
    again = load_learner(there.export(tmp_path / 'again'))
    torch.testing.assert_close(again.predict(reviews[0])[2], learn.predict(reviews[0])[2])
    assert there.validate_figures(dl)['accuracy'] == pytest.approx(
        (there.get_preds(dl=dl)[0].argmax(1) == dl[0].targets).float().mean().item())


def test_language_models_score_the_same_words(both):
    "By hand: each word's log-probability from the left, from the right, and their mean."
    _,out = both
    parts = [load_learner(out / f'language_model_{way}') for way in ('forward', 'backward')]
    ensemble,text = LMEnsemble(parts), 'the film was good .'
    score = ensemble.score([text, 'a dull book .'])[0]
    tokens = parts[0].dls.tokenizer(text)
    assert score.tokens == tokens[1:] and tokens[0] == 'xxbos'
    means = torch.zeros(len(tokens) - 1)
    for part, body in zip(parts, (tokens[1:], tokens[:0:-1])):
        ids,state,found = part.dls.vocab.encode(['xxbos', *body]).tolist(), None, []
        for now, then in zip(ids, ids[1:]):
            out_ = part.model.eval()(torch.tensor([[now]]), state)
            state = out_.state
            found.append(-part.model.logits(out_.dropped)[0, -1].log_softmax(-1)[then].item())
        means += torch.tensor(found if not part.dls.backwards else found[::-1]) / 2
    torch.testing.assert_close(torch.tensor(score.surprisals), means, rtol=1e-4, atol=1e-4)
    figures = [part.score([text])[0].perplexity for part in parts]
    assert ensemble.evaluate([text]).perplexity == pytest.approx((figures[0] * figures[1]) ** .5, rel=1e-4)
    reloaded = load_learner(ensemble.export(out / 'both_language_models'))
    assert type(reloaded) is LMEnsemble and reloaded.score([text]) == ensemble.score([text])


# Interruptions

class Stops(KeepBest):
    "Presses Ctrl-C, or dies, after a certain step of all that are made."
    steps,at,how = 0, None, None

    def after_step(self, learn):
        Stops.steps += 1
        if Stops.steps != Stops.at: return
        if Stops.how == 'dies': raise RuntimeError("killed")
        signal.raise_signal(signal.SIGINT)


def describe_as_kept(monkeypatch):
    "A run may go on with the usual callback: the other one is called by its name."
    Stops.__name__ = 'KeepBest'
    monkeypatch.setattr(module, 'KeepBest', Stops)


@pytest.fixture(scope='module')
def n_steps(tmp_path_factory):
    "Of a run in both directions."
    Stops.steps,Stops.at = 0, None
    with pytest.MonkeyPatch.context() as m:
        describe_as_kept(m)
        ulmfit(more, (reviews, labels), tmp_path_factory.mktemp('steps') / 'run', backwards='both', **quick)
    return Stops.steps


@pytest.mark.parametrize('how', ['Ctrl-C', 'dies'])
@pytest.mark.parametrize('at', [5, 45, 60, 90, 140])
def test_same_call_goes_on_to_the_same_predictions(both, n_steps, tmp_path, monkeypatch, at, how):
    describe_as_kept(monkeypatch)
    args = [more, (reviews, labels), tmp_path / 'run']
    Stops.steps,Stops.at,Stops.how = 0, at, how
    with pytest.raises(KeyboardInterrupt if how == 'Ctrl-C' else RuntimeError):
        ulmfit(*args, backwards='both', every='2steps', **quick)
    Stops.at,Stops.steps = None, 0
    torch.manual_seed(0)                                                # as another process would not be where this was
    learn = ulmfit(*args, backwards='both', every='3steps', **quick)
    assert torch.equal(probabilities(learn), probabilities(both[0]))
    assert n_steps - at <= Stops.steps <= n_steps - at + 2, "it made steps again that were in a checkpoint"


def killed_after(monkeypatch, last, call):
    "What a call returns that was killed after a stage, and made again."
    stage = Results.stage
    def dying(self, name, work):
        stage(self, name, work)
        if name == last: raise KeyboardInterrupt
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(Results, 'stage', dying)
        call()
    torch.manual_seed(0)                                                # as another process would not be where this was
    return call()


@pytest.mark.parametrize('last', ['plan', 'forward language model', 'forward classifier', 'backward classifier',
                                  'figures'])
def test_killed_between_stages(both, tmp_path, monkeypatch, last):
    def call(): return ulmfit(more, (reviews, labels), tmp_path / 'run', backwards='both', **quick)
    assert torch.equal(probabilities(killed_after(monkeypatch, last, call)), probabilities(both[0]))


def test_finished_run_trains_no_more(both, monkeypatch):
    learn,out = both
    monkeypatch.setattr(Learner, '_fit', lambda *args, **how: pytest.fail("it trains"))
    again = ulmfit(more, (reviews, labels), out, backwards='both', **quick)
    assert torch.equal(probabilities(again), probabilities(learn)) and again.card == learn.card


def test_another_call_is_refused(both):
    _,out = both
    before = (out / 'results.json').read_bytes()
    for changed in (dict(seed=1), dict(drop_mult=.3), dict(settings=replace(small, lm_lr=1e-2)),
                    dict(tok_tfm=CharTokenizer())):
        with pytest.raises(ValueError, match='holds another run'):
            ulmfit(more, (reviews, labels), out, backwards='both', **{**quick, **changed})
    with pytest.raises(ValueError, match='holds another run'):
        ulmfit(more[1:], (reviews, labels), out, backwards='both', **quick)
    assert (out / 'results.json').read_bytes() == before


# Class weights

rare = [label for label in labels if label == 'neg'][:12] + ['pos'] * 36
rare_texts = [text for text, label in zip(reviews, labels) if label == 'neg'][:12] + [
    text for text, label in zip(reviews, labels) if label == 'pos']


@pytest.mark.parametrize('at', [None, 50, 75])
def test_weights_of_rare_classes_are_in_loss_card_and_files(tmp_path, monkeypatch, at):
    "Also where the run was killed: the same call goes on, with the same weights."
    how = dict(backwards='both', class_weights='balanced', every='2steps', **quick)
    whole = ulmfit(more, (rare_texts, rare), tmp_path / 'whole', **how)
    y = [whole.dls.categories[i] for i in whole.parts[0].dls.train.targets.tolist()]
    theirs = compute_class_weight('balanced', classes=np.array(['neg', 'pos']), y=y)
    for part in whole.parts: assert part.loss_func.settings['weight'] == pytest.approx(theirs.tolist())
    assert theirs[0] > 1.5 and f'class weights           neg {theirs[0]:.4g}, pos {theirs[1]:.4g}' in whole.card
    probs,targets = whole.get_preds()
    expected = torch.nn.functional.nll_loss(probs.log(), targets, torch.tensor(theirs).float()).item()
    assert whole.validate()[0] == pytest.approx(expected, rel=1e-4)
    there = load_learner(tmp_path / 'whole/classifier')
    assert there.parts[1].loss_func.settings == whole.parts[1].loss_func.settings and there.card == whole.card
    if at is None: return
    describe_as_kept(monkeypatch)
    Stops.steps,Stops.at,Stops.how = 0, at, 'dies'
    with pytest.raises(RuntimeError): ulmfit(more, (rare_texts, rare), tmp_path / 'run', **how)
    Stops.at = None
    again = ulmfit(more, (rare_texts, rare), tmp_path / 'run', **how)
    assert torch.equal(probabilities(again), probabilities(whole))


def test_class_weights_must_agree_for_a_run_to_go_on(tmp_path):
    how = {**quick, 'class_weights': {'pos': 1, 'neg': 3}}
    learn = ulmfit(more, (reviews, labels), tmp_path, **how)
    assert learn.loss_func.settings['weight'] == [3., 1.]
    for other in (None, 'balanced', {'pos': 1, 'neg': 2}):
        with pytest.raises(ValueError, match='holds another run'):
            ulmfit(more, (reviews, labels), tmp_path, **{**how, 'class_weights': other})
    assert ulmfit(more, (reviews, labels), tmp_path, **{**how, 'class_weights': [3., 1.]}).card == learn.card


def test_weights_of_several_labels_and_of_numbered_ones(tmp_path):
    tags = [[label] + ['long'] * (i % 5 == 0) for i, label in enumerate(labels)]
    learn = ulmfit(more, (reviews, tags), tmp_path / 'tags', class_weights='balanced', **quick)
    y = learn.dls.train.targets
    assert learn.loss_func.settings['pos_weight'] == pytest.approx(((len(y) - y.sum(0)) / y.sum(0)).tolist())
    numbered = ulmfit(more, (reviews, [int(label == 'pos') for label in labels]), tmp_path / 'numbers',
                      class_weights={1: 2., 0: 1.}, **quick)
    assert numbered.loss_func.settings['weight'] == [1., 2.] and 'class weights           1 2, 0 1\n' in numbered.card


@pytest.mark.parametrize(('y', 'weights', 'message'), [
    (labels, 'equal', "class_weights='equal'"), (labels, {'pos': 2.}, "lack 'neg'"),
    (labels, {'pos': 2., 'neg': 1., 'odd': 1.}, "name 'odd', and the categories are 'neg', 'pos'"),
    (labels, [1., 0.], 'each must be above 0'), ([float(i) for i in range(72)], 'balanced', 'numbers as labels')])
def test_class_weights_that_cannot_be_leave_nothing(tmp_path, y, weights, message):
    how = {**quick, 'y_block': RegressionSetup if y is not labels else None}
    with pytest.raises(ValueError, match=message):
        ulmfit(more, (reviews, y), tmp_path / 'run', class_weights=weights, **how)
    assert not (tmp_path / 'run').exists()


# What else the classifier's loss and the trainings are told

def test_label_smoothing_is_in_loss_card_and_file(tmp_path):
    how = {**quick, 'probe': True, 'label_smoothing': .2}
    learn = ulmfit(more, (reviews, labels), tmp_path, **how)
    parts = learn.parts if type(learn) is Ensemble else [learn]
    assert all(part.loss_func.settings['label_smoothing'] == .2 for part in parts)
    assert 'label smoothing         0.2\n' in learn.card
    there = load_learner(tmp_path / 'classifier')
    assert there.card == learn.card and there.loss_func.settings == learn.loss_func.settings
    probs,targets = learn.get_preds()
    expected = F.cross_entropy(probs.log(), targets, label_smoothing=.2).item()   # the log is a score as good as any
    assert learn.validate()[0] == pytest.approx(expected, rel=1e-4)
    with pytest.raises(ValueError, match='holds another run'):
        ulmfit(more, (reviews, labels), tmp_path, **{**how, 'label_smoothing': .1})


@pytest.mark.parametrize(('y', 'smoothing', 'message'), [
    (labels, 1., 'label_smoothing=1.0: use 0 or more'), (labels, -.1, 'label_smoothing=-0.1'),
    ([[label] for label in labels], .1, 'with one label each'), ([float(i) for i in range(72)], .1, 'have numbers')])
def test_smoothing_that_cannot_be_leaves_nothing(tmp_path, y, smoothing, message):
    how = {**quick, 'y_block': RegressionSetup if isinstance(y[0], float) else None}
    with pytest.raises(ValueError, match=message):
        ulmfit(more, (reviews, y), tmp_path / 'run', label_smoothing=smoothing, **how)
    assert not (tmp_path / 'run').exists()


def record_of(file): return pd.read_csv(file).drop(columns=['time', 'tokens/s', 'docs/s'], errors='ignore')


@pytest.mark.parametrize('at', [8, 40, 64])
def test_callbacks_of_each_training(tmp_path, monkeypatch, at):
    "Each has its own, for all its steps; a run that goes on writes what one that was not stopped does."
    names = []
    def cbs(name):
        names.append(name)
        return CSVLogger(f'{name}.csv')
    whole = ulmfit(more, (reviews, labels), tmp_path / 'whole', cbs=cbs, every='2steps', **quick)
    assert names == ['forward language model', 'forward classifier']
    assert not any(isinstance(cb, CSVLogger) for cb in whole.cbs), "the learner that is returned would write on"
    describe_as_kept(monkeypatch)
    Stops.steps,Stops.at,Stops.how = 0, at, 'dies'
    with pytest.raises(RuntimeError, match='killed'):
        ulmfit(more, (reviews, labels), tmp_path / 'run', cbs=cbs, every='2steps', **quick)
    Stops.at = None
    assert torch.equal(probabilities(ulmfit(more, (reviews, labels), tmp_path / 'run', cbs=cbs, every='2steps',
                                            **quick)), probabilities(whole))
    for name, n in (('forward language model', 2), ('forward classifier', 1 + 1 + 3)):
        one,other = (record_of(tmp_path / f'{run}/{name}.csv') for run in ('whole', 'run'))
        assert len(one) == n
        pd.testing.assert_frame_equal(one, other)


def test_callbacks_may_change_from_call_to_call(both):
    _,out = both
    made = []
    ulmfit(more, (reviews, labels), out, backwards='both', cbs=made.append, **quick)
    assert made == [], "nothing was left to train"


def test_callbacks_are_made_for_each_training(tmp_path):
    with pytest.raises(TypeError, match='cbs makes new callbacks for each training'):
        ulmfit(more, (reviews, labels), tmp_path / 'run', cbs=[CSVLogger()], **quick)
    assert not (tmp_path / 'run').exists()


# The parts

def test_test_and_validation_texts_are_never_read(tmp_path):
    "Their words are in no vocabulary, though the texts stand among the unlabelled and the labelled ones too."
    held_out = [f'the opera was {word} .' for word in (*good, *bad)]
    kept = [f'the ballet was {word} .' for word in (*good, *bad)]
    y = ['pos'] * 3 + ['neg'] * 3
    learn = ulmfit([*more, *held_out, *kept], (reviews + held_out, labels + y), tmp_path, test=(held_out, y),
                   valid=(kept, y), **quick)
    assert 'opera' not in learn.dls.vocab and 'ballet' not in learn.dls.vocab and 'film' in learn.dls.vocab
    content = json.loads((tmp_path / 'results.json').read_text())
    accuracy = learn.validate_figures(learn.dls.test_dl(held_out, y))['accuracy']
    assert content['figures']['test']['accuracy'] == accuracy
    assert any('12 texts kept from the language model' in note for note in content['settings']['notes'])
    assert any('6 labelled texts taken out' in note for note in content['settings']['notes'])


@pytest.mark.parametrize('seed', range(6))
def test_both_parts_know_a_rare_one_of_several_labels(seed):
    texts = [f'text {i}' for i in range(60)]
    tags = [['common', 'rare'] if i % 20 == 0 else ['common'] if i % 3 else [] for i in range(60)]
    data = split_data([], Docs(texts, tags), seed=seed)
    assert [sum('rare' in row for row in part.labels) for part in (data.train, data.valid)] == [2, 1]
    assert len(data.valid.texts) == 1 + 8 + 4                               # a fifth of 3, of 38 and of 19


@pytest.mark.parametrize('seed', range(8))
def test_a_text_with_two_labels_is_not_validated_on_and_trained_on(seed):
    "Each of its copies went where its label went, so that one could be trained on and the other validated."
    texts = [f'a film {i}' for i in range(20)]
    data = split_data([], Docs(texts + texts[:6], ['pos', 'neg'] * 10 + ['neg', 'pos'] * 3), valid_pct=.5, seed=seed)
    assert not set(data.train.texts) & set(data.valid.texts) and len(data.train.texts) >= 8
    assert data.notes[0] == '6 labelled rows too many: their text has another label elsewhere'
    assert not set(data.valid.texts) & {*data.lm, *data.lm_valid}


def test_texts_that_all_have_two_labels():
    both = Docs(['a', 'a', 'b', 'b'], ['x', 'y', 'x', 'y'])
    with pytest.raises(ValueError, match='every labelled text has another label elsewhere'):
        for seed in range(20): split_data([], both, valid_pct=.5, seed=seed)


def test_rows_without_label_are_for_the_language_model(tmp_path, capsys):
    frame = pd.DataFrame({'text': [*reviews, 'one opera more .'], 'label': [*labels, None]})
    learn = ulmfit(more, frame, tmp_path, **quick)
    assert '1 labelled rows without a label: for the language model only.' in capsys.readouterr().out
    texts = len(learn.dls.train.corpus) + len(learn.dls.valid.corpus)
    assert texts == len(reviews) and '1 labelled rows without a label' in learn.card


def test_leaks_are_reported(tmp_path, capsys):
    long = 'it was a long and quiet evening in a small town by the sea where nobody ever went to see the film'
    learn = ulmfit([*more, f'{long} again'] * 2, (reviews, labels), tmp_path, valid=([f'{long} twice', reviews[0]],
                   ['pos', 'pos']), **{**quick, 'settings': replace(small, lm_valid_pct=.01)})
    assert '1 of 2 validation documents are, nearly the same' in capsys.readouterr().out
    assert '1 of 2 validation documents are nearly the same as a text trained on' in learn.card


def test_split_is_stratified_and_seeded(tmp_path):
    names = ['rare', 'rare'] + ['usual'] * 70
    parts = [module.split_data([], module.Docs(reviews, names), seed=seed) for seed in (0, 0, 1)]
    assert parts[0] == parts[1] != parts[2]
    assert all(part.valid.labels.count('rare') == part.train.labels.count('rare') == 1 for part in parts)
    alone = module.split_data([], module.Docs(reviews, ['alone', *names[:1] * 2, *names[3:]]))
    assert 'alone' in alone.train.labels


# The card and the plan

def test_card_tells_everything(both):
    learn,out = both
    content = json.loads((out / 'results.json').read_text())
    for text in ('58 labelled documents for training, 14 for validation', 'pos 29, neg 29', 'embedding 8, hidden 12',
                 '2 of 2 passes over', 'rate 0.02', 'perplexity', 'group -1 on at 0.05', 'divided by 2.6', '±',
                 'backward language model', 'the mean of 2 models', 'in all', 'seed 42', 'torch', 'GB'):
        assert text in learn.card, text
    assert f"accuracy {content['figures']['validation']['accuracy']:.4f}" in learn.card
    assert content['figures']['validation']['valid_loss'] == pytest.approx(learn.validate()[0])


def test_card_has_tfidf_for_comparison(both):
    "On these reviews the words say it all, and a look at the sums is not needed."
    learn,out = both
    found = json.loads((out / 'results.json').read_text())['figures']['tfidf']
    assert found == {'accuracy': 1.} and 'TF-IDF, for comparison  validation accuracy 1.0000 ± 0.0000' in learn.card


@pytest.mark.parametrize('ours', [.9, 1.])
def test_card_says_what_helps_where_tfidf_is_ahead(both, ours):
    content = json.loads((both[1] / 'results.json').read_text())
    content['figures']['validation']['accuracy'] = ours
    assert ('it is ahead: more text and time help' in module.recipe_card(content)) == (ours < 1)


def test_comparison_is_an_ordinary_logistic_regression_on_words_and_pairs(tmp_path):
    "Labels of half of the reviews are wrong, so that something is left to get wrong."
    noisy = [('neg', 'pos')[i % 3 == 0] if i % 2 else label for i, label in enumerate(labels)]
    out = tmp_path / 'run'
    ulmfit(more, (reviews, noisy), out, **quick)
    data = split_data(more, Docs(reviews, noisy), settings=small)
    tfidf = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    x,unseen = tfidf.fit_transform(data.train.texts), tfidf.transform(data.valid.texts)
    right = LogisticRegression(C=10).fit(x, data.train.labels).predict(unseen) == np.array(data.valid.labels)
    found = json.loads((out / 'results.json').read_text())['figures']['tfidf']
    assert found == {'accuracy': right.mean()} and 0 < right.mean() < 1


def test_comparison_is_computed_once(both, monkeypatch):
    monkeypatch.setattr(module, 'tfidf_classifier', None)
    assert ulmfit(more, (reviews, labels), both[1], backwards='both', **quick).card == both[0].card


def test_card_without_scikit_learn_says_what_it_needs(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'sklearn.feature_extraction.text', None)
    learn = ulmfit(more, (reviews, labels), tmp_path, **quick)
    assert "TF-IDF, for comparison  not known: it needs scikit-learn (pip install 'awdtext[sklearn]')" in learn.card


def test_no_comparison_where_there_is_no_single_label(tmp_path):
    numbers = [i % 3 / 2 for i in range(len(reviews))]
    assert 'TF-IDF' not in ulmfit(more, (reviews, numbers), tmp_path, y_block=RegressionBlock(), **quick).card


def test_plan_is_measured_once_and_kept(tmp_path, capsys):
    how = {**quick, 'config': None, 'lm_epochs': None}
    how['settings'] = replace(small, sizes=((16, 24, 2), (8, 12, 2)), n_steps=2, sample=20)
    ulmfit(more, (reviews, labels), tmp_path, minutes=.2, **how)
    plan = json.loads((tmp_path / 'results.json').read_text())['plan']
    assert plan['config']['emb_sz'] in (8, 16) and 1 <= plan['lm_epochs'] <= 10 and len(plan['seconds']) == 2
    assert 'Plan, forward: a language model' in capsys.readouterr().out
    ulmfit(more, (reviews, labels), tmp_path, minutes=.2, **how)
    assert json.loads((tmp_path / 'results.json').read_text())['plan'] == plan


@pytest.mark.parametrize('seconds', [100, 200])
def test_time_that_the_classifier_does_not_need_is_the_language_models(tmp_path, monkeypatch, seconds):
    "Where a token takes a hundredth of a second, no time is left for another pass."
    n_tokens = []
    def speed(job, dls, config):
        n_tokens.append(dls.train.corpus.n_tokens)
        return .01 / config.macs_per_token(len(dls.vocab))
    def planned(job, way): raise RuntimeError('planned')
    monkeypatch.setattr(module, '_speed', speed)
    monkeypatch.setattr(module, '_one_way', planned)
    settings = replace(small, sizes=((8, 12, 2),), sample=10_000, max_passes=1000)
    with pytest.raises(RuntimeError, match='planned'):
        ulmfit(more, (reviews, labels), tmp_path, minutes=seconds / 60,
               **{**quick, 'config': None, 'lm_epochs': None, 'settings': settings})
    plan = json.loads((tmp_path / 'results.json').read_text())['plan']
    lm,clas = plan['seconds']
    assert lm + clas <= seconds < lm + clas + n_tokens[0] * .01
    assert clas < .3 * seconds and plan['lm_epochs'] == pytest.approx(lm / (n_tokens[0] * .01))


def test_a_size_without_a_chance_is_not_measured(tmp_path, monkeypatch):
    measured = []
    def speed(job, dls, config):
        measured.append(config.n_hid)
        return .01 / config.macs_per_token(len(dls.vocab))
    monkeypatch.setattr(module, '_speed', speed)
    settings = replace(small, sizes=((640, 1280, 2), (9, 13, 2), (8, 12, 2)))
    ulmfit(more, (reviews, labels), tmp_path, minutes=3, **{**quick, 'config': None, 'settings': settings})
    assert measured == [12, 13]


def test_little_time_reads_a_part_of_the_texts(tmp_path):
    how = {**quick, 'config': None, 'lm_epochs': None, 'settings': replace(small, sizes=((8, 12, 2),), n_steps=2)}
    learn = ulmfit(more, (reviews, labels), tmp_path, minutes=1e-5, **how)
    plan = json.loads((tmp_path / 'results.json').read_text())['plan']
    assert plan['lm_epochs'] == 1 and 2 <= plan['lm_texts'] < len(more)
    assert [n for _, n, _ in plan['steps']] == [1, 1, 1] and '1 of 1 passes' in learn.card


# Bad input

@pytest.mark.parametrize(('how', 'message'), [
    (dict(backwards='sideways'), "use False, True or 'both'"),
    (dict(minutes=0), 'minutes=0'), (dict(minutes=None), 'minutes=None: use'), (dict(minutes='9'), "minutes='9': use"),
    (dict(settings=replace(small, steps=((-5, 1, 1e-2),))), 'begins with group -5, and the classifier has 4'),
    (dict(valid=(reviews, labels)), 'all 72 labelled texts are validation or test texts'),
    (dict(out=__file__), 'is a file: name a folder'),
    (dict(lm_epochs=0), 'lm_epochs=0'),
    (dict(valid_pct=1.), 'valid_pct=1.0'),
    (dict(config='huge'), "no preset 'huge'"),
    (dict(every='often'), "every='often'"),
    (dict(valid=([reviews[0]], ['other'])), "'other'"),
    (dict(test=([reviews[0]], [None])), 'documents of test= have no label'),
])
def test_bad_arguments_leave_nothing(tmp_path, how, message):
    with pytest.raises(ValueError, match=message.replace('(', r'\(')):
        ulmfit(more, (reviews, labels), **{'out': tmp_path / 'run', **quick, **how})
    assert not (tmp_path / 'run').exists()


def test_settings_are_no_dict(tmp_path):
    with pytest.raises(TypeError, match='settings is a dict: give replace'):
        ulmfit(more, (reviews, labels), tmp_path / 'run', settings={'lm_bs': 8})


@pytest.mark.parametrize(('texts', 'labelled', 'error', 'message'), [
    ('one text', (reviews, labels), TypeError, 'is one text'),
    ([*more, None], (reviews, labels), ValueError, 'row 24 is missing'),
    (more, reviews, TypeError, 'give a DataFrame'),
    (more, (reviews, labels[1:]), ValueError, '72 labelled texts, 71 labels'),
    (more, (reviews, ['pos'] * 72), ValueError, "all labels are 'pos'"),
    (more, (reviews, [None] * 72), ValueError, 'no labelled text'),
    (more, (reviews[:2], ['a', 'b']), ValueError, 'no category has two documents'),
    (more, pd.DataFrame({'body': reviews, 'label': labels}), ValueError, "no column 'text'.* as by text_col="),
    (more, (reviews, [1, *labels[1:]]), ValueError, 'several types'),
])
def test_bad_data_leaves_nothing(tmp_path, texts, labelled, error, message):
    with pytest.raises(error, match=message): ulmfit(texts, labelled, tmp_path / 'run', **quick)
    assert not (tmp_path / 'run').exists()


def test_a_part_of_the_texts_is_the_same_part_after_a_kill(tmp_path, monkeypatch):
    "What is planned is what is read, and a killed run finds its data again."
    how = {**quick, 'config': None, 'lm_epochs': None, 'settings': replace(small, sizes=((8, 12, 2),), n_steps=2)}
    def killed(*args): raise RuntimeError('killed')
    with monkeypatch.context() as m:
        m.setattr(module, '_lm_results', killed)
        with pytest.raises(RuntimeError, match='killed'): ulmfit(more, (reviews, labels), tmp_path, minutes=1e-5, **how)
    learn = ulmfit(more, (reviews, labels), tmp_path, minutes=1e-5, **how)
    content = json.loads((tmp_path / 'results.json').read_text())
    assert content['plan']['lm_texts'] == 2 and content['forward language model']['tokens'] < 30 and learn.card


@pytest.mark.parametrize(('how', 'message'), [
    (dict(test=([], [])), 'test= holds no documents'), (dict(valid=([], [])), 'valid= holds no documents'),
    (dict(drop_mult=9.), 'is no dropout probability'), (dict(drop_mult=-1.), 'is no dropout probability'),
    (dict(seed=-1), 'seed=-1'), (dict(seed=1.5), 'seed=1.5'), (dict(minutes=float('inf')), 'minutes=inf')])
def test_what_would_fail_after_an_hour_fails_at_once(tmp_path, how, message):
    with pytest.raises(ValueError, match=message):
        ulmfit(more, (reviews, labels), tmp_path / 'run', **{**quick, **how})
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('how', [dict(lm_bs=0), dict(seq_len=2.5), dict(max_passes=0), dict(clas_bs=1), dict(steps=()),
                                 dict(lm_share=1.), dict(lm_valid_pct=10), dict(lm_lr=0.), dict(lr_decay=0),
                                 dict(steps=((-1, 0, 1e-2),)), dict(pseudo_steps=((-1, 2),))],
                         ids=str)
def test_settings_that_cannot_be(how):
    with pytest.raises(ValueError, match=list(how)[0]): ULMFiTSettings(**how)


# The linear probe

probing = {**quick, 'probe': True}


@pytest.fixture(scope='module')
def probed(tmp_path_factory):
    "A run with a probe, uninterrupted; its folder."
    out = tmp_path_factory.mktemp('probe') / 'run'
    return ulmfit(more, (reviews, labels), out, **probing), out


def test_the_mean_with_a_probe_answers_where_its_loss_is_lower(probed):
    learn,out = probed
    content = json.loads((out / 'results.json').read_text())
    figures = [content[f'forward {name}']['valid_loss'] for name in ('mean', 'classifier')]
    assert figures[0] < figures[1] and type(learn) is Ensemble and learn.parts[1].options['layers'] == 'all'
    mean = torch.stack([part.get_preds()[0] for part in learn.parts]).mean(0)
    torch.testing.assert_close(probabilities(learn), mean)
    assert learn.validate()[0] == pytest.approx(figures[0], rel=1e-4) == content['figures']['validation']['valid_loss']
    temperature = content['forward linear probe']['temperature']
    assert f'temperature {temperature:.2f}; its mean' in learn.card and '; taken' in learn.card
    assert 'the mean of 2 models' in learn.card
    assert fit_temperature(*learn.parts[1].get_preds()) == pytest.approx(1, abs=.01)
    there = load_learner(out / 'classifier')
    torch.testing.assert_close(there.predict(reviews[0])[2], learn.predict(reviews[0])[2])


def test_a_finished_run_fits_no_probe(probed, monkeypatch):
    monkeypatch.setattr(module, 'linear_probe', lambda *args, **how: pytest.fail("it fits"))
    again = ulmfit(more, (reviews, labels), probed[1], **probing)
    assert torch.equal(probabilities(again), probabilities(probed[0])) and again.card == probed[0].card


@pytest.mark.parametrize('last', ['forward classifier', 'forward linear probe'])
def test_killed_beside_the_probe(probed, tmp_path, monkeypatch, last):
    write = Results.write
    def dies(self):
        write(self)
        if self.content['stages_done'][-1:] == [last]: raise RuntimeError('killed')
    monkeypatch.setattr(Results, 'write', dies)
    with pytest.raises(RuntimeError, match='killed'): ulmfit(more, (reviews, labels), tmp_path, **probing)
    monkeypatch.setattr(Results, 'write', write)
    assert torch.equal(probabilities(ulmfit(more, (reviews, labels), tmp_path, **probing)), probabilities(probed[0]))


def test_a_probe_that_does_not_help_is_not_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(module, '_probe_helps', lambda content, way: False)
    learn = ulmfit(more, (reviews, labels), tmp_path, **probing)
    assert type(learn) is TextClassifierLearner and 'not taken: the mean has no lower loss' in learn.card
    assert '(the mean of' not in learn.card and learn.options['layers'] == 'last'


@pytest.mark.parametrize(('y', 'how'), [
    ([label + ('; long' if i % 2 else '') for i, label in enumerate(labels)], {'label_delim': '; '}),
    ([float(label == 'pos') for label in labels], {'y_block': RegressionBlock()}),
    (labels, {'backwards': 'both', 'class_weights': {'pos': 3., 'neg': 1.}}),
])
def test_probes_of_every_kind_of_labels(tmp_path, monkeypatch, y, how):
    monkeypatch.setattr(module, '_probe_helps', lambda content, way: True)
    learn = ulmfit(more, (reviews, y), tmp_path, **probing, **how)
    assert [part.options['layers'] for part in learn.parts] == ['last', 'all'] * len(learn.parts[::2])
    assert [part.dls.backwards for part in learn.parts] == [False, False, True, True][:len(learn.parts)]
    assert learn.parts[1].loss_func.settings == learn.parts[0].loss_func.settings
    assert ('temperature' in learn.card) == ('y_block' not in how)
    there = load_learner(tmp_path / 'classifier')
    torch.testing.assert_close(there.predict(reviews[0])[-1], learn.predict(reviews[0])[-1])


def test_pseudo_labels_are_those_of_the_mean(tmp_path, monkeypatch):
    asked,label = [],module.pseudo_label
    monkeypatch.setattr(module, '_probe_helps', lambda content, way: True)
    monkeypatch.setattr(module, 'pseudo_label', lambda learn, *args: asked.append(learn) or label(learn, *args))
    monkeypatch.setattr(module, '_is_taken', lambda content, way: True)
    plenty = [text.replace('film', noun) for text in reviews[:18] for noun in ('opera', 'tale')]
    learn = ulmfit(plenty, (reviews, labels), tmp_path, pseudo_labels=8, **probing)
    (teacher,) = asked
    assert type(teacher) is Ensemble and len(teacher.parts) == len(learn.parts) == 2
    second = torch.stack([part.get_preds()[0] for part in learn.parts]).mean(0)
    torch.testing.assert_close(probabilities(learn), second)


def test_what_no_probe_can_be(tmp_path):
    with pytest.raises(ValueError, match="probe='yes': use True or False"):
        ulmfit(more, (reviews, labels), tmp_path, **{**quick, 'probe': 'yes'})
    with pytest.raises(ValueError, match='probe_C=0: use numbers above 0'): ULMFiTSettings(probe_C=0)
