"""Where the server listens: who may reach it, and why an address cannot be had."""

import os
import socket
from pathlib import Path

import grpc

from serve.errors import StartupError
from serve.server.settings import UNIX, Settings, is_loopback, split_address

_MOST_PATH_BYTES = 107  # of a socket's path, on Linux


def check_reach(settings: Settings) -> None:
    """Refuse an address that other machines can reach, unless there is TLS or the operator said so.

    With TLS the admin address asks for clients' certificates, whatever was said of plaintext: who reaches it decides
    what the robots are served.

    Raises:
        StartupError: names the address.
    """
    if settings.tls_certificate is None:
        if settings.allow_plaintext_network:
            return
        for address in filter(None, (settings.address, settings.admin_address, settings.metrics_address)):
            if _is_reached(address):
                raise StartupError(
                    f"{address} can be reached from other machines, and requests travel unencrypted and "
                    "unauthenticated. Use 127.0.0.1 or unix:PATH, or TLS (--tls-certificate), or accept the risk with "
                    "--allow-plaintext-network."
                )
    elif settings.tls_client_ca is None and settings.admin_address and _is_reached(settings.admin_address):
        raise StartupError(
            f"{settings.admin_address} can be reached from other machines, and whoever reaches it may change which "
            "versions are served. Use 127.0.0.1 or unix:PATH, or let in only clients with a certificate "
            "(--tls-client-ca)."
        )


def _is_reached(address: str) -> bool:
    """Whether other machines may reach it."""
    return not address.startswith(UNIX) and not is_loopback(split_address(address)[0])


def check_free(address: str, *, shared: bool, flag: str) -> None:
    """Refuse an address that cannot be had.

    Args:
        address: HOST:PORT or unix:PATH.
        shared: whether other processes may listen on the same port.
        flag: what sets the address.

    Raises:
        StartupError: says why.
    """
    if not address.startswith(UNIX):
        _check_port_free(address, flag, shared=shared)
    elif shared:
        raise StartupError(f"{address} cannot be shared. Use HOST:PORT with --share-port.")
    else:
        _check_socket_free(address.removeprefix(UNIX), flag)


def bind(
    server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None, *, shared: bool, flag: str
) -> str:
    """Open a port and return the address that clients use, with the real port where 0 was asked for.

    Args:
        server: not started yet.
        address: HOST:PORT or unix:PATH.
        credentials: of this port alone, where they are renewed; None for plaintext.
        shared: whether other processes may listen on the same port.
        flag: what sets the address.

    Raises:
        StartupError: the address cannot be had.
    """
    check_free(address, shared=shared, flag=flag)
    try:
        if credentials is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise StartupError(f"Cannot listen on {address}. Choose another {flag}.") from error
    return address if address.startswith(UNIX) else f"{address.rpartition(':')[0]}:{port}"


def _check_port_free(address: str, flag: str, *, shared: bool) -> None:
    """Say why an address cannot be had: gRPC does not tell."""
    host, port = split_address(address)
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as gRPC does: closed connections may linger
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, shared)
            probe.bind(target)
    except OSError as error:
        raise StartupError(f"Cannot listen on {address}: {error.strerror}. Choose another {flag}.") from error


def _check_socket_free(path: str, flag: str) -> None:
    """Refuse a path that is taken: gRPC would silently take the place of a server that answers there."""
    if not path:
        raise StartupError(f"{flag}: the path of unix: is empty; write unix:PATH, such as unix:/run/policy.sock.")
    if len(os.fsencode(path)) > _MOST_PATH_BYTES:
        raise StartupError(
            f"Cannot listen on unix:{path}: a socket's path has at most {_MOST_PATH_BYTES} bytes. Choose another "
            f"{flag}."
        )
    if not os.access(Path(path).parent, os.W_OK):
        raise StartupError(f"Cannot listen on unix:{path}: the folder is not there, or cannot be written.")
    if Path(path).exists() and not Path(path).is_socket():
        raise StartupError(f"{path} exists and is no socket. Choose another {flag}.")
    with socket.socket(socket.AF_UNIX) as probe:
        if probe.connect_ex(path) == 0:
            raise StartupError(f"Another server answers on unix:{path}. Stop it, or choose another {flag}.")
