"""Settings stand once: their defaults, checks and help texts."""

import inspect
from dataclasses import fields

import pytest

from dien_fast.errors import DienFastError
from dien_fast.models import MODELS, AttentionGroup
from dien_fast.settings import rules
from dien_fast.training import TrainSettings, fit
from dien_fast.training.config import RunConfig
from dien_fast.training.settings import changed

PAIR = {"ad": "item", "pos_hist": "history"}


def test_a_run_has_every_setting_of_training_with_the_same_default():
    assert issubclass(RunConfig, TrainSettings)
    for item in fields(TrainSettings):
        assert getattr(RunConfig(), item.name) == getattr(TrainSettings(), item.name)


def test_every_setting_has_a_rule_with_a_help_text_and_its_default_obeys_it():
    for kind in (TrainSettings, RunConfig, *(model.options for model in MODELS.values())):
        described = rules(kind)
        # What is no setting describes data and versions; the options of a model have rules of their own.
        assert {item.name for item in fields(kind)} - set(described) <= {
            "options",
            "schema",
            "data",
            "fingerprint",
            "versions",
        }
        for name, rule in described.items():
            assert rule.help
            rule.check(name, getattr(kind(), name))


def test_an_option_means_the_same_in_every_model_that_has_it():
    seen = {}
    for model in MODELS.values():
        for name, rule in rules(model.options).items():
            assert name not in rules(RunConfig), "all models have this setting"
            described = (rule, getattr(model.options(), name))
            assert seen.setdefault(name, described) == described
            assert name not in model.group_options or hasattr(AttentionGroup("g", [PAIR], [1]), name)


def test_fit_has_no_default_of_its_own_for_a_setting():
    assert not set(inspect.signature(fit).parameters) & set(rules(TrainSettings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"epochs": 10**400}, "epochs must be a number of at most 64 bits, got one of 1330"),
        ({"epochs": 2.0}, "epochs must be of type <class 'int'>, got 2.0"),
        ({"patience": True}, "patience must be of type <class 'int'>, got True"),
        ({"lr": -1.0}, "lr must be a finite number of at least 0, got -1.0"),
        ({"lr": float("nan")}, "lr must be a finite number of at least 0, got nan"),
        ({"weight_decay": float("inf")}, "weight_decay must be a finite number of at least 0, got inf"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"mixed_precision": "half"}, "mixed_precision must be one of no, bf16, fp16, got 'half'"),
        ({"batch_size": 1}, "batch_size must be at least 2, got 1"),
        ({"options": {"gru_type": "LSTM"}}, "gru_type must be one of AUGRU, AGRU, AIGRU, GRU, got 'LSTM'"),
        ({"options": {"gru": 1}}, "options of dien must be among: gru_type, got 'gru'"),
        ({"model": "din", "options": {"gru_type": "GRU"}}, "options of din must be among: none, got 'gru_type'"),
        ({"model": "gpt"}, f"model must be one of {', '.join(MODELS)}, got 'gpt'"),
        ({"mlp_dropout": 1.0}, r"mlp_dropout must lie in \[0, 1\), got 1.0"),
        ({"mlp_hidden": []}, r"mlp_hidden must be whole numbers of at least 1, got \[\]"),
        ({"mlp_hidden": [8, 0]}, r"mlp_hidden must be whole numbers of at least 1, got \[8, 0\]"),
    ],
)
def test_a_value_out_of_range_is_named(settings, message):
    with pytest.raises(DienFastError, match=message):
        RunConfig(**settings)


def test_changes_are_checked_too():
    with pytest.raises(DienFastError, match="epochs must be at least 1"):
        changed(TrainSettings(), {"epochs": 0})
    with pytest.raises(TypeError, match="there is no setting 'batch_size'"):
        changed(TrainSettings(), {"batch_size": 3})
    assert changed(RunConfig(), {"batch_size": 3}).batch_size == 3
