"The two learners: encoders with their words, files that carry everything, exact figures, answers in order."
import copy
import json
import math
import re
import subprocess
import sys
import warnings
from pathlib import Path
from statistics import mean

import numpy as np
import pandas as pd
import pytest
import torch
from training_helpers import lm_learner
from safetensors import safe_open
from safetensors.torch import save_file
from torch.testing import assert_close

from awdtext.data.batches import MultiCategorize, RegressionSetup
from awdtext.data.dataloaders import TextDataLoaders, label_text
from awdtext.data.tokenizer import BaseTokenizer, Tokenizer
from awdtext.data.vocab import Vocab
from awdtext.ensemble import Ensemble
from awdtext.lm.evaluate import evaluate_lm
from awdtext.models.awd_lstm import AWDLSTMConfig, presets
from awdtext.text_learner import (LMLearner, TextClassifierLearner, TextLearner, _learned, advise_preset,
    language_model_learner, load_learner, map_embedding, text_classifier_learner)
from awdtext.training.callback import Callback
from awdtext.training.guards import LossGuard
from awdtext.training.metrics import Perplexity, accuracy
from awdtext.training.optim import SGD
from awdtext.training.progress import ProgressCallback
from awdtext.training.rnn import ASGD, NTASGD, GradientClip, RNNRegularizer, ScaleLRBySeqLen
from awdtext.training.tracking import TimeLeft, format_hours

size = dict(emb_sz=8, n_hid=12, n_layers=2)
root = Path(__file__).parent.parent
animals,places = 'cat dog cow hen owl fox'.split(),'mat log hill roof wall sea'.split()
texts = [f'The {a} sat on the {p} .' for a in animals for p in places]
labels = ['pet' if a in animals[:2] else 'wild' for a in animals for p in places]
plain = dict(bs=4, min_freq=1, seed=0, tok_tfm=BaseTokenizer())


@pytest.fixture(autouse=True)
def one_thread(): torch.set_num_threads(1)    # on models this small, two threads only wait for each other


def lm_dls(texts=texts, **options): return TextDataLoaders.from_texts(texts, seq_len=8, **plain | options)


def clas_dls(texts=texts, labels=labels, **options): return TextDataLoaders.from_texts(texts, labels, **plain | options)


def lm(dls=None, **options):
    return language_model_learner(dls or lm_dls(), **{'config': size} | options).remove_cb(ProgressCallback)


def clas(dls=None, **options):
    return text_classifier_learner(dls or clas_dls(), **{'config': size} | options).remove_cb(ProgressCallback)


def train(learn, n_epoch=1, lr=1e-2):
    learn.fit(n_epoch, lr)
    return learn


def same_layers(a, b):
    for p, q in zip(a.encoder.rnns.parameters(), b.encoder.rnns.parameters(), strict=True): assert torch.equal(p, q)


def weights(module): return {name: p.clone() for name, p in module.state_dict().items()}


# Encoders

def test_each_row_goes_to_its_word_whatever_the_order(tmp_path, capsys):
    "Also into a language model, whose decoder shares the rows; and where some words are new and others not needed."
    old = lm(path=tmp_path)
    train(old).save_encoder('enc')
    other = lm_dls([text.replace('cat', 'emu') for text in reversed(texts)], path=tmp_path)
    assert other.vocab != old.dls.vocab and 'emu' in other.vocab
    new = lm(other).load_encoder('enc')
    rows,theirs = new.encoder.embedding.weight,old.encoder.embedding.weight
    known = [token for token in other.vocab.itos if token in old.dls.vocab]
    for token in known:
        torch.testing.assert_close(rows[other.vocab.stoi[token]], theirs[old.dls.vocab.stoi[token]], rtol=0, atol=0)
    fresh = rows[other.vocab.stoi['emu']]
    assert not any(torch.equal(fresh, row) for row in theirs) and (fresh - theirs.mean(0)).abs().max() < 1
    same_layers(old, new)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].endswith(f"enc.safetensors: {len(known)} of {len(other.vocab)} words matched, "
                              f"{len(other.vocab) - len(known)} are new.")


def test_encoder_into_a_classifier_with_another_order_of_words(tmp_path):
    old = train(lm(path=tmp_path))
    file = old.save_encoder('enc')
    new = clas(clas_dls(texts[::-1], labels[::-1], seed=7, text_vocab=sorted(old.dls.vocab.itos)), path=tmp_path)
    new.load_encoder(file)
    ids = {token: i for i, token in enumerate(new.dls.vocab.itos)}
    for i, token in enumerate(old.dls.vocab.itos):
        assert torch.equal(new.encoder.embedding.weight[ids[token]], old.encoder.embedding.weight[i])


def test_the_same_words_in_another_order_give_the_same_activations(tmp_path):
    "What the rows are for: the encoder says the same of a text, whatever the ids of its words."
    old = train(lm(path=tmp_path))
    old.save_encoder('enc')
    new = clas(clas_dls(text_vocab=old.dls.vocab.itos[::-1]), path=tmp_path).load_encoder('enc')
    tokens = old.dls.tokenizer(texts[0])
    with torch.no_grad():
        a,b = (l.encoder.eval()(l.dls.vocab.encode(tokens)[None]).raw for l in (old, new))
    assert_close(a, b)


def test_map_embedding_with_few_rows():
    rows,n = map_embedding(torch.ones(1, 3), Vocab(['a']), Vocab(['b', 'a']))
    assert n == 1 and torch.isfinite(rows).all() and torch.equal(rows[1], torch.ones(3))


@pytest.mark.parametrize('make', [lm, clas])
def test_a_loaded_encoder_leaves_the_last_group_to_learn(make, tmp_path):
    train(lm(path=tmp_path)).save_encoder('enc')
    learn = make(path=tmp_path)
    assert learn.load_encoder('enc') is learn
    *frozen,last = learn.splitter(learn.model)
    assert not any(p.requires_grad for group in frozen for p in group) and all(p.requires_grad for p in last)
    before = weights(learn.encoder.rnns)
    learn.fit(1, 1e-2)
    for name, p in before.items(): assert torch.equal(p, learn.encoder.rnns.state_dict()[name])
    learn.unfreeze().fit(1, 1e-2)
    assert any(not torch.equal(p, learn.encoder.rnns.state_dict()[name]) for name, p in before.items())


