"""Every error that promptmill raises on purpose.

::

    PromptmillError
    ├── UserError            the user can mend it; printed as one line, exit status 2
    │   ├── ConfigError      the configuration file or a --set override
    │   ├── PromptError      the prompt source
    │   ├── ModelError       a model or scorer that is missing, corrupt, unsafe or unsuited
    │   ├── RunFolderError   the output folder: another job's, not writable, damaged
    │   ├── QueryError       SQL that is wrong or not allowed
    │   └── ExportError      a dataset that cannot be signed or pushed
    └── ShardError           one shard could not be made; the executor decides about a retry

Anything else that escapes is a bug and keeps its traceback.
A message says where, what was found, and what to do.
"""


class PromptmillError(Exception):
    """Base of all errors raised on purpose."""


class UserError(PromptmillError):
    """A mistake that the user can mend; the message is one line with the remedy."""


class ConfigError(UserError):
    """The configuration is not usable as it stands."""


class PromptError(UserError):
    """A prompt source cannot be read, or holds something that is not a prompt."""


class ModelError(UserError):
    """A model or scorer is missing, corrupt, unsafe to load, or cannot do what is asked."""


class RunFolderError(UserError):
    """The run folder belongs to another job, cannot be written, or is damaged."""


class QueryError(UserError):
    """A query is wrong, reaches outside the run, or would write."""


class ExportError(UserError):
    """An exported dataset cannot be signed or sent as it stands."""


class ShardError(PromptmillError):
    """One shard could not be made. Carries no verdict about its draws."""
