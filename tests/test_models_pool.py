"Pooling of all layers, by a slow loop over documents and positions; through training, prediction and attribution."
import pytest
import torch
from torch.testing import assert_close

from awdtext.core import seed_all
from awdtext.data.dataloaders import TextDataLoaders
from awdtext.data.tokenizer import BaseTokenizer
from awdtext.interpret import attribute
from awdtext.models.awd_lstm import AWD_LSTM
from awdtext.models.classifier import SentenceEncoder, get_text_classifier, masked_concat_pool
from awdtext.models.gru import GRU
from awdtext.models.prediction import can_int8, prepare
from awdtext.models.qrnn import QRNN
from awdtext.text_learner import load_learner, text_classifier_learner

archs = [(AWD_LSTM, {}), (GRU, {}), (QRNN, {})]


def slow_features(encoder, doc, max_len):
    "What the head should be given of one document: last, largest and mean output, and means below."
    found = [encoder.embedding(doc[None])[0]]
    hooks = [rnn.register_forward_hook(lambda rnn, args, out: found.append(out[0][0])) for rnn in encoder.rnns]
    encoder(doc[None])
    for hook in hooks: hook.remove()
    start = 0 if max_len is None else max(0, len(doc) - max_len)
    *below,top = [[list(position) for position in layer[start:]] for layer in found]
    views = [top[-1], [max(column) for column in zip(*top)], [sum(column) / len(top) for column in zip(*top)]]
    means = [sum(column) / len(layer) for layer in below for column in zip(*layer)]
    return torch.stack([x for view in views for x in view] + means)


@pytest.fixture
def docs():
    lengths = torch.tensor([3, 17, 1, 9, 17])
    return torch.randint(2, 30, (5, 17), generator=torch.Generator().manual_seed(0)), lengths


@pytest.mark.parametrize(('arch', 'how'), archs)
@pytest.mark.parametrize('n_layers', [1, 3])
@pytest.mark.parametrize('max_len', [None, 5, 40])
@pytest.mark.parametrize('seq_len', [4, 100])
def test_features_by_hand(docs, arch, how, n_layers, max_len, seq_len):
    seed_all(0)
    ids,lengths = docs
    encoder = arch(30, 4, 6, n_layers, **how).eval()
    sentences = SentenceEncoder(encoder, seq_len, max_len, pool='all')
    expected = torch.stack([slow_features(encoder, doc[:n], max_len) for doc, n in zip(ids, lengths)])
    assert expected.shape[1] == sentences.n_features
    for no_grad in (False, True):
        with torch.inference_mode(no_grad): assert_close(sentences.pooled(ids, lengths), expected)
    model = get_text_classifier(30, 2, pool='all')
    model.sentences = sentences
    model.head.classify = lambda pooled: pooled
    assert_close(model(ids, lengths).logits, expected)                  # the way of training, which keeps outputs
    assert model(ids, lengths).raw.shape[2] == encoder.out_sz          # of the last layer alone, for its penalties


def test_gradients_reach_every_layer_as_by_hand(docs):
    ids,lengths = docs
    encoder = AWD_LSTM(30, 4, 6, 2, hidden_p=0., input_p=0., embed_p=0., weight_p=0.).double()
    sentences = SentenceEncoder(encoder, 100, None, pool='all')
    weight = torch.randn(sentences.n_features, dtype=torch.float64)
    (torch.cat(_given(sentences, ids, lengths), 1) @ weight).sum().backward()
    grads = [p.grad.clone() for p in encoder.parameters()]
    encoder.zero_grad()
    (torch.stack([slow_features(encoder, doc[:n], None) for doc, n in zip(ids, lengths)]) @ weight).sum().backward()
    for p, grad in zip(encoder.parameters(), grads): assert_close(p.grad, grad)


def _given(sentences, ids, lengths):
    out,mask,below = sentences(ids, lengths)
    return masked_concat_pool(out, mask), below


nouns,kinds = ('film', 'play', 'book'), (('good', 'fine'), ('bad', 'dull'))
texts = [f'the {noun} was {word} and {other}' for noun in nouns for words in kinds for word in words for other in words]
labels = [int('good' in text or 'fine' in text) for text in texts]


@pytest.fixture(scope='module')
def learn(tmp_path_factory):
    seed_all(0)
    dls = TextDataLoaders.from_texts(texts, labels, tok_tfm=BaseTokenizer(), bs=8, min_freq=1, seed=0)
    learn = text_classifier_learner(dls, config=dict(emb_sz=16, n_hid=32, n_layers=2), pool='all', drop_mult=.1,
                                    path=tmp_path_factory.mktemp('pool'))
    learn.fit(8, 1e-2)
    return learn


def test_it_learns_and_a_file_knows_its_pooling(learn):
    assert learn.validate_figures()['accuracy'] == 1
    there = load_learner(learn.export('model'))
    assert there.model.sentences.pool == 'all'
    for text in texts: assert_close(there.predict(text)[2], learn.predict(text)[2])


def test_a_frozen_encoder_keeps_no_graph_and_a_thawed_one_learns(learn):
    learn.freeze()
    x = learn.dls.one_batch()[0]
    assert learn.model.train()(*x).raw is None
    learn.freeze_to(-2)
    out = learn.model(*x)
    out.logits.sum().backward()
    encoder = learn.model.encoder
    has = [[p.grad is not None for p in rnn.parameters() if p.requires_grad] for rnn in encoder.rnns]
    assert has == [[], [True] * 4]
    assert all(p.grad is None for p in encoder.embedding.parameters())
    learn.unfreeze()


@pytest.mark.parametrize(('precision', 'tolerance'), [('bf16', .02), ('int8', .05)])
def test_prepared_twins_say_nearly_the_same(learn, precision, tolerance):
    if precision == 'int8' and not can_int8(): pytest.skip("no products of bytes here")
    model,(ids, lengths) = learn.model.eval(), learn.dls.one_batch()[0]
    with torch.no_grad():
        exact,quick = (prepare(model, p).sentences.pooled(ids, lengths) for p in ('fp32', precision))
    assert exact.shape == quick.shape and (exact - quick).abs().max() < tolerance and not torch.equal(exact, quick)


def test_attribution_adds_up_to_what_is_said(learn):
    "Integrated gradients are complete: they add up to the difference to a text of zeros."
    with torch.no_grad():
        model,ids = learn.model.eval(), learn.dls.test_dl(texts[:1]).corpus.ids.long()[None]
        x = model.encoder.embedding(ids)
        def said(at):
            raw,_,lower = model.sentences.read(at, None)
            return model.head(raw, torch.ones(raw.shape[:2], dtype=torch.bool), lower.mean(1)).log_softmax(1)[0]
        full,none = said(x), said(torch.zeros_like(x))
        i = int(full.argmax())
        odds = [o[i] - torch.log1p(-o[i].exp()) for o in (full, none)]
    found = attribute(learn, texts[0], n_steps=128)
    assert sum(found.scores) == pytest.approx(float(odds[0] - odds[1]), abs=.02)


@pytest.mark.parametrize('make', [lambda: get_text_classifier(30, 2, pool='first'),
                                  lambda: SentenceEncoder(AWD_LSTM(30, 4, 6, 1), pool=None)])
def test_other_pools_are_refused(make):
    with pytest.raises(ValueError, match="pool=.*: use 'last' or 'all'"): make()