def test_another_shape_names_both_and_the_cure(tmp_path):
    lm(path=tmp_path).save_encoder('enc')
    learn = clas(path=tmp_path, config=dict(emb_sz=8, n_hid=16, n_layers=3))
    before = weights(learn.model)
    with pytest.raises(ValueError) as e: learn.load_encoder('enc')
    message = str(e.value)
    assert "'n_hid': 12, 'n_layers': 2" in message and "'n_hid': 16, 'n_layers': 3" in message
    assert "Give config={'emb_sz': 8, 'n_hid': 12, 'n_layers': 2, 'arch': 'AWD_LSTM'}" in message
    assert "pretrained='" in message
    for name, p in before.items(): assert torch.equal(p, learn.model.state_dict()[name])
    cured = clas(path=tmp_path, config={'emb_sz': 8, 'n_hid': 12, 'n_layers': 2}).load_encoder('enc')
    assert cured.config.n_hid == 12


def test_an_encoder_of_the_other_direction_is_refused(tmp_path):
    lm(path=tmp_path).save_encoder('enc')
    with pytest.raises(ValueError, match='reads texts forwards, these data do not: make them with backwards=False'):
        lm(lm_dls(backwards=True), path=tmp_path).load_encoder('enc')
    lm(lm_dls(backwards=True), path=tmp_path).save_encoder('back')
    with pytest.raises(ValueError, match='reads texts backwards, these data do not: make them with backwards=True'):
        clas(path=tmp_path, pretrained='back')
    clas(clas_dls(backwards=True), path=tmp_path).load_encoder('back')


def test_another_tokenizer_is_told_of(tmp_path):
    lm(path=tmp_path).save_encoder('enc')
    with pytest.warns(UserWarning, match='cut into words by another tokenizer') as caught:
        clas(clas_dls(rules=[]), path=tmp_path).load_encoder('enc')
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match='another tokenizer'):
        clas(clas_dls(rules=[lambda text: text]), path=tmp_path).load_encoder('enc')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        clas(path=tmp_path).load_encoder('enc')


def test_a_tokenizer_that_no_file_can_hold(tmp_path):
    learn = lm(lm_dls(rules=[lambda text: text]), path=tmp_path)
    with pytest.raises(ValueError, match='cannot be saved: no code goes into a file'): learn.save_encoder('enc')
    with pytest.raises(ValueError, match='cannot be saved'): learn.export('model')
    assert not list(tmp_path.rglob('*'))


def test_an_encoder_of_token_lists(tmp_path):
    dls = TextDataLoaders.from_tokens([text.split() for text in texts], [text.split() for text in texts[:9]], bs=4,
                                      seq_len=8, seed=0)
    lm(dls, path=tmp_path).save_encoder('enc')
    other = TextDataLoaders.from_tokens([text.split() for text in texts], [text.split() for text in texts[:9]],
                                        labels=labels, valid_labels=labels[:9], is_lm=False, bs=4)
    learn = clas(other, path=tmp_path).load_encoder('enc')
    assert learn.predict(texts[0])[0] == learn.predict(texts[0].split())[0]       # a string is cut at blanks


@pytest.mark.parametrize('name', ['v1.2', 'deep/er', 'enc.safetensors', 'ünï çode'])
def test_names_of_encoders(name, tmp_path):
    "Dots are no suffixes, folders are made, and what `save_encoder` returns can be loaded from anywhere."
    learn = lm(path=tmp_path)
    file = learn.save_encoder(name)
    assert file.suffixes[-1] == '.safetensors' and file.is_file() and file.is_relative_to(tmp_path / 'models')
    for source in (name, file, str(file)): clas(path=tmp_path).load_encoder(source)
    clas(path=tmp_path, pretrained=name)
    clas(path='.', pretrained=file)


def test_folder_of_the_models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    learn = lm(model_dir='.')
    assert learn.save_encoder('enc').resolve() == tmp_path / 'enc.safetensors'
    clas(path='elsewhere').load_encoder('enc')                    # found from here, if not in the learner's folder
    assert lm(path='sub').export('model').resolve() == tmp_path / 'sub/model.safetensors'
    assert lm().save_encoder('enc').resolve() == tmp_path / 'models/enc.safetensors'


def test_files_that_are_no_encoders(tmp_path):
    learn = clas(path=tmp_path, model_dir='.')
    save_file({'a': torch.ones(2)}, tmp_path / 'foreign.safetensors')
    (tmp_path / 'text.safetensors').write_text('no tensors here')
    (tmp_path / 'empty.safetensors').touch()
    torch.save({'a': torch.ones(2)}, tmp_path / 'pickle.safetensors')
    learn.export('whole')
    before = weights(learn.model)
    for name, message in [('foreign', 'was not written by awdtext'), ('text', 'damaged or no awdtext file'),
                          ('empty', 'damaged or no awdtext file'), ('pickle', 'damaged or no awdtext file'),
                          ('whole', "kind 'classifier', but one of kind 'encoder'")]:
        with pytest.raises(ValueError, match=message): learn.load_encoder(name)
        with pytest.raises(ValueError, match=message): clas(path=tmp_path, model_dir='.', pretrained=name)
        if name != 'whole':
            with pytest.raises(ValueError, match=message): load_learner(tmp_path / name)
    both = 'There is no file .*nothing.safetensors and no file nothing.safetensors'
    with pytest.raises(FileNotFoundError, match=both): learn.load_encoder('nothing')
    with pytest.raises(FileNotFoundError, match='There is no file'): load_learner(tmp_path / 'nothing')
    for name, p in before.items(): assert torch.equal(p, learn.model.state_dict()[name])


def test_what_is_saved_replaces_what_was_there_only_when_it_is_complete(tmp_path, monkeypatch):
    learn = lm(path=tmp_path)
    file = learn.save_encoder('enc')
    before = file.read_bytes()
    train(learn)
    def full(*_): raise OSError('disk full')
    monkeypatch.setattr('awdtext.training.checkpoint.os.replace', full)
    with pytest.raises(OSError, match='disk full'): learn.save_encoder('enc')
    assert file.read_bytes() == before and [p.name for p in file.parent.iterdir()] == ['enc.safetensors']


