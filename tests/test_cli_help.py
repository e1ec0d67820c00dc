"""`trueline align --help` lists every option, in groups, each with what it does."""

import dataclasses
import re

import pytest
from typer.testing import CliRunner

from trueline.cli.app import app
from trueline.config import (
    NOT_NEEDED,
    AlignmentConfig,
    DataArguments,
    ModelArguments,
    WatchArguments,
)
from trueline.objectives import OBJECTIVES
from trueline.runs.catalog import align_options


@pytest.fixture(scope="module")
def groups():
    return align_options()


def test_every_key_is_told_once_and_ours_say_what_they_do(groups):
    told = [row.name for rows in groups.values() for row in rows]
    assert len(told) == len(set(told))
    keys = {f.name for part in (AlignmentConfig, DataArguments, ModelArguments, WatchArguments)
            for f in dataclasses.fields(part) if f.init}  # fmt: skip
    keys |= {name for spec in OBJECTIVES.values() for name in spec.options}
    assert keys - set(NOT_NEEDED) <= set(told)
    for row in (row for rows in list(groups.values())[:6] for row in rows):
        assert row.help, row.name


def test_help_shows_them_in_their_groups_and_nothing_is_parsed_as_one(groups):
    shown = CliRunner().invoke(app, ["align", "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert shown.exit_code == 0, shown.output
    for heading, rows in groups.items():
        assert f"─ {heading} ─" in shown.output
        for row in rows:
            assert re.search(rf"--{row.name}\b", shown.output), row.name
    refused = CliRunner().invoke(app, ["align", "--loss_tipe", "dpo"])
    assert "loss_tipe" in str(refused.exception)
