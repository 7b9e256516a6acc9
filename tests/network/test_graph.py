"""The record of a model's calls says who feeds whom, and leaves no trace."""

import keras
import numpy as np
import pytest
from keras import layers

from tests import gallery
from tf_tickets.network.graph import (
    functional_view,
    graphs_of,
    is_graph,
    require_graph,
    trace,
)
from tf_tickets.pruning import synflow
from tf_tickets.structured import shrink


def functional(cls=keras.Model, **options):
    x = keras.Input((4,))
    return cls(x, layers.Dense(3)(x), **options)


def sequential(cls=keras.Sequential):
    return cls([keras.Input((4,)), layers.Dense(3)])


class Plain(keras.Model):
    pass


class Twice(keras.Model):
    def call(self, inputs, training=None, mask=None):
        return 2.0 * super().call(inputs, training=training, mask=mask)


class PlainChain(keras.Sequential):
    pass


class TwiceChain(keras.Sequential):
    def call(self, inputs, training=None, mask=None):
        return 2.0 * super().call(inputs, training=training, mask=mask)


KINDS = {
    "functional": (functional, True),
    "functional class": (lambda: functional(Plain), True),
    "called otherwise": (lambda: functional(Twice), False),
    "sequential": (sequential, True),
    "sequential class": (lambda: sequential(PlainChain), True),
    "sequential called otherwise": (lambda: sequential(TwiceChain), False),
    "no input shape": (lambda: keras.Sequential([layers.Dense(3)]), False),
    "subclassed": (gallery.Subclassed, False),
    "function": (lambda: functional(keras.Function), False),
    "layer": (lambda: layers.Dense(3), False),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_graph_is_what_is_called_as_it_was_made(kind):
    make, expected = KINDS[kind]
    model = make()
    assert is_graph(model) is expected
    if expected:
        require_graph(model, "This")
    else:
        with pytest.raises(ValueError, match="^This needs a functional .*so."):
            require_graph(model, "This", "Do it so.")


@pytest.mark.parametrize("kind", ["functional", "sequential"])
def test_a_view_computes_what_the_model_computes(kind):
    model = KINDS[kind][0]()
    model.compile("sgd", loss=lambda y, z: z)  # could not be cloned
    view = functional_view(model)
    assert not view.compiled and view.name == model.name
    x = np.ones((2, 4), "float32")
    np.testing.assert_array_equal(view(x), model(x))


def nested():
    inside = keras.Input((4,))
    inner = keras.Model(
        inside, layers.Dense(4, name="deep")(inside), name="inner"
    )
    middle = keras.Sequential(
        [keras.Input((4,)), inner, layers.Dense(4, name="flat")], name="middle"
    )
    x = keras.Input((4,))
    y = layers.Add(name="add")([middle(x), inner(x)])
    return keras.Model(x, layers.Dense(2, name="head")(middle(y)))


def test_nested_models_are_one_call_or_all_of_theirs():
    model = nested()
    whole = trace(model)
    chain = ["deep", "flat"]
    assert sorted(c.operation.name for c in whole.calls) == sorted(
        [*chain, "deep", "add", *chain, "head"]
    )
    assert sorted(e.model.name for e in whole.entries) == [
        "inner",
        "inner",
        "inner",
        "middle",
        "middle",
    ]
    single = trace(model, inline=False)
    assert [c.operation.name for c in single.calls][-3:] == [
        "add",
        "middle",
        "head",
    ]
    assert not single.entries
    assert {m.name for m in graphs_of(model)} == {model.name, "middle", "inner"}
    assert len(graphs_of(model)) == 3


@pytest.mark.parametrize("inline", [True, False])
def test_tensors_link_the_calls(inline):
    model = nested()
    graph = trace(model, inline=inline)
    [head] = [c for c in graph.calls if c.operation.name == "head"]
    [add] = [c for c in graph.calls if c.operation.name == "add"]
    assert head.outputs == graph.outputs and not graph.readers(head.outputs[0])
    maker = graph.maker(head.inputs[0])
    assert maker.operation.name == ("flat" if inline else "middle")
    [reader] = graph.readers(add.outputs[0])
    assert reader.operation.name == ("deep" if inline else "middle")
    assert graph.maker(graph.inputs[0]) is None
    assert graph.uses(maker.operation) == 2
    assert [graph.shapes[t] for t in add.inputs] == [(None, 4), (None, 4)]


def test_a_given_input_shape_goes_through():
    x = keras.Input((None, None, 3))
    model = keras.Model(x, layers.Conv2D(5, 3)(x))
    graph = trace(model, (8, 9, 3))
    assert graph.shapes[graph.outputs[0]] == (None, 6, 7, 5)
    with pytest.raises(ValueError, match=r"Received: input_shape=\(8,\)"):
        trace(model, (8,))


def test_named_inputs_of_a_nested_model_go_where_their_names_say():
    """Keras takes a dictionary for a list; its keys have another order."""
    b, a = keras.Input((4,), name="b"), keras.Input((6,), name="a")
    inner = keras.Model(
        [b, a], layers.Dense(2)(layers.Concatenate()([a, b])), name="inner"
    )
    x = keras.Input((3,))
    one = layers.Dense(4, activation="relu", name="one")(x)
    two = layers.Dense(6, activation="relu", name="two")(x)
    model = keras.Model(x, inner({"b": one, "a": two}))
    [entry] = trace(model).entries
    assert [trace(model).shapes[t][-1] for t in entry.inputs] == [4, 6]
    kernel = model.get_layer("two").kernel
    kept = np.arange(6) != 2
    kernel.assign(kernel * kept.astype("float32"))
    data = np.random.default_rng(0).normal(size=(5, 3))
    small = shrink(model, {kernel.path: kept})
    assert small.get_layer("two").units == 5
    np.testing.assert_allclose(small(data), model(data), atol=1e-6)


def test_reading_changes_nothing():
    model = nested()

    def connections():
        return [len(layer._inbound_nodes) for layer in model._flatten_layers()]

    def number(made):
        return int(made.name.rpartition("_")[2])

    before = (
        connections(),
        number(functional()),
        number(layers.InputLayer((1,))),
    )
    trace(model)
    trace(model, inline=False)
    assert connections() == before[0]
    # Names that Keras gives to models and inputs go on as they would have.
    assert number(functional()) == before[1] + 1
    assert number(layers.InputLayer((1,))) == before[2] + 2


class Backwards(keras.Model):
    def call(self, inputs, training=None, mask=None):
        inputs = keras.ops.flip(inputs, axis=-1)
        return super().call(inputs, training=training, mask=mask)


def test_synflow_calls_a_model_as_its_class_does():
    def network(is_class):
        kind = Backwards if is_class else keras.Model
        inside = keras.Input((4,))
        inner = kind(inside, layers.Dense(3, use_bias=False)(inside))
        x = keras.Input((3,))
        y = layers.Dense(4, use_bias=False)(x)
        y = inner(y if is_class else keras.ops.flip(y, axis=-1))
        return keras.Model(x, layers.Dense(2, use_bias=False)(y))

    models = [network(False), network(True)]
    models[1].set_weights(models[0].get_weights())
    scores = [
        synflow(m, {v.path: np.ones(v.shape, bool) for v in m.weights})
        for m in models
    ]
    for one, other in zip(*(s.values() for s in scores), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)