# Configurations

def test_configurations_by_name_dict_and_object():
    assert lm(config='small').config == presets['small']
    learn = lm(config=size | dict(output_p=.3), drop_mult=.5)
    assert (learn.config.output_p, learn.config.weight_p, learn.model.decoder.output_dp.p) == (.3, .2, .15)
    assert lm(config=AWDLSTMConfig(**size)).config.n_hid == 12
    learn = clas(config='small')
    assert learn.config.sizes() == presets['small'].sizes()
    assert (learn.config.weight_p, learn.config.output_p) == (.5, .4)        # the dropouts are a classifier's
    for make in (lm, clas):
        with pytest.raises(ValueError, match="'tiny': use one of laptop, small, base, paper"): make(config='tiny')
        with pytest.raises(ValueError, match='config has no setting n_hidden: it can have emb_sz, n_hid'):
            make(config=dict(n_hidden=3))


def test_pretrained_brings_its_sizes(tmp_path):
    learn = train(lm(path=tmp_path))
    learn.save_encoder('enc')
    for make in (language_model_learner, text_classifier_learner):
        dls = lm_dls(path=tmp_path) if make is language_model_learner else clas_dls(path=tmp_path)
        new = make(dls, config='base', pretrained='enc')
        assert new.config.sizes() == learn.config.sizes()
        same_layers(learn, new)
        for bad in (dict(pretrained=True), dict(pretrained_fnames=['a', 'b'])):
            if make is text_classifier_learner and 'pretrained_fnames' in bad: continue
            with pytest.raises(ValueError, match=r'no pretrained model to download: train one, save_encoder\(name\)'):
                make(dls, **bad)


def test_data_and_learner_must_fit():
    with pytest.raises(ValueError, match='make them with is_lm=True'): lm(clas_dls())
    with pytest.raises(ValueError, match='make them with labels and without is_lm=True'): clas(lm_dls())
    with pytest.raises(ValueError, match='make dls with backwards=True'): lm(backwards=True)
    with pytest.raises(ValueError, match='use one of the classes AWD_LSTM, QRNN, GRU'): clas(arch='Transformer')
    with pytest.raises(ValueError, match='n_out=7, and these labels need 2: leave it out'): clas(n_out=7)


def test_what_makes_an_awd_lstm_is_there_by_default():
    kinds = [RNNRegularizer, GradientClip, ScaleLRBySeqLen, NTASGD, TimeLeft, LossGuard, ProgressCallback]
    learn = language_model_learner(lm_dls(), config=size)
    assert all(sum(isinstance(cb, kind) for cb in learn.cbs) == 1 for kind in kinds)
    of = {type(cb): cb for cb in learn.cbs}
    assert (of[RNNRegularizer].alpha, of[RNNRegularizer].beta) == (2, 1)
    assert (of[GradientClip].max_norm, of[NTASGD].n) == (.25, 5)
    assert of[ScaleLRBySeqLen].bptt == learn.dls.seq_len and learn.dls.train.windows is not None
    learn = text_classifier_learner(clas_dls(), config=size, alpha=3.)
    of = {type(cb): cb for cb in learn.cbs}
    assert of[RNNRegularizer].alpha == 3 and not {GradientClip, NTASGD, ScaleLRBySeqLen} & of.keys()
    assert {TimeLeft, LossGuard, ProgressCallback} <= of.keys()


def test_callbacks_of_ones_own():
    class Mine(Callback): pass
    for learn in (lm(cbs=Mine), clas(cbs=[Mine()])): assert sum(isinstance(cb, Mine) for cb in learn.cbs) == 1


class OneStep(Callback):
    "Ends after a step."
    def after_batch(self, learn): learn._stop = learn._stop or learn.training


def test_both_learners_need_nothing_but_data():
    "fastai's sizes, one step."
    for make, dls in ((language_model_learner, lm_dls()), (text_classifier_learner, clas_dls())):
        learn = make(dls)
        assert (learn.config.emb_sz, learn.config.n_hid, learn.config.n_layers) == (400, 1152, 3)
        before = learn.encoder.rnns[0].weight_ih_l0.clone()
        learn.fit(1, cbs=OneStep)
        assert len(learn.recorder.losses) == 1 and not torch.equal(before, learn.encoder.rnns[0].weight_ih_l0)


# Leaving with a model

def regression(): return clas(clas_dls(labels=[float(len(t)) for t in texts], y_block=RegressionSetup), y_range=(0, 50))
def two_numbers(): return clas(clas_dls(labels=[[float(len(t)), 1.] for t in texts], y_block=RegressionSetup))
def several(): return clas(clas_dls(labels=[[l, 'long'] if len(t) > 27 else [l] for l, t in zip(labels, texts)]))
def back_clas(): return clas(clas_dls(backwards=True))
def back_lm(): return lm(lm_dls(backwards=True))
def deep(): return clas(lin_ftrs=[7, 6], ps=[.1, .2], max_len=5, seq_len=4)


def token_lm():
    docs = [text.split() for text in texts]
    return lm(TextDataLoaders.from_tokens(docs, docs[:9], bs=4, seq_len=8))


def token_clas():
    docs = [text.split() for text in texts]
    return clas(TextDataLoaders.from_tokens(docs, docs[:9], labels=labels, valid_labels=labels[:9], is_lm=False, bs=4))


every_kind = pytest.mark.parametrize('make', [lm, clas, regression, two_numbers, several, back_clas, back_lm, deep,
                                              token_lm, token_clas])
asked = [texts[0], 'The owl sat', 'unheard of words']


def answers(learn):
    if isinstance(learn, LMLearner):
        return [[learn.predict(t, 8, seed=1) for t in asked], learn.evaluate(tokens(learn, asked)).loss]
    return [[[x.tolist() if torch.is_tensor(x) else x for x in learn.predict(t)] for t in asked],
            learn.get_preds(dl=learn.dls.test_dl(tokens(learn, asked)))[0].tolist()]


def tokens(learn, texts): return texts if learn.dls.tokenizer else [text.split() for text in texts]


