"Texts that a model goes on with: nothing that is no word, prompts as they were given, pieces that are the text."
import itertools

import pandas as pd
import pytest
import torch
from training_helpers import lm_learner, tiny_size

from awdtext.data.dataloaders import TextDataLoaders
from awdtext.data.tokenizer import (BOS, EOS, FLD, PAD, TK_MAJ, TK_REP, TK_UP, TK_WREP, UNK, Characters, CharTokenizer,
    SubwordTokenizer, Tokenizer, decode_spec_tokens)
from awdtext.data.vocab import Vocab
from awdtext.ensemble import LMEnsemble
from awdtext.lm.write import prompt_tokens, text_law, write, write_beam, write_stream
from awdtext.models.language_model import get_language_model
from awdtext.text_learner import language_model_learner
from awdtext.training.optim import WeightAverage

marks = [UNK, PAD, BOS, EOS, FLD, TK_REP, TK_WREP, TK_UP, TK_MAJ]
said = '. , " ( ) the cat sat 3 4 ! n\'t do \n can i \'s it - a'.split(' ')


@pytest.fixture
def dls():
    torch.set_num_threads(1)
    return TextDataLoaders(None, None, Vocab([*marks, *said, 'xxfake', '<unk>', '<pad>']), tokenizer=Tokenizer())


@pytest.fixture
def model(dls):
    torch.manual_seed(0)
    return get_language_model(len(dls.vocab), tiny_size)


def test_padding_and_fillers_are_never_said(dls, model):
    with torch.no_grad():
        for t in (PAD, BOS, FLD, UNK, 'xxfake', '<unk>', '<pad>'): model.decoder.bias[dls.vocab.stoi[t]] = 5.  # likely
    (text,) = write(model, dls, [''], 400, text_law(dls), seed=0)
    assert not {PAD, BOS, FLD, UNK, 'xxfake', '<unk>', '<pad>'} & set(text.tokens)
    (text,) = write(model, dls, [''], 50, text_law(dls, no_unk=False), seed=0)
    assert {UNK, '<unk>'} & set(text.tokens) and not {PAD, BOS, FLD, 'xxfake', '<pad>'} & set(text.tokens)


def test_padding_and_fillers_are_in_no_beam(dls, model):
    fillers = {PAD, BOS, FLD, 'xxfake', '<pad>'}
    with torch.no_grad():
        for t in (*fillers, UNK, '<unk>'): model.decoder.bias[dls.vocab.stoi[t]] = 5.  # the likeliest
    for no_unk in (True, False):
        found = write_beam(model, dls, 'the cat', 12, 6, text_law(dls, no_unk=no_unk))
        tokens = {token for text in found for token in text.tokens}
        assert len(found) == 6 and not fillers & tokens and bool({UNK, '<unk>'} & tokens) is not no_unk
    stopped = write_beam(model, dls, 'the cat', 12, 6, text_law(dls, stop=BOS))
    assert any(text.tokens[-1] == BOS for text in stopped) and not {PAD, FLD} & {t for x in stopped for t in x.tokens}


@pytest.mark.parametrize('prompt', ['The cat sat', 'The Zebra can\'t sat!!!! (a "cat")', 'THE CAT', ''])
def test_a_prompt_stays_as_it_is_with_its_unknown_words(dls, model, prompt):
    for text in write(model, dls, [prompt] * 4, 9, text_law(dls), seed=1):
        assert text.text.startswith(prompt)


@pytest.mark.parametrize('seed', range(12))
@pytest.mark.parametrize('stop', [(), BOS, ('.', BOS)])
def test_pieces_are_the_text(dls, model, seed, stop):
    law = text_law(dls, stop=stop)
    (text,) = write(model, dls, ['The cat'], 60, law, seed=seed)
    assert ''.join(write_stream(model, dls, 'The cat', 60, law, seed=seed)) == text.text


def of_kind(kind):
    "Data of words, characters, subwords or lists of tokens, and a model that says much of what is hard to show."
    makers = {'words': Tokenizer, 'characters': CharTokenizer, 'subwords': lambda: SubwordTokenizer(300)}
    tok = makers[kind]().setup(['The cat sat on a mat. Ö é'] * 20) if kind in makers else None
    own = {'words': [*said, '\t', "'", '▁▁', 'cats'], 'characters': list('The cat\n.'),
           'tokens': ['the', 'cat', '<eos>', '3'], 'subwords': tok and tok.pieces}[kind]
    dls = TextDataLoaders(None, None, Vocab([*marks, *own]), tokenizer=tok)
    torch.manual_seed(0)
    model = get_language_model(len(dls.vocab), tiny_size)
    with torch.no_grad():
        for t in ('<0xC3>', '<0xA9>', '▁', EOS, '<eos>', TK_REP, TK_MAJ, '\n'):
            if t in dls.vocab: model.decoder.bias[dls.vocab.stoi[t]] += 4. if kind == 'subwords' else 2.
    return dls, model


