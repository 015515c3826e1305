"""The configuration of a run: what may be set, its defaults, and how a wrong value is answered.

A configuration is TOML. Every setting and its default stands here or in the `*_settings.py`; the
descriptions become the comments of `run.toml`. Relative paths are taken from the folder of the
file they are written in. What a path holds is the business of those who read it.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    ValidationError,
    field_serializer,
    field_validator,
    model_validator,
)

from ..store.errors import ConfigurationError
from ..store.unit_names import split_basis_name
from .alert_settings import AlertSection
from .collect_settings import CollectSection
from .config_section import Count, Device, Positive, Section, Share, Text
from .config_text import explain_problems, problem, toml_lines
from .explain_settings import ChatSection, ExplainSection
from .runner_settings import RunnerSection
from .score_settings import ScoreSection
from .search_settings import SearchSection

TOY = "toy"
CHUNK_DOCUMENTS = 256
"""Documents in a chunk, the unit that is absorbed once; never a setting, so that runs agree."""

Site = Literal["res", "mlp", "att", "transcoder", "mlp_in", "embedding"]


class ModelSection(Section):
    """The language model."""

    name: Text = Field(description='a hub id, a local folder, or "toy" (the embedded one)')
    device: Device = Field(
        default="auto", description='"auto", "cpu", "cuda", "cuda:1", "xpu" or "mps"'
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description='"auto" (float32 on a CPU), "float32" or "bfloat16"'
    )
    max_batch_tokens: Positive = Field(default=4096, description="tokens in one forward pass")


class SaeEntry(Section):
    """One SAE."""

    path: Text = Field(
        description="a file, its folder, a path on the hub, Neuronpedia's name, or a layer's "
        "neurons such as 20-mlp-neurons"
    )
    site: Site | None = Field(
        default=None, description="where the model is read, if the path is silent"
    )
    layer: Count | None = Field(default=None, description="the layer, if the path is silent")


class SaesSection(Section):
    """The sparse autoencoders whose features are labelled."""

    paths: Annotated[tuple[SaeEntry, ...], Field(strict=False)] = Field(
        default=(),
        description="the SAEs: paths, tables {path, site, layer}, or neurons such as "
        "20-mlp-neurons; empty: the SAEs of the toy",
    )

    @field_validator("paths", mode="before")
    @classmethod
    def _accept_bare_paths(cls, value: object) -> object:
        if not isinstance(value, list | tuple):
            return value
        return [{"path": entry} if isinstance(entry, str) else entry for entry in value]

    @field_serializer("paths")
    def _write_bare_paths(self, paths: tuple[SaeEntry, ...]) -> list[str | dict[str, object]]:
        tables = [entry.model_dump(exclude_none=True) for entry in paths]
        return [table["path"] if len(table) == 1 else table for table in tables]


class CorpusSection(Section):
    """The text: exactly one of `path`, `dataset` and `standard_library`."""

    path: Text | None = Field(
        default=None, description="a .txt, .jsonl or .parquet file, or a folder"
    )
    dataset: Text | None = Field(default=None, description="a data set's name on the hub")
    dataset_config: Text | None = Field(default=None, description="the data set's configuration")
    dataset_split: Text = Field(default="train", description="the data set's split")
    revision: Text | None = Field(default=None, description="the data set's revision")
    standard_library: bool = Field(
        default=False, description="read the documentation and source of this Python's library"
    )
    text_field: Text = Field(default="text", description="the field or column that holds the text")
    text_unit: Literal["paragraph", "line", "file"] = Field(
        default="paragraph",
        description='what of a .txt is a document: "paragraph", "line" or "file"',
    )
    chat: bool = Field(
        default=False,
        description="the field holds conversations, lists of {role, content}, which become text "
        "by the model's chat template",
    )
    max_tokens: Positive | None = Field(
        default=None, description="stop after the chunk in which this many tokens are reached"
    )
    max_bad_share: Share = Field(
        default=0.01,
        description="share of bad rows (counted and skipped) above which the run stops",
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [name for name in ("path", "dataset") if getattr(self, name) is not None]
        given += ["standard_library"] * self.standard_library
        if len(given) != 1:
            raise problem(
                "exactly one of `path`, `dataset` and `standard_library = true`",
                found=" and ".join(given) or "none of them",
            )
        for name in ("dataset_config", "revision"):
            if self.dataset is None and getattr(self, name) is not None:
                raise problem(f"`{name}` only beside `dataset`", found=f"`{name}` without it")
        return self


class BudgetSection(Section):
    """What one invocation may spend; what is left over is done by the next."""

    usd: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = Field(
        default=None, description="dollars for calls to models"
    )
    calls: Positive | None = Field(default=None, description="calls to models")
    minutes: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        default=None, description="after which no further call is begun"
    )

    @property
    def is_set(self) -> bool:
        """Whether there is any limit."""
        return (self.usd, self.calls, self.minutes) != (None, None, None)


class Config(Section):
    """The whole configuration of a run."""

    model: ModelSection
    saes: SaesSection = SaesSection()
    corpus: CorpusSection
    collect: CollectSection = CollectSection()
    explain: ExplainSection = ExplainSection()
    score: ScoreSection = ScoreSection()
    search: SearchSection = SearchSection()
    budget: BudgetSection = BudgetSection()
    alerts: AlertSection = AlertSection()
    runner: RunnerSection = RunnerSection()

    @model_validator(mode="after")
    def _low_labels_are_compared(self) -> Self:
        if self.explain.again.below is not None and not self.score.judges:
            raise problem(
                "a judge in `score.simulators` where `explain.again.below` is set",
                found="no simulator that compares labels",
            )
        if self.explain.chat.batch and (self.budget.calls or self.budget.minutes):
            raise problem(
                "of `budget` only `usd` beside `explain.chat.batch`",
                found="calls or minutes, which a batch is not counted in",
            )
        return self

    @model_validator(mode="after")
    def _model_has_saes(self) -> Self:
        if not self.saes.paths and self.model.name != TOY:
            raise problem(
                "at least one path in `saes.paths` (only the toy brings its own)",
                found="no SAE",
            )
        return self

    def to_toml(self) -> str:
        """This configuration as TOML, every setting explained; `load_config` reads it back."""
        return "\n".join(toml_lines(self)) + "\n"


def demo_config(max_tokens: int = 500_000, model: str | None = None, features: int = 50) -> Config:
    """The job of `scopenote demo`: the embedded toy on this Python's standard library.

    Args:
        max_tokens: how much text is read.
        model: a language model that labels some features as well.
        features: how many.
    """
    explain = ExplainSection()
    if model is not None:
        explain = ExplainSection(
            explainers=("token_lookup", "max_activations"),
            features=features,
            chat=ChatSection(model=model),
        )
    return Config(
        model=ModelSection(name=TOY),
        corpus=CorpusSection(standard_library=True, max_tokens=max_tokens),
        explain=explain,
    )


def load_config(path: Path | str) -> Config:
    """The configuration in a TOML file.

    Raises:
        ConfigurationError: for the first thing that is wrong, with what would be right.
    """
    path = Path(path)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigurationError(
            "There is no such configuration file.", where=str(path), mend="check the path"
        ) from error
    except (IsADirectoryError, PermissionError) as error:
        raise ConfigurationError(
            "The configuration file cannot be read.", where=str(path), found=error.strerror
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(
            "The configuration file is not UTF-8 text.",
            where=f"{path}, byte {error.start}",
            found=f"0x{error.object[error.start]:02x}",
            mend="save it as UTF-8",
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(
            "The configuration file is not valid TOML.",
            where=str(path),
            found=str(error),
            mend="correct that line; the syntax is described at https://toml.io",
        ) from error
    try:
        config = Config.model_validate(content)
    except ValidationError as error:
        raise explain_problems(error, path, content, Config) from error
    return _with_absolute_paths(config, path.resolve().parent)


def differing_keys(one: Config, other: Config) -> dict[str, tuple[Any, Any]]:
    """The dotted keys in which two configurations differ, with both values.

    How much memory may be taken and where tasks work changes no result and differs between
    machines; losses may be asked for later.
    """
    ours, theirs = (dict(_flatten(config.model_dump(mode="json"))) for config in (one, other))
    for values in (ours, theirs):
        values.pop("collect.memory_gib", None)
        values.pop("collect.loss_increase", None)
        for key in [key for key in values if key.startswith("runner.")]:
            del values[key]
    return {
        key: (ours.get(key), theirs.get(key))
        for key in [*ours, *(set(theirs) - set(ours))]
        if ours.get(key) != theirs.get(key)
    }


def _flatten(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _with_absolute_paths(config: Config, folder: Path) -> Config:
    """Local paths from `folder`; what does not exist and does not look local is the hub's."""

    def resolve(path: str) -> str:
        # A layer's neurons, whatever files there are.
        if split_basis_name(path):
            return path
        local = folder / Path(path).expanduser()
        # On the hub a file lies in a repository, whose name has two parts.
        is_file = path.endswith((".npz", ".safetensors")) and path.count("/") < 2
        looks_local = path.startswith((".", "/", "~")) or is_file
        return os.path.normpath(local) if looks_local or local.exists() else path

    def in_folder(path: str) -> str:
        return os.path.normpath(folder / Path(path).expanduser())

    corpus_path = config.corpus.path
    if corpus_path is not None:
        corpus_path = in_folder(corpus_path)
    writer = config.explain.chat.located(resolve, in_folder)
    judge = config.score.chat.located(resolve, in_folder)
    search = config.search.located(resolve, in_folder)
    entries = tuple(
        entry.model_copy(update={"path": resolve(entry.path)}) for entry in config.saes.paths
    )
    name = config.model.name
    return config.model_copy(
        update={
            "model": config.model.model_copy(
                update={"name": name if name == TOY else resolve(name)}
            ),
            "saes": config.saes.model_copy(update={"paths": entries}),
            "corpus": config.corpus.model_copy(update={"path": corpus_path}),
            "explain": config.explain.model_copy(update={"chat": writer}),
            "score": config.score.model_copy(update={"chat": judge}),
            "search": search,
        }
    )
