"A document of 100,001 tokens beside a plain loop that reads it in pieces of another length and keeps every output."
import numpy as np
import pytest
import torch
from torch.testing import assert_close
from training_helpers import tiny_size, words

from awdtext.data.dataloaders import TextDataLoaders
from awdtext.data.tokenizer import BaseTokenizer
from awdtext.text_learner import language_model_learner, text_classifier_learner
from awdtext.training.progress import ProgressCallback

N = 100_001
long,short = words(N, seed=5), [words(9, seed=i) for i in range(12)]
labels = ['a', 'b'] * 6


@pytest.fixture(autouse=True)
def one_thread(): torch.set_num_threads(1)


def clas(max_len=1440):
    dls = TextDataLoaders.from_tokens(short, short[:2], labels=labels, valid_labels=labels[:2], is_lm=False, bs=4,
                                      vocab=['xxunk', 'xxpad', *sorted(set(long))])
    return trained(text_classifier_learner(dls, config=tiny_size, max_len=max_len))


def lm():
    dls = TextDataLoaders.from_tokens(short, short[:2], bs=4, vocab=['xxunk', 'xxpad', *sorted(set(long))])
    return trained(language_model_learner(dls, config=tiny_size))


def trained(learn):
    learn.remove_cb(ProgressCallback).fit(3, .05)
    return learn


def outputs(learn, ids):
    "The last layer at each of the tokens, (n, out_sz), and what is carried at the end."
    state,outs = None, []
    learn.encoder.eval()
    with torch.no_grad():
        for piece in ids.split(997):
            out,state = learn.encoder(piece[None], state)
            outs.append(out[0])
    assert len(ids) >= N
    return torch.cat(outs), state


def features(out): return torch.cat([out[-1], out.amax(0), out.double().mean(0).float()])


def said(learn, ids, max_len):
    "The classifier's probabilities of the plain loop's features."
    pooled = features(outputs(learn, ids)[0][-(max_len or N):])
    with torch.no_grad(): return learn.model.eval().head.layers(pooled[None])


@pytest.mark.parametrize('max_len', [1440, None])
def test_predict(max_len):
    learn = clas(max_len)
    expected = said(learn, learn.dls.vocab.encode(long), max_len).softmax(1)
    assert_close(learn.predict(long)[2], expected[0], rtol=0, atol=1e-5)
    both = learn.get_preds(dl=learn.dls.test_dl([short[0], long]))[0]                # beside one that ends long before
    assert_close(both[1], expected[0], rtol=0, atol=1e-5)
    assert_close(both[0], learn.predict(short[0])[2], rtol=0, atol=1e-5)


@pytest.mark.parametrize('make,max_len', [(clas, 1440), (lm, N)])
def test_encode(make, max_len):
    learn = make()
    expected = features(outputs(learn, learn.dls.vocab.encode(long))[0][-max_len:])
    assert_close(torch.tensor(learn.encode([short[0], long])[1]), expected, rtol=0, atol=1e-5)


def test_score():
    learn = lm()
    ids = learn.dls.vocab.encode(long)
    with torch.no_grad(): logps = learn.model.logits(outputs(learn, ids)[0][:-1]).log_softmax(-1)
    expected = -logps.gather(1, ids[1:, None])[:, 0]
    (score,) = learn.score([long])
    assert len(score.surprisals) == N - 1 and score.tokens == long[1:]
    assert_close(torch.tensor(score.surprisals), expected, rtol=1e-4, atol=1e-4)


def test_a_prompt():
    "The likeliest three words after it, and their probabilities, one by one from the state at its end."
    learn = lm()
    ids,expected,logps = learn.dls.vocab.encode(long), [], []
    out,state = outputs(learn, ids)
    silent = [i for i, word in enumerate(learn.dls.vocab.itos) if word.startswith('xx')]
    with torch.no_grad():
        for _ in range(3):
            logits = learn.model.logits(out[-1:])[0].log_softmax(-1)
            word = logits.index_fill(0, torch.tensor(silent), -torch.inf).argmax()
            expected.append(learn.dls.vocab[int(word)])
            logps.append(logits[word].item())
            out,state = learn.encoder(word.view(1, 1), state)
            out = out[0]
    (found,) = learn.generate([long], 3, temperature=0)
    assert found.tokens == expected and found.logps == pytest.approx(logps, abs=1e-4)
    assert learn.predict(long, 3, temperature=0) == ' '.join([*long, *expected])


def test_the_estimators():
    pytest.importorskip('sklearn')
    from awdtext.estimators import AWDTextClassifier, AWDTextEncoder
    own = dict(config=tiny_size, tok_tfm=BaseTokenizer(), min_freq=1, bs=4, n_epoch=1, random_state=0, device='cpu')
    texts,text = [' '.join(doc) for doc in short], ' '.join(long)
    clf,enc = AWDTextClassifier(**own).fit(texts, labels), AWDTextEncoder(**own).fit(texts)
    ids = clf.learner_.dls.vocab.encode(clf.learner_.dls.tokenizer(text))
    expected = said(clf.learner_, ids, clf.max_len).softmax(1).numpy()
    np.testing.assert_allclose(clf.predict_proba([text, texts[0]])[:1], expected, atol=1e-5)
    expected = features(outputs(enc.learner_, enc.learner_.dls.vocab.encode(enc.learner_.dls.tokenizer(text)))[0])
    np.testing.assert_allclose(enc.transform([texts[0], text])[1], expected, atol=1e-5)