def pieces_the_slow_way(dls, prompt, tokens):
    "After each token all is put together anew, and what is new shown."
    shown = ['']
    for n in range(len(tokens) + 1):
        some = tokens[:n - 1 if n and tokens[n - 1] in (EOS, '<eos>') else n]
        whole = prompt_tokens(prompt, dls) + some
        shown.append(dls.tokenizer.detokenize(whole) if dls.tokenizer else ' '.join(whole))
    return [now[len(before):] for before, now in itertools.pairwise(shown) if len(now) > len(before)]


@pytest.mark.parametrize('kind', ['words', 'characters', 'tokens', 'subwords'])
def test_pieces_are_those_of_the_slow_way(kind):
    dls,model = of_kind(kind)
    for seed, prompt in itertools.product(range(4), ('The cat', 'The cat xxmaj', '')):
        (text,) = write(model, dls, [prompt], 60, text_law(dls), seed=seed)
        pieces = list(write_stream(model, dls, prompt, 60, text_law(dls), seed=seed))
        assert ''.join(pieces) == text.text
        if kind != 'subwords': assert pieces == pieces_the_slow_way(dls, prompt, text.tokens)
    if kind == 'subwords': assert '\xe9' in text.text and '\ufffd' in text.text            # bytes that fit, and others


class Looked(str):
    "A token that counts how often it is looked up, which putting a text together begins with."
    times = 0

    def __hash__(self):
        Looked.times += 1
        return super().__hash__()


@pytest.mark.parametrize('kind', ['words', 'characters', 'subwords'])
def test_a_word_of_a_long_text_costs_no_more(kind):
    dls,model = of_kind(kind)
    law,times = text_law(dls), []
    dls.vocab.itos = [Looked(token) for token in dls.vocab.itos]
    for n in (100, 400):
        Looked.times = 0
        list(write_stream(model, dls, 'The cat', n, law, seed=0))
        times.append(Looked.times)
    assert 100 <= times[0] and times[1] < 5 * times[0]                             # 16 times as many if all were anew


def test_what_cannot_join_piece_by_piece_is_shown_at_the_end(dls):
    class Own(Characters):
        joined = property()                                                               # `hasattr` says no
    tok = Tokenizer(Own(), rules=(), post_rules=())
    assert list(tok.detokenized([['a'], ['b', PAD], ['c']])) == ['abc']


def test_pieces_come_before_the_end(dls, model):
    pieces = write_stream(model, dls, 'The cat', 10**9, text_law(dls), seed=0)
    assert next(pieces) == 'The cat' and all(itertools.islice(pieces, 20))


def test_a_stop_mark_is_not_shown_and_a_stop_word_is(dls, model):
    for seed in range(5):
        (text,) = write(model, dls, ['the'], 500, text_law(dls, stop=BOS), seed=seed)
        assert text.tokens[-1] == BOS and BOS not in text.text and len(text.logps) == len(text.tokens)
        (text,) = write(model, dls, ['the'], 500, text_law(dls, stop='.'), seed=seed)
        assert text.tokens[-1] == '.' and text.text.endswith('.')


@pytest.mark.parametrize('stop', ['STOP', ['.', 'nowhere'], ''])
def test_stop_tokens_outside_of_the_vocabulary(dls, model, stop):
    with pytest.raises(ValueError, match='is not in the vocabulary'): text_law(dls, stop=stop)


def test_characters():
    text = 'The cat sat. ' * 20
    dls = TextDataLoaders.from_texts([text, text], is_lm=True, tok_tfm=CharTokenizer(), min_freq=1, bs=2, seed=0)
    learn = language_model_learner(dls, config=tiny_size)
    assert ''.join(learn.stream('The  cat', 30, seed=0)) == learn.predict('The  cat', 30, seed=0)
    (text,) = learn.generate(['The'], 200, stop='.', seed=0)
    assert text.text == 'The' + ''.join(text.tokens) and text.tokens.count('.') <= 1


