"""The page shows two files of one network in a real browser."""

import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import keras
import numpy as np
import pytest

import tf_tickets as tt

ROOT = Path(__file__).parents[1]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture
def serve(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples/web"))
    import serve

    yield serve
    sys.modules.pop("serve")


def libraries():
    for where in ("examples/web", "benchmarks/web"):
        path = ROOT / where / "node_modules"
        if (path / "@litertjs/core/package.json").exists():
            return str(path)
    return None


def write_site(path):
    """What `examples/mobilenet_web.py` leaves, of a network not trained."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    x = inputs = keras.Input((32, 32, 3))
    x = layers.Conv2D(16, 3, strides=2, padding="same")(x)
    x = layers.ReLU(6.0)(layers.Conv2D(64, 1)(layers.ReLU(6.0)(x)))
    x = layers.Dense(10)(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, x)
    images = np.random.default_rng(0).random((5, 32, 32, 3), "float32")
    policy = tt.export.xnnpack_policy(0.8)
    tt.prune(model, policy.pop("target_sparsity"), **policy).apply(model)
    site = {"shape": [32, 32, 3], "labels": [0, 1, 2, 3, 4]}
    made = tt.export.for_xnnpack(model)
    for name, one in {"dense": model, "sparse": made}.items():
        file = tt.export.write(
            one,
            path / f"{name}.tflite",
            format="litert",
            sparse=name == "sparse",
        )
        site[name] = {"bytes": file.disk_bytes, "accuracy": 0.1}
    (path / "site.json").write_text(json.dumps(site))
    images.tofile(path / "images.bin")
    return np.asarray(model(images))


def test_the_page_works_in_a_browser(tmp_path, serve):
    pytest.importorskip("ai_edge_litert")
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip("no Chromium is installed")
    if libraries() is None:
        pytest.skip("@litertjs/core is not installed: npm install")
    expected = write_site(tmp_path)
    with serve.server(tmp_path, libraries=libraries()) as running:
        running.result = None
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        with tempfile.TemporaryDirectory() as profile:
            page = subprocess.Popen(
                [
                    browser,
                    "--headless=new",
                    "--no-sandbox",
                    "--disable-gpu",
                    "--disable-dev-shm-usage",
                    "--remote-debugging-port=0",
                    f"--user-data-dir={profile}",
                    f"http://localhost:{running.server_port}/?images=10",
                ],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            try:
                until = time.monotonic() + 120
                while running.result is None and time.monotonic() < until:
                    time.sleep(0.2)
            finally:
                page.terminate()
                page.wait(30)
        running.shutdown()
        thread.join()
    assert running.result is not None, "the page sent nothing in two minutes"
    assert "error" not in running.result, running.result["error"]
    # The headers that WebAssembly wants for threads.
    assert running.result["isolated"]
    for side, seen in running.result["seen"].items():
        assert len(seen["times"]) == 10 and min(seen["times"]) > 0, side
        found = np.array(seen["scores"])
        wanted = expected[np.arange(len(found)) % 5]
        np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_the_server_stays_in_its_directories(tmp_path, serve):
    (tmp_path / "site").mkdir()
    (tmp_path / "secret").write_text("no")
    libraries = tmp_path / "node_modules"
    (libraries / "@litertjs/core").mkdir(parents=True)
    (libraries / "@litertjs/core/package.json").write_text("{}")
    running = serve.server(tmp_path / "site", libraries=str(libraries))
    try:
        handler = running.RequestHandlerClass
        one = handler.func.__new__(handler.func)
        one.site, one.libraries = tmp_path / "site", libraries
        for path in ("/../secret", "/x/../../secret", "/node_modules/../s"):
            found = Path(one.translate_path(path)).resolve()
            assert tmp_path / "secret" != found
            assert found.is_relative_to(tmp_path)
        assert one.translate_path("/").endswith("index.html")
    finally:
        running.server_close()
    with pytest.raises(RuntimeError, match="takes LiteRT.js"):
        serve.modules(str(tmp_path))


def test_the_example_leaves_a_site(tmp_path, example):
    pytest.importorskip("ai_edge_litert")
    said = example(
        "mobilenet_web",
        "--noserve",
        "--epochs=1",
        "--pruning_epochs=1",
        "--size=32",
        "--width=0.25",
        "--blocks=2",
        f"--output_dir={tmp_path}",
    )
    assert "80% zeros: computed sparsely" in said
    site = json.loads((tmp_path / "site.json").read_text())
    for side in ("dense", "sparse"):
        assert (tmp_path / f"{side}.tflite").stat().st_size == (
            site[side]["bytes"]
        )
        assert 0 <= site[side]["accuracy"] <= 1
    assert site["sparse"]["bytes"] < site["dense"]["bytes"]
    size = np.prod(site["shape"]) * 4 * len(site["labels"])
    assert (tmp_path / "images.bin").stat().st_size == size
