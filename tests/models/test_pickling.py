import copy
import functools
import io
import multiprocessing
import pickle

import pytest
import torch

from tulip_diffusion import TulipTextModel, from_clip


def by_pickle(model):
    return pickle.loads(pickle.dumps(model))


def by_torch(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = [by_pickle, copy.deepcopy, by_torch, lambda model: by_pickle(by_pickle(model))]


def everything(model, ids):
    with torch.no_grad():
        output = model(ids, output_hidden_states=True, output_attentions=True)
    return [*output.hidden_states, *output.attentions, output.last_hidden_state, output[0]]


def assert_same(model, other, ids):
    ours, theirs = everything(model, ids), everything(other, ids)
    assert len(ours) == 3 + 2 + 2
    for one, two in zip(ours, theirs, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("copied", COPIES, ids=["pickle", "deepcopy", "torch.save", "twice"])
@pytest.mark.parametrize("position_encoding", ["rope", "cope"])
@pytest.mark.parametrize("projection", [True, False], ids=["with projection", "states only"])
def test_a_copy_gives_the_same_states_and_attentions(clip, long_ids, projection, position_encoding, copied):
    model = from_clip(clip, position_encoding=position_encoding, attention_scaling="log")
    model = model if projection else model.text_model
    model.set_attn_implementation("eager")
    assert type(copied(model)) is type(model)
    assert_same(model, copied(model), long_ids)


def counted(calls, module, args, output):
    calls.append(type(module).__name__)


def test_a_model_pickles_after_use_after_compilation_and_with_hooks_of_its_users(clip, long_ids):
    model = from_clip(clip)
    model.set_attn_implementation("eager")
    before = everything(model, long_ids)
    assert_same(model, by_pickle(model), long_ids)
    compiled = torch.compile(model, backend="eager")
    everything(compiled, long_ids[:, :50])
    assert_same(model, by_pickle(model), long_ids)
    model.compile(backend="eager")
    everything(model, long_ids[:, :50])
    model.text_model.encoder.layers[0].register_forward_hook(functools.partial(counted, []))
    again = by_pickle(model)
    assert len(again.text_model.encoder.layers[0]._forward_hooks) == 2
    for one, two in zip(before, everything(again, long_ids), strict=True):
        torch.testing.assert_close(one, two)


def test_a_copied_layer_is_captured_in_its_new_place(clip, long_ids):
    """As in models that are deepened by doubling a layer."""
    model = from_clip(clip)
    model.text_model.encoder.layers.append(copy.deepcopy(model.text_model.encoder.layers[0]))
    assert len(model(long_ids, output_hidden_states=True).hidden_states) == 4


def test_the_weights_of_a_copy_are_its_own(clip):
    model = from_clip(clip)
    again = by_pickle(model)
    with torch.no_grad():
        again.text_projection.weight.zero_()
    assert model.text_projection.weight.abs().sum() > 0


def test_a_spawned_process_computes_with_a_model_that_was_passed_to_it(clip, long_ids):
    model = from_clip(clip).text_model
    assert isinstance(model, TulipTextModel)
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        states = pool.apply(states_in_another_process, (model, long_ids))
    assert torch.equal(torch.tensor(states), model(long_ids, output_hidden_states=True).hidden_states[-2][0, -1])


def states_in_another_process(model, ids):
    with torch.no_grad():
        return model(ids, output_hidden_states=True).hidden_states[-2][0, -1].tolist()
