"""The experts of a pool file by alias, with every path settled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import ValidationError

from ...retrieval import InputError
from .endpoints import find_endpoints
from .explain import explain
from .specs import ExpertSpec, PoolFile

__all__ = ["Catalog"]


class Catalog(Mapping[str, ExpertSpec]):
    """The experts of a pool file by alias, in the file's order, with paths made absolute."""

    def __init__(self, file: PoolFile, base: Path) -> None:
        self.file = file
        self.base = base.resolve()
        self._experts = {spec.alias: spec for spec in file.experts}
        _check_aliases(file, self._experts)

    @classmethod
    def load(cls, path: str | Path) -> Catalog:
        """Read a pool file.

        Raises:
            InputError: the file is missing or does not say what a pool is; one sentence, with the
                place in the file and what is possible there.
        """
        path = Path(path)
        if not path.is_file():
            raise InputError(
                f"no pool file at {path}: see examples/pool.yaml for one to start from"
            )
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}") from None
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            sentence = " ".join(str(error).split())
            raise InputError(f"{path} is not YAML: {sentence}") from None
        return cls.from_dict(content, base=path.parent, source=str(path))

    @classmethod
    def from_dict(
        cls, content: object, *, base: str | Path = ".", source: str = "the pool"
    ) -> Catalog:
        """Build a catalog from the content that a pool file would have.

        Raises:
            InputError: as for `load`.
        """
        if not isinstance(content, dict):
            raise InputError(f'{source}: a pool is a mapping with the key "experts"')
        try:
            return cls(PoolFile.model_validate(content), Path(base))
        except ValidationError as error:
            raise InputError(
                f"{source}: {explain(error, cast('dict[str, Any]', content))}"
            ) from None
        except InputError as error:
            raise InputError(f"{source}: {error}") from None

    def __getitem__(self, alias: str) -> ExpertSpec:
        try:
            return self._experts[alias]
        except KeyError:
            raise InputError(
                f'no expert named "{alias}"; the pool has {", ".join(self._experts)}'
            ) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._experts)

    def __len__(self) -> int:
        return len(self._experts)

    def __contains__(self, alias: object) -> bool:
        return alias in self._experts

    @property
    def root(self) -> Path:
        """Folder that local weights and recordings must lie in."""
        return (self.base / self.file.root).resolve()

    def locate(self, name: str, within: Path | None = None) -> Path:
        """A file or folder beside the pool file, or within another folder.

        Raises:
            InputError: it does not exist, or leads out of that folder.
        """
        folder = self.base if within is None else within
        path = (folder / name).resolve()
        if not path.is_relative_to(folder):
            raise InputError(f"{name} leads out of {folder}; the pool's files must lie in it")
        if not path.exists():
            raise InputError(f"{name} does not exist in {folder}")
        return path


def _check_aliases(file: PoolFile, experts: Mapping[str, object]) -> None:
    aliases = [spec.alias for spec in file.experts]
    find_endpoints({spec.alias: spec for spec in file.experts})
    for alias in aliases:
        if aliases.count(alias) > 1:
            raise InputError(f'two experts have the alias "{alias}"; aliases must differ')
    for role, alias in (
        ("aggregator", file.aggregator),
        ("keywords_by", file.keywords_by),
        ("skills_by", file.skills_by),
    ):
        if alias is not None and alias not in experts:
            raise InputError(f'{role} "{alias}" is no expert; the pool has {", ".join(experts)}')
