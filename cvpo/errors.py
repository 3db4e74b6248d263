"""Everything that can go wrong for a user of cvpo, each said in one sentence: what, where, what to do."""


class CvpoError(Exception):
    """A mistake or failure that the user can act on; the command line prints it and exits, without a traceback."""


class ConfigError(CvpoError):
    """A setting is missing, malformed, or does not fit another one."""


class EnvError(CvpoError):
    """An environment is unknown, reports no cost, or breaks its contract."""


class WorkerError(CvpoError):
    """A simulator process died, hangs or raised; the run cannot go on with the data it would have given."""


class NonFiniteError(CvpoError):
    """A value that must be finite is NaN or infinite; the message names it."""


class CheckpointError(CvpoError):
    """A checkpoint is missing, cut short, altered, or of another run."""


class BundleError(CvpoError):
    """A bundle is missing, cut short, altered, or cannot be written."""


class ExportError(CvpoError):
    """The exported graphs do not compute what the policy in torch computes, so no bundle is written."""


class ServiceError(CvpoError):
    """The policy service could not be reached or refused the request."""


class KeyFileError(CvpoError):
    """A file with a key is missing, is no such key, or would be overwritten."""