@pytest.mark.parametrize('backwards', [False, True])
def test_learners_write_many_texts(backwards):
    texts = [f'the cat sat on mat number {i} .' for i in range(10)] * 3
    dls = TextDataLoaders.from_texts(texts, is_lm=True, min_freq=1, bs=2, seq_len=8, backwards=backwards, seed=0)
    learn = language_model_learner(dls, config=tiny_size, backwards=backwards)
    given = ['number 3', 'sat on', '']
    for i, (prompt, text) in enumerate(zip(given, learn.generate(given, 6, top_k=5, seed=4))):
        assert text.text == learn.predict(prompt, 6, top_k=5, seed=4 + i)
        assert text.text.endswith(prompt) if backwards else text.text.startswith(prompt)
    best = learn.beam_search('sat on', 4, beam_sz=3)
    assert len(best) == 3 and best[0].logp == max(text.logp for text in best)
    if backwards:
        with pytest.raises(ValueError, match='writes from the end'): next(learn.stream('sat on', 4))


def test_log_probabilities_of_writing_and_reading_agree():
    learn = lm_learner()
    learn.fit(1)
    (text,) = learn.generate([['w1', 'w2', 'w3']], 15, .7, top_p=.9, no_unk=False, repetition_penalty=1.2, seed=0)
    (score,) = learn.score([text.text.split()])
    assert [-p for p in text.logps] == pytest.approx(score.surprisals[-15:], abs=1e-4)


@pytest.mark.parametrize('kwargs, problem', [
    (dict(top_p=0), 'top_p=0'), (dict(top_k=0), 'top_k=0'), (dict(min_p=2), 'min_p=2'),
    (dict(temperature=-1), 'temperature=-1'), (dict(repetition_penalty=0), 'repetition_penalty=0'),
    (dict(stop='STOP'), "'STOP' is not in the vocabulary")], ids=str)
def test_impossible_settings_change_nothing(kwargs, problem):
    learn = lm_learner()
    state = torch.get_rng_state()
    def many(text, n, **kw): return learn.generate([text], n, **kw)
    def pieces(text, n, **kw): return list(learn.stream(text, n, **kw))
    for method in (learn.predict, many, pieces):
        with pytest.raises(ValueError, match=problem): method('w1 w2', 3, seed=0, **kwargs)
    assert torch.equal(torch.get_rng_state(), state)


def test_one_text_is_no_list_of_texts():
    with pytest.raises(TypeError, match='give a list of texts, not one text'): lm_learner().generate('w1 w2')


def test_a_prompt_of_numbers_is_told(dls, model):
    with pytest.raises(TypeError, match=r'tokens are strings, not 1 \(int\)'):
        write(model, dls, [[1]], 2, text_law(dls))


@pytest.mark.parametrize('kwargs, problem', [
    (dict(top_p='0.9'), "top_p='0.9' must be a number"), (dict(top_k=2.5), 'top_k=2.5 must be a whole number'),
    (dict(temperature=None), 'temperature=None must be a number'), (dict(seed=1.5), 'seed=1.5: use a whole number'),
    (dict(seed=2**70), 'seed=.*18 digits'), (dict(repetition_penalty='1'), "repetition_penalty='1' must be a number")],
    ids=str)
def test_settings_of_another_type_are_told_in_their_own_words(kwargs, problem):
    learn = lm_learner()
    for method in (learn.predict, learn.stream):                 # `stream` at once, and not when it is first looked at
        with pytest.raises(ValueError, match=problem): method('w1 w2', 0, **kwargs)
    with pytest.raises(ValueError, match=problem): learn.generate(['w1 w2'], 3, **kwargs)


def test_a_stop_token_that_is_not_there_names_one_that_is(dls):
    "The cure that was told, '.', was not in the vocabulary either."
    with pytest.raises(ValueError, match="'STOP' is not .* such as '.'; what"): text_law(dls, stop='STOP')
    with pytest.raises(ValueError, match="'Cat' is not .* such as 'cat';"): text_law(dls, stop=['.', 'Cat'])
    with pytest.raises(ValueError, match="'STOP' is not .* such as 'w[0-9]+';"): text_law(lm_learner().dls, stop='STOP')


@pytest.mark.parametrize('prompt', [None, 3, float('nan')])
def test_what_is_no_prompt(prompt):
    learn = lm_learner()
    for method in (learn.predict, learn.stream, learn.beam_search, lambda text: learn.generate([text])):
        with pytest.raises(TypeError, match=f'a prompt is a text or a list of tokens, not {prompt}'): method(prompt)
    with pytest.raises(TypeError, match='give a list of texts, not'): learn.generate(prompt)
    with pytest.raises(TypeError, match='give a list of texts, not'): learn.score(prompt)
    with pytest.raises(TypeError, match="one column of the frame, such as df"):
        learn.generate(pd.DataFrame({'text': ['w1']}))


# As fastai's scripts call it