@every_kind
def test_an_exported_learner_says_the_same(make, tmp_path):
    learn = train(make())
    file = learn.export(tmp_path / 'model')
    there = load_learner(file)
    assert answers(there) == answers(learn)
    assert type(there) is type(learn) and there.dls.vocab == learn.dls.vocab
    for name in ('seq_len', 'backwards', 'categories', 'is_lm'):
        assert getattr(there.dls, name) == getattr(learn.dls, name)
    for name, p in learn.model.state_dict().items(): assert torch.equal(p, there.model.state_dict()[name])
    assert answers(load_learner(there.export(tmp_path / 'again'))) == answers(learn)


def test_a_new_process_says_the_same(tmp_path):
    learners = {'lm': train(lm()), 'clas': train(clas()), 'several': train(several())}
    for name, learn in learners.items(): learn.export(tmp_path / name)
    code = ("import json, torch; torch.set_num_threads(1)\nfrom awdtext.text_learner import LMLearner, load_learner\n"
            f"asked = {asked!r}\nout = {{}}\n"
            f"for name in {list(learners)!r}:\n"
            f"    learn = load_learner({str(tmp_path)!r} + '/' + name)\n"
            "    says = lambda t: (learn.predict(t, 8, seed=1) if isinstance(learn, LMLearner) else\n"
            "                      [x.tolist() if torch.is_tensor(x) else x for x in learn.predict(t)])\n"
            "    out[name] = [says(t) for t in asked]\n"
            "print(json.dumps(out))")
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    here = {name: answers(learn)[0] for name, learn in learners.items()}
    assert json.loads(done.stdout) == json.loads(json.dumps(here))


@pytest.mark.parametrize('kinds', [['a', 'b'], [3, 11], [True, False], [.5, 1.5], [np.int64(3), np.int64(4)]])
def test_labels_keep_their_type(kinds, tmp_path):
    learn = clas(clas_dls(labels=kinds * 18))
    says = load_learner(learn.export(tmp_path / 'm')).predict(texts[0])[0]
    assert says == learn.predict(texts[0])[0]
    assert type(says) is type(kinds[0].item() if hasattr(kinds[0], 'item') else kinds[0])


def test_labels_that_no_file_can_hold():
    with pytest.raises(ValueError, match=r'Timestamp.* is no category: name strings or numbers'):
        clas_dls(labels=[pd.Timestamp('2020-01-01'), pd.Timestamp('2021-01-01')] * 18)


def test_files_hold_tensors_and_json_and_no_pickle(tmp_path):
    learn = train(clas())
    for file in (learn.export(tmp_path / 'm'), learn.save_encoder(tmp_path / 'e')):
        content = file.read_bytes()
        assert not content.startswith((b'PK', b'\x80')) and b'torch._utils' not in content and b'ctorch' not in content
        with safe_open(file, 'pt') as f: tree = json.loads(f.metadata()['awdtext'])['tree']
        assert tree['vocab'] == learn.dls.vocab.itos
        assert Tokenizer.from_dict(tree['tokenizer'])(texts[0]) == learn.dls.tokenizer(texts[0])
        assert AWDLSTMConfig(**tree['config']) == learn.config


def test_a_loaded_learner_has_no_data_and_says_so(tmp_path):
    learn = load_learner(lm(path=tmp_path).export())
    with pytest.raises(ValueError, match='These data have no valid part'): learn.evaluate()
    with pytest.raises(ValueError, match='There is no data number 1'): learn.validate()
    with pytest.raises(ValueError, match='There is no data number 1'): learn.get_preds()
    assert learn.path == tmp_path


def test_a_loaded_classifier_measures_new_labels(tmp_path):
    learn = train(clas(), 3)
    there = load_learner(learn.export(tmp_path / 'm'))
    figures = there.validate_figures(there.dls.test_dl(texts, labels))
    probs,y = there.get_preds(dl=there.dls.test_dl(texts, labels))
    assert math.isclose(figures['accuracy'], float((probs.argmax(1) == y).double().mean()))
    assert math.isclose(figures['valid_loss'], -probs[range(len(y)), y].log().mean().item(), rel_tol=1e-5)


def test_a_loaded_encoder_goes_on(tmp_path):
    "An exported language model can give its encoder to a classifier."
    there = load_learner(train(lm(path=tmp_path)).export())
    there.save_encoder('enc')
    learn = clas(path=tmp_path, pretrained='enc')
    same_layers(there, learn)


# Averages

@pytest.mark.parametrize('averaging', [lambda: ASGD(start=3), lambda: NTASGD(n=0, every=2)])
def test_files_hold_the_average_while_training_goes_on(averaging, tmp_path):
    "In the middle of an epoch, encoder and export hold the mean of the iterates, and training does not notice."
    class Leaving(Callback):
        order = 1000
        def __init__(self, saves): self.saves,self.files,self.iterates = saves,[],[]

        def after_step(self, learn):
            self.iterates.append(weights(learn.model))
            if not self.saves: return
            at = len(self.iterates)
            self.files.append((learn.save_encoder(f'{at}'), learn.export(f'm{at}'), learn.average and learn.average.n))

    def run(saves):
        torch.manual_seed(0)
        learn = lm(opt_func=SGD, lr=50., path=tmp_path).remove_cb(NTASGD)
        watch = Leaving(saves)
        learn.add_cb(averaging()).add_cb(watch).fit(2)
        return learn,watch

    learn,watch = run(True)
    assert watch.files[-1][2] and not watch.files[0][2] and len(watch.iterates) > 5
    for at, (enc, model, n) in enumerate(watch.files, 1):
        mean = {k: torch.stack([w[k] for w in watch.iterates[at - (n or 1):at]]).mean(0) for k in watch.iterates[0]}
        with safe_open(model, 'pt') as f:
            for k, p in mean.items(): assert_close(f.get_tensor(f'weights.{k}'), p)
        with safe_open(enc, 'pt') as f:
            for k, p in mean.items():
                if k.startswith('encoder.'): assert_close(f.get_tensor('weights.' + k.removeprefix('encoder.')), p)
    for a, b in zip(watch.iterates, run(False)[1].iterates): assert all(torch.equal(a[k], b[k]) for k in a)
    assert answers(load_learner(learn.export('end'))) == answers(learn)          # after training the model holds it


