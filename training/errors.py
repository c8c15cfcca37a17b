"""Errors of the training package. Each message is one sentence that says what to do.

TrainingError
├── ConfigError        a preset or an override is wrong
├── DataError          interactions, items or embeddings cannot be used as they are
├── FitDiverged        a loss or a parameter of a network is no longer a finite number
└── FetchError         a public data set could not be downloaded completely
"""


class TrainingError(Exception):
    """Base class; the command line prints it without a traceback and exits with 1."""


class ConfigError(TrainingError):
    """A preset or an override is wrong; the command line exits with 2."""


class DataError(TrainingError):
    """Interactions, items or embeddings cannot be used as they are."""


class FitDiverged(TrainingError):
    """A loss or a parameter of a network is no longer a finite number; no bundle is made."""


class FetchError(TrainingError):
    """A public data set could not be downloaded completely."""