def test_predict_takes_what_fastais_does():
    dls = TextDataLoaders.from_texts(['The cat sat on the ROOF !!!! And slept .'] * 4, is_lm=True, bs=2, min_freq=1)
    learn = language_model_learner(dls, config=dict(emb_sz=8, n_hid=12, n_layers=1))
    how = dict(n_words=6, no_unk=True, temperature=.5, min_p=.001, seed=1)
    usual = learn.predict('The cat', **how)
    assert learn.predict('The cat', **how, no_bar=True, only_last_word=True) == usual
    seen = []
    def look(tokens):
        seen.extend(tokens)
        return [token.upper() for token in tokens]
    said = learn.predict('The cat', **how, no_bar=False, only_last_word=False, decoder=look)
    assert said == ' '.join(seen).upper() and seen[:3] == ['xxmaj', 'the', 'cat'] and 'xxbos' not in seen
    assert learn.predict('The cat', **how, decoder=decode_spec_tokens).replace(' ', '') == usual.replace(' ', '')
    with pytest.raises(TypeError, match="decoder='upper' is no function"): learn.predict('The', 2, decoder='upper')


def test_fastais_order_of_arguments_is_not_taken_for_ours():
    "There `no_unk` comes third, and True would be a temperature of 1."
    dls = TextDataLoaders.from_texts(['The cat sat on the roof .'] * 4, is_lm=True, bs=2, min_freq=1)
    learn = language_model_learner(dls, config=dict(emb_sz=8, n_hid=12, n_layers=1))
    with pytest.raises(ValueError, match='temperature=True must be a number'): learn.predict('The cat', 4, True, .75)


def test_special_tokens_are_done_to_their_words():
    tokens = 'xxmaj oh xxrep 4 ! xxwrep 3 so xxup good , xxmaj éric'.split()
    assert decode_spec_tokens(tokens) == ['Oh', '!!!!', 'so so so', 'GOOD', ',', 'Éric']


# Several as one

def ensemble(backwards=False, sizes=((8, 12, 1), (6, 10, 2))):
    dls = TextDataLoaders.from_texts(['The cat sat on the roof . And slept .'] * 4, is_lm=True, bs=2, min_freq=1,
                                     backwards=backwards)
    torch.manual_seed(0)
    return LMEnsemble([language_model_learner(dls, config=dict(zip(('emb_sz', 'n_hid', 'n_layers'), size)))
                       for size in sizes])


@pytest.mark.parametrize('backwards', [False, True])
def test_an_ensemble_writes_by_the_mean_of_the_probabilities(backwards):
    "By a slow loop, which reads all from the beginning for each word."
    both,n = ensemble(backwards), 6
    vocab = both.dls.vocab
    (text,) = both.generate(['the cat'], n, temperature=0)
    tokens = prompt_tokens('the cat', both.dls)
    ids = vocab.encode(tokens).tolist()[::-1 if backwards else 1]
    for token, logp in zip(text.tokens, text.logps):
        probs = [part.model.eval().logits(part.model(torch.tensor([ids])).dropped[:, -1]).softmax(-1)[0]
                 for part in both.parts]
        mean = torch.stack(probs).mean(0).detach()
        forbidden = [vocab.stoi[t] for t in (UNK, PAD, BOS, FLD, 'xxfake') if t in vocab]
        assert vocab.stoi[token] == mean.index_fill(0, torch.tensor(forbidden), 0.).argmax()
        assert logp == pytest.approx(mean[vocab.stoi[token]].log().item(), abs=1e-4)
        ids.append(vocab.stoi[token])
    several = both.generate(['the cat', 'on', 'the cat sat'], n, seed=3, stop='.')
    assert several[1] == both.generate(['on'], n, seed=4, stop='.')[0]
    assert both.predict('on', n, seed=4, stop='.') == several[1].text
    assert both.beam_search('on', 3)[0].logp >= both.beam_search('on', 3)[1].logp
    if not backwards: assert ''.join(both.stream('on', n, seed=4, stop='.')) == several[1].text


def test_an_ensemble_writes_with_the_averaged_weights():
    both = ensemble()
    usual = both.predict('the', 9, seed=0)
    for part in both.parts:
        part.average = WeightAverage(part.model)
        with torch.no_grad(): part.model.decoder.bias += torch.linspace(0, 9, len(both.dls.vocab))
        part.average.swapped = False
    assert both.predict('the', 9, seed=0) == usual


def test_two_directions_do_not_write_together():
    forward,backward = ensemble().parts[0], ensemble(True).parts[0]
    both = LMEnsemble([forward, backward])
    for how in (both.predict, both.beam_search, both.stream):
        with pytest.raises(ValueError, match='cannot write together.*parts'): how('the', 3)
    with pytest.raises(ValueError, match='cannot write together'): both.generate(['the'], 3)
    assert both.score(['the cat sat']) and both.parts[0].predict('the', 2, seed=0)