def test_one_epoch_seven_times_is_seven_epochs():
    "The trigger's history outlives a fit: averaging begins in the same place, and the figures are the same."
    class Worse(Callback):
        order = NTASGD.order - 1
        def after_epoch(self, learn):
            learn.valid_figures['valid_loss'] = [5., 4., 3., 2., 4.5, 4.6, 4.7][len(learn.record) - 1]

    def run(fits):
        torch.manual_seed(1)
        learn = lm(lm_dls(seed=3), opt_func=SGD, lr=1., cbs=Worse).remove_cb(NTASGD).add_cb(NTASGD(n=2))
        for n in fits: learn.fit(n)
        return learn

    once,often = run([7]),run([1] * 7)
    assert once.average.n == often.average.n > 1
    assert once.recorder.averaging_from == often.recorder.averaging_from
    for a, b in zip(once.model.parameters(), often.model.parameters()): assert torch.equal(a, b)


# Figures of a language model

def token_loop(learn, ids):
    "Nats of each token but the first, one token at a time."
    state,nats,hits = None,[],[]
    with torch.no_grad():
        learn.model.eval()
        for x, y in zip(ids[:-1].tolist(), ids[1:].tolist()):
            out = learn.model(torch.tensor([[x]]), state)
            state,logp = out.state,learn.model.logits(out.dropped)[0, -1].log_softmax(-1)
            nats.append(-logp[y].item())
            hits.append(int(logp.argmax()) == y)
    return nats,hits


def test_evaluate_is_a_loop_over_tokens():
    learn = train(lm(), 2)
    nats,_ = token_loop(learn, learn.dls.valid.corpus.ids)
    score = learn.evaluate()
    assert score.n_tokens == len(nats) == learn.dls.valid.n_tokens
    assert math.isclose(score.loss, sum(nats) / len(nats), rel_tol=1e-5)
    assert math.isclose(score.perplexity, math.exp(score.loss)) and math.isclose(score.bpc, score.loss / math.log(2))
    train_nats,_ = token_loop(learn, learn.dls.train.corpus.ids)
    assert math.isclose(learn.evaluate('train').loss, sum(train_nats) / len(train_nats), rel_tol=1e-5)


def test_evaluate_reads_new_texts_as_one_stream():
    learn = train(lm())
    ids = learn.dls.vocab.encode([t for text in texts[:3] for t in learn.dls.tokenizer(text)])
    nats,_ = token_loop(learn, ids)
    assert math.isclose(learn.evaluate(texts[:3]).loss, sum(nats) / len(nats), rel_tol=1e-5)
    assert learn.evaluate(texts, bs=3) == evaluate_lm(learn.model, learn.dls.test_dl(texts).corpus.ids, 3, 8)
    with pytest.raises(ValueError, match='These data have no test part'): learn.evaluate('test')
    with pytest.raises(ValueError, match="part='The cow' must be"): learn.evaluate('The cow')
    with pytest.raises(ValueError, match='nothing to read'): learn.evaluate([''])


@pytest.mark.parametrize('val_bs', [1, 3, 4])
def test_metrics_over_a_ragged_validation_part(val_bs):
    "As many streams as `val_bs`, each cold; every target counts once."
    learn = train(lm(lm_dls(val_bs=val_bs), metrics=[accuracy, Perplexity]))
    ids,nats,hits = learn.dls.valid.corpus.ids,[],[]
    step = math.ceil((len(ids) - 1) / val_bs)
    assert val_bs == 1 or (len(ids) - 1) % val_bs                                # ragged
    for start in range(0, len(ids) - 1, step):
        more = token_loop(learn, ids[start:start + step + 1])
        nats,hits = nats + more[0],hits + more[1]
    assert len(nats) == len(ids) - 1
    loss,acc,ppl = learn.validate()
    assert math.isclose(loss, sum(nats) / len(nats), rel_tol=1e-5)
    assert math.isclose(acc, sum(hits) / len(hits)) and math.isclose(ppl, math.exp(loss), rel_tol=1e-6)
    probs,y,losses = learn.get_preds(with_loss=True)
    assert torch.equal(y, ids[1:].long())
    assert_close(losses, torch.tensor(nats), rtol=1e-4, atol=1e-4)
    assert_close(-probs[range(len(y)), y].log(), losses)


def test_distributions_that_would_fill_the_memory_are_refused(monkeypatch):
    learn = lm()
    monkeypatch.setattr(type(learn.dls.valid), 'n_tokens', 10**9)
    with pytest.raises(MemoryError, match='1,000,000,000 distributions over .* For perplexity use evaluate()'):
        learn.get_preds()


# What a language model writes

def spied(learn, monkeypatch):
    "The ids of each window that the model reads from now on."
    read,forward = [],learn.model.forward
    def spy(ids, state=None):
        read.append(ids)
        return forward(ids, state)
    monkeypatch.setattr(learn.model, 'forward', spy)
    return read


def test_each_word_is_read_once(monkeypatch):
    learn = lm()
    read = spied(learn, monkeypatch)
    prompt = learn.dls.tokenizer('The cat sat on')
    learn.predict('The cat sat on', 50, seed=0)
    assert [ids.numel() for ids in read] == [len(prompt)] + [1] * 49


def test_carried_state_is_that_of_reading_all_again():
    learn = train(lm(), 3)
    tokens = learn.dls.tokenizer('The cat')
    ids = learn.dls.vocab.encode(tokens).tolist()
    silent = [learn.dls.vocab.stoi[t] for t in ('xxunk', 'xxpad', 'xxbos', 'xxfld')]
    with torch.no_grad():
        for _ in range(10):
            logits = learn.model.eval().logits(learn.model(torch.tensor([ids])).dropped[0, -1])
            logits[silent] = -torch.inf
            ids.append(int(logits.argmax()))
    words = learn.predict('The cat', 10, temperature=0)
    tail = ' '.join(learn.dls.vocab.decode(ids[len(tokens):])).replace('xxmaj ', '').lower()
    assert words.lower().replace('.', ' .').split()[2:] == tail.split()


