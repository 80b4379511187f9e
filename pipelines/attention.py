"""Cross-attention over prompts of different lengths.

A batch of prompts has one length, so shorter ones are filled up with states of exact zeros, and zeros mean "no token
here": while a pipeline runs, they are masked out of cross-attention. The mask is read off the states themselves, so it
survives whatever is done to them between encoding and denoising: repeats, guidance's [negative, positive], PAG's third
copy, callbacks, saved embeddings, a ControlNet that gets half of the batch. Where every token is there, no mask is
passed, and attention keeps its fastest kernels.

A UNet takes the mask as an argument, given from outside of whatever was compiled, so that a graph traced without a
mask is not run with one. A ControlNet has no such argument, and `scale` works inside of attention: where these are
needed, hooks bring them, and a compiled network runs uncompiled, for its graph may know nothing of hooks.
"""

import contextlib
import functools
import math
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn

from ..models.positions import CLIP_LENGTH

STATES = 2  # the place of `encoder_hidden_states` among a network's positional arguments


def visible_tokens(states: Tensor) -> Tensor:
    """Which tokens of `states` (batch, tokens, width) are there, (batch, tokens).

    A row of nothing but zeros is SDXL's way to say "no negative prompt"; all its tokens are there.
    """
    visible = states.any(dim=-1)
    return visible | ~visible.any(dim=-1, keepdim=True)


class TokenMask:
    """The mask of the states that a network was last given; made anew when they change, not at every step."""

    def __init__(self):
        self.states: Tensor | None = None
        self.version: int | None = None
        self.mask: Tensor | None = None

    def of(self, states: Tensor) -> Tensor | None:
        """Which tokens of `states` (batch, tokens, width) are there, (batch, tokens); None where all are."""
        version = None if states.is_inference() else states._version  # counts changes in place
        if self.states is not states or self.version != version:
            visible = visible_tokens(states)
            self.states, self.version, self.mask = states, version, None if visible.all() else visible
        return self.mask


def text_states(args: tuple, kwargs: dict) -> Tensor | None:
    """The text's states among a network's arguments; an IP-Adapter makes them a tuple (text, images)."""
    states = kwargs.get("encoder_hidden_states", args[STATES] if len(args) > STATES else None)
    return states[0] if isinstance(states, tuple) else states


def is_compiled(network: nn.Module) -> bool:
    """Whether `network` or a part of it went through `torch.compile`."""
    return any(hasattr(module, "_orig_mod") or module._compiled_call_impl is not None for module in network.modules())


class LongContext:
    """What one call of a pipeline asks of cross-attention: the scale of its logits, and the masks made so far."""

    def __init__(self, scale: float | str | None):
        self.scale = scale
        self.masks: defaultdict[nn.Module, TokenMask] = defaultdict(TokenMask)


CURRENT: ContextVar[LongContext | None] = ContextVar("long_context", default=None)  # of this thread
WRAPPED: dict[nn.Module, tuple[int, Callable[[], None]]] = {}  # network: contexts that it is in, how to unwrap it
STANCES: list = []  # the compiler's stance, once for each call that runs uncompiled
LOCK = threading.Lock()  # held to change WRAPPED and STANCES


@contextlib.contextmanager
def long_context_attention(models: Iterable[nn.Module], scale: float | str | None = None) -> Iterator[None]:
    """Hide absent tokens from every cross-attention of `models`, and multiply its logits by `scale`, in this thread.

    `scale` touches prompts of more than 77 tokens: a factor, or `"log"` for ln(n) / ln(77) with n tokens, which keeps
    the softmax over a longer context as sharp. When the context ends, all is as before, whatever happened.
    """
    with contextlib.ExitStack() as stack:
        for model in models:
            if any(isinstance(module, Transformer2DModel) for module in model.modules()):
                for network in getattr(model, "nets", [model]):  # several ControlNets
                    stack.enter_context(_wrapped(network))
        token = CURRENT.set(LongContext(scale))
        try:
            yield
        finally:
            CURRENT.reset(token)


