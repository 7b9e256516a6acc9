"""The logs tell the eigenvalue that the function finds."""

import pytest

import tf_tickets as tt
from tests.conftest import batches, compiled, mlp
from tf_tickets.analysis import hessian_top_eigenvalue
from tf_tickets.callbacks import HessianEigenvalue


@pytest.mark.parametrize("jit", [False, True])
def test_the_callback_logs_what_the_function_finds(data, jit):
    model = compiled(mlp(), "adam")
    ticket = tt.prune(model, sparsity=0.75)
    ticket.apply(model)
    some = data[0][:32], data[1][:32]
    watch = HessianEigenvalue(some, every=2, jit_compile=jit)
    history = model.fit(
        batches(*data), epochs=3, verbose=0, callbacks=[watch]
    ).history
    logged = history["hessian_top_eigenvalue"]
    assert logged[0] == logged[1] != logged[2]
    top = hessian_top_eigenvalue(model, some)
    assert logged[2] == pytest.approx(top.value, rel=1e-3)
    key = next(iter(ticket.masks))
    assert (top.vector[key][~ticket.masks[key]] == 0).all()


@pytest.mark.parametrize(
    "options", [{"every": 0}, {"iterations": 0}, {"which": "last"}], ids=str
)
def test_bad_arguments_are_refused(options, data):
    with pytest.raises(ValueError, match="Received: "):
        HessianEigenvalue(data, **options)
