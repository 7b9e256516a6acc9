r"""Compare methods over densities and seeds: many runs, any of which may die.

    python examples/experiments.py --workers=2
    python examples/experiments.py --methods=imp,random --densities=0.1 --ray
    python examples/experiments.py --model=resnet1d --dataset=mnist1d
    python examples/experiments.py --methods=imp --tweaks=paper

Every run is a directory. The same command after a kill does only what is
missing; more seeds or methods only add runs. `results.csv` and `accuracy.png`
beside them show all there are. With `--ray` the runs go to Ray:
`pip install 'tf_tickets[ray]'`.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from absl import app, flags, logging

from tf_tickets.zoo import experiments

FLAGS = flags.FLAGS
flags.DEFINE_list(
    "methods",
    "dense,imp,gradual,magnitude,random",
    f"What to compare, of {', '.join(experiments.METHODS)}.",
)
flags.DEFINE_list("tweaks", [], "How tickets are retrained.")
flags.DEFINE_list("densities", "0.1,0.03", "Shares of the weights to keep.")
flags.DEFINE_list("seeds", "0,1,2", "One run for each.")
flags.DEFINE_string("model", "digits_cnn", "Network, by its recipe.")
flags.DEFINE_string("dataset", "digits", "Data set, by its recipe.")
flags.DEFINE_string("data_dir", None, "Where the data set is prepared.")
flags.DEFINE_integer("epochs", None, "Epochs of a run; default: the recipe's.")
flags.DEFINE_integer("workers", 1, "Processes at a time; 0: in this one.", 0)
flags.DEFINE_bool("ray", False, "Hand the runs to Ray.")
flags.DEFINE_string("output_dir", "runs/experiments", "Of all runs.")
flags.DEFINE_bool("smoke", False, "One run of one epoch for two methods.")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}")
    logging.set_verbosity(logging.ERROR)
    units = experiments.grid(
        ["magnitude", "random"] if FLAGS.smoke else FLAGS.methods,
        [0.1] if FLAGS.smoke else [float(d) for d in FLAGS.densities],
        [0] if FLAGS.smoke else [int(s) for s in FLAGS.seeds],
        model=FLAGS.model,
        dataset=FLAGS.dataset,
        epochs=1 if FLAGS.smoke else FLAGS.epochs,
        **({"tweaks": FLAGS.tweaks} if FLAGS.tweaks else {}),
    )
    done = sum((one.result(_place(one)) is not None) for one in units)
    print(f"{len(units)} runs in {FLAGS.output_dir}, {done} done before")
    if FLAGS.ray:
        found = experiments.run_on_ray(
            units, FLAGS.output_dir, data_dir=FLAGS.data_dir
        )
    else:
        found = experiments.run(
            units,
            FLAGS.output_dir,
            workers=FLAGS.workers,
            data_dir=FLAGS.data_dir,
        )
    print(f"{'density':>8}  {'method':<24}{'test accuracy':>14}  runs")
    rows = experiments.summarize(found)
    for row in sorted(rows, key=lambda row: (-row["density"], row["method"])):
        print(
            f"{row['density']:>8.3f}  {row['method']:<24}{row['mean']:>9.4f} "
            f"±{row['std']:.4f}  {row['runs']}"
        )
    print(f"see {FLAGS.output_dir}: results.csv, accuracy.png")


def _place(one: experiments.Experiment) -> str:
    return os.path.join(FLAGS.output_dir, one.name)


if __name__ == "__main__":
    app.run(main)
