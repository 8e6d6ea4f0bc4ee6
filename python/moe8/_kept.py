# SPDX-License-Identifier: BSD-3-Clause
"""Quantized weights that are used again while the weight is unchanged: by backward after its forward, and by later
forwards of training (micro-batches, recomputation). The contract is that of include/moe8/memory.h and of
docs/decisions/013-weight-cache.md, as far as Python can see writes; docs/python.md says what it cannot.

A write is seen by the tensor's version counter, by the end of a step of an optimizer of torch (the fused ones do not
move the counter), and where FSDP2 frees the parameter that it gathered."""
import functools
import os
import sys
import weakref

import torch

from ._native import fail

_MODES = ("off", "auto", "on")
_entries = {}  # by id(parameter)
_use = {"hits": 0, "misses": 0}


def _mode_from_environment():
    text = os.environ.get("MOE8_WEIGHT_CACHE", "auto")
    return text if text in _MODES else "auto"


_mode = _mode_from_environment()


class _Entry:
    """What is kept of one parameter."""
    __slots__ = ("parameter", "content", "forms", "is_trusted", "has_gradient")

    def __init__(self, parameter, is_trusted):
        key = id(parameter)
        self.parameter = weakref.ref(parameter, lambda _gone: _entries.pop(key, None))
        self.content = None  # what must be equal for the forms to be those of the parameter as it is now
        self.forms = {}
        self.is_trusted = is_trusted  # a change was seen after a backward: its optimizer's writes are seen
        self.has_gradient = False  # a backward ran since the last change

    def changed(self):
        """A write was seen."""
        self.forms.clear()
        self.is_trusted |= self.has_gradient
        self.has_gradient = False


class Part:
    """The forms kept of what a product reads of a parameter: all of it, one expert, a transposed view."""
    __slots__ = ("_forms", "_place")

    def __init__(self, forms, place):
        self._forms, self._place = forms, place

    def find(self, *key):
        form = self._forms.get((self._place, key))
        _use["misses" if form is None else "hits"] += 1
        return form

    def keep(self, form, *key):
        self._forms[self._place, key] = form
        return form


# ---- which parameters ---------------------------------------------------------------------------------------
def register(parameter):
    """From now on forms of the parameter may be kept."""
    if id(parameter) in _entries or _mode == "off" or type(parameter) is not torch.nn.Parameter or \
            parameter.is_inference():
        return
    if _listen_to_fsdp(sys.modules.get(_FSDP)) and _listen_to_optimizers():
        is_gathered = _gathered.get(id(parameter)) is parameter
        # One that does not fill its memory shares it with tensors that write unseen.
        if is_gathered or parameter.untyped_storage().nbytes() == parameter.numel() * parameter.element_size():
            _entries[id(parameter)] = _Entry(parameter, is_gathered)


def forget(parameter):
    """What was kept of the parameter goes."""
    _entries.pop(id(parameter), None)


# ---- who writes -----------------------------------------------------------------------------------------------
@functools.lru_cache(maxsize=None)
def _listen_to_optimizers():
    from torch.optim.optimizer import register_optimizer_step_post_hook
    register_optimizer_step_post_hook(_after_step)
    return True


def _after_step(optimizer, _arguments, _named):
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            entry = _entries.get(id(parameter))
            if entry is not None:
                entry.changed()


_FSDP = "torch.distributed.fsdp._fully_shard._fsdp_param"
_gathered = weakref.WeakValueDictionary()  # by id: what FSDP2 gathered


@functools.lru_cache(maxsize=None)
def _listen_to_fsdp(module):
    """FSDP2 fills the parameters that it gathers without moving their counters, and frees them: its methods tell us.
    False where FSDP2 is loaded and has no such methods: nothing is kept then."""
    if module is None:
        return True
    try:
        gather, free = module.FSDPParam.to_unsharded, module.FSDPParam.free_unsharded_param
    except AttributeError:
        return False

    @functools.wraps(gather)
    def gathered(self):
        gather(self)
        parameter = self._unsharded_param
        _gathered[id(parameter)] = parameter
        entry = _entries.get(id(parameter))
        if entry is not None:
            entry.is_trusted = True

    @functools.wraps(free)
    def freed(self):
        entry = _entries.get(id(getattr(self, "_unsharded_param", None)))
        if entry is not None:
            entry.forms.clear()
        free(self)
    module.FSDPParam.to_unsharded, module.FSDPParam.free_unsharded_param = gathered, freed
    return True


# ---- what products ask ----------------------------------------------------------------------------------------
def _find(W):
    """The entry of the parameter that W is, or is a view of; what it holds now; and the place of W in it."""
    base = W._base
    owner = W if base is None else base
    entry = _entries.get(id(owner))
    if entry is None or entry.parameter() is not owner:
        return None
    address = W.data_ptr()
    stream = 0
    if W.is_cuda:
        if torch.cuda.is_current_stream_capturing():  # a graph quantizes its weights in each replay
            return None
        stream = torch._C._cuda_getCurrentRawStream(W.device.index)
    content = (owner._version, owner.data_ptr(), stream)
    return entry, content, (address - content[1], W.shape, W.stride(), W.dtype)


def for_forward(W):
    """The part of W in a forward of training; None: nothing of it is kept."""
    if not _entries:
        return None
    found = _find(W)
    if found is None:
        return None
    entry, content, place = found
    if entry.content != content:
        if entry.content is not None and entry.content[0] != content[0]:
            entry.changed()
        entry.forms.clear()
        entry.content = content
    elif not entry.is_trusted and _mode != "on":
        for key in [key for key in entry.forms if key[0] == place]:
            del entry.forms[key]
    return Part(entry.forms, place)


def for_backward(W):
    """The part of W in a backward."""
    if not _entries:
        return None
    found = _find(W)
    if found is None or found[0].content != found[1]:
        return None
    return Part(found[0].forms, found[2])


def note_gradient(W):
    """A gradient of W has been computed: an optimizer makes the next change."""
    if not _entries:
        return
    base = W._base
    entry = _entries.get(id(W if base is None else base))
    if entry is not None:
        entry.has_gradient = True
        if not entry.is_trusted and _mode != "on":
            entry.forms.clear()


# ---- what people call -----------------------------------------------------------------------------------------
def set_weight_cache(mode: str) -> None:
    """Whether the quantized weights of converted parameters are used again, by eager code: "off", "auto" (until a
    write is seen, and only where an optimizer's writes were seen before) or "on" (by the version counter alone).
    Starts as MOE8_WEIGHT_CACHE says, else as "auto". Changes no bit of any result."""
    global _mode
    if mode not in _MODES:
        fail("set_weight_cache", "mode", f"expected off, auto or on, got '{mode}'")
    _mode = mode
    if mode == "off":
        _entries.clear()


def clear_weight_cache() -> None:
    """Forgets every quantized weight: to be called after a write that moe8 cannot see."""
    for entry in _entries.values():
        entry.forms.clear()


def weight_cache_use() -> dict:
    """hits and misses since the process began; weights of which forms are kept, and their bytes."""
    kept = [entry for entry in _entries.values() if entry.forms]
    tensors = [form for entry in kept for form in entry.forms.values()]
    return dict(_use, weights=len(kept), bytes=sum(x.numel() * x.element_size() for x in tensors))
