# SPDX-License-Identifier: BSD-3-Clause
"""Converted weights: what a module's attribute gives out in the place of its parameter. A tensor whose products are
quantized ones; the parameter itself stays what and where it was.

A product is converted when it contracts along whole rows of the weight's matrices, be the weight whole, one expert's
slice, or transposed. Any other product runs in torch, in high precision, and is noted by the weight's name."""
import functools
import warnings
import weakref

import torch
import torch.nn.functional as F

from . import _kept, ops
from ._native import Error, ask
from .config import meaning

_Plain = torch._C.DisableTorchFunctionSubclass
_HANDLERS = {}


def _handles(*functions):
    def register(handler):
        for function in functions:
            if function is not None:
                _HANDLERS[function] = handler
        return handler
    return register


class ConvertedWeight(torch.Tensor):
    """See above. Its classes differ by config, and by which of the last two axes were cut."""
    config = ""
    strict = True  # a product in high precision is told of
    cut = (False, False)
    variants = ()  # the classes of the same config, by cut; plain data, so that dynamo can read it

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        handler = _HANDLERS.get(func)
        with _Plain():
            if handler is not None:
                return handler(cls, func, args, kwargs or {})
            return func(*args, **(kwargs or {}))


@functools.lru_cache(maxsize=None)
def weight_class(config, strict):
    """The class of whole weights of a config."""
    cuts = ((False, False), (False, True), (True, False), (True, True))
    classes = tuple(type("ConvertedWeight", (ConvertedWeight,), {"config": config, "strict": strict, "cut": cut,
                                                            "__module__": __name__}) for cut in cuts)
    for made in classes:
        made.variants = classes
    return classes[0]


# ---- what became of a weight ----------------------------------------------------------------------------
_COMPUTED_FROM = ("no product of it was seen, though a gradient reached it: the products are of tensors computed from "
                  "it (W * scale, W + delta), or by operations that moe8 does not know. Multiply by the weight itself, "
                  "or leave it out of the conversion")
_NO_PRODUCT = "no product of it was seen so far"


class Record:
    """How the products of a converted weight ran since its conversion."""

    def __init__(self, fqn, shape, unused):
        self.fqn, self.shape, self.unused = fqn, tuple(shape), unused
        self.ran_low = False
        self.high = {}  # operation: why
        self.judged = False
        self.told = set()
        self.watched = set()  # ids of parameters that are no plain tensors

    @property
    def use(self):
        if self.high:
            return "both" if self.ran_low else "high precision"
        return "low precision" if self.ran_low else "none"

    def remedy(self):
        if self.high:
            return "; ".join(f"{op} ran in high precision: {why}" for op, why in self.high.items())
        return "" if self.ran_low else (_COMPUTED_FROM if self.judged else _NO_PRODUCT)

    def row(self):
        return {"fqn": self.fqn, "shape": self.shape, "use": self.use, "ops": list(self.high), "remedy": self.remedy()}

    def judge(self):
        """After a gradient reached the weight: complains of products in high precision, or of none."""
        self.judged = True
        remedy = self.remedy()
        if not remedy or self.unused == "ignore":
            return
        if self.unused == "error":
            raise Error("[quantize_] " + ask("check_text", weights=[self.row()])["line"])
        if remedy not in self.told:
            self.told.add(remedy)
            warnings.warn("[quantize_] " + ask("check_text", weights=[self.row()])["line"], stacklevel=2)


def converted(parameter, made, record):
    """The parameter as its module gives it out, of the class `made`."""
    if torch.compiler.is_compiling():
        if type(parameter).__name__ == "FakeTensor":
            raise Error(f"[torch.export] {record.fqn}: expected a model without converted weights, got one that "
                        "computes in low precision. Export the model that moe8.dequantize_() gives back")
        _prepare_dynamo()
        return parameter.as_subclass(made)
    if isinstance(parameter, ConvertedWeight):  # a function of torch put it there, to be used as it is
        return parameter
    if type(parameter) not in _PLAIN:
        # A DTensor: FSDP asks for it, and multiplies by a plain tensor. If others do, a gradient tells.
        if id(parameter) not in record.watched:
            record.watched.add(id(parameter))
            _judge_on_gradient(parameter, record)
        return parameter
    _kept.register(parameter)
    weight = parameter.as_subclass(made)
    weight.record = record
    if not record.judged and torch.is_grad_enabled():
        _judge_on_gradient(weight, record)
    return weight