def test_seeds_and_temperature():
    learn = train(lm())
    says = [learn.predict('The', 12, seed=seed) for seed in (1, 1, 2, 3, 4)]
    assert says[0] == says[1] and len(set(says)) > 2
    torch.manual_seed(5)
    free = learn.predict('The', 12)
    torch.manual_seed(5)
    assert free == learn.predict('The', 12) and free != learn.predict('The', 12)
    assert learn.predict('The', 12, temperature=0) == learn.predict('The', 12, top_k=1, seed=9)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    learn.predict('The', 3, seed=1)
    assert torch.equal(before, torch.get_rng_state())


def test_special_tokens_and_unknown_words_are_not_said():
    learn = lm(lm_dls(min_freq=7))
    for seed in range(5):
        said = learn.predict('', 40, temperature=3., seed=seed)
        assert not any(t in said for t in ('xxunk', 'xxpad', 'xxbos', 'xxfld'))
    assert any('xxunk' in learn.predict('', 40, temperature=3., no_unk=False, seed=seed) for seed in range(5))


@pytest.mark.parametrize('prompt', ['', ' ', 'zebra quux', '😀', 'The ' * 300])
def test_any_text_is_a_prompt(prompt):
    for learn in (lm(), lm(lm_dls(backwards=True))): assert learn.predict(prompt, 3, seed=0)


def test_prompts_of_models_of_tokens():
    learn = token_lm()
    assert learn.predict('The cat', 3, seed=0) == learn.predict(['The', 'cat'], 3, seed=0)
    assert learn.predict('The  cat', 3, seed=0).startswith('The cat ')
    assert learn.predict('zebra', 2, seed=0).startswith('zebra ')               # read as unknown, said as it was
    docs = [[*text.split(), '<eos>'] for text in texts]
    ended = lm(TextDataLoaders.from_tokens(docs, docs[:5], bs=4, seq_len=8))
    assert len(ended.predict('', 4, seed=0).split()) == 4                        # begins where a text has ended
    bare = TextDataLoaders.from_tokens([['a', 'b'] * 9], [['a', 'b'] * 9], bs=2, seq_len=5)
    with pytest.raises(ValueError, match='The prompt is empty'): lm(bare).predict('')


def test_a_backward_model_writes_what_stands_before(monkeypatch):
    "It reads the prompt from its end, without the mark of the beginning, before which nothing stands."
    learn = train(lm(lm_dls(backwards=True)), 8, 2e-2)
    read = spied(learn, monkeypatch)
    said = learn.predict('roof .', 3, temperature=0)
    words = [learn.dls.vocab[int(ids)] for ids in read[1:]]                      # and one more, that is not read
    assert learn.dls.vocab.decode(read[0][0]) == ['.', 'roof']
    assert said.lower().endswith(' '.join(words[::-1]) + ' roof.') and len(said.split()) > 1
    learn.predict('', 3)
    assert learn.dls.vocab.decode(read[3][0]) == ['xxbos']                      # after which comes another text's end


# What a classifier says

def test_predict_is_what_get_preds_says():
    learn = train(clas(), 2)
    probs,y = learn.get_preds(dl=learn.dls.test_dl(asked))
    assert y is None
    for text, row in zip(asked, probs):
        label,idx,said = learn.predict(text)
        assert_close(said, row)
        assert int(idx) == int(row.argmax()) and label == learn.dls.categories[int(idx)]
        assert math.isclose(said.sum().item(), 1, rel_tol=1e-6)


def test_several_labels_and_numbers():
    learn = train(several())
    names,mask,probs = learn.predict(texts[0])
    assert names == [c for c, p in zip(learn.dls.categories, probs) if p > .5] and torch.equal(mask, probs > .5)
    value,same,tensor = regression().predict(texts[0])
    assert isinstance(value, float) and 0 <= value <= 50 and math.isclose(value, tensor.item()) and same is tensor
    assert len(two_numbers().predict(texts[0])[0]) == 2


def test_predictions_come_in_the_datas_order_whatever_the_batches():
    many = [' '.join(text.split()[:1 + i % 7]) for i, text in enumerate(texts)]  # lengths that force another order
    learn = train(clas())
    one_by_one = torch.stack([learn.predict(text)[2] for text in many])
    for val_bs in (1, 3, 64):
        learn.dls.val_bs = val_bs
        probs,y = learn.get_preds(dl=learn.dls.test_dl(many, labels))
        assert_close(probs, one_by_one)
        assert [learn.dls.categories[i] for i in y] == labels


def test_each_documents_loss():
    learn = train(clas())
    probs,y,losses = learn.get_preds(with_loss=True)
    assert_close(losses, -probs[range(len(y)), y].log())
    assert math.isclose(losses.mean().item(), learn.validate()[0], rel_tol=1e-5)


def test_texts_that_are_none():
    learn = clas()
    assert len(learn.predict('')[2]) == 2                                        # `xxbos` alone
    for text, error in ((None, ValueError), (b'bytes', TypeError), (3, TypeError)):
        with pytest.raises(error, match='the text of row 0 is'): learn.predict(text)
    with pytest.raises(ValueError, match=r'document\(s\) 0 have no tokens'): token_clas().predict('')


@pytest.mark.parametrize('ensemble', [False, True])
@pytest.mark.parametrize('several', [texts[:2], tuple(texts[:2]), np.array(texts[:2]), pd.Series(texts[:2])],
                         ids=lambda several: type(several).__name__)
def test_several_texts_in_the_place_of_one(several, ensemble):
    "The error names what answers to several, in their order; and so it does."
    learn = train(clas())
    if ensemble: learn = Ensemble([learn, clas(learn.dls)])
    cure = re.escape('not a string: several texts are predicted by learn.get_preds(dl=learn.dls.test_dl(texts))')
    with pytest.raises(TypeError, match=cure): learn.predict(several)
    probs = learn.get_preds(dl=learn.dls.test_dl(several))[0]
    assert_close(probs, torch.stack([learn.predict(text)[2] for text in several]))


@pytest.mark.parametrize('ensemble', [False, True])
def test_a_list_of_tokens_is_one_document_where_there_is_no_tokenizer(ensemble):
    learn = token_clas()
    if ensemble: learn = Ensemble([learn, learn])
    docs = [text.split() for text in texts[:2]]
    assert_close(learn.predict(docs[0])[2], learn.predict(texts[0])[2])
    with pytest.raises(TypeError, match=r'several documents are predicted by learn.get_preds'): learn.predict(docs)
    assert len(learn.get_preds(dl=learn.dls.test_dl(docs))[0]) == 2


