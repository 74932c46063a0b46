"""Commands that are disturbed: what is there before, how they begin and go on, and how the end must look."""

import shutil

import optuna
from campaign import attempt
from faults import finished, small_pieces_here
from same_runs import assert_same_runs

from dien_fast.data import PreparedData
from dien_fast.serving import OnnxModel
from dien_fast.training.runs import load, load_config


def files_of(directory):
    return {path.relative_to(directory): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


class Preparing:
    """``prepare`` into a new directory."""

    before = (small_pieces_here,)

    def __init__(self, shop, place):
        table = ["--dataset", shop / "clicks.csv", "--schema", shop / "clicks.toml"]
        self.words = ["prepare", *table, "--quiet", "--output"]
        self.old = None

    def begin(self, output):
        pass

    def first(self, output):
        return [*self.words, output]

    def again(self, output):
        return [*self.words, output]

    def look(self, output, whole):
        _, refusal = attempt(PreparedData, output)
        if refusal is None:
            self.compare(output, whole)
        else:
            assert "holds no prepared data: " in refusal

    def is_over(self, output):
        return (output / "manifest.json").exists()

    def compare(self, output, whole):
        # What a kill leaves of the work behind the manifest is in nobody's way.
        kept = {name: content for name, content in files_of(output).items() if name.parts[0] != ".progress"}
        assert kept == files_of(whole)


class PreparingAnew(Preparing):
    """``prepare --overwrite`` over data that were divided another way."""

    def __init__(self, shop, place):
        super().__init__(shop, place)
        self.old = place / "old"
        status, printed = finished([*self.words, self.old, "--split", "random"], self.before)
        assert status == 0, printed

    def begin(self, output):
        shutil.copytree(self.old, output)

    def first(self, output):
        return [*self.words, output, "--overwrite"]

    def again(self, output):
        # While the old data are there, they are to be overwritten.
        return self.first(output) if (output / "manifest.json").exists() else super().again(output)

    def is_over(self, output):
        return super().is_over(output) and not self._is_old(output)

    def _is_old(self, output):
        return (output / "manifest.json").read_bytes() == (self.old / "manifest.json").read_bytes()

    def look(self, output, whole):
        is_old = (output / "manifest.json").exists() and self._is_old(output)
        super().look(output, self.old if is_old else whole)


class Training:
    """``train`` into a new directory, with a checkpoint every three steps."""

    before = None
    options = ["--checkpoint-every", "3steps"]

    def __init__(self, shop, place):
        self.words = ["train", "--dataset", shop / "clicks.csv", "--schema", shop / "clicks.toml"]
        self.words += ["--epochs", "3", "--embedding-size", "4", "--batch-size", "32", "--lr", "0.01"]
        self.words += ["--seed", "1", *self.options, "--cpu", "--quiet", "--output"]

    def begin(self, output):
        pass

    def first(self, output):
        return [*self.words, output]

    def again(self, output):
        return [*self.first(output), *(["--resume"] if self._is_begun(output) else [])]

    def _is_begun(self, output):
        """Whether the new run has taken its place; this looks as any reader of a run does."""
        config, refusal = attempt(load_config, output)
        if refusal is None:
            return config.seed == 1
        assert "there is no run directory" in refusal or "it has no config.json" in refusal
        return False

    def look(self, output, whole):
        if self._is_begun(output):
            run, refusal = attempt(load, output)
            # Within the first epoch there is no best one.
            assert refusal in (None, f"there is no checkpoint {output / 'best.pt'}")
            assert run is None or run.encoders.fingerprint() == load(whole).encoders.fingerprint()

    def is_over(self, output):
        return (output / "metrics.json").exists() and self._is_begun(output)

    def compare(self, output, whole):
        assert_same_runs(output, whole)
        assert {path.name for path in output.iterdir()} == {path.name for path in whole.iterdir()}


class TrainingAnew(Training):
    """``train --overwrite`` over another run, which counts until the new one has a checkpoint."""

    options = []

    def __init__(self, shop, place):
        super().__init__(shop, place)
        self.old = shop / "run"

    def begin(self, output):
        shutil.copytree(self.old, output)

    def again(self, output):
        return [*self.first(output)[:-1], "--resume"] if self._is_begun(output) else self.first(output)

    def first(self, output):
        return [*super().first(output), "--overwrite"]

    def look(self, output, whole):
        if self._is_begun(output):
            super().look(output, whole)
        else:
            load(output)
            old, now = files_of(self.old), files_of(output)
            assert {name: now.get(name) for name in old} == old


class Tuning:
    """``tune``, which goes on with what is missing."""

    before = None

    def __init__(self, shop, place):
        table = ["--dataset", shop / "clicks.csv", "--schema", shop / "clicks.toml"]
        self.words = ["tune", "--trials", "4", "--search", "lr=1e-3:1e-1", "embedding_size=4,8", "--model", "din"]
        self.words += [*table, "--epochs", "1", "--cpu", "--output"]

    def begin(self, output):
        pass

    def first(self, output):
        return [*self.words, output]

    def again(self, output):
        return [*self.words, output]

    def look(self, output, whole):
        pass

    def is_over(self, output):
        return False

    def compare(self, output, whole):
        assert self._trials(output) == self._trials(whole)

    def _trials(self, output):
        study = optuna.load_study(study_name="dien-fast", storage=f"sqlite:///{output}/study.db")
        ended = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
        return [(one.state, one.params, one.values, one.user_attrs) for one in study.get_trials(states=ended)]


class Exporting:
    """``export`` to ONNX; the file is there and whole, or it is not there."""

    before = None

    def __init__(self, shop, place):
        self.words = ["export", shop / "run", "--format", "onnx", "--output"]

    def begin(self, output):
        output.mkdir()

    def first(self, output):
        return [*self.words, output / "model.onnx"]

    def again(self, output):
        return self.first(output)

    def look(self, output, whole):
        if (output / "model.onnx").exists():
            assert (output / "model.onnx").read_bytes() == (whole / "model.onnx").read_bytes()

    def is_over(self, output):
        return False

    def compare(self, output, whole):
        OnnxModel(output / "model.onnx").check()
        assert files_of(output) == files_of(whole)


class ExportingAnew(Exporting):
    """``export`` in place of another model's file."""

    def begin(self, output):
        super().begin(output)
        (output / "model.onnx").write_bytes(b"old")

    def look(self, output, whole):
        if (output / "model.onnx").read_bytes() != b"old":
            super().look(output, whole)


KINDS = {
    "prepare": Preparing,
    "prepare --overwrite": PreparingAnew,
    "train": Training,
    "train --overwrite": TrainingAnew,
    "tune": Tuning,
    "export": Exporting,
    "export again": ExportingAnew,
}