@contextlib.contextmanager
def _wrapped(network: nn.Module) -> Iterator[None]:
    """Have calls of `network` ask [`CURRENT`]. Threads may share a network: the last to leave unwraps it."""
    with LOCK:
        users, unwrap = WRAPPED.get(network) or (0, _wrap(network))
        WRAPPED[network] = users + 1, unwrap
    try:
        yield
    finally:
        with LOCK:
            users, unwrap = WRAPPED.pop(network)
            if users > 1:
                WRAPPED[network] = users - 1, unwrap
            else:
                unwrap()


def _wrap(network: nn.Module) -> Callable[[], None]:
    """Wrap what a call of `network` comes to, its `forward` or its compiled call; returns how to unwrap it."""
    name = "forward" if network._compiled_call_impl is None else "_compiled_call_impl"
    own = network.__dict__.get(name)
    setattr(network, name, _with_mask(network, getattr(network, name)))
    return functools.partial(delattr, network, name) if own is None else functools.partial(setattr, network, name, own)


def _with_mask(network: nn.Module, call: Callable) -> Callable:
    takes_mask = isinstance(getattr(network, "_orig_mod", network), UNet2DConditionModel)

    @functools.wraps(call)
    def masked(*args, **kwargs):
        context, states = CURRENT.get(), text_states(args, kwargs)
        if context is None or states is None or states.shape[1] <= CLIP_LENGTH:  # stock SDXL's
            return call(*args, **kwargs)
        mask = context.masks[network].of(states)
        if takes_mask and mask is not None and kwargs.get("encoder_attention_mask") is None:
            kwargs["encoder_attention_mask"], mask = mask, None
        factor = None if context.scale is None else key_factor(states, context.scale)
        if mask is None and factor is None:
            return call(*args, **kwargs)
        with uncompiled(network), attention_hooks(network, mask, factor):
            return call(*args, **kwargs)

    return masked


@contextlib.contextmanager
def uncompiled(network: nn.Module) -> Iterator[None]:
    """Run `network` as it was before `torch.compile`.

    The compiler's stance is one for all threads, so the first that needs it sets it and the last puts it back: two
    threads that each put back what they found could leave it uncompiled for good.
    """
    if not is_compiled(network):
        yield
        return
    with LOCK:
        STANCES.append(STANCES[0] if STANCES else torch.compiler.set_stance("force_eager"))
    try:
        yield
    finally:
        with LOCK:
            stance = STANCES.pop()
            if not STANCES:
                stance.__exit__(None, None, None)


def key_factor(states: Tensor, scale: float | str) -> Tensor:
    """What to multiply keys by, so that the logits of prompts of more than 77 tokens are scaled; (batch, 1, 1)."""
    tokens = visible_tokens(states).sum(dim=-1).float()
    factor = tokens.log() / math.log(CLIP_LENGTH) if isinstance(scale, str) else torch.full_like(tokens, scale)
    return factor.where(tokens > CLIP_LENGTH, 1.0).to(states.dtype)[:, None, None]


@contextlib.contextmanager
def attention_hooks(network: nn.Module, mask: Tensor | None, factor: Tensor | None) -> Iterator[None]:
    """Give `mask` (batch, tokens) to all cross-attention of `network`, and multiply its keys by `factor`.

    In this context's calls alone, not in those of other threads.
    """
    context = CURRENT.get()

    def add_mask(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        return (args, {**kwargs, "encoder_attention_mask": mask}) if CURRENT.get() is context else None

    def scale_keys(module: nn.Module, args: tuple, keys: Tensor) -> Tensor | None:
        assert factor is not None  # or this is no hook of anything
        return keys * factor if CURRENT.get() is context else None

    handles = []
    try:
        for module in network.modules():
            if isinstance(module, Transformer2DModel) and mask is not None:
                handles.append(module.register_forward_pre_hook(add_mask, with_kwargs=True))
            elif isinstance(module, BasicTransformerBlock) and factor is not None and module.attn2 is not None:
                handles.append(module.attn2.to_k.register_forward_hook(scale_keys))
        yield
    finally:
        for handle in handles:
            handle.remove()