# When things go wrong

class Watch(Callback):
    "Keeps the weights that the last batch began with; from `spoil_at` on, the model's output is no number."
    order = -100
    def __init__(self, spoil_at=None): self.spoil_at,self.before = spoil_at,None

    def before_batch(self, learn):
        if learn.training: self.before = {name: p.detach().clone() for name, p in learn.model.named_parameters()}

    def after_pred(self, learn):
        if not learn.training or learn.iter != self.spoil_at: return
        learn.preds = learn.preds if learn.preds is None else learn.preds * torch.nan
        learn.out = learn.out._replace(dropped=learn.out.dropped * torch.nan)

    def check(self, learn):
        for name, p in learn.model.named_parameters():
            assert_close(p.detach(), self.before[name], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize('make', [lm, clas])
def test_a_loss_that_is_no_number_leaves_the_weights_as_they_were(make):
    learn,watch = make(),Watch(spoil_at=2)
    with pytest.raises(FloatingPointError) as e: learn.fit(1, 1e-2, cbs=watch)
    assert 'The loss became nan in epoch 0, batch 2 ' in str(e.value) and 'Use a lower rate' in str(e.value)
    watch.check(learn)
    learn.fit(1, 1e-3)                                                          # and can be trained on
    assert math.isfinite(learn.record[-1]['train_loss'])


@pytest.mark.parametrize('make', [lm, clas])
def test_a_rate_far_too_high_is_told(make):
    learn,watch = make(opt_func=SGD, alpha=0, beta=0).remove_cb(GradientClip),Watch()
    before = {name: p.detach().clone() for name, p in learn.model.named_parameters()}
    with pytest.raises(FloatingPointError, match=r'The loss became (nan|inf) .*learning rate .*Use a lower rate'):
        learn.fit(50, 1e30, cbs=watch)
    for name, p in learn.model.named_parameters(): assert_close(p.detach(), before[name], rtol=0, atol=0)


# How long it will take

def test_a_long_run_names_the_preset_that_learned_most(capsys):
    for learn in (lm(config='base'), clas(config='base')):
        (cb,) = (cb for cb in learn.cbs if isinstance(cb, TimeLeft))
        assert "With config='laptop' it would take about" in cb.advice(4 * 3600)
        cb.limit,cb.n_batches,cb.min_seconds = 0., 2, 0.
        learn.config = presets['base']
    learn = lm()
    learn.config = presets['base']
    (cb,) = (cb for cb in learn.cbs if isinstance(cb, TimeLeft))
    cb.limit,cb.n_batches,cb.min_seconds = 0., 2, 0.
    learn.fit(1, 1e-3)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith('This run will take about')]
    assert len(said) == 1 and "With config='laptop' it would take" in said[0]


@pytest.mark.parametrize('preset', ['small', 'base', 'paper'])
def test_the_advice_is_in_proportion_to_the_multiplications(preset):
    share = presets['laptop'].macs_per_token(30_000) / presets[preset].macs_per_token(30_000)
    said = advise_preset(36_000, presets[preset], 30_000)
    assert said.startswith(f"With config='laptop' it would take about {format_hours(share * 36_000)}. ")


def test_the_advice_is_what_was_measured():
    rows = [json.loads(line) for line in (root / 'benchmarks/results/presets.jsonl').read_text().splitlines()]
    n_draws = {'laptop': 2, 'small': 2, 'base': 1}
    for name, learned in _learned.items():
        sizes = [presets[name].emb_sz, presets[name].n_hid, presets[name].n_layers]
        draws = [row['accuracy'] for row in rows if row['settings'] == [sizes, 10_000, 'words'] and 'accuracy' in row]
        assert len(draws) == n_draws[name] and round(mean(draws), 3) == learned


@pytest.mark.parametrize('own', ['laptop', AWDLSTMConfig(emb_sz=150, n_hid=400, n_layers=2)])
def test_no_advice_for_what_is_no_slower(own):
    assert 'No preset is faster' in advise_preset(36_000, AWDLSTMConfig.from_any(own), 30_000)


def test_no_advice_below_the_smallest(): assert 'max_vocab' in advise_preset(9000, AWDLSTMConfig(**size), 1000)


@pytest.mark.parametrize('name', ['class_report', 'calibrate', 'calibration', 'cool', 'tune_thresholds', 'decode'])
def test_what_is_of_classifiers(name):
    learn = lm_learner()
    with pytest.raises(AttributeError, match=f'is a language model: {name} is of .* as text_classifier_learner makes'):
        getattr(learn, name)()
    assert not isinstance(learn, TextClassifierLearner) and not hasattr(learn, name)


@pytest.mark.parametrize('name', ['score', 'iter_score', 'evaluate', 'generate', 'stream', 'beam_search', 'fit_ntasgd'])
def test_what_is_of_language_models(name):
    dls = TextDataLoaders.from_texts(['a b', 'b a'] * 4, list('xyxyxyxy'), min_freq=1, bs=2, seed=0)
    learn = text_classifier_learner(dls, config=size)
    with pytest.raises(AttributeError, match=f'is a classifier: {name} is of .* as language_model_learner makes'):
        getattr(learn, name)(['a b'])
    with pytest.raises(AttributeError, match="'TextClassifierLearner' object has no attribute 'n'"): learn.n  # noqa: B018
    assert isinstance(learn, TextLearner) and issubclass(LMLearner, TextLearner)                   # as in fastai
    assert not isinstance(learn, LMLearner) and copy.deepcopy(learn).kind == 'classifier'


# Results to look at

def several(): return clas(clas_dls(labels=[[a, 'thing'] for a in labels]))


