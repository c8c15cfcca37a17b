"""Models that a user brings to a comparison: `--system my.module:Model`.

A model is a class with `name`, `parameters`, the class method `fit(train)` and the method
`scores(histories)`, as docs/how-to/extend.md shows. What it lacks, or scores wrongly, is said in
one sentence. Errors inside the model's own code keep their traceback. Knows no other system.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.data import Interactions
from training.errors import ConfigError, TrainingError

LONGEST_NAME = 60  # characters of a name in tables
NOT_IN_NAMES = "|$\\"  # these have a meaning in Markdown tables or in labels of the picture


@dataclass(frozen=True)
class GivenSystem:
    """A class that was found and has what a system needs.

    reference: `my.module:Model`, as it was given
    source_hash: SHA-256 of the files that hold the module and the class
    """

    reference: str
    model: type[Any]
    source_hash: str

    @property
    def name(self) -> str:
        """What tables call it."""
        name: str = self.model.name
        return name

    def fit(self, train: Interactions) -> GivenScorer:
        """Fit the model. Raises TrainingError when the result is no system."""
        fitted = self.model.fit(train)
        for wanted in ("parameters", "scores"):
            if not hasattr(fitted, wanted):
                raise TrainingError(
                    f"{self._said}: what fit returns ({type(fitted).__name__}) has no {wanted}"
                )
        try:
            parameters = int(fitted.parameters)
        except (TypeError, ValueError) as error:
            raise TrainingError(f"{self._said}: parameters must be a whole number") from error
        return GivenScorer(self, fitted, parameters, train.num_items)

    @property
    def _said(self) -> str:
        return f"--system {self.reference}"


@dataclass(frozen=True)
class GivenScorer:
    """A fitted model as a `training.baselines.Scorer`. Its scores are checked."""

    system: GivenSystem
    fitted: Any
    parameters: int
    num_items: int

    @property
    def name(self) -> str:
        return self.system.name

    def scores(self, histories: Sequence[NDArray[np.int32]]) -> NDArray[np.floating]:
        """(n, num_items), finite; see Scorer. Raises TrainingError for anything else."""
        found, wanted = self.fitted.scores(histories), (len(histories), self.num_items)
        said = f"--system {self.system.reference}: scores"
        if not isinstance(found, np.ndarray):
            raise TrainingError(f"{said} must return a numpy array, not {type(found).__name__}")
        if found.shape != wanted:
            raise TrainingError(f"{said} has shape {found.shape}, but {wanted} is wanted: {_SHAPE}")
        if found.dtype.kind not in "fiu":
            raise TrainingError(f"{said} must be numbers, not {found.dtype}")
        if not np.isfinite(found).all():
            raise TrainingError(f"{said} holds values that are not finite (NaN or infinity)")
        return found if found.dtype.kind == "f" else found.astype(np.float64)


_SHAPE = "a line for each history, and a column for each item"


def find_system(reference: str) -> GivenSystem:
    """Import `module:Class`; the current folder is searched too. Raises ConfigError."""
    said = f"--system {reference}"
    module_name, separator, class_name = reference.partition(":")
    parts = [*module_name.split("."), class_name]
    if not separator or not all(part.isidentifier() for part in parts):
        raise ConfigError(f"{said}: name a module and a class, for instance my_module:MyModel")
    module = _imported(module_name, said)
    model = getattr(module, class_name, None)
    if not inspect.isclass(model):
        raise ConfigError(f"{said}: {module_name} has no class {class_name}")
    _check(model, said)
    return GivenSystem(reference, model, _source_hash(module.__name__, model.__module__))


def _imported(module_name: str, said: str) -> Any:
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(module_name)
    except Exception as error:  # whatever the file does when it is imported
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{module_name}.".startswith(f"{missing}."):
            raise ConfigError(
                f"{said}: there is no module {missing} in {here} or among the installed packages"
            ) from error
        raise ConfigError(
            f"{said}: {module_name} cannot be imported: {type(error).__name__}: {error}"
        ) from error


def _check(model: type[Any], said: str) -> None:
    for method in ("fit", "scores"):
        if not callable(getattr(model, method, None)):
            raise ConfigError(f"{said}: the class has no method {method}")
    if inspect.isfunction(inspect.getattr_static(model, "fit")):
        raise ConfigError(f"{said}: fit must be a class method (@classmethod)")
    name = getattr(model, "name", None)
    if not isinstance(name, str) or not name.strip():
        raise ConfigError(f"{said}: the class has no name, a text for the tables")
    if len(name) > LONGEST_NAME or not name.isprintable() or set(name) & set(NOT_IN_NAMES):
        raise ConfigError(
            f"{said}: its name may have {LONGEST_NAME} printable characters, but none of "
            f"{' '.join(NOT_IN_NAMES)}"
        )


def _source_hash(*modules: str) -> str:
    digest = hashlib.sha256()
    for name in dict.fromkeys(modules):
        file = getattr(sys.modules.get(name), "__file__", None)
        digest.update(name.encode() + b"\n")
        if file is not None:
            digest.update(hashlib.sha256(Path(file).read_bytes()).digest())
    return digest.hexdigest()