@torch.compiler.assume_constant_result
def _prepare_dynamo():
    """Runs while code is traced: dynamo asks tensors' classes about public functions alone, and torch._grouped_mm is
    none by its name."""
    try:
        from torch._dynamo.variables.torch import get_overridable_functions
        get_overridable_functions().add(torch._grouped_mm)
    except (ImportError, AttributeError) as error:
        raise Error("[torch.compile] torch._grouped_mm: expected a dynamo as that of torch 2.11, which can be told of "
                    f"it, got {torch.__version__} ({error}). Leave converted modules out of compiled code") from error


_PLAIN = (torch.nn.Parameter, torch.Tensor)


def _judge_on_gradient(weight, record):
    reference = weakref.ref(record)

    def judge(_gradient):
        alive = reference()
        if alive is not None and not alive.judged:
            alive.judge()
    if weight.requires_grad:
        weight.register_hook(judge)


def note_low(weight):
    """A product of the weight ran in low precision."""
    if not torch.compiler.is_compiling():
        record = getattr(weight, "record", None)
        if record is not None:
            record.ran_low = True


def _name_of(func):
    return getattr(func, "__name__", str(func))


def _high(cls, func, args, kwargs, weight, why):
    """Runs in torch, and says so of the weight. Compiled code keeps no records: there it is an error."""
    if torch.compiler.is_compiling():
        if cls.strict:
            raise Error(f"[{_name_of(func)}] expected a product in low precision of a converted weight, but {why}")
    else:
        record = getattr(weight, "record", None)
        if record is not None and _name_of(func) not in record.high:
            record.high[_name_of(func)] = why
            record.judged = False
    return func(*args, **kwargs)


def _derived(cls, weight, result, cut):
    """A view or copy of a converted weight."""
    if not isinstance(result, torch.Tensor) or not result.is_floating_point() or result.dim() < 2:
        return result
    made = result.as_subclass(cls.variants[2 * cut[0] + cut[1]])
    if not torch.compiler.is_compiling():
        made.record = getattr(weight, "record", None)
    return made


# ---- products -------------------------------------------------------------------------------------------
_CUT = ("it contracts along a part of the weight's rows: multiply by whole rows, or leave it out of the conversion")


def _one(cls, weight, x, matrix, bias=None):
    """x [..., K] times a matrix (N, K) of the weight, in the dtype that torch's product has."""
    note_low(weight)
    return ops.product_of_one("linear", x, matrix, bias, cls.config)


@_handles(F.linear)
def _linear(cls, func, args, kwargs):
    def take(input, weight, bias=None):
        return input, weight, bias
    x, weight, bias = take(*args, **kwargs)
    if not isinstance(weight, ConvertedWeight) or weight.dim() != 2 or isinstance(x, ConvertedWeight):
        return _high(cls, func, args, kwargs, weight if isinstance(weight, ConvertedWeight) else x,
                     "it is not the weight of the product. Leave it out of the conversion")
    if cls.cut[1]:
        return _high(cls, func, args, kwargs, weight, _CUT)
    return _one(cls, weight, x, weight, bias)


def _batched(cls, weight, x, matrices):
    """x [E, M, K] times matrices [E, K, N] of the weight: as many groups of M rows."""
    note_low(weight)
    experts, rows, k = x.shape
    offs = torch.arange(1, experts + 1, device=x.device, dtype=torch.int32) * rows
    A, B_t = ops.autocast(x.device, x.reshape(experts * rows, k), matrices)
    y = ops.grouped_mm(A, B_t, offs, cls.config, out_dtype=A.dtype)
    return y.view(experts, rows, matrices.shape[2])


def _product(cls, weight, x, matrices):
    """x @ matrices, of the weight: one (K, N), or one per expert; None where operands do not line up as groups."""
    if matrices.dim() == 2:
        return _one(cls, weight, x, matrices.t())
    if matrices.dim() != 3 or not meaning(cls.config).grouped:
        return None
    if x.dim() == 2 or x.dim() == 3 and x.shape[0] in (1, matrices.shape[0]):
        return _batched(cls, weight, x.expand(matrices.shape[0], *x.shape[-2:]), matrices)
    return None