@pytest.mark.parametrize('make', [clas, several, regression, two_numbers, lm])
def test_results_show_what_the_model_says_beside_what_is_true(make, capsys):
    learn = make()
    before,epochs = weights(learn.model),(learn.dls.train.epoch, learn.dls.valid.epoch)
    learn.show_results(max_n=2, shuffle=False, trunc_at=5)
    assert (learn.dls.train.epoch, learn.dls.valid.epoch) == epochs, "this was no pass"
    shown = capsys.readouterr().out.strip().split('\n\n')
    blocks = [dict(line.split(': ', 1) for line in block.splitlines()) for block in shown]
    assert len(blocks) == 2
    truth = 'text_' if make is lm else 'category'
    for block in blocks:
        assert list(block) == ['text', truth, 'predicted']
        assert len(block['text'].split()) <= 5
    if make is not lm: assert blocks[0]['predicted'] == said_of_first(learn)
    learn.show_results(ds_idx=0)
    assert learn.dls.train.epoch == epochs[0]
    assert all(torch.equal(v, before[k]) for k, v in learn.model.state_dict().items()) and learn.x is None


def said_of_first(learn):
    "What `get_preds` says of the document that the validation loader gives first."
    probs,labeler = learn.get_preds()[0][int(learn.dls.valid.order[0])],learn.dls.labeler
    if isinstance(labeler, RegressionSetup):
        return label_text(labeler.decode(probs if labeler.n_out > 1 else probs.view(())))
    return label_text(labeler.decode(probs if isinstance(labeler, MultiCategorize) else probs.argmax()))


def test_language_models_results_are_the_likeliest_words(capsys):
    learn = lm()
    learn.show_results(max_n=1, shuffle=False, trunc_at=100)
    said = capsys.readouterr().out.split('predicted: ')[1].split()
    x,y = next(iter(learn.dls.valid))
    model = learn.model.eval()
    logits = model.logits(model(x).dropped)
    assert said == learn.dls.vocab.decode(logits[0].argmax(-1)[y[0] >= 0])


@pytest.mark.parametrize('make', [clas, lm])
def test_results_of_any_batch(make, capsys):
    "Every batch can come, with its own rows; a loader that is given begins at its beginning."
    learn = make()
    epoch,firsts = learn.dls.train.epoch, {learn.dls.rows(batch)[0]['text'] for batch in learn.dls.train}
    learn.dls.train.epoch = epoch
    def shown(**how):
        capsys.readouterr()
        learn.show_results(ds_idx=0, max_n=1, trunc_at=1000, **how)
        return capsys.readouterr().out.split('text: ')[1].split('\n')[0]
    seen = {shown() for _ in range(30)}
    assert seen <= firsts and len(seen) > 1
    assert len({shown(shuffle=False) for _ in range(5)}) == len({shown(dl=learn.dls.train) for _ in range(5)}) == 1


def test_results_without_data_say_so(tmp_path):
    learn = load_learner(clas(path=tmp_path).export('clas'))
    with pytest.raises(ValueError, match='There is no data number 1'): learn.show_results()


@pytest.mark.parametrize('change', [dict(seq_len=5), dict(max_len=50)])
def test_a_run_is_not_continued_with_other_reading(tmp_path, change):
    clas(path=tmp_path).fit(1, checkpoint=tmp_path / 'run')
    other = clas(path=tmp_path, **change)
    with pytest.raises(ValueError, match='text.options.'): other.fit(1, checkpoint=tmp_path / 'run')


def test_other_dropouts_are_another_configuration(tmp_path):
    lm(path=tmp_path).fit(1, checkpoint=tmp_path / 'run')
    with pytest.raises(ValueError, match=r'model.modules.\d+ was .*Dropout'):
        lm(path=tmp_path, drop_mult=.5).fit(1, checkpoint=tmp_path / 'run')


# Vocabulary of an encoder

def test_an_encoder_that_knows_too_few_words_is_told(tmp_path, recwarn):
    words = [f'w{i}' for i in range(100)]
    def data(known):
        "Texts of a hundred words, `known` of which the encoder knows; each occurs as often as the others."
        docs = [[w] for w in words[:known] + [f'new{i}' for i in range(100 - known)]] * 3
        labels = ['a', 'b'] * 150
        return TextDataLoaders.from_tokens(docs, docs, labels=labels, valid_labels=labels, is_lm=False)
    lm_dls = TextDataLoaders.from_tokens([words * 3], [words], bs=4, seq_len=8)
    language_model_learner(lm_dls, config=size, path=tmp_path).save_encoder('enc')
    for known, warned in ((100, 0), (80, 0), (79, 1), (5, 1)):
        recwarn.clear()
        text_classifier_learner(data(known), config=size, path=tmp_path).load_encoder('enc')
        told = [str(w.message) for w in recwarn if 'of the words of these texts' in str(w.message)]
        assert len(told) == warned and all(f'knows {known}% of the words' in text for text in told)


@pytest.mark.parametrize('way', ['pretrained', 'load_encoder'])
@pytest.mark.parametrize('n_odd,warned', [(0, False), (10, False), (11, True), (60, True)])
def test_words_that_became_unknown_on_the_way_are_told_too(way, n_odd, warned, tmp_path, recwarn):
    "Data in the encoder's vocabulary hold `xxunk` for all other words: the encoder has a row for it, and knows none."
    learn = lm(lm_dls([*texts, 'a zebra came once'], min_freq=2), path=tmp_path)       # which has met xxunk itself
    learn.save_encoder('enc')
    docs = [*texts, *['Gnu yak emu elk bee ant'] * n_odd]
    words = [word.lower() for doc in docs for word in doc.split()]
    share = sum(word in learn.dls.vocab for word in words) / len(words)              # a capital's xxmaj is no word
    dls = clas_dls(docs, ['pet', 'wild'] * (len(docs) // 2) + ['pet'] * (len(docs) % 2), text_vocab=learn.dls.vocab,
                   valid=texts[:4], valid_labels=['pet', 'wild'] * 2)
    assert ('xxunk' in dls.vocab.decode(dls.train.corpus.ids.unique())) == bool(n_odd) and dls.vocab == learn.dls.vocab
    recwarn.clear()
    if way == 'pretrained': clas(dls, path=tmp_path, pretrained='enc')
    else: clas(dls, path=tmp_path).load_encoder('enc')
    told = [str(w.message) for w in recwarn if 'of the words of these texts' in str(w.message)]
    assert len(told) == warned == (share < .8) and all(f'enc.safetensors knows {share:.0%} of the' in t for t in told)
