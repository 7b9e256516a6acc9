"""Data sets from disk: TensorFlow Datasets and TinyImageNet."""

import time
import urllib.error
import urllib.request

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from tests.zoo.test_datasets import arrays
from tf_tickets.zoo import datasets
from tf_tickets.zoo.datasets import prepared

CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
TINY = ((0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821))


def pixels(images, mean, std):
    """Undoes the normalization."""
    return np.round((images * np.array(std) + np.array(mean)) * 255)


class Cifar10(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """CIFAR-10 with few images, each of one colour that tells its number."""

    VERSION = tfds.builder_cls("cifar10").VERSION
    code_path = None  # Spares TFDS the search for checksums of downloads.

    def _info(self):
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "image": tfds.features.Image(shape=(32, 32, 3)),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager):
        return {
            "train": self._generate_examples(1, 201),
            "test": self._generate_examples(201, 231),
        }

    def _generate_examples(self, first, last):
        for i in range(first, last):
            image = np.full((32, 32, 3), i, np.uint8)
            yield i, {"id": str(i), "image": image, "label": i % 10}


@pytest.fixture(scope="module")
def cifar_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("data")
    Cifar10(data_dir=path).download_and_prepare()
    return path


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


def test_prepared_cifar_is_read_without_network(cifar_dir, no_network):
    data = datasets.load("cifar10", data_dir=cifar_dir, batch_size=20)
    sizes = (data.train_size, data.validation_size, data.test_size)
    assert sizes == (180, 20, 30)
    assert (data.input_shape, data.classes) == ((32, 32, 3), 10)
    seen = []
    for split in (data.validation, data.test):
        images, labels = arrays(split)
        colours = pixels(images, *CIFAR10)
        assert (colours == colours[:, :1, :1, :1]).all()
        assert (colours[:, 0, 0, 0] % 10 == labels).all()
        seen.append(set(colours[:, 0, 0, 0].astype(int)))
    images, labels = arrays(data.train)
    # The centre survives every crop; what moves in from outside is black.
    colours = pixels(images, *CIFAR10)
    centre = colours[:, 16, 16, 0]
    assert (centre % 10 == labels).all()
    inside = colours == centre[:, None, None, None]
    assert (inside | (colours == 0)).all()
    assert not inside.all()
    for image in inside[..., 0]:
        height, width = image.any(1).sum(), image.any(0).sum()
        assert 28 <= height <= 32 and 28 <= width <= 32
        assert image.sum() == height * width
    seen.append(set(centre.astype(int)))
    validation, test, train = seen
    assert len(train) == 180 and len(validation) == 20 and len(test) == 30
    assert set.union(*seen) == set(range(1, 231))
    counts = np.bincount(arrays(data.validation)[1], minlength=10)
    assert (counts == 2).all()


def test_cifar_without_augmentation_and_validation(cifar_dir):
    data = datasets.load(
        "cifar10",
        data_dir=cifar_dir,
        batch_size=200,
        augment=False,
        validation_split=0.0,
    )
    assert data.validation is None and data.train_size == 200
    images, labels = arrays(data.train)
    colours = pixels(images, *CIFAR10)
    assert (colours == colours[:, :1, :1, :1]).all()
    assert sorted(colours[:, 0, 0, 0]) == list(range(1, 201))
    assert list(colours[:, 0, 0, 0]) != list(range(1, 201))
    assert (colours[:, 0, 0, 0] % 10 == labels).all()


@pytest.mark.parametrize(
    ("name", "shape", "classes"),
    [("cifar10", (32, 32, 3), 10), ("cifar100", (32, 32, 3), 100)],
)
def test_mocked_cifar(name, shape, classes, no_network):
    with tfds.testing.mock_data(num_examples=50):
        data = datasets.load(name, batch_size=10)
    assert (data.train_size, data.validation_size, data.test_size) == (
        45,
        5,
        50,
    )
    assert (data.input_shape, data.classes) == (shape, classes)
    images, labels = arrays(data.train)
    assert images.shape == (40, *shape) and images.dtype == np.float32
    assert labels.max() < classes
    # Uniform bytes: had the pixels stayed bytes, they would reach 255.
    assert -3 < images.min() < -1.5 and 1.5 < images.max() < 3


