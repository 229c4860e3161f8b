"""A trial in place of a run: a parabola of the rate. `python -m fake_trial --config.KEY=VALUE --workdir=DIR`."""

import json
import pathlib
import sys

if __name__ == "__main__":
    values = dict(word.lstrip("-").split("=", 1) for word in sys.argv[1:])
    if values.get("config.steps") == "13":
        sys.exit("this is wrong")
    assert values["config.report"] == "validation"
    rate, seed = float(values.get("config.optimizer.learning_rate", "0.004")), int(values["config.seed"])
    found = {"validation": {"accuracy": 100 - 1e6 * (rate - 0.002) ** 2 + seed}, "base_validation": {"accuracy": 200.0}}
    folder = pathlib.Path(values["workdir"])
    with (folder / "calls").open("a") as file:
        file.write("x")
    (folder / "results.json").write_text(json.dumps(found))