@_handles(torch.matmul, torch.mm, torch.bmm, torch.Tensor.matmul, torch.Tensor.mm, torch.Tensor.bmm,
          torch.Tensor.__matmul__, torch.Tensor.__rmatmul__)
def _matmul(cls, func, args, kwargs):
    a, b = args[:2] if len(args) > 1 else (args[0], next(iter(kwargs.values())))
    if func is torch.Tensor.__rmatmul__:
        a, b = b, a
    is_right = isinstance(b, ConvertedWeight)
    weight = b if is_right else a
    if is_right and isinstance(a, ConvertedWeight) or "out" in kwargs:
        return _high(cls, func, args, kwargs, weight, "it has two weights, or an out tensor")
    if cls.cut[0 if is_right else 1]:
        return _high(cls, func, args, kwargs, weight, _CUT)
    if is_right:
        y = _product(cls, weight, a, b)
    elif b.dim() > 1:  # W x = (x^T W^T)^T
        y = _product(cls, weight, b.transpose(-2, -1), a.transpose(-2, -1))
    else:
        y = None
    if y is None:
        return _high(cls, func, args, kwargs, weight,
                     "its operands do not line up as groups: use linear, grouped_mm or bmm")
    return y if is_right else y.transpose(-2, -1)


@_handles(torch.addmm, torch.Tensor.addmm)
def _addmm(cls, func, args, kwargs):
    bias, x, weight = args[:3]
    simple = len(args) == 3 and not kwargs and isinstance(weight, ConvertedWeight)
    if not simple or cls.cut[0]:
        return _high(cls, func, args, kwargs, weight if isinstance(weight, ConvertedWeight) else x,
                     "it has a beta, alpha or out, or a weight on the left. Use linear")
    return _one(cls, weight, x, weight.t()) + bias


def _grouped_mm(cls, func, args, kwargs):
    def take(input, mat2, offs=None, bias=None, out_dtype=None):
        return input, mat2, offs, bias, out_dtype
    named = dict(kwargs)
    for other in ("self", "mat_a"):
        if other in named:
            named["input"] = named.pop(other)
    for other in ("weight", "mat_b"):
        if other in named:
            named["mat2"] = named.pop(other)
    x, weight, offs, bias, out_dtype = take(*args, **named)
    fits = isinstance(weight, ConvertedWeight) and weight.dim() == 3 and x.dim() == 2 and offs is not None
    if not fits or cls.cut[0]:
        return _high(cls, func, args, kwargs, weight if isinstance(weight, ConvertedWeight) else x,
                     _CUT if fits else "expected A (M, K), B_t (E, K, N) and offs")
    note_low(weight)
    config = cls.config
    return ops.grouped_mm(x, weight, offs, config, bias, out_dtype=out_dtype)


_handles(torch._grouped_mm, getattr(F, "grouped_mm", None))(_grouped_mm)


def handle_grouped_mm(function):
    """Another library's name for the product of torch._grouped_mm."""
    _handles(function)(_grouped_mm)


_OTHER = ("it is no product that moe8 converts: multiply by linear, matmul, bmm or grouped_mm, or leave it out of the "
          "conversion")


@_handles(torch.einsum, torch.tensordot, torch.mv, torch.Tensor.mv, torch.addmv, torch.baddbmm, torch.addbmm,
          torch.bilinear, F.bilinear, torch.inner, torch.Tensor.inner, torch.dot, torch.conv1d, torch.conv2d,
          torch.conv3d, torch.chain_matmul, torch.linalg.multi_dot)
def _other_product(cls, func, args, kwargs):
    for x in _flat(args):
        if isinstance(x, ConvertedWeight):
            return _high(cls, func, args, kwargs, x, _OTHER)
    return func(*args, **kwargs)


def _flat(values):
    for value in values:
        if isinstance(value, (tuple, list)):
            yield from _flat(value)
        else:
            yield value


