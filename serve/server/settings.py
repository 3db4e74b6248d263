"""Everything an operator can set: flags, or environment variables `CVPO_SERVE_...`; a flag goes before a variable."""

import argparse
import difflib
import os
import re
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, CliApp, CliPositionalArg, CliSettingsSource, SettingsConfigDict

from serve.codec import Limits
from serve.errors import StartupError
from serve.server.tls import CertificateFiles

UNIX = "unix:"

_PREFIX = "CVPO_SERVE_"
# What Kubernetes sets in a pod for each Service (enableServiceLinks), of those whose names begin with cvpo-serve.
_SERVICE_LINK = re.compile(rf"{_PREFIX}(\w+_)?(SERVICE_HOST$|SERVICE_PORT|PORT$|PORT_\d+_)")

# A year is longer than anybody means, and waits and timestamps bear it.
Seconds = Annotated[float, Field(le=365 * 86_400, allow_inf_nan=False)]
Number = Annotated[int, Field(lt=2**30)]  # gRPC takes the sum of two in 32 bits


class Settings(BaseSettings):
    """Answers a robot's observations with actions and predicted costs, over gRPC.

    REPOSITORY is a bundle, or a folder of bundles (REPOSITORY/NAME/VERSION or REPOSITORY/ANYTHING), and is followed
    while the server runs. Of each policy the highest version is served where a request names none, or what
    REPOSITORY/NAME/serving.json asks for. Every option is also an environment variable:
    CVPO_SERVE_ADDRESS, CVPO_SERVE_MAX_BATCH, ...
    """

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX,
        frozen=True,
        extra="forbid",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
    )

    repository: CliPositionalArg[Path] = Field(description="bundle, or folder of bundles")
    address: str = Field(
        default="127.0.0.1:50051",
        description="HOST:PORT or unix:PATH to answer on; port 0 takes a free one and prints it",
    )
    metrics_address: str | None = Field(
        default=None,
        description="HOST:PORT for Prometheus at /metrics, such as 127.0.0.1:9464; off where not given, or empty",
    )
    admin_address: str | None = Field(
        default=None, description="HOST:PORT or unix:PATH for PolicyAdminService; off where not given, or empty"
    )
    share_port: bool = Field(
        default=False,
        description="let other processes with this flag listen on the same ports; each connection goes to one",
    )
    tls_certificate: Path | None = Field(
        default=None, description="PEM file of the server's certificate and those up to its root; turns TLS on"
    )
    tls_key: Path | None = Field(default=None, description="PEM file of the certificate's key, unencrypted")
    tls_client_ca: Path | None = Field(
        default=None, description="PEM file of who signs clients' certificates; clients without one are turned away"
    )
    allow_plaintext_network: bool = Field(
        default=False,
        description="listen beyond this machine without TLS although anyone there can read and send requests",
    )
    allow_uncalibrated: bool = Field(
        default=False, description="serve bundles without calibration; every one of their answers is flagged"
    )
    trusted_keys: Path | None = Field(
        default=None,
        description="public key (PEM, Ed25519), or folder of *.pub: serve only bundles that one of them signed; "
        "without it, signatures are not looked at",
    )
    poll_seconds: Seconds = Field(
        default=1.0, gt=0, description="time between two looks at the repository for what is new or gone"
    )
    max_batch: Number = Field(default=Limits.max_batch, ge=1, description="situations in one request, at most")
    max_candidates: Number = Field(
        default=Limits.max_candidates, ge=2, description="candidates of a shielded request, at most"
    )
    max_rows: Number = Field(
        default=Limits.max_rows, ge=2, description="situations times candidates of a shielded request, at most"
    )
    max_message_bytes: Number = Field(
        default=Limits.max_message_bytes, ge=1024, description="size of a request, or of a stream's message, at most"
    )
    max_concurrent_requests: Number = Field(
        default=128,
        ge=1,
        description="requests in work at once, and requests of one method that wait to be taken up, at most; more are "
        "refused",
    )
    max_streams: Number = Field(default=1024, ge=1, description="open streams, at most; more are refused")
    session_key_file: Path | None = Field(
        default=None,
        description="file of a secret that authenticates sessions' state, the same for all replicas; a random one for "
        "each process where not given",
    )
    session_idle_seconds: Seconds = Field(
        default=60.0, gt=0, description="a stream without a step, and a session's state, last for this long"
    )
    strict_observations: bool = Field(
        default=False, description="refuse observations outside the observation space instead of flagging them"
    )
    threads: Number = Field(
        default=4, ge=1, description="large requests computed at the same time, at most; small ones need no thread"
    )
    drain_seconds: Seconds = Field(
        default=10.0, ge=0, description="time that requests in flight are given when the server is told to stop"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="debug also logs each refused request"
    )

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_empty(cls, value: object, info: ValidationInfo) -> object:
        """An empty path would be the working directory, and whether security was meant cannot be guessed."""
        if value != "":
            return value
        if info.field_name in ("metrics_address", "admin_address"):
            return None  # off, also where an image has it on
        raise ValueError("it is empty; give it a value, or leave out both the flag and the variable")

    @field_validator("address", "admin_address", "metrics_address")
    @classmethod
    def _check_address(cls, address: str | None, info: ValidationInfo) -> str | None:
        if address is not None and (info.field_name == "metrics_address" or not address.startswith(UNIX)):
            split_address(address)
        return address

    @property
    def limits(self) -> Limits:
        return Limits(
            self.max_batch, self.max_candidates, self.max_rows, self.max_message_bytes, self.strict_observations
        )

    @property
    def certificate_files(self) -> CertificateFiles | None:
        """The files of TLS; None without.

        Raises:
            StartupError: only some of them are given.
        """
        if self.tls_certificate is not None and self.tls_key is not None:
            return CertificateFiles(self.tls_certificate, self.tls_key, self.tls_client_ca)
        if self.tls_certificate or self.tls_key or self.tls_client_ca:
            raise StartupError("TLS needs both --tls-certificate and --tls-key.")
        return None


