from __future__ import annotations

from dataclasses import replace

from tests.builders import profiled
from tests.conftest import REPOSITORY
from uellm_cli import planning
from uellm_cli.cli import options
from uellm_cli.config import Choice, Settings
from uellm_cli.models.spec import load_model_spec

SAMPLES = REPOSITORY / "sample_data"
SETTINGS = Settings(
    predictor=Choice(options.PREDICTOR),
    scheduler=Choice("slo-odbs"),
    placement=Choice(options.ALGORITHM),
    engine=Choice("simulated"),
    model=str(SAMPLES / "models" / "llama-7b.json"),
    topology=str(SAMPLES / "topologies" / "2xa100.yaml"),
    max_batch=2,
)


def test_what_is_past_due_comes_after_everything_that_can_still_be_in_time() -> None:
    model = load_model_spec(str(SETTINGS.model))
    requests = [
        profiled("gone", deadline_s=5.0),
        profiled("soon", deadline_s=60.0),
        profiled("just-gone", deadline_s=50.0),
        profiled("later", deadline_s=600.0),
        profiled("whenever"),
    ]
    for name in ("fifo", "slo-odbs", "slo-dbs", "odbs"):
        settings = replace(SETTINGS, scheduler=Choice(name))
        schedule = planning.plan_for(settings, model, requests, elapsed_s=50.0).schedule
        ordered = [custom_id for batch in schedule.batches for custom_id in batch.custom_ids]
        assert set(ordered[-2:]) == {"gone", "just-gone"}, name
        assert sorted(ordered) == sorted(request.custom_id for request in requests)
        assert [batch.batch_id for batch in schedule.batches] == [0, 1, 2]


def test_where_everything_is_past_due_all_of_it_is_run() -> None:
    model = load_model_spec(str(SETTINGS.model))
    late = [profiled(name, deadline_s=1.0) for name in "abc"]
    schedule = planning.plan_for(SETTINGS, model, late, elapsed_s=2.0).schedule
    assert sorted(c for batch in schedule.batches for c in batch.custom_ids) == ["a", "b", "c"]
