"""What an older version published, read by this one."""

from __future__ import annotations

import shutil
from pathlib import Path

import duckdb
from scopenote.flows.config import demo_config
from scopenote.flows.working import published
from scopenote.store.run_folder import RunFolder
from scopenote.store.schema import MIGRATIONS


def test_a_database_of_an_older_version_is_brought_up_to_date_before_it_is_read(
    tmp_path: Path,
) -> None:
    folder = RunFolder(tmp_path / "run").create()
    folder.write_config(demo_config().to_toml())
    with duckdb.connect(str(folder.work_database)) as work:
        for migration in MIGRATIONS[:8]:
            work.execute(migration.sql)
        work.execute("INSERT INTO meta VALUES ('schema_version', '8')")
    shutil.copy(folder.work_database, folder.database)
    with folder.lock("somebody at work"), published(folder.path) as (_, store):
        assert store.is_older
    with published(folder.path) as (_, store):
        assert not store.is_older
        assert store.connection.sql("SELECT generation FROM labels").fetchall() == []