def parse(arguments: list[str], program: str) -> Settings:
    """Return the settings that command-line arguments and the environment give.

    Raises:
        StartupError: a value is missing or wrong, which names its flag, or a variable is no option's.
        SystemExit: after `--help`, or for a flag that does not exist (argparse's own message, status 2).
    """
    _refuse_unknown_variables(program)
    source: CliSettingsSource[Settings] = CliSettingsSource(
        Settings, cli_prog_name=program, formatter_class=argparse.HelpFormatter
    )
    try:
        return CliApp.run(Settings, cli_args=arguments, cli_settings_source=source)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "settings"
        flag = "REPOSITORY" if name == "repository" else "--" + name.replace("_", "-")
        what = first["ctx"]["error"] if first["type"] == "value_error" else first["msg"]
        raise StartupError(f"{flag}: {what}. See `{program} --help`.") from error


def _refuse_unknown_variables(program: str) -> None:
    """Refuse a misspelt variable: without CVPO_SERVE_TRUSTED_KEYS, say, a server trusts everybody's bundles.

    Raises:
        StartupError: names the variable, and the nearest that there is.
    """
    options = [name.upper() for name in Settings.model_fields if name != "repository"]
    for variable in os.environ:
        name = variable.upper()
        if not name.startswith(_PREFIX) or _SERVICE_LINK.match(name):
            continue
        option = name.removeprefix(_PREFIX)
        if option not in options:
            nearest = difflib.get_close_matches(option, options, 1)
            write = f"Write {_PREFIX}{nearest[0]}" if nearest else "Take it out"
            raise StartupError(f"{variable}: there is no such option. {write}, or see `{program} --help`.")


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of HOST:PORT; an IPv6 host stands in brackets.

    Raises:
        ValueError: it is not of that form, or the host is no name.
    """
    host, colon, port = address.rpartition(":")
    if not (colon and host and port.isdecimal() and len(port) <= 5 and int(port) <= 65535):
        raise ValueError(f"{address!r} is not an address; write HOST:PORT, such as 127.0.0.1:50051")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise ValueError(f"{address!r} is not an address; an IPv6 host stands in brackets: write [{host}]:{port}")
    try:
        host.encode("idna")  # as it is looked up
    except UnicodeError as error:
        raise ValueError(
            f"{address!r} is not an address; the name of a host has 1 to 63 characters between two dots"
        ) from error
    return host.removeprefix("[").removesuffix("]"), int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