# ---- views and copies -------------------------------------------------------------------------------------
@_handles(torch.Tensor.t, torch.t, torch.Tensor.mT.__get__, torch.Tensor.T.__get__)
def _turned(cls, func, args, kwargs):
    weight = args[0]
    if weight.dim() != 2 and func == torch.Tensor.T.__get__:
        return weight.permute(2, 1, 0)
    result = weight.transpose(-2, -1)
    return _derived(cls, weight, result, cls.cut[::-1])


@_handles(torch.Tensor.transpose, torch.transpose, torch.Tensor.swapaxes, torch.swapaxes)
def _transpose(cls, func, args, kwargs):
    weight = args[0]
    result = func(*args, **kwargs)
    axes = {axis % weight.dim() for axis in (*args[1:], *kwargs.values())}
    if axes != {weight.dim() - 2, weight.dim() - 1}:
        return result
    return _derived(cls, weight, result, cls.cut[::-1])


@_handles(torch.Tensor.permute, torch.permute)
def _permute(cls, func, args, kwargs):
    weight = args[0]
    result = func(*args, **kwargs)
    order = [axis % weight.dim() for axis in _flat((*args[1:], *kwargs.values()))]
    kept = order[:-2] == list(range(weight.dim() - 2))
    if not kept:
        return result
    return _derived(cls, weight, result, cls.cut if order[-1] == weight.dim() - 1 else cls.cut[::-1])


@_handles(torch.Tensor.to, torch.Tensor.contiguous, torch.Tensor.clone, torch.clone, torch.Tensor.detach, torch.detach,
          torch.Tensor.bfloat16, torch.Tensor.float, torch.Tensor.cuda, torch.Tensor.cpu, torch.Tensor.type_as,
          torch.Tensor.data.__get__, torch.Tensor.requires_grad_)
def _copied(cls, func, args, kwargs):
    result = func(*args, **kwargs)
    weight = args[0]
    return _derived(cls, weight, result, cls.cut) if isinstance(weight, ConvertedWeight) else result


def _is_cut(cls, before, after):
    """Of the last two axes, whether they lost elements."""
    return tuple(was or a != b for was, a, b in zip(cls.cut, before.shape[-2:], after.shape[-2:]))


@_handles(torch.Tensor.__getitem__, torch.Tensor.narrow, torch.narrow, torch.Tensor.select, torch.select,
          torch.Tensor.index_select, torch.index_select, torch.Tensor.squeeze, torch.squeeze,
          torch.Tensor.unsqueeze, torch.unsqueeze)
def _sliced(cls, func, args, kwargs):
    result = func(*args, **kwargs)
    weight = args[0]
    if not isinstance(weight, ConvertedWeight) or result.dim() < 2 or not _keeps_matrices(func, args, kwargs, weight):
        return result
    return _derived(cls, weight, result, _is_cut(cls, weight, result))


def _keeps_matrices(func, args, kwargs, weight):
    """Whether the last two axes of the result are those of the weight."""
    name = _name_of(func)
    if name == "__getitem__":
        index = args[1] if isinstance(args[1], tuple) else (args[1],)
        if any(part is None or part is Ellipsis for part in index):
            return False
        if any(isinstance(part, torch.Tensor) and (part.dtype == torch.bool or part.dim() > 1) for part in index):
            return False
        return all(isinstance(part, slice) for part in index[max(weight.dim() - 2, 0):])
    axis = kwargs.get("dim", args[1] if len(args) > 1 else None)
    if not isinstance(axis, int):
        return False
    if name in ("narrow", "index_select"):
        return True
    return axis % (weight.dim() + (name == "unsqueeze")) < weight.dim() - 2 + (name == "unsqueeze")


@_handles(torch.Tensor.chunk, torch.chunk, torch.Tensor.split, torch.split, torch.functional.split,
          torch.Tensor.unbind, torch.unbind)
def _pieces(cls, func, args, kwargs):
    results = func(*args, **kwargs)
    weight = args[0]
    if _name_of(func) == "unbind":
        axis = kwargs.get("dim", args[1] if len(args) > 1 else 0)
        if axis % weight.dim() >= weight.dim() - 2:
            return results
    return type(results)(_derived(cls, weight, result, _is_cut(cls, weight, result)) for result in results)
