"""A Keras model as something to read and to rewrite."""