def test_mocked_caltech_leaves_the_background_out(no_network):
    path = tfds.builder_cls("caltech101").pkg_dir_path
    names = tfds.builder("caltech101", try_gcs=False).info.features["label"]
    background = names.str2int("background_google")
    assert path is None or background == 4

    def examples(self, split, decoders=None, **kwargs):
        assert split == "train+test" and set(decoders) == {"image"}
        labels = [0, 3, background, background + 1, 101] * 4
        # Wide and grey, so that both resizing and channels have work to do.
        encoded = [
            tf.io.encode_png(np.full((10, 30, 1), 10 * i + 5, "u1"))
            for i in range(20)
        ]
        return tf.data.Dataset.from_tensor_slices(
            {"image": tf.stack(encoded), "label": np.array(labels)}
        )

    with tfds.testing.mock_data(as_dataset_fn=examples):
        data = datasets.load("caltech101", batch_size=5)
    # 16 in the foreground, of which 20 % to test, 25 % of the rest held out.
    sizes = (data.train_size, data.validation_size, data.test_size)
    assert sizes == (10, 3, 3)
    assert (data.input_shape, data.classes) == ((224, 224, 3), 101)
    expected = {0: 0, 1: 3, 3: background, 4: 100}
    found = {}
    for split in (data.train, data.validation, data.test):
        images, labels = arrays(split)
        assert images.shape[1:] == (224, 224, 3)
        grey = pixels(images, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        assert (grey == grey[:, :1, :1, :1]).all()
        numbers = ((grey[:, 0, 0, 0] - 5) / 10).astype(int)
        found |= dict(zip(numbers, labels, strict=True))
    assert found == {i: expected[i % 5] for i in range(20) if i % 5 in expected}


def test_without_network_one_error_says_what_to_do(tmp_path, no_network):
    start = time.perf_counter()
    with pytest.raises(RuntimeError) as caught:
        datasets.load("cifar10", data_dir=tmp_path)
    assert time.perf_counter() - start < 20
    message = str(caught.value)
    for part in ("'cifar10'", "--dataset=digits", "--data_dir", "no network"):
        assert part in message
    assert message.endswith(f"Received: data_dir={tmp_path!r}")


def test_any_answer_means_there_is_a_network(monkeypatch):
    def forbid(request, timeout):
        assert request.get_method() == "HEAD" and timeout <= 10
        raise urllib.error.HTTPError(request.full_url, 403, "no", {}, None)

    monkeypatch.setattr(urllib.request, "urlopen", forbid)
    calls = []

    class Builder:
        name = "cifar10"

        def download_and_prepare(self, download_config):
            calls.append(download_config.try_download_gcs)
            raise ModuleNotFoundError("No module named 'x'", name="x")

    with pytest.raises(ImportError, match=r"tf_tickets\[datasets\]' x$"):
        prepared._download(Builder(), "https://example.com")
    assert calls == [False]


@pytest.fixture
def tiny(tmp_path):
    """TinyImageNet with three classes of 20 images, 6 to test."""
    root = tmp_path / "tiny-imagenet-200"
    names = ["n03", "n01", "n02"]
    lines = []
    for label, name in enumerate(sorted(names)):
        folder = root / "train" / name / "images"
        folder.mkdir(parents=True)
        for i in range(20):
            channels = 1 if i == 0 else 3  # Some of the real ones are grey.
            write(folder / f"{name}_{i}.JPEG", 60 * (label + 1), channels)
    (root / "val" / "images").mkdir(parents=True)
    for i, name in enumerate(names * 2):
        label = sorted(names).index(name)
        write(root / "val" / "images" / f"val_{i}.JPEG", 60 * (label + 1), 3)
        lines.append(f"val_{i}.JPEG\t{name}\t0\t0\t62\t62")
    annotations = root / "val" / "val_annotations.txt"
    annotations.write_text("\n".join(lines) + "\n")
    return root


def write(path, grey, channels):
    image = np.full((64, 64, channels), grey, np.uint8)
    path.write_bytes(tf.io.encode_jpeg(image, quality=100).numpy())


@pytest.mark.parametrize("where", ["folder", "parent"])
def test_tiny_imagenet_from_its_archive(tiny, where):
    data_dir = tiny if where == "folder" else str(tiny.parent)
    data = datasets.load("tiny_imagenet", data_dir=data_dir, batch_size=9)
    sizes = (data.train_size, data.validation_size, data.test_size)
    assert sizes == (54, 6, 6)
    assert (data.input_shape, data.classes) == ((64, 64, 3), 3)
    for split, counts in [(data.validation, [2, 2, 2]), (data.test, [2, 2, 2])]:
        images, labels = arrays(split)
        assert np.bincount(labels).tolist() == counts
        grey = pixels(images, *TINY)
        assert np.abs(grey[:, 5, 5] - 60 * (labels[:, None] + 1)).max() <= 1
    images, labels = arrays(data.train)
    assert images.shape == (54, 64, 64, 3)
    assert np.bincount(labels).tolist() == [18, 18, 18]
    grey = pixels(images, *TINY)
    assert np.abs(grey[:, 32, 32] - 60 * (labels[:, None] + 1)).max() <= 1
    corners = (np.abs(grey[:, 0, 0]) <= 1).all(1)
    assert 20 < corners.sum()  # Rotated: black moves into the corners.
    assert data.train.element_spec[0].shape == (9, 64, 64, 3)


def test_tiny_imagenet_says_what_is_wrong(tiny, tmp_path):
    for data_dir in (None, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match="--dataset=digits") as e:
            datasets.load("tiny_imagenet", data_dir=data_dir)
        assert str(e.value).endswith(f"Received: data_dir={data_dir!r}")
    annotations = tiny / "val" / "val_annotations.txt"
    annotations.write_text(annotations.read_text().replace("n02", "n09"))
    with pytest.raises(ValueError, match=r"Received: \['n09'\]"):
        datasets.load("tiny_imagenet", data_dir=tiny, batch_size=9)
