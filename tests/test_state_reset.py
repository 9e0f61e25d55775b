"A state of zero at the beginning of each document: wherever it stands, a document is read as if it stood alone."
import pytest
import torch
from torch.testing import assert_close

from awdtext.data.corpus import Corpus
from awdtext.data.dataloaders import TextDataLoaders
from awdtext.data.stream import LMDataLoader, document_starts
from awdtext.lm.evaluate import evaluate_lm
from awdtext.models.awd_lstm import AWD_LSTM
from awdtext.models.lstm import WeightDropLSTM, lstm_loop
from awdtext.text_learner import language_model_learner, load_learner
from awdtext.training.progress import ProgressCallback


def documents(n, first=0, seed=0):
    "Documents of 1 to 14 tokens, in which no token appears twice."
    lengths = torch.randint(1, 15, (n,), generator=torch.Generator().manual_seed(seed)).tolist()
    ends = torch.tensor([0, *lengths]).cumsum(0).tolist()
    return [[f'w{first + i}' for i in range(a, b)] for a, b in zip(ends, ends[1:])]


def learner(path='.', backwards=False, **how):
    train = documents(60)
    dls = TextDataLoaders.from_tokens(train, [d[::-1] for d in train[:20]], train[5:14], bs=4, seq_len=8, seed=0,
                                      backwards=backwards, device='cpu', path=path)
    return language_model_learner(dls.read_lm(**how), config=dict(emb_sz=8, n_hid=12, n_layers=2), drop_mult=0.,
                                  lr=1e-2).remove_cb(ProgressCallback)


def alone(model, corpus):
    "The last layer's output at every token (there are no two alike), if each document is read from a state of zero."
    with torch.no_grad(): return {i: raw for doc in corpus
                                  for i, raw in zip(doc.tolist(), model(doc[None].long()).raw[0])}


def compare(batches, model, corpus, atol=1e-9):
    "Read `batches` with the state carried, and compare what stands behind a document's beginning; how many that are."
    expected,heads,state = alone(model, corpus),{doc[0].item() for doc in corpus},None
    inside,n = None,0
    for x, y in batches:
        with torch.no_grad(): raw,_,state = model(x.ids, state, x.starts)
        inside = [False] * len(y) if inside is None else inside
        for row in range(len(y)):
            for t, token in enumerate(x.ids[row].tolist()):
                if y[row, t] < 0: continue
                if x.starts[row, t]: inside[row] = token in heads   # a row may begin inside a document
                if not inside[row]: continue
                assert_close(raw[row, t], expected[token], rtol=0, atol=atol)
                n += 1
    return n


@pytest.mark.parametrize('backwards', [False, True])
@pytest.mark.parametrize('how', [{}, dict(partial_shuffle=True), dict(random_bptt=False, shuffle=False)], ids=str)
def test_each_document_is_read_as_if_it_stood_alone(how, backwards):
    learn = learner(backwards=backwards, reset_at_docs=True, **how)
    model = learn.model.double().eval()
    for dl in learn.dls:
        for _ in range(2):
            n = compare(list(dl), model, dl.corpus)
            assert n > dl.n_tokens - 15 * dl.bs - 15, "all but where rows begin"


def test_the_oracle_sees_a_state_that_is_carried_too_far():
    learn = learner(reset_at_docs=True)
    model = learn.model.double().eval()
    wrong = [(x._replace(starts=x.starts & (torch.rand(x.shape) < .9)), y) for x, y in learn.dls.train]
    with pytest.raises(AssertionError): compare(wrong, model, learn.dls.train.corpus)


def test_figures_of_learner_and_exact_evaluation_are_those_of_documents_alone(tmp_path):
    learn = learner(tmp_path, reset_at_docs=True)
    learn.fit(2)
    dls,model = learn.dls,learn.model
    nats,n = 0.,0
    for i, doc in enumerate(dls.valid.corpus):                  # the last token's target is the next document's first
        following = dls.valid.corpus[i + 1][:1] if i + 1 < len(dls.valid.corpus) else doc[:0]
        text = torch.cat([doc, following])[None].long()
        if text.shape[1] == 1: continue
        with torch.no_grad(): nats += float(model.loss(model(text[:, :-1]).dropped, text[:, 1:])) * (text.shape[1] - 1)
        n += text.shape[1] - 1
    score = learn.evaluate('valid')
    assert score.n_tokens == n and score.loss == pytest.approx(nats / n, rel=1e-5)
    assert learn.evaluate('valid', bs=1).loss == pytest.approx(score.loss)
    assert learn.validate()[0] == pytest.approx(learn.evaluate('valid', bs=4).loss, rel=1e-5)
    losses = learn.get_preds(with_loss=True)[2]
    assert losses.mean().item() == pytest.approx(learn.validate()[0], rel=1e-5)
    texts = documents(9)
    there = load_learner(learn.export('lm'), device='cpu')
    assert there.dls.reset_at_docs and there.evaluate(texts).loss == pytest.approx(learn.evaluate(texts).loss, rel=1e-6)
    assert not load_learner(learner(tmp_path).export('other')).dls.reset_at_docs
    learn.show_results()


