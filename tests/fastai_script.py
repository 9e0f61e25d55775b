from fastai.text.all import *
# ruff: noqa: F403, F405 (it is written as users write)
#
# Every call of fastai's text tutorial (https://docs.fast.ai/tutorial.text.html), in its order, on a small folder of
# reviews. The import above is all that differs between fastai and awdtext: test_fastai_script.py replaces that line.
# What is added: `pretrained=False`, because fastai downloads weights otherwise; small batches and a small model, so
# that it takes seconds; and assertions on what comes back, which hold in both libraries.
import sys, warnings

import torch

SIZES = dict(emb_sz=12, n_hid=16, n_layers=2)
BS = 8
TEXT,N_WORDS,N_SENTENCES = 'I liked this movie because', 12, 3


def attempt(failures, name, call):
    "Call what one of the libraries is known to fail at, and note the failure under `name`."
    try: call()
    except Exception as e: failures[name] = f'{type(e).__name__}: {e}'


def small(config): return {**config, **SIZES}


def check_prediction(prediction, categories):
    label,index,probs = prediction
    assert str(label) in categories and categories[int(index)] == str(label)
    assert isinstance(probs, torch.Tensor) and probs.shape == (2,) and abs(float(probs.sum()) - 1) < 1e-4
    assert int(probs.argmax()) == int(index)


def check_preds(learn, texts, targets, categories):
    "`get_preds` keeps the order of the files, whatever the order of the batches; each document as if it were alone."
    probs,targs = learn.get_preds()
    assert probs.shape == (len(texts), 2) and torch.allclose(probs.sum(1), torch.ones(len(texts)), atol=1e-4)
    assert [categories[int(t)] for t in targs] == targets, 'targets are not in the order of the files'
    alone = torch.stack([learn.predict(text)[2] for text in texts])
    assert torch.allclose(alone, probs, atol=1e-6) and not torch.allclose(alone.roll(1, 0), probs, atol=1e-6)
    wanted = float((probs.argmax(1) == targs).float().mean())
    loss,accuracy_ = learn.validate()
    assert abs(accuracy_ - wanted) < 1e-5 and loss > 0


def classifier(path, failures):
    "Part 1: train a text classifier, by the high-level API and by the data block."
    dls = TextDataLoaders.from_folder(path, valid='test', bs=BS)
    dls.show_batch()
    learn = text_classifier_learner(dls, AWD_LSTM, drop_mult=0.5, metrics=accuracy, pretrained=False,
                                    config=small(awd_lstm_clas_config))
    learn.fine_tune(1, 1e-2)
    attempt(failures, 'show_results', lambda: learn.show_results())
    check_prediction(learn.predict("I really liked that movie!"), ['neg', 'pos'])

    imdb = DataBlock(blocks=(TextBlock.from_folder(path), CategoryBlock),
                     get_items=get_text_files,
                     get_y=parent_label,
                     splitter=GrandparentSplitter(valid_name='test'))
    dls = imdb.dataloaders(path, path=path, bs=BS)
    n_train,n_valid = (len(get_text_files(path, folders=[part])) for part in ('train', 'test'))
    assert sum(len(y) for _, y in dls.valid) == n_valid and len(dls.train) in (n_train // BS, -(-n_train // BS))
    x,y = dls.one_batch()
    assert len(y) == BS and set(y.tolist()) <= {0, 1}
    attempt(failures, 'DataBlock.summary', lambda: imdb.summary(path))


def language_model(path, failures):
    "Part 2: fine-tune a language model."
    dls_lm = TextDataLoaders.from_folder(path, is_lm=True, valid_pct=0.1, bs=BS)
    dls_lm.show_batch(max_n=5)
    x,y = dls_lm.one_batch()
    assert x.shape == y.shape and len(x) == BS and torch.equal(torch.as_tensor(x)[:, 1:], torch.as_tensor(y)[:, :-1])

    learn = language_model_learner(dls_lm, AWD_LSTM, metrics=[accuracy, Perplexity()], path=path, wd=0.1,
                                   pretrained=False, config=small(awd_lstm_lm_config)).to_fp16()
    learn.fit_one_cycle(1, 1e-2)
    loss,acc,perplexity = learn.validate()
    assert abs(perplexity / torch.tensor(loss).exp().item() - 1) < 1e-3 and 0 <= acc <= 1
    learn.save('1epoch')
    before = [p.detach().clone() for p in learn.model.parameters()]
    learn.unfreeze()
    learn.fit_one_cycle(1, 1e-3)
    assert not all(torch.equal(p, q) for p, q in zip(before, learn.model.parameters()))
    learn = learn.load('1epoch')
    assert all(torch.equal(p, q) for p, q in zip(before, learn.model.parameters()))
    learn.unfreeze()
    learn.fit_one_cycle(1, 1e-3)
    learn.save_encoder('finetuned')
    attempt(failures, 'lr_find', lambda: check_rates(learn.lr_find(show_plot=False)))

    preds = [learn.predict(TEXT, N_WORDS, temperature=0.75) for _ in range(N_SENTENCES)]
    print("\n".join(preds))
    assert all(isinstance(pred, str) and len(pred.split()) > len(TEXT.split()) for pred in preds)
    assert len(set(preds)) > 1, 'the same words each time'
    return dls_lm


def check_rates(suggestions):
    assert all(0 < float(rate) < 100 for rate in suggestions)


def ulmfit_classifier(path, dls_lm):
    "Part 3: the classifier on the encoder of the language model."
    dls_clas = TextDataLoaders.from_folder(path, valid='test', text_vocab=dls_lm.vocab, bs=BS)
    learn = text_classifier_learner(dls_clas, AWD_LSTM, drop_mult=0.5, metrics=accuracy, pretrained=False,
                                    config=small(awd_lstm_clas_config))
    learn = learn.load_encoder('finetuned')
    learn.fit_one_cycle(1, 2e-2)
    learn.freeze_to(-2)
    learn.fit_one_cycle(1, slice(1e-2/(2.6**4),1e-2))
    learn.freeze_to(-3)
    learn.fit_one_cycle(1, slice(5e-3/(2.6**4),5e-3))
    learn.unfreeze()
    learn.fit_one_cycle(2, slice(1e-3/(2.6**4),1e-3))
    files = [file for file in get_text_files(path, folders=['train', 'test']) if file.parent.parent.name == 'test']
    check_preds(learn, [file.read_text() for file in files], [file.parent.name for file in files], ['neg', 'pos'])


def main(path):
    "All parts; returns the failures, by the name of what failed."
    warnings.simplefilter('ignore')
    path,failures = Path(path), {}
    classifier(path, failures)
    dls_lm = language_model(path, failures)
    ulmfit_classifier(path, dls_lm)
    return failures


if __name__ == '__main__': print('FAILURES', main(sys.argv[1]))
