"""The gallery: models are fresh, take their inputs, and are as tagged."""

import keras
import numpy as np
import pytest
from keras import layers

from tests import gallery
from tf_tickets.selection import layers_of

# The applications take a while, and are as Keras makes them.
OWN = gallery.names(without=("application", "hub"))
KINDS = ("sequential", "functional", "subclassed")

# By which layers one knows what a tag says.
SIGNS = {
    "recurrent": (layers.RNN, layers.Bidirectional, layers.ConvLSTM2D),
    "attention": (layers.MultiHeadAttention,),
    "embedding": (layers.Embedding,),
    "text": (layers.TextVectorization,),
    "custom": (gallery.Projection,),
    "normalized": (layers.BatchNormalization, layers.LayerNormalization),
}


@pytest.mark.parametrize("name", OWN)
def test_an_entry_is_what_its_tags_say(name):
    make, tags = gallery.GALLERY[name], gallery.TAGS[name]
    model, other = make(), make()
    assert not {id(v) for v in model.variables} & {
        id(v) for v in other.variables
    }
    x = gallery.inputs(model, count=3)
    outputs = keras.tree.flatten(model(x))
    assert all(len(y) == 3 for y in outputs)
    assert all(np.isfinite(np.asarray(y, "float32")).all() for y in outputs)
    if tags == {"blocks"}:
        return  # what is inside their layers is what these are for

    kind = {keras.Sequential: "sequential"}.get(type(model))
    kind = kind or ("functional" if hasattr(model, "inputs") else "subclassed")
    assert tags & set(KINDS) == {kind}
    if "vector" in tags:
        assert x.shape == (3, 8) and outputs[0].shape == (3, 4)
    assert ("multi-input" in tags) == (len(keras.tree.flatten(x)) > 1)
    assert ("multi-output" in tags) == (len(outputs) > 1)
    assert ("dictionaries" in tags) == isinstance(x, dict)
    inner = [one for one in layers_of(model) if one is not model]
    for tag, signs in SIGNS.items():
        found = any(isinstance(one, signs) for one in inner)
        assert (tag in tags) == found, tag
    held = [one for one in inner if isinstance(one, keras.Model)]
    assert ("nested" in tags) == bool(held)


def test_inputs_are_drawn_by_seed_and_for_every_type():
    model = gallery.pairs()
    one, same, other = (gallery.inputs(model, seed=s) for s in (0, 0, 1))
    assert set(one) == {"a", "b"}
    for key in one:
        np.testing.assert_array_equal(one[key], same[key])
        assert (one[key] != other[key]).any()
    assert (one["a"] != one["b"]).any()
    words = gallery.inputs(gallery.text(), count=3)
    assert words.shape == (3, 1) and words[0, 0] == "a lottery ticket"
    left, right = gallery.inputs(gallery.towers())
    assert left.shape == right.shape == (8, 8)


def test_names_are_chosen_by_tags():
    assert gallery.names("subclassed", "vector") == ["subclassed", "around"]
    assert gallery.names("vector", without=KINDS) == []
    assert len(gallery.names("application")) == 12
    assert set(gallery.names()) == set(gallery.GALLERY)


def test_a_class_of_layers_is_read_back(tmp_path):
    for model in (gallery.subclassed(), gallery.subclassed_attention()):
        model.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        x = gallery.inputs(model)
        np.testing.assert_allclose(loaded(x), model(x), atol=1e-6)


def test_text_is_written_without_pickles(tmp_path):
    np.savez(tmp_path / "x.npz", x=gallery.inputs(gallery.text()))
    with np.load(tmp_path / "x.npz", allow_pickle=False) as file:
        assert file["x"].shape == (8, 1)