def test_an_order_of_the_documents_means_nothing_to_the_model():
    learn = learner(reset_at_docs=True)
    corpus = learn.dls.valid.corpus
    def per_document(corpus):
        starts = document_starts(corpus, 1, drop_rest=False)
        whole = evaluate_lm(learn.model, corpus.ids, starts=starts)
        return whole.loss * whole.n_tokens
    a,b = sorted(range(20), key=lambda i: -len(corpus[i]))[:2]
    three,first,second,both = (per_document(corpus.select(docs)) for docs in ([a, b, a], [a, b], [b, a], [b]))
    assert three == pytest.approx(first + second - both, rel=1e-6)


def test_without_it_the_state_goes_on():
    plain,reset = learner(),learner(reset_at_docs=True)
    reset.model.load_state_dict(plain.model.state_dict())
    assert plain.validate()[0] != reset.validate()[0]
    x,_ = next(iter(plain.dls.train))
    assert torch.is_tensor(x)


# The layers

def test_a_layer_in_pieces_is_the_loop_with_zeros_put_in():
    rnn = WeightDropLSTM(3, 4, weight_p=.5).double().eval()
    x,h,c = torch.randn(5, 11, 3).double(),torch.randn(5, 4).double(),torch.randn(5, 4).double()
    for p in (0., .1, .5, 1.):
        starts = torch.rand(5, 11) < p
        W,U,b = rnn.weight_ih_l0,rnn.weight_hh_l0,rnn.bias_ih_l0 + rnn.bias_hh_l0
        outs,state = [],(h, c)
        for t in range(11):
            keep = (~starts[:, t, None]).double()
            out,state = lstm_loop(x[:, t:t + 1], state[0] * keep, state[1] * keep, W, U, b)
            outs.append(out)
        assert_close(rnn(x, (h, c), starts), (torch.cat(outs, 1), state))


def test_gradients_stop_at_the_beginning_of_a_document_and_masks_are_one_for_the_window():
    enc = AWD_LSTM(20, 4, 6, 2, input_p=.3, hidden_p=.3, embed_p=.2, weight_p=.4).double()
    ids,starts = torch.randint(20, (2, 9)),torch.zeros(2, 9, dtype=torch.bool)
    starts[0, 4] = True
    x = torch.randn(2, 9, 4).double().requires_grad_()
    enc.run_layers(x, starts=starts).raw[:, 6:].sum().backward()
    assert (x.grad[0, :4] == 0).all() and (x.grad[0, 4:6] != 0).any() and (x.grad[1, :4] != 0).any()
    torch.manual_seed(0)
    whole = enc(ids).raw
    torch.manual_seed(0)
    pieces = enc(ids, starts=starts).raw
    assert_close(pieces[1], whole[1])                         # the same masks before and after the cut
    assert_close(pieces[0, :4], whole[0, :4])
    assert not torch.allclose(pieces[0, 4:], whole[0, 4:])


def test_a_state_that_is_no_number_does_not_survive():
    rnn = WeightDropLSTM(3, 4).eval()
    bad = torch.full((1, 4), float('nan'))
    assert rnn(torch.randn(1, 2, 3), (bad, bad), torch.tensor([[True, False]]))[0].isfinite().all()


def test_marks_are_as_cheap_as_a_window_without_documents():
    "One call of the kernel where no document begins."
    enc,calls = AWD_LSTM(20, 4, 6, 1).eval(),[]
    lstm = torch.lstm
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, 'lstm', lambda *args: calls.append(1) or lstm(*args))
        enc(torch.randint(20, (2, 9)), starts=torch.zeros(2, 9, dtype=torch.bool))
        assert len(calls) == 1
    corpus = Corpus(torch.arange(40, dtype=torch.int32) % 20, torch.tensor([0, 40]))
    assert sum(int(x.starts.sum()) for x, _ in LMDataLoader(corpus, bs=3, seq_len=4, reset_at_docs=True)) == 3
